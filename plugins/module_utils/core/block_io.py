"""Reading of disks and images: grains, holes, and whole reads. Every size and offset is in bytes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

SECTOR = 512
PAGE = 4096  # grain of an overlay
BLOCK = 64 * 1024  # grain of a block map
CHUNK = 1024 * 1024  # most bytes in one read or write, and the head of a card that is written last
ZEROS = bytes(CHUNK)


def extents(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """(start, end) of what is not a hole in [start, end) of a file, by lseek(2) SEEK_DATA; all of it where that is unknown."""
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
            stop = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            if error.errno != errno.EINVAL:
                raise
            stop = end
        if start < end:
            yield start, min(stop, end)
        start = stop


def is_zero(data: bytes) -> bool:
    """Whether there is nothing but zeros in at most CHUNK bytes."""
    return data == ZEROS if len(data) == CHUNK else data == ZEROS[: len(data)]


def read_exactly(fd: int, offset: int, length: int) -> bytes:
    """Exactly `length` bytes; raises BrambleError when the file ends before."""
    data = os.pread(fd, length, offset)
    while len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            raise BrambleError(f"it ends at byte {os.fstat(fd).st_size:,}, before {offset + length:,}")
        data += more
    return data
