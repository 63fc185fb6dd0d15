"""Ranges of bytes or blocks: a compact list of them, the gaps between them, and their alignment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import Range


class RangeList:
    """An unchangeable list of sorted ranges that do not overlap; `total` is the sum of their lengths.

    A file system of a few GiB can have millions of ranges, for which a list of tuples needs hundreds of MiB. Here, each limit is
    kept as its distance from the limit before it, 7 bits per byte (LEB128): a short range needs 2 to 4 bytes.
    """

    def __init__(self, ranges: Iterable[Range]) -> None:
        """Read all ranges. Raises ValueError for one that is empty, or begins before the end of the range before it."""
        distances = bytearray()
        at = self.total = 0
        for low, high in ranges:
            if not at <= low < high:
                raise ValueError(f"the range {low} to {high} does not follow the limit {at}")
            for distance in (low - at, high - low):
                rest = distance
                while rest > 0x7F:
                    distances.append(rest & 0x7F | 0x80)
                    rest >>= 7
                distances.append(rest)
            self.total += high - low
            at = high
        self._distances = bytes(distances)

    def __iter__(self) -> Iterator[Range]:
        at = low = distance = shift = 0
        is_end = False
        for byte in self._distances:
            distance |= (byte & 0x7F) << shift
            shift += 7
            if byte <= 0x7F:
                at += distance
                if is_end:
                    yield low, at
                low, is_end = at, not is_end
                distance = shift = 0


def gaps(ranges: Iterable[Range], end: int) -> Iterator[Range]:
    """Yield the gaps between sorted ranges, which may overlap, from 0 to `end`."""
    at = 0
    for low, high in ranges:
        if at < low:
            yield at, low
        at = max(at, high)
    if at < end:
        yield at, end


def align(ranges: Iterable[Range], start: int, size: int, alignment: int) -> Iterator[Range]:
    """Yield sorted ranges within a partition as ranges of its disk: aligned, cut at the ends of the partition, and merged.

    :param start: the offset of the partition, in bytes
    :param size: the size of the partition, in bytes
    :param alignment: ranges begin and end at multiples of this many bytes, or at the ends of the partition
    """
    begin = end = -1
    for low, high in ranges:
        first = max((start + low) // alignment * alignment, start)
        if first > end:
            if end > begin:
                yield begin, end
            begin = first
        end = max(end, min(-(-(start + high) // alignment) * alignment, start + size))
    if end > begin:
        yield begin, end
