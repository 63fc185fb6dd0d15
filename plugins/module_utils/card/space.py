"""Find the bytes of a partition that its file system uses; the others can be left out of a copy.

All sizes and offsets are in bytes.
"""

from __future__ import annotations

import os
import shutil

from ansible_collections.bramble.cluster.plugins.module_utils.card.ext import check_ext, used_ext_ranges
from ansible_collections.bramble.cluster.plugins.module_utils.card.fat import check_fat, used_fat_ranges
from ansible_collections.bramble.cluster.plugins.module_utils.card.partition import FAT_TYPES, LINUX_TYPES, Partition
from ansible_collections.bramble.cluster.plugins.module_utils.card.ranges import RangeList, align
from ansible_collections.bramble.cluster.plugins.module_utils.card.signatures import probe_signatures
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import PAGE, read_exactly
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.tools import TOOL_ENV, not_installed

EXT, FAT, UNKNOWN = "ext", "FAT", ""
_EXT_MAGIC = (1024 + 56, b"\x53\xef")
_NAMES = {EXT: "ext2, ext3 or ext4", FAT: "FAT"}
# What blkid calls these file systems.
_BLKID_TYPES = {EXT: ("ext2", "ext3", "ext4"), FAT: ("vfat",)}
_TOOLS = {EXT: ("blkid", "dumpe2fs", "e2fsck"), FAT: ("blkid", "fsck.vfat")}
_MIN_SIZE = 2 * 2**20


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
    fd: int,
    partition: Partition,
    *,
    strict: bool = False,
    alignment: int = PAGE,
    skip_unused_inodes: bool = False,
    include_tail: bool = True,
    check: bool = True,
) -> RangeList:
    """Return the ranges of an open file or disk that the file system of a partition uses.

    The ranges are sorted and do not touch. The whole partition counts as used unless its type, its size, its file system and the
    tools of the file system agree. Where the partition has a type for something else or holds traces of another file system,
    where the file system is inconsistent, and where a journal must be replayed, it is unknown what is used.

    :param strict: raise BrambleError, with the reason, instead of returning the whole partition
    :param alignment: ranges begin and end at multiples of this many bytes, or at the ends of the partition
    :param skip_unused_inodes: leave out inodes that were never used; zeros must take their place in a copy
    :param include_tail: count the space between the end of the file system and the end of the partition as used; other data can
        be there, such as the hash tree of dm-verity
    :param check: check the file system with e2fsck or fsck.vfat, which read all its metadata; without, errors that do not concern
        the map of used space remain unknown
    :raises BrambleError: for a partition that is not within the file, and for a tool that is not installed
    """
    start, size = partition.start, partition.size
    kind = FAT if partition.type in FAT_TYPES else EXT if partition.type in LINUX_TYPES else UNKNOWN
    # A new descriptor, as fd may be open with O_DIRECT, which supports only aligned reads.
    buffered_fd = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if size <= 0 or start < 0 or start + size > os.lseek(buffered_fd, 0, os.SEEK_END):
            raise BrambleError(f"the partition at byte {start:,} ({size:,} bytes) is not within the disk")
        for tool in _TOOLS.get(kind, ()):
            if not shutil.which(tool, path=TOOL_ENV["PATH"]):
                raise BrambleError(not_installed(tool))
        try:
            _check_kind(buffered_fd, partition, kind)
            if kind == EXT:
                used = used_ext_ranges(buffered_fd, start, size, skip_unused_inodes, include_tail)
            else:
                used = used_fat_ranges(buffered_fd, start, size, include_tail)
            ranges = RangeList(align(used, start, size, alignment))
            if check and kind == EXT:
                check_ext(buffered_fd, start)
            elif check:
                check_fat(
                    buffered_fd, start, size, align(((low - start, high - start) for low, high in ranges), start, size, PAGE)
                )
            return ranges
        except BrambleError:
            if strict:
                raise
            return RangeList([(start, start + size)])
    finally:
        os.close(buffered_fd)


def _check_kind(fd: int, partition: Partition, kind: str) -> None:
    """Check that a partition holds a file system of a kind, and no trace of another one. Raises BrambleError.

    What was in the partition before can leave a superblock behind, as many tools write only their own.
    """
    if kind == UNKNOWN:
        raise BrambleError(f"its type, {partition.type}, is not one for an ext2, ext3, ext4 or FAT file system")
    if file_system_kind(fd, partition.start, partition.size) != kind:
        raise BrambleError(f"it holds no valid {_NAMES[kind]} file system, which its type, {partition.type}, stands for")
    if partition.size < _MIN_SIZE:
        # blkid stops at the first signature of what is as small as a floppy disk (libblkid, blkid_probe_is_tiny).
        raise BrambleError(f"it is smaller than {_MIN_SIZE:,} bytes")
    place = ["--offset", str(partition.start), "--size", str(partition.size)]
    tags = probe_signatures(f"/proc/self/fd/{fd}", *place, pass_fds=(fd,))
    if tags is None:
        raise BrambleError("it holds the signatures of several file systems, of which blkid cannot tell the valid one")
    if tags.get("TYPE") not in _BLKID_TYPES[kind] or "PTTYPE" in tags:
        found = [tags[name] for name in ("TYPE", "PTTYPE") if name in tags]
        raise BrambleError(f"blkid finds {' and '.join(found) or 'nothing'} in it, not just a valid {_NAMES[kind]} file system")
