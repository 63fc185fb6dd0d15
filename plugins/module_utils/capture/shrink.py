"""Shrink the root file system of a captured card as far as possible, without traces of deleted files. Sizes are in bytes."""

from __future__ import annotations

import os
import re

from ansible_collections.bramble.cluster.plugins.module_utils.capture.root_file_system import RootFileSystem
from ansible_collections.bramble.cluster.plugins.module_utils.capture.tools import run_tool
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import CHUNK, ZEROS, is_zero, read_exactly
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
            for at in range(start, end, CHUNK):
                length = min(CHUNK, end - at)
                if not is_zero(read_exactly(file.fileno(), at, length)):
                    os.pwrite(file.fileno(), ZEROS[:length], at)


def shrink(root: RootFileSystem) -> int:
    """Shrink a root file system to the minimum size of resize2fs plus SLACK, and return the new size. Raises BrambleError."""
    # -D rebuilds directories, which removes the names of deleted files from them.
    run_tool("e2fsck", "-fpD", root.path, exit_codes=(0, 1))
    clear_journal(root)
    minimum = re.search(r"minimum size of the filesystem: (\d+)", run_tool("resize2fs", "-P", root.path))
    if not minimum:
        raise BrambleError("resize2fs does not show the minimum size of the root file system")
    block = root.superblock_number("Block size")
    target = int(minimum[1]) + SLACK // block
    if target < root.superblock_number("Block count"):
        run_tool("resize2fs", root.path, str(target))
    root.check()
    return root.superblock_number("Block count") * block
