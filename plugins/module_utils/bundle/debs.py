"""Download the Debian packages that a card image lacks, with all their dependencies.

apt runs on the control machine in a private root with the package status, the sources and the keyrings of the image, which
debugfs reads from the image. So apt downloads exactly what the image lacks, from the image's own sources, and verifies it with
the keys that the image trusts.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from ansible_collections.bramble.cluster.plugins.module_utils.bundle.bundle import Kind, run_command
from ansible_collections.bramble.cluster.plugins.module_utils.card.partition import boot_and_root, parse_partitions
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import read_exactly
from ansible_collections.bramble.cluster.plugins.module_utils.core.digest import file_sha256
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.tools import TOOL_ENV

# Debian's names of architectures -> what `uname -m` prints.
ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
_SIGNED_BY = re.compile(r"(signed-by\s*[:=]\s*)([^\]\n]*)", re.IGNORECASE)
# The paths on the card of what apt needs to know, and of what tells the kind of the image.
_IMAGE_FILES = ("/usr/lib/os-release", "/var/lib/dpkg/status", "/var/lib/apt/extended_states")
_IMAGE_FOLDERS = ("/etc/apt", "/usr/share/keyrings")


class CardImage:
    """A card image as apt needs it: its package status, sources and keyrings, copied from it into a folder."""

    def __init__(self, manifest: Path, folder: Path) -> None:
        """Read an image.

        Raises BrambleError for a manifest without an image, and for an image of which no bundle can be made.

        :param manifest: the manifest (.json) of the image
        :param folder: an empty folder for what is read
        """
        self.folder = folder
        try:
            facts = json.loads(manifest.read_text(encoding="utf-8"))
            self.name, path = str(facts["name"]), manifest.parent / facts["file"]
            with path.open("rb") as file:
                read = functools.partial(read_exactly, file.fileno())
                _, root = boot_and_root(parse_partitions(read, os.fstat(file.fileno()).st_size))
        except (OSError, ValueError, LookupError) as error:
            raise BrambleError(
                f"the nodes' image is missing ({error}), and it tells which packages they lack. Run playbooks/image.yml, or name "
                "another image in package_bundle_images"
            ) from None
        except BrambleError as error:
            raise BrambleError(f"the image {path} cannot be read: {error}") from None
        self._extract_files(path, root.start)
        self.kind = self._detect_kind()

    def _extract_files(self, path: Path, start: int) -> None:
        """Copy what apt needs from the file system at byte `start` of an image."""
        requests = []
        for name in (*_IMAGE_FILES, *_IMAGE_FOLDERS):
            (self.folder / name[1:]).parent.mkdir(parents=True, exist_ok=True)
        requests += [f"dump {name} {name[1:]}" for name in _IMAGE_FILES]
        requests += [f"rdump {name} {Path(name).parent.relative_to('/')}" for name in _IMAGE_FOLDERS]
        # Without root, debugfs warns that it cannot set owners; the files are complete.
        command = ["debugfs", "-f", "-", f"{path.resolve()}?offset={start}"]
        run_command(*command, stdin="\n".join([*requests, ""]).encode(), env=TOOL_ENV, cwd=self.folder)

    def _installed_package(self, name: str) -> str:
        """Return the paragraph of an installed package in dpkg's status; "" if it is not installed."""
        status = self.folder / "var/lib/dpkg/status"
        text = status.read_text(encoding="utf-8", errors="replace") if status.exists() else ""
        found = re.search(rf"^Package: {name}\n(?:.+\n)*", text, re.MULTILINE)
        return found[0] if found and "\nStatus: install ok installed\n" in found[0] else ""

    def _detect_kind(self) -> Kind:
        """Return the kind of the nodes that boot this image. Raises BrambleError for an image that has none."""
        release = self.folder / "usr/lib/os-release"
        codename = re.search(r'^VERSION_CODENAME="?([a-z-]+)"?$', release.read_text() if release.exists() else "", re.MULTILINE)
        python = re.search(r"^Version: (?:\d+:)?(\d+\.\d+)", self._installed_package("python3"), re.MULTILINE)
        architecture = re.search(r"^Architecture: (\w+)", self._installed_package("dpkg"), re.MULTILINE)
        if not codename or not python or not architecture or architecture[1] not in ARCHITECTURES:
            raise BrambleError(
                f"packages cannot be bundled for the image {self.name}: that takes a 64-bit Debian, Raspberry Pi OS, Ubuntu or "
                f"Kali with Python (found: release {codename and codename[1]}, Python {python and python[1]}, architecture "
                f"{architecture and architecture[1]})"
            )
        return Kind(codename[1], python[1], ARCHITECTURES[architecture[1]])

    def download_packages(self, packages: Sequence[str], lists: Path, debs: Path) -> None:
        """Download the packages, and the dependencies that the image lacks, into `debs`. Raises BrambleError.

        :param lists: a folder that keeps the distribution's indexes from one run to the next
        """
        lists, debs = lists.resolve(), debs.resolve()
        for folder in (lists, debs):
            (folder / "partial").mkdir(parents=True, exist_ok=True)
        configuration = self.folder / "apt.conf"
        configuration.write_text("\n".join(self._apt_configuration(lists, debs)) + "\n", encoding="utf-8")
        self._point_sources_at_keyrings()
        env = {**os.environ, "APT_CONFIG": str(configuration), "LC_ALL": "C.UTF-8"}
        try:
            run_command("apt-get", "-q", "update", env=env)
            run_command("apt-get", "-q", "--yes", "--no-install-recommends", "--download-only", "install", *packages, env=env)
        except BrambleError as error:
            raise BrambleError(
                f"the Debian packages for the image {self.name} could not be collected: {error}. The control machine needs the "
                "internet for this; connect it, then run the same command again"
            ) from None
        for leftover in (debs / "partial", debs / "lock"):
            leftover.rmdir() if leftover.is_dir() else leftover.unlink(missing_ok=True)

    def _apt_configuration(self, lists: Path, debs: Path) -> Iterator[str]:
        """Yield the lines of apt.conf(5) that confine apt to the private root."""
        architecture = {machine: name for name, machine in ARCHITECTURES.items()}[self.kind.architecture]
        yield f'Dir "{self.folder}/";'
        yield f'Dir::State::status "{self.folder}/var/lib/dpkg/status";'
        yield f'Dir::State::lists "{lists}/";'
        yield f'Dir::Cache::archives "{debs}/";'
        # The image's own settings are left out, because they may run programs of the control machine.
        yield 'Dir::Etc::parts "none"; Dir::Etc::main "none";'
        yield f'APT::Architecture "{architecture}"; APT::Architectures {{ "{architecture}"; }};'
        yield 'APT::Sandbox::User "root"; APT::Update::Error-Mode "any"; Debug::NoLocking "true";'
        yield 'Acquire::Languages "none"; Acquire::GzipIndexes "true"; Acquire::Retries "2";'
        # The proxy of the control machine, if it has one.
        yield from subprocess.run(
            ["apt-config", "dump", "Acquire::http", "Acquire::https"], capture_output=True, text=True, check=False
        ).stdout.splitlines()

    def _point_sources_at_keyrings(self) -> None:
        """Make the sources, which name keyrings by absolute paths, name the copies in the private root."""
        sources = self.folder / "etc/apt"
        for path in [sources / "sources.list", *(sources / "sources.list.d").glob("*")]:
            if path.is_file():
                text = path.read_text(encoding="utf-8", errors="replace")
                path.write_text(
                    _SIGNED_BY.sub(lambda found: found[1] + re.sub(r"(?<!\S)/", f"{self.folder}/", found[2]), text),
                    encoding="utf-8",
                )


def package_index(debs: Path) -> str:
    """Return the index (Packages) of a folder of .deb files, which makes it a flat repository for apt. Raises BrambleError.

    Source: Debian repository format, "Packages" Indices.
    """
    stanzas = []
    for path in sorted(debs.glob("*.deb")):
        control = run_command("dpkg-deb", "--field", path).strip()
        stanzas.append(f"{control}\nFilename: ./{path.name}\nSize: {path.stat().st_size}\nSHA256: {file_sha256(path)}\n")
    return "\n".join(stanzas)
