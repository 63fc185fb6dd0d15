"""A bundle: the folder of packages that nodes without internet install, its manifest, and the manifest's signature.

The manifest names every file with its size in bytes and its SHA-256; the signature over it is one that ssh-keygen(1) makes and
checks (OpenSSH PROTOCOL.sshsig). OpenSSH is on every node, and it asks no clock: a node may think it is 1970.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ansible_collections.bramble.cluster.plugins.module_utils.core import process
from ansible_collections.bramble.cluster.plugins.module_utils.core.digest import file_sha256
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

FORMAT = 1
MANIFEST, SIGNATURE = "manifest.json", "manifest.json.sig"
_NAMESPACE = "bramble-bundle"
_FILE = re.compile(r"(debs|wheels)/[A-Za-z0-9_][A-Za-z0-9._+~-]*")


@dataclass(frozen=True)
class Kind:
    """What nodes have in common that install the same bundle: release ("trixie"), Python ("3.13"), architecture ("aarch64")."""

    release: str
    python: str
    architecture: str

    def __str__(self) -> str:
        return f"{self.release} {self.architecture} python{self.python}"


@dataclass(frozen=True)
class Manifest:
    """What is in a bundle: its kind, the Debian packages it is for, and files: name -> (SHA-256, size in bytes)."""

    id: str
    kind: Kind
    debs: tuple[str, ...]
    files: Mapping[str, tuple[str, int]]

    def dump(self) -> bytes:
        """As JSON, the same bytes for the same content."""
        files = {name: {"sha256": digest, "bytes": size} for name, (digest, size) in sorted(self.files.items())}
        content = {"format": FORMAT, "id": self.id, **asdict(self.kind), "debs": list(self.debs), "files": files}
        return (json.dumps(content, indent=1) + "\n").encode()

    @classmethod
    def load(cls, data: bytes) -> Manifest:
        """From JSON. Raises BrambleError for anything else, another format, and names that lead out of the folder."""
        try:
            content = json.loads(data)
            if content["format"] != FORMAT:
                raise BrambleError(f"format {content['format']}; this version reads format {FORMAT}: make the bundle again")
            files = {str(name): (str(entry["sha256"]), int(entry["bytes"])) for name, entry in content["files"].items()}
            kind = Kind(*(str(content[name]) for name in ("release", "python", "architecture")))
            manifest = cls(str(content["id"]), kind, tuple(map(str, content["debs"])), files)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise BrambleError(f"{MANIFEST} is not one of a bundle: {error}") from None
        if strange := [name for name in files if not _FILE.fullmatch(name)]:
            raise BrambleError(f"{MANIFEST} names files that no bundle has: {', '.join(map(repr, strange))}")
        return manifest

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(size for _, size in self.files.values())


def describe(folder: Path) -> dict[str, tuple[str, int]]:
    """The files of a folder, as a manifest has them."""
    paths = sorted(path for kind in ("debs", "wheels") for path in (folder / kind).iterdir())
    return {str(path.relative_to(folder)): (file_sha256(path), path.stat().st_size) for path in paths}


def wrong(folder: Path, manifest: Manifest, contents: bool = True) -> Iterator[str]:
    """What is missing in a folder or is not as the manifest says, as words for people; sizes only, unless `contents`."""
    for name, (digest, size) in manifest.files.items():
        path = folder / name
        if not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != size:
            yield f"{name} is altered: {path.stat().st_size:,} bytes, not {size:,}"
        elif contents and file_sha256(path) != digest:
            yield f"{name} is altered: its SHA-256 is not {digest}"


def run_command(*command: str | Path, given: bytes = b"", env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a command, and return what it writes. Raises BrambleError with its last words when it fails or is not there."""
    return process.run_program(command, input=given, env=env, cwd=cwd, select_lines=_marked_lines).stdout.decode(errors="replace")


def _marked_lines(output: str) -> Sequence[str]:
    """Return the lines that apt and pip mark as errors; the last lines where none is marked."""
    return [line for line in output.splitlines() if line.startswith(("E: ", "ERROR: "))] or process.last_lines(output)


def make_key(path: Path) -> None:
    """Make the key that signs, unless it is there; the public one is beside it. Raises BrambleError."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        run_command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bramble bundles", "-f", path)


def sign(data: bytes, key: Path) -> bytes:
    """The signature over a manifest. Raises BrambleError."""
    return run_command("ssh-keygen", "-q", "-Y", "sign", "-n", _NAMESPACE, "-f", key, given=data).encode()


def check_signature(data: bytes, signature: bytes, keys: Sequence[str]) -> None:
    """Raises BrambleError unless one of the public keys (as in id_ed25519.pub) has signed the manifest."""
    with tempfile.TemporaryDirectory(prefix="bundle-") as folder:
        signers, given = Path(folder, "signers"), Path(folder, "signature")
        signers.write_text("".join(f'bramble namespaces="{_NAMESPACE}" {key.strip()}\n' for key in keys))
        given.write_bytes(signature)
        try:
            run_command(
                *("ssh-keygen", "-q", "-Y", "verify", "-n", _NAMESPACE), "-I", "bramble", "-f", signers, "-s", given, given=data
            )
        except BrambleError as error:
            raise BrambleError(f"it is not signed by this machine, nor by a key of package_bundle_signers ({error})") from None


def read(folder: Path, keys: Sequence[str], contents: bool = True) -> tuple[Manifest, str]:
    """The manifest of a bundle in a folder, and its SHA-256, when the signature and all files are right.

    Raises BrambleError that names every file that is not; only sizes are compared unless `contents`.
    """
    try:
        data, signature = ((folder / name).read_bytes() for name in (MANIFEST, SIGNATURE))
    except OSError as error:
        raise BrambleError(f"{os.path.basename(error.filename)} is missing") from None
    check_signature(data, signature, keys)
    manifest = Manifest.load(data)
    if problems := list(wrong(folder, manifest, contents)):
        raise BrambleError("; ".join(problems))
    return manifest, hashlib.sha256(data).hexdigest()
