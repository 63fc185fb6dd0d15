"""Block sizes of disks and images, and functions that read them. All sizes and offsets are in bytes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

SECTOR = 512
PAGE = 4096  # the unit of an overlay
BLOCK = 64 * 1024  # the unit of a block map
CHUNK = 1024 * 1024  # the largest read or write; also the size of the head of a card, which is written last
ZEROS = bytes(CHUNK)
Range = tuple[int, int]
"""(start, end) of a range of bytes, without the byte at `end`."""


def data_extents(fd: int, start: int, end: int) -> Iterator[Range]:
    """Yield the ranges of [start, end) of a file that are not holes (lseek(2), SEEK_DATA); all of it if holes are unsupported."""
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
    """Return whether all bytes of `data`, at most CHUNK, are zero."""
    return data == ZEROS if len(data) == CHUNK else data == ZEROS[: len(data)]


def read_exactly(fd: int, offset: int, length: int) -> bytes:
    """Return exactly `length` bytes at an offset of a file. Raises BrambleError when the file is shorter."""
    data = os.pread(fd, length, offset)
    while len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            raise BrambleError(f"it ends at byte {os.fstat(fd).st_size:,}; at least {offset + length:,} bytes are expected")
        data += more
    return data
