"""The boot file system of a captured card: a FAT file system in a file, which is changed in place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ansible_collections.bramble.cluster.plugins.module_utils.capture.fat_tree import FatTree
from ansible_collections.bramble.cluster.plugins.module_utils.capture.grow import GROW_ARGUMENT
from ansible_collections.bramble.cluster.plugins.module_utils.capture.identity import BOOT_IDENTITY_FILES, IDENTITY_ARGUMENTS
from ansible_collections.bramble.cluster.plugins.module_utils.capture.tools import run_tool
from ansible_collections.bramble.cluster.plugins.module_utils.card.fat import harmful_lines
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

CMDLINE = "cmdline.txt"


def check_boot(path: Path) -> None:
    """Check a FAT file system with fsck.vfat, and change nothing.

    Raises BrambleError for damage, except for what a power cut leaves behind and does no harm, for labels that other programs
    than mkfs.vfat made, and for few clusters of a FAT32.
    """
    if problems := harmful_lines(run_tool("fsck.vfat", "-n", path, exit_codes=(0, 1))):
        raise BrambleError("; ".join(problems[:6]))


def remove_boot_identity(path: Path, seeds: Mapping[str, str]) -> list[str]:
    """Remove the identity of a node from a FAT file system, and return the names of the files that were removed or changed.

    BOOT_IDENTITY_FILES are removed, and `seeds` (text by name) replace existing files. All else stays as it is, but the names and
    the data of deleted files are erased. Raises BrambleError.
    """
    changed = []
    with FatTree(path) as tree:
        before = tree.digests()
        files = sorted((file for file in tree.root.members if not file.is_label), key=lambda file: file.name)
        if not any(file.name.lower() == CMDLINE and not file.is_folder for file in files):
            raise BrambleError("its boot partition has no cmdline.txt, so this is not the card of a Raspberry Pi")
        for file in files:
            name = file.name.lower()
            if name in BOOT_IDENTITY_FILES:
                tree.remove(tree.root, file)
            elif file.is_folder or name not in (CMDLINE, *seeds):
                continue
            else:
                old = tree.read(file)
                new = seeds[name].encode() if name in seeds else _neutral_cmdline(old)
                if new == old:
                    continue
                tree.replace(file, new)
            changed.append(file.name)
        tree.save()
    with FatTree(path) as tree:
        after = tree.digests()
        is_changed = {name: any(name == top or name.startswith(f"{top}/") for top in changed) for name in before | after}
        if any(before.get(name) != after.get(name) for name in is_changed if not is_changed[name]):
            raise BrambleError("the boot file system is not read back as it was written")
    check_boot(path)
    return changed


def _neutral_cmdline(content: bytes) -> bytes:
    """Return cmdline.txt without the arguments of one node, and with the one that grows the root file system."""
    words = content.decode(errors="surrogateescape").split()
    kept = [word for word in words if not word.startswith(IDENTITY_ARGUMENTS) and word != GROW_ARGUMENT] + [GROW_ARGUMENT]
    return content if kept == words else f"{' '.join(kept)}\n".encode(errors="surrogateescape")
