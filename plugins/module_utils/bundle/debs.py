"""The Debian packages that a card image lacks, with all they depend on: found by apt, as the image itself would look for them.

apt runs on this machine in a private root with the image's own package status, sources and keyrings, read out of the image with
debugfs. So exactly what the image lacks is downloaded, from where the image would, verified by the keys that the image trusts.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from ansible_collections.bramble.cluster.plugins.module_utils.bundle.bundle import Kind, run_command
from ansible_collections.bramble.cluster.plugins.module_utils.card.partition import boot_and_root, parse_mbr
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import SECTOR, read_exactly
from ansible_collections.bramble.cluster.plugins.module_utils.core.digest import file_sha256
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.tools import TOOL_ENV

# Debian's words for what `uname -m` says.
ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
_SIGNED_BY = re.compile(r"(signed-by\s*[:=]\s*)([^\]\n]*)", re.IGNORECASE)
# As it is written on the card: what apt needs to know, and what tells the image's kind.
_FILES = ("/usr/lib/os-release", "/var/lib/dpkg/status", "/var/lib/apt/extended_states")
_FOLDERS = ("/etc/apt", "/usr/share/keyrings")


class Image:
    """What apt needs to know of a card image, read out of it into a folder of its own."""

    def __init__(self, manifest: Path, folder: Path) -> None:
        """Raises BrambleError for a manifest (.json) without an image, and for an image that is not like Debian's."""
        self.folder = folder
        try:
            facts = json.loads(manifest.read_text(encoding="utf-8"))
            self.name, path = str(facts["name"]), manifest.parent / facts["file"]
            with path.open("rb") as file:
                _, root = boot_and_root(parse_mbr(read_exactly(file.fileno(), 0, SECTOR), os.fstat(file.fileno()).st_size))
        except (OSError, ValueError, LookupError) as error:
            raise BrambleError(
                f"the image of the nodes, which says what they lack, is not there ({error}): run playbooks/image.yml, or name "
                "the right one in package_bundle_images"
            ) from None
        except BrambleError as error:
            raise BrambleError(f"the image {path} can not be read: {error}") from None
        self._read(path, root.start)
        self.kind = self._kind()

    def _read(self, path: Path, start: int) -> None:
        requests = []
        for name in (*_FILES, *_FOLDERS):
            (self.folder / name[1:]).parent.mkdir(parents=True, exist_ok=True)
        requests += [f"dump {name} {name[1:]}" for name in _FILES]
        requests += [f"rdump {name} {Path(name).parent.relative_to('/')}" for name in _FOLDERS]
        # Without root it can not give files to their owners, says so, and is right all the same.
        command = ["debugfs", "-f", "-", f"{path.resolve()}?offset={start}"]
        run_command(*command, given="\n".join([*requests, ""]).encode(), env=TOOL_ENV, cwd=self.folder)

    def _package(self, name: str) -> str:
        """What dpkg's status says of an installed package; "" if there is none."""
        status = self.folder / "var/lib/dpkg/status"
        text = status.read_text(encoding="utf-8", errors="replace") if status.exists() else ""
        found = re.search(rf"^Package: {name}\n(?:.+\n)*", text, re.MULTILINE)
        return found[0] if found and "\nStatus: install ok installed\n" in found[0] else ""

    def _kind(self) -> Kind:
        release = self.folder / "usr/lib/os-release"
        codename = re.search(r'^VERSION_CODENAME="?([a-z-]+)"?$', release.read_text() if release.exists() else "", re.MULTILINE)
        python = re.search(r"^Version: (?:\d+:)?(\d+\.\d+)", self._package("python3"), re.MULTILINE)
        architecture = re.search(r"^Architecture: (\w+)", self._package("dpkg"), re.MULTILINE)
        if not codename or not python or not architecture or architecture[1] not in ARCHITECTURES:
            raise BrambleError(
                f"the image {self.name} is not one that packages can be bundled for: Debian, Raspberry Pi OS, Ubuntu or Kali "
                f"of 64 bits, with Python (found: {codename and codename[1]}, {python and python[1]}, "
                f"{architecture and architecture[1]})"
            )
        return Kind(codename[1], python[1], ARCHITECTURES[architecture[1]])

    def download(self, packages: Sequence[str], lists: Path, debs: Path) -> None:
        """Download what the image lacks to have the packages, into `debs`. Raises BrambleError.

        :param lists: a folder where the distribution's indexes are kept from one time to the next
        """
        lists, debs = lists.resolve(), debs.resolve()
        for folder in (lists, debs):
            (folder / "partial").mkdir(parents=True, exist_ok=True)
        configuration = self.folder / "apt.conf"
        configuration.write_text("\n".join(self._configuration(lists, debs)) + "\n", encoding="utf-8")
        self._own_keyrings()
        env = {**os.environ, "APT_CONFIG": str(configuration), "LC_ALL": "C.UTF-8"}
        try:
            run_command("apt-get", "-q", "update", env=env)
            run_command("apt-get", "-q", "--yes", "--no-install-recommends", "--download-only", "install", *packages, env=env)
        except BrambleError as error:
            raise BrambleError(
                f"the Debian packages for the image {self.name} could not be collected: {error}. Collecting needs the internet, "
                "on this machine only; then run the same command again"
            ) from None
        for rest in (debs / "partial", debs / "lock"):
            rest.rmdir() if rest.is_dir() else rest.unlink(missing_ok=True)

    def _configuration(self, lists: Path, debs: Path) -> Iterator[str]:
        debian = {known: name for name, known in ARCHITECTURES.items()}[self.kind.architecture]
        yield f'Dir "{self.folder}/";'
        yield f'Dir::State::status "{self.folder}/var/lib/dpkg/status";'
        yield f'Dir::State::lists "{lists}/";'
        yield f'Dir::Cache::archives "{debs}/";'
        # The image's own settings may run programs: these are enough.
        yield 'Dir::Etc::parts "none"; Dir::Etc::main "none";'
        yield f'APT::Architecture "{debian}"; APT::Architectures {{ "{debian}"; }};'
        yield 'APT::Sandbox::User "root"; APT::Update::Error-Mode "any"; Debug::NoLocking "true";'
        yield 'Acquire::Languages "none"; Acquire::GzipIndexes "true"; Acquire::Retries "2";'
        # How this machine reaches the internet.
        yield from subprocess.run(
            ["apt-config", "dump", "Acquire::http", "Acquire::https"], capture_output=True, text=True, check=False
        ).stdout.splitlines()

    def _own_keyrings(self) -> None:
        """Let the sources name the image's keyrings, which they do by absolute paths."""
        sources = self.folder / "etc/apt"
        for path in [sources / "sources.list", *(sources / "sources.list.d").glob("*")]:
            if path.is_file():
                text = path.read_text(encoding="utf-8", errors="replace")
                path.write_text(
                    _SIGNED_BY.sub(lambda found: found[1] + re.sub(r"(?<!\S)/", f"{self.folder}/", found[2]), text),
                    encoding="utf-8",
                )


def index(debs: Path) -> str:
    """The index (Packages) of a folder of .deb files: a flat repository for apt. Raises BrambleError.

    Source: Debian repository format, "Packages" Indices.
    """
    stanzas = []
    for path in sorted(debs.glob("*.deb")):
        control = run_command("dpkg-deb", "--field", path).strip()
        stanzas.append(f"{control}\nFilename: ./{path.name}\nSize: {path.stat().st_size}\nSHA256: {file_sha256(path)}\n")
    return "\n".join(stanzas)
