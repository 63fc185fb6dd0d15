"""Find the bytes of a partition that its file system uses; the others can be left out of a copy.

All sizes and offsets are in bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from ansible_collections.bramble.cluster.plugins.module_utils.card.ext import used_ext_ranges
from ansible_collections.bramble.cluster.plugins.module_utils.card.fat import used_fat_ranges
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import PAGE, Range, read_exactly
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

EXT, FAT, UNKNOWN = "ext", "FAT", ""
_EXT_MAGIC = (1024 + 56, b"\x53\xef")


def file_system_kind(fd: int, start: int, size: int) -> str:
    """Return the kind of file system at the start of a partition: EXT, FAT or UNKNOWN.

    Raises BrambleError when the file ends before the partition begins.
    """
    head = read_exactly(fd, start, min(size, 2048))
    at, magic = _EXT_MAGIC
    if head[at : at + 2] == magic:
        return EXT
    # A jump instruction alone is not enough, as other boot sectors begin with one, too: check the sector size as well.
    if head[510:512] == b"\x55\xaa" and head[0] in (0xEB, 0xE9) and head[11:13] in (b"\0\2", b"\0\4", b"\0\x08", b"\0\x10"):
        return FAT
    return UNKNOWN


def used_ranges(
    fd: int, start: int, size: int, strict: bool = False, alignment: int = PAGE, skip_unused_inodes: bool = False
) -> list[Range]:
    """Return the ranges of an open file or disk that the file system of the partition [start, start + size) uses.

    The ranges are sorted and do not touch. If it is unknown what is used, as the file system is of another kind or inconsistent,
    or the journal of an ext file system must be replayed, the whole partition counts as used.

    :param strict: raise BrambleError, with the reason, instead of returning the whole partition
    :param alignment: ranges begin and end at multiples of this many bytes, or at the ends of the partition
    :param skip_unused_inodes: leave out inodes that were never used; zeros must take their place in a copy
    :raises BrambleError: for a partition that is not within the file
    """
    # A new descriptor, as fd may be open with O_DIRECT, which supports only aligned reads.
    buffered_fd = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if size <= 0 or start < 0 or start + size > os.lseek(buffered_fd, 0, os.SEEK_END):
            raise BrambleError(f"the partition at byte {start:,} ({size:,} bytes) is not within the disk")
        try:
            kind = file_system_kind(buffered_fd, start, size)
            if kind == UNKNOWN:
                raise BrambleError("it is neither an ext2, ext3 or ext4 nor a FAT file system")
            if kind == EXT:
                used = used_ext_ranges(buffered_fd, start, size, skip_unused_inodes)
            else:
                used = used_fat_ranges(buffered_fd, start, size)
            return list(_align(used, start, size, alignment))
        except BrambleError:
            if strict:
                raise
            return [(start, start + size)]
    finally:
        os.close(buffered_fd)


def _align(ranges: Iterable[Range], start: int, size: int, alignment: int) -> Iterator[Range]:
    """Yield ranges within a partition as absolute ranges: aligned, cut at the ends of the partition, and merged."""
    begin = end = -1
    for low, high in sorted(ranges):
        first = max((start + low) // alignment * alignment, start)
        if first > end:
            if end > begin:
                yield begin, end
            begin = first
        end = max(end, min(-(-(start + high) // alignment) * alignment, start + size))
    if end > begin:
        yield begin, end
