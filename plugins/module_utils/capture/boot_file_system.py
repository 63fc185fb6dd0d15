"""The boot file system of a captured card: a FAT file system in a file, created again from its files."""

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

_HARMLESS_LINE = re.compile(
    r"fsck\.fat |There are differences between boot sector and its backup|This is mostly harmless|  [0-9, ]+:[0-9a-f]{2}/"
    r"|  Not automatically fixing this|Dirty bit is set| Automatically removing dirty bit"
    r"|Free cluster summary |  Auto-correcting|Leaving filesystem unchanged|.*: \d+ files, |\s*$"
)


def check_boot(path: Path) -> None:
    """Check a FAT file system with fsck.vfat, and change nothing.

    Raises BrambleError for damage, except for what a power cut leaves behind and does no harm.
    """
    lines = run_tool("fsck.vfat", "-n", path, exit_codes=(0, 1)).splitlines()
    if problems := [line.strip() for line in lines if not _HARMLESS_LINE.match(line)]:
        raise BrambleError("; ".join(problems[:6]))


def remove_boot_identity(path: Path, work: Path, seeds: Mapping[str, str]) -> list[str]:
    """Remove the identity of a node from a FAT file system, and return the names of the files that were removed or changed.

    The file system is created again from its files, with the same size, geometry, label and volume ID, but without
    BOOT_IDENTITY_FILES. `seeds` (text by name) replace existing files. Raises BrambleError.
    """
    files = work / "boot"
    files.mkdir()
    run_tool("mcopy", "-s", "-m", "-n", "-Q", "-i", path, "::/", files)
    if not (files / "cmdline.txt").is_file():
        raise BrambleError("its boot partition has no cmdline.txt, so this is not the card of a Raspberry Pi")
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
    geometry = {
        "-F": fat.bits,
        "-S": fat.sector_size,
        "-s": fat.sectors_per_cluster,
        "-R": fat.reserved_sectors,
        "-f": fat.copies,
        "-h": fat.hidden,
    }
    words = [str(word) for pair in geometry.items() for word in pair] + ["-i", f"{fat.volume_id:08x}"]
    words += ["-r", str(fat.root_entries)] if fat.root_entries else []
    words += ["-n", label] if label not in ("", "NO NAME") else []
    run_tool("mkfs.vfat", "-a", *words, path, str(fat.sectors * fat.sector_size // 1024))
    run_tool("mcopy", "-s", "-m", "-Q", "-i", path, *sorted(files.iterdir()), "::/")
    read_back = work / "read-back"
    read_back.mkdir()
    run_tool("mcopy", "-s", "-m", "-n", "-Q", "-i", path, "::/", read_back)
    if _tree_sums(read_back) != _tree_sums(files):
        raise BrambleError("the boot file system is not read back as it was written")
    check_boot(path)
    return changed


def _tree_sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file below a folder, by path; "" for a folder."""
    return {str(path.relative_to(folder)): file_sha256(path) if path.is_file() else "" for path in sorted(folder.rglob("*"))}
