"""Find the bytes of a partition that its file system uses; the rest can be left out of a copy.

Every size and offset is in bytes.
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
    """Return what a partition begins like: EXT, FAT or UNKNOWN. Raises BrambleError when the file ends before the partition."""
    head = read_exactly(fd, start, min(size, 2048))
    at, magic = _EXT_MAGIC
    if head[at : at + 2] == magic:
        return EXT
    # Only a boot sector that says how large its sectors are is one; other things begin with a jump, too.
    if head[510:512] == b"\x55\xaa" and head[0] in (0xEB, 0xE9) and head[11:13] in (b"\0\2", b"\0\4", b"\0\x08", b"\0\x10"):
        return FAT
    return UNKNOWN


def used_ranges(fd: int, start: int, size: int, strict: bool = False, grain: int = PAGE, zeroed: bool = False) -> list[Range]:
    """Return the byte ranges of an open file or disk that the file system of the partition [start, start + size) uses.

    Sorted, apart, made of whole pages of the disk (or `grain`) except at the partition's own ends. All of it when it is not known
    what is used: an unknown or inconsistent file system, or an ext whose journal must be replayed. With `strict` that is a
    BrambleError with the reason. With `zeroed`, for those who put zeros in the place of the rest, inodes that were never used are
    left out, too (an ext4 takes an empty inode table for zeros). Raises BrambleError for a partition that is not within the file.
    """
    # Opened again: fd may be unbuffered (O_DIRECT), which takes only aligned reads.
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if size <= 0 or start < 0 or start + size > os.lseek(again, 0, os.SEEK_END):
            raise BrambleError(f"the partition at byte {start:,} ({size:,} bytes) is not within the disk")
        try:
            what = file_system_kind(again, start, size)
            if what == UNKNOWN:
                raise BrambleError("neither an ext2, ext3 or ext4 nor a FAT file system")
            inner = used_ext_ranges(again, start, size, zeroed) if what == EXT else used_fat_ranges(again, start, size)
            return list(_widen(inner, start, size, grain))
        except BrambleError:
            if strict:
                raise
            return [(start, start + size)]
    finally:
        os.close(again)


def _widen(ranges: Iterable[Range], start: int, size: int, grain: int) -> Iterator[Range]:
    """Yield ranges within a partition as absolute ones: widened to whole pages, cut at the partition's ends, merged."""
    begin = end = -1
    for low, high in sorted(ranges):
        first = max((start + low) // grain * grain, start)
        if first > end:
            if end > begin:
                yield begin, end
            begin = first
        end = max(end, min(-(-(start + high) // grain) * grain, start + size))
    if end > begin:
        yield begin, end
