"""Shrink the root file system of a captured card as far as possible, without traces of deleted files. Sizes are in bytes."""

from __future__ import annotations

import os
import re

from ansible_collections.bramble.cluster.plugins.module_utils.capture.root_file_system import RootFileSystem
from ansible_collections.bramble.cluster.plugins.module_utils.capture.tools import run_tool
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import (
    CHUNK,
    ZEROS,
    data_extents,
    is_zero,
    read_exactly,
)
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

SLACK = 16 * 2**20  # free space that is left in the root file system until it grows


def clear_journal(root: RootFileSystem) -> None:
    """Overwrite the journal with zeros, except for its first block, as it contains old metadata. Raises BrambleError."""
    inode, block = root.superblock_number("Journal inode", 0), root.superblock_number("Block size")
    if not inode:
        return
    # debugfs shows "(0-11):1-12, (IND):13, (12):14": the blocks of the journal by their numbers in the file, and indirect blocks,
    # which the pattern skips. The first block is the superblock of the journal, and is kept.
    found = re.findall(r"\((\d+)(?:-\d+)?\):(\d+)(?:-(\d+))?", root.run_debugfs(f"stat <{inode}>"))
    with root.path.open("r+b") as file:
        for first, low, high in found:
            start, end = (int(low) + (first == "0")) * block, (int(high or low) + 1) * block
            _clear(file.fileno(), start, end)


def clear_free_inodes(root: RootFileSystem) -> None:
    """Overwrite the inodes of deleted files with zeros. Raises BrambleError.

    They keep attributes, targets of links, and with the feature inline_data the content of small files:
    https://docs.kernel.org/filesystems/ext4/overview.html
    """
    block, inode = root.superblock_number("Block size"), root.superblock_number("Inode size", 128)
    per_group, table, group = root.superblock_number("Inodes per group"), 0, 0
    with root.path.open("r+b") as file:
        for line in run_tool("dumpe2fs", root.path).splitlines():
            if found := re.match(r"Group (\d+): ", line):
                group = int(found[1])
            elif found := re.match(r"  Inode table at (\d+)-", line):
                table = int(found[1]) * block
            elif found := re.match(r"  Free inodes: (.+)", line):
                for part in found[1].split(", "):
                    low, _, high = part.partition("-")
                    start, end = (table + (int(number) - 1 - group * per_group) * inode for number in (low, high or low))
                    for begin, stop in data_extents(file.fileno(), start, end + inode):
                        _clear(file.fileno(), begin, stop)


def _clear(fd: int, start: int, end: int) -> None:
    """Overwrite a range with zeros, but leave its holes."""
    for at in range(start, end, CHUNK):
        length = min(CHUNK, end - at)
        if not is_zero(read_exactly(fd, at, length)):
            os.pwrite(fd, ZEROS[:length], at)


def shrink(root: RootFileSystem) -> int:
    """Shrink a root file system to the minimum size of resize2fs plus SLACK, and return the new size. Raises BrambleError.

    resize2fs does not shrink a file system with the feature stable_inodes, so that it keeps its size.
    """
    # -p repairs what debugfs leaves behind (RootFileSystem.apply_changes).
    # -D rebuilds directories, which removes the names of deleted files from them.
    run_tool("e2fsck", "-fpD", root.path, exit_codes=(0, 1))
    clear_free_inodes(root)
    clear_journal(root)
    minimum = re.search(r"minimum size of the filesystem: (\d+)", run_tool("resize2fs", "-P", root.path))
    if not minimum:
        raise BrambleError("resize2fs does not show the minimum size of the root file system")
    block = root.superblock_number("Block size")
    target = int(minimum[1]) + SLACK // block
    if target < root.superblock_number("Block count") and "stable_inodes" not in root.features:
        run_tool("resize2fs", root.path, str(target))
    root.check()
    return root.superblock_number("Block count") * block
