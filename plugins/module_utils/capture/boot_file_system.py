"""The boot file system of a captured card: a FAT in a file, made anew from its files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ansible_collections.bramble.cluster.plugins.module_utils.capture.grow import GROW_ARGUMENT
from ansible_collections.bramble.cluster.plugins.module_utils.capture.identity import BOOT_IDENTITY_FILES, IDENTITY_ARGUMENTS
from ansible_collections.bramble.cluster.plugins.module_utils.capture.tools import run_tool
from ansible_collections.bramble.cluster.plugins.module_utils.card.fat import Fat
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import SECTOR, read_exactly
from ansible_collections.bramble.cluster.plugins.module_utils.core.digest import file_sha256
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

_HARMLESS = re.compile(
    r"fsck\.fat |There are differences between boot sector and its backup|This is mostly harmless|  [0-9, ]+:[0-9a-f]{2}/"
    r"|  Not automatically fixing this|Dirty bit is set| Automatically removing dirty bit"
    r"|Free cluster summary |  Auto-correcting|Leaving filesystem unchanged|.*: \d+ files, |\s*$"
)


def check_boot(path: Path) -> None:
    """Check it with fsck.vfat, and change nothing. Raises BrambleError for more than what a loss of power leaves."""
    lines = run_tool("fsck.vfat", "-n", path, accept=(0, 1)).splitlines()
    if wrong := [line.strip() for line in lines if not _HARMLESS.match(line)]:
        raise BrambleError("; ".join(wrong[:6]))


def remove_boot_identity(path: Path, work: Path, seeds: Mapping[str, str]) -> list[str]:
    """Make a FAT anew from its files, without BOOT_IDENTITY_FILES; return the names of the files that were removed or changed.

    `seeds` replace the files of these names. The new one has the same size, geometry, label and number. Raises BrambleError.
    """
    files = work / "boot"
    files.mkdir()
    run_tool("mcopy", "-s", "-m", "-n", "-Q", "-i", path, "::/", files)
    if not (files / "cmdline.txt").is_file():
        raise BrambleError("there is no cmdline.txt on its boot partition: it is not the card of a Raspberry Pi")
    changed = []
    for file in sorted(files.iterdir()):
        name = file.name.lower()
        if name in BOOT_IDENTITY_FILES:
            file.unlink()
        elif name in seeds and file.read_text(errors="replace") != seeds[name]:
            file.write_text(seeds[name])
        elif name == "cmdline.txt":
            words = file.read_text(errors="surrogateescape").split()
            kept = [word for word in words if not word.startswith(IDENTITY_ARGUMENTS) and word != GROW_ARGUMENT] + [GROW_ARGUMENT]
            if kept == words:
                continue
            file.write_text(" ".join(kept) + "\n", errors="surrogateescape")
        else:
            continue
        changed.append(file.name)
    with path.open("rb") as old:
        fat = Fat.parse(read_exactly(old.fileno(), 0, SECTOR))
    label = run_tool("fatlabel", path).splitlines()[-1].strip()
    size = path.stat().st_size
    path.unlink()
    with path.open("wb") as new:
        new.truncate(size)
    geometry = {"-F": fat.bits, "-S": fat.sector, "-s": fat.per_cluster, "-R": fat.reserved, "-f": fat.copies, "-h": fat.hidden}
    words = [str(word) for pair in geometry.items() for word in pair] + ["-i", f"{fat.number:08x}"]
    words += ["-r", str(fat.root_entries)] if fat.root_entries else []
    words += ["-n", label] if label not in ("", "NO NAME") else []
    run_tool("mkfs.vfat", "-a", *words, path, str(fat.sectors * fat.sector // 1024))
    run_tool("mcopy", "-s", "-m", "-Q", "-i", path, *sorted(files.iterdir()), "::/")
    again = work / "again"
    again.mkdir()
    run_tool("mcopy", "-s", "-m", "-n", "-Q", "-i", path, "::/", again)
    if _tree(again) != _tree(files):
        raise BrambleError("the boot file system does not read back as it was written")
    check_boot(path)
    return changed


def _tree(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file below a folder, by path; "" for a folder."""
    return {str(path.relative_to(folder)): file_sha256(path) if path.is_file() else "" for path in sorted(folder.rglob("*"))}
