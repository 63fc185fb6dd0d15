"""Find the used blocks of an ext2, ext3 or ext4 file system with dumpe2fs (e2fsprogs), which knows all features and checksums.

Sizes and offsets are in bytes, or where a name says so in blocks.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import Range
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.process import run_program
from ansible_collections.bramble.cluster.plugins.module_utils.core.tools import TOOL_ENV

_SECONDS = 120  # the time limit of dumpe2fs, which needs a few seconds on a slow card
_GROUP = re.compile(r"Group (\d+): \(Blocks (\d+)-(\d+)\)")
_TABLE = re.compile(r"  Inode table at (\d+)-(\d+) ")
_COUNT = re.compile(r"  (\d+) free blocks, \d+ free inodes, \d+ directories(?:, (\d+) unused inodes)?$")
_RANGES = re.compile(r"  Free blocks: (.*)$")


def used_ext_ranges(fd: int, start: int, size: int, skip_unused_inodes: bool) -> list[Range]:
    """Return the used ranges within a partition. Raises BrambleError when they cannot be determined.

    :param skip_unused_inodes: leave out inodes that were never used; zeros must take their place in a copy
    """
    command = ["dumpe2fs", f"/proc/self/fd/{fd}?offset={start}"]
    result = run_program(command, env=TOOL_ENV, pass_fds=(fd,), timeout=_SECONDS, exit_codes=None)
    lines = result.stdout.decode(errors="replace").splitlines()
    notes = [
        line for line in result.stderr.decode(errors="replace").splitlines()[1:] if line
    ]  # the first line is the version of dumpe2fs
    if result.returncode or notes or "*** Run e2fsck now!" in lines:
        raise BrambleError("; ".join(["its ext file system is damaged", *notes]))
    head = itertools.takewhile(lambda line: not _GROUP.match(line), lines)
    fields = dict(line.split(":", 1) for line in head if ":" in line)
    try:
        features, state = fields["Filesystem features"].split(), fields["Filesystem state"].strip()
        block, blocks, first, inodes = (
            int(fields[name]) for name in ("Block size", "Block count", "First block", "Inodes per group")
        )
        inode = int(fields.get("Inode size", 128))  # the only size in revision 0, which does not state it
    except (KeyError, ValueError):
        raise BrambleError("dumpe2fs does not describe its ext file system") from None
    if "needs_recovery" in features:
        raise BrambleError(
            "its ext file system was not unmounted, and its journal must be replayed before its used space is known"
        )
    if state != "clean":
        raise BrambleError(f"its ext file system is {state}")
    if "bigalloc" in features:
        # dumpe2fs (1.47) does not show the end of the last cluster, and no known card uses this feature.
        raise BrambleError("its ext file system has the feature bigalloc, which is not supported")
    if not 0 < inode <= block:
        raise BrambleError(f"its ext file system has inodes of {inode:,} bytes")
    if blocks * block > size:
        raise BrambleError(f"its ext file system is {blocks * block:,} bytes, larger than its partition, {size:,}")
    unused = list(_free_blocks(lines, first, blocks))
    if skip_unused_inodes:
        unused += _unused_inodes(lines, inodes, block // inode)
    return [(low * block, high * block) for low, high in _gaps(unused, blocks)]


def _free_blocks(lines: list[str], first: int, blocks: int) -> Iterator[Range]:
    """Yield the free ranges of blocks. Raises BrambleError unless the groups are contiguous and their counts are right."""
    expected, low, high, free = first, 0, 0, -1
    for line in lines:
        if found := _GROUP.match(line):
            low, high = int(found[2]), int(found[3]) + 1
            if low != expected or not low < high <= blocks or free >= 0:
                raise BrambleError("the block groups of its ext file system are invalid")
            expected, free = high, -2
        elif free == -2 and (found := _COUNT.match(line)):
            free = int(found[1])
        elif free >= 0 and (found := _RANGES.match(line)):
            for part in filter(None, found[1].split(", ")):
                begin, _, last = part.partition("-")
                if not low <= int(begin) <= int(last or begin) < high:
                    raise BrambleError("the free blocks of its ext file system are invalid")
                low = int(last or begin) + 1
                free -= low - int(begin)
                yield int(begin), low
            if free:
                raise BrambleError("its ext file system has a wrong count of free blocks: run e2fsck")
            free = -1
    if expected != blocks or free != -1:
        raise BrambleError("dumpe2fs does not show all groups of its ext file system")


def _unused_inodes(lines: list[str], inodes: int, per_block: int) -> Iterator[Range]:
    """Yield the ranges of blocks at the ends of inode tables that never held an inode, as far as that is known."""
    table = 0, 0
    for line in lines:
        if found := _TABLE.match(line):
            table = int(found[1]), int(found[2]) + 1
        elif (found := _COUNT.match(line)) and found[2]:
            begin = table[0] + -(-(inodes - int(found[2])) // per_block)
            if table[0] <= begin < table[1]:
                yield begin, table[1]


def _gaps(ranges: list[Range], end: int) -> Iterator[Range]:
    """Yield the gaps between ranges, from 0 to `end`."""
    at = 0
    for low, high in sorted(ranges):
        if at < low:
            yield at, low
        at = max(at, high)
    if at < end:
        yield at, end
