"""Find the used blocks of an ext2, ext3 or ext4 file system with dumpe2fs (e2fsprogs), which knows all features and checksums.

Sizes and offsets are in bytes, or where a name says so in blocks.
"""

from __future__ import annotations

import heapq
import itertools
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping

from ansible_collections.bramble.cluster.plugins.module_utils.card.ranges import RangeList, gaps
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import Range
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.process import first_error_lines, run_program
from ansible_collections.bramble.cluster.plugins.module_utils.core.tools import TOOL_ENV

_SECONDS = 120  # the time limit of dumpe2fs, which needs a few seconds on a slow card
_GROUP = re.compile(r"Group (\d+): \(Blocks (\d+)-(\d+)\)")
_TABLE = re.compile(r"  Inode table at (\d+)-(\d+) ")
_COUNT = re.compile(r"  (\d+) free blocks, \d+ free inodes, \d+ directories(?:, (\d+) unused inodes)?$")
_RANGES = re.compile(r"  Free blocks: (.*)$")
# Features with which the bitmaps are not the whole truth: what a mount would change first, or what is on another device.
_UNCERTAIN_FEATURES = {
    "needs_recovery": "was not unmounted, and its journal must be replayed before its used space is known",
    "orphan_present": "was not unmounted, and its deleted files (orphan_present) must be removed before its used space is known",
    "fast_commit": "has the feature fast_commit, whose journal is not supported",
    "mmp": "has the feature mmp, with which another computer may be using it",
    "journal_dev": "is the journal of another file system",
    # dumpe2fs (1.47) does not show the end of the last cluster, and no known card uses this feature.
    "bigalloc": "has the feature bigalloc, which is not supported",
}


def used_ext_ranges(fd: int, start: int, size: int, skip_unused_inodes: bool, include_tail: bool) -> Iterator[Range]:
    """Return the used ranges within a partition, sorted. Raises BrambleError when they cannot be determined.

    :param skip_unused_inodes: leave out inodes that were never used; zeros must take their place in a copy
    :param include_tail: count the space between the end of the file system and the end of the partition as used
    """
    command = ["dumpe2fs", f"/proc/self/fd/{fd}?offset={start}"]
    # The output is kept in a file, as that of a fragmented file system is large.
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        result = run_program(command, env=TOOL_ENV, pass_fds=(fd,), timeout=_SECONDS, exit_codes=None, stdout=output)
        # The first line of standard error is the version of dumpe2fs.
        notes = [line for line in result.stderr.decode(errors="replace").splitlines()[1:] if line]
        output.seek(0)
        is_marked_damaged = any(line == "*** Run e2fsck now!\n" for line in output)
        output.seek(0)
        head = itertools.takewhile(lambda line: not _GROUP.match(line), output)
        fields = {name: value.strip() for name, colon, value in (line.partition(":") for line in head) if colon}
        # Before the notes, of which some are about a feature that is not supported.
        _check_features(fields.get("Filesystem features", "").split())
        if result.returncode or notes or is_marked_damaged:
            raise BrambleError("; ".join(["its ext file system is damaged", *notes]))
        try:
            _check_state(fields)
            block, blocks, first, inodes = (
                int(fields[name]) for name in ("Block size", "Block count", "First block", "Inodes per group")
            )
            inode = int(fields.get("Inode size", 128))  # the only size in revision 0, which does not state it
        except (KeyError, ValueError):
            raise BrambleError("dumpe2fs does not describe its ext file system") from None
        if not 0 < inode <= block:
            raise BrambleError(f"its ext file system has inodes of {inode:,} bytes")
        if first != (block == 1024):
            raise BrambleError(f"its ext file system has blocks of {block:,} bytes, but begins with block {first:,}")
        if blocks * block > size:
            raise BrambleError(f"its ext file system is {blocks * block:,} bytes, larger than its partition, {size:,}")
        output.seek(0)
        free = RangeList(_free_blocks(output, first, blocks))
        output.seek(0)
        tables = sorted(_unused_inodes(output, inodes, block // inode)) if skip_unused_inodes else []
    used = ((low * block, high * block) for low, high in gaps(heapq.merge(free, tables), blocks))
    has_tail = include_tail and blocks * block < size
    return itertools.chain(used, [(blocks * block, size)] if has_tail else [])


def check_ext(fd: int, start: int) -> None:
    """Check an ext file system with e2fsck, and change nothing. Raises BrambleError when it finds an error."""
    result = run_program(
        ["e2fsck", "-fn", f"/proc/self/fd/{fd}?offset={start}"],
        env=TOOL_ENV,
        pass_fds=(fd,),
        merge_stderr=True,
        exit_codes=None,
    )
    if result.returncode or b"skipping journal recovery" in result.stdout:
        reasons = first_error_lines(result.stdout.decode(errors="replace"))
        raise BrambleError("; ".join(["its ext file system is damaged", *reasons]))


def _check_features(features: Collection[str]) -> None:
    """Check that the bitmaps of a file system with these features are the whole truth. Raises BrambleError."""
    for name, reason in _UNCERTAIN_FEATURES.items():
        if name in features:
            raise BrambleError(f"its ext file system {reason}")


def _check_state(fields: Mapping[str, str]) -> None:
    """Check that a mount would change nothing before the bitmaps are right. Raises BrambleError, or KeyError.

    :param fields: what dumpe2fs prints about the file system
    """
    features = fields["Filesystem features"].split()
    if fields["Filesystem state"] != "clean":
        raise BrambleError(f"its ext file system is {fields['Filesystem state']}")
    if "has_journal" in features and "Journal inode" not in fields:
        raise BrambleError("its ext file system has its journal on another device")
    if int(fields.get("Journal start", 0)):
        raise BrambleError("its ext file system has a journal that must be replayed before its used space is known")
    if "First orphan inode" in fields:
        raise BrambleError("its ext file system has deleted files that must be removed before its used space is known")


def _free_blocks(lines: Iterable[str], first: int, blocks: int) -> Iterator[Range]:
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


def _unused_inodes(lines: Iterable[str], inodes: int, per_block: int) -> Iterator[Range]:
    """Yield the ranges of blocks at the ends of inode tables that never held an inode, as far as that is known."""
    table = 0, 0
    for line in lines:
        if found := _TABLE.match(line):
            table = int(found[1]), int(found[2]) + 1
        elif (found := _COUNT.match(line)) and found[2]:
            begin = table[0] + -(-(inodes - int(found[2])) // per_block)
            if table[0] <= begin < table[1]:
                yield begin, table[1]
