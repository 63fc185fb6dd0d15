"""Make the root file system of a captured card as small as it goes, without traces of what was deleted. Sizes are in bytes."""

from __future__ import annotations

import os
import re

from ansible_collections.bramble.cluster.plugins.module_utils.capture.root_file_system import RootFileSystem
from ansible_collections.bramble.cluster.plugins.module_utils.capture.tools import run_tool
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import CHUNK, ZEROS, is_zero, read_exactly
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

SLACK = 16 * 2**20  # free space of the root file system, above the least that resize2fs allows, until it grows


def clear_journal(root: RootFileSystem) -> None:
    """Fill the journal, which holds old directories and more, with zeros, but for its first block. Raises BrambleError."""
    inode, block = root.superblock_number("Journal inode", 0), root.superblock_number("Block size")
    if not inode:
        return
    # "(0-11):1-12, (IND):13, (12):14": its blocks, and those that say where they are. The first block is the journal's head.
    found = re.findall(r"\((\d+)(?:-\d+)?\):(\d+)(?:-(\d+))?", root.request(f"stat <{inode}>"))
    with root.path.open("r+b") as file:
        for first, low, high in found:
            start, end = (int(low) + (first == "0")) * block, (int(high or low) + 1) * block
            for at in range(start, end, CHUNK):
                length = min(CHUNK, end - at)
                if not is_zero(read_exactly(file.fileno(), at, length)):
                    os.pwrite(file.fileno(), ZEROS[:length], at)


def shrink(root: RootFileSystem) -> int:
    """Shrink a root file system to the least size that resize2fs allows, and SLACK; return that size. Raises BrambleError."""
    # -D makes directories anew, without the names of what was deleted.
    run_tool("e2fsck", "-fpD", root.path, accept=(0, 1))
    clear_journal(root)
    least = re.search(r"minimum size of the filesystem: (\d+)", run_tool("resize2fs", "-P", root.path))
    if not least:
        raise BrambleError("resize2fs does not tell how small the root file system can be")
    block = root.superblock_number("Block size")
    target = int(least[1]) + SLACK // block
    if target < root.superblock_number("Block count"):
        run_tool("resize2fs", root.path, str(target))
    root.check()
    return root.superblock_number("Block count") * block
