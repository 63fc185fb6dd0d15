"""A bundle: the folder of packages that nodes without internet install, its manifest, and the manifest's signature.

The manifest names every file with its size in bytes and its SHA-256. ssh-keygen(1) makes and checks its signature (OpenSSH
PROTOCOL.sshsig): OpenSSH is installed on every node, and its signatures do not expire, so that a node whose clock is at 1970 can
check them.
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
_FILE_NAME = re.compile(r"(debs|wheels)/[A-Za-z0-9_][A-Za-z0-9._+~-]*")


@dataclass(frozen=True)
class Kind:
    """What the nodes of one bundle have in common: release ("trixie"), Python ("3.13") and architecture ("aarch64")."""

    release: str
    python: str
    architecture: str

    def __str__(self) -> str:
        return f"{self.release} {self.architecture} python{self.python}"


@dataclass(frozen=True)
class Manifest:
    """The content of a bundle: its kind, the Debian packages that were asked for, and files: name -> (SHA-256, size in bytes)."""

    id: str
    kind: Kind
    debs: tuple[str, ...]
    files: Mapping[str, tuple[str, int]]

    def to_json(self) -> bytes:
        """Return the manifest as JSON: the same bytes for the same content."""
        files = {name: {"sha256": digest, "bytes": size} for name, (digest, size) in sorted(self.files.items())}
        content = {"format": FORMAT, "id": self.id, **asdict(self.kind), "debs": list(self.debs), "files": files}
        return (json.dumps(content, indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Return the manifest that JSON describes.

        Raises BrambleError for anything else, for another format, and for names that lead out of the folder.
        """
        try:
            content = json.loads(data)
            if content["format"] != FORMAT:
                raise BrambleError(
                    f"it has format {content['format']}, and this version reads format {FORMAT}. Make the bundle again"
                )
            files = {str(name): (str(entry["sha256"]), int(entry["bytes"])) for name, entry in content["files"].items()}
            kind = Kind(*(str(content[name]) for name in ("release", "python", "architecture")))
            manifest = cls(str(content["id"]), kind, tuple(map(str, content["debs"])), files)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise BrambleError(f"{MANIFEST} is not the manifest of a bundle: {error}") from None
        if unexpected := [name for name in files if not _FILE_NAME.fullmatch(name)]:
            raise BrambleError(f"{MANIFEST} names files that no bundle has: {', '.join(map(repr, unexpected))}")
        return manifest

    @property
    def total_bytes(self) -> int:
        """The size of all files together, in bytes."""
        return sum(size for _, size in self.files.values())


def manifest_entries(folder: Path) -> dict[str, tuple[str, int]]:
    """Return the files of a bundle's folder as a manifest lists them: name -> (SHA-256, size in bytes)."""
    paths = sorted(path for kind in ("debs", "wheels") for path in (folder / kind).iterdir())
    return {str(path.relative_to(folder)): (file_sha256(path), path.stat().st_size) for path in paths}


def find_problems(folder: Path, manifest: Manifest, compare_hashes: bool = True) -> Iterator[str]:
    """Yield a sentence for each file that is missing in a folder or differs from the manifest.

    :param compare_hashes: compare the SHA-256 of each file, not only its size
    """
    for name, (digest, size) in manifest.files.items():
        path = folder / name
        if not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != size:
            yield f"{name} is altered: {path.stat().st_size:,} bytes, not {size:,}"
        elif compare_hashes and file_sha256(path) != digest:
            yield f"{name} is altered: its SHA-256 is not {digest}"


def run_command(*command: str | Path, stdin: bytes = b"", env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a command, and return its standard output.

    Raises BrambleError with the last lines of its output when it fails, and when it is not installed.
    """
    return process.run_program(command, input=stdin, env=env, cwd=cwd, select_lines=_error_lines).stdout.decode(errors="replace")


def _error_lines(output: str) -> Sequence[str]:
    """Return the lines that apt and pip mark as errors; the last lines where none is marked."""
    return [line for line in output.splitlines() if line.startswith(("E: ", "ERROR: "))] or process.last_lines(output)


def generate_key(path: Path) -> None:
    """Generate the key that signs bundles, unless it exists; its public key is beside it. Raises BrambleError."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        run_command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bramble bundles", "-f", path)


def sign_manifest(data: bytes, key: Path) -> bytes:
    """Return the signature over a manifest. Raises BrambleError."""
    return run_command("ssh-keygen", "-q", "-Y", "sign", "-n", _NAMESPACE, "-f", key, stdin=data).encode()


def check_signature(data: bytes, signature: bytes, keys: Sequence[str]) -> None:
    """Check that one of the public keys (as in id_ed25519.pub) has signed the manifest. Raises BrambleError otherwise."""
    with tempfile.TemporaryDirectory(prefix="bundle-") as folder:
        signers_file, signature_file = Path(folder, "signers"), Path(folder, "signature")
        signers_file.write_text("".join(f'bramble namespaces="{_NAMESPACE}" {key.strip()}\n' for key in keys))
        signature_file.write_bytes(signature)
        try:
            run_command(
                *("ssh-keygen", "-q", "-Y", "verify", "-n", _NAMESPACE, "-I", "bramble"),
                *("-f", signers_file, "-s", signature_file),
                stdin=data,
            )
        except BrambleError as error:
            raise BrambleError(
                f"it is signed neither by the control machine nor by a key of package_bundle_signers ({error})"
            ) from None


def read_bundle(folder: Path, keys: Sequence[str], compare_hashes: bool = True) -> tuple[Manifest, str]:
    """Return the manifest of the bundle in a folder, and the manifest's SHA-256.

    Raises BrambleError when the signature is not good, and when a file is missing or altered; it names each of them.

    :param keys: the public keys whose signatures are accepted
    :param compare_hashes: compare the SHA-256 of each file, not only its size
    """
    try:
        data, signature = ((folder / name).read_bytes() for name in (MANIFEST, SIGNATURE))
    except OSError as error:
        raise BrambleError(f"{os.path.basename(error.filename)} is missing") from None
    check_signature(data, signature, keys)
    manifest = Manifest.from_json(data)
    if problems := list(find_problems(folder, manifest, compare_hashes)):
        raise BrambleError("; ".join(problems))
    return manifest, hashlib.sha256(data).hexdigest()
