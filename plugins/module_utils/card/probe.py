"""Find counterfeit cards: write marks all over the card, and read them back, at once and after the image has been written.

The controller of a counterfeit card reports more bytes than the card has. Data that is written beyond its real memory is lost, or
the address wraps around and the data overwrites other data. A cache hides this for what was written last. See "f3: fight flash
fraud", https://fight-flash-fraud.readthedocs.io, for how these cards behave.

All sizes and offsets are in bytes.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections.abc import Callable, Sequence

from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import CHUNK, PAGE, Range
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import format_bytes

STRIDE = 128 * 2**20  # the largest distance of two marks, and so the error of the size that a message states
# What is written between the last marks: more than a cache that holds only what is beyond the real memory.
END_FILLER = 72 * 2**20
FILLER = 128 * 2**20  # what is written after the marks and before they are read again, at least: twice the largest known cache
MAX_MARKS = 1000  # with more, longer runs are worth their time: a mark takes about as long as 300 KB of data


def unstable_read_error(offset: int) -> BrambleError:
    """Return the error for bytes that differ between two reads: the fault is between the card and this machine."""
    return BrambleError(
        f"two reads of the same bytes differ, at byte {offset:,}: the card may be good, but its reader, a cable, a hub or the "
        "power supply is not. Use another reader or USB port, without a hub or with a powered hub, and run the same command again"
    )


def mark_offsets(size: int, start: int, runs: Sequence[Range]) -> list[int]:
    """Return the offsets of the marks on a card of `size` bytes, in ascending order, up to its last page.

    If the card really has R bytes, with `start` <= R < `size`, at least one mark is beyond R. If addresses wrap around (to the
    offset modulo R), at least one mark is overwritten when `runs` are written after the marks: for each R there is a mark m and
    a run with low <= m - R < high. The search goes from the largest R down, and chooses the longest run each time.

    :param start: the first byte that can have a mark; all marks are behind it
    :param runs: the (low, high) of the ranges below `start` that are written after the marks, multiples of PAGE
    """
    last = size // PAGE * PAGE - PAGE
    offsets, uncovered = [], last
    while uncovered >= start:
        reachable = [(min(high - low, STRIDE), low) for low, high in runs if uncovered + low <= last]
        length, low = max(reachable, default=(STRIDE, 0))
        offsets.append(uncovered + low)
        uncovered -= length
    # Marks that differ by half, a third, ... an eighth of the size are wrong at once on the most frequent counterfeits.
    shares = [size * part // whole // PAGE * PAGE for whole in range(2, 9) for part in range(1, whole)]
    grid = range(start, min(offsets, default=start), STRIDE)
    return sorted(offset for offset in {*offsets, *shares, *grid, last} if start <= offset <= last)


def mark_page(key: bytes, offset: int) -> bytes:
    """Return the content of the mark at an offset. It differs between offsets, and between runs by their `key`."""
    return hashlib.shake_128(key + offset.to_bytes(8, "little")).digest(PAGE)


class CapacityProbe:
    """The marks on one card that find out whether it really has the bytes that it reports.

    Use: `write_marks`, `check`, then write the `runs`, `filler` and `end_filler`, then `check` again. Marks are only in the space
    behind the image, whose content may be lost, and are not removed.

    :param size: the number of bytes that the card reports
    :param start: the end of the image
    :param runs: the (low, high) of the ranges of the image that are written to the card, in order
    """

    def __init__(self, size: int, start: int, runs: Sequence[Range]) -> None:
        self._size, self._key = size, os.urandom(16)
        start = -(-start // PAGE) * PAGE
        written = sum(high - low for low, high in runs)
        filler_end = min(start + max(0, FILLER - written), start + (size - start) // 2 // PAGE * PAGE)
        if len(mark_offsets(size, filler_end, runs)) > MAX_MARKS:
            filler_end = min(start + FILLER, start + (size - start) // 2 // PAGE * PAGE)
        self.filler: Range = (start, max(start, filler_end))
        """The (low, high) of a range behind the image that must be written as well: more than a cache holds, in one piece."""
        low, high = self.filler
        self.offsets = mark_offsets(size, high, [*runs, self.filler] if high > low else list(runs))
        self.end_filler: list[Range] = []
        """The (low, high) of ranges between the last marks that must be written as well, if the card is much larger than that."""
        missing = END_FILLER if size - start > 16 * END_FILLER else 0
        for mark, next_mark in itertools.pairwise(reversed(self.offsets)):
            if missing > 0 and mark - next_mark > PAGE:
                self.end_filler.append((max(next_mark + PAGE, mark - missing), mark))
                missing -= mark - self.end_filler[-1][0]

    @property
    def transferred_bytes(self) -> int:
        """The number of bytes that writing the marks and one check transfer."""
        return 2 * PAGE * len(self.offsets)

    def write_marks(self, write: Callable[[int, bytes], None], meter: Callable[[int], None]) -> None:
        """Write all marks.

        :param write: writes bytes at an offset
        :param meter: is called with the number of bytes after each mark
        """
        for offset in self.offsets:
            write(offset, mark_page(self._key, offset))
            meter(PAGE)

    def check(self, read: Callable[[int, int], bytes], meter: Callable[[int], None]) -> None:
        """Read all marks back.

        :param read: returns `length` bytes at an offset, from the card itself and not from a cache of this machine
        :param meter: is called with the number of bytes after each mark
        :raises BrambleError: when a mark is wrong, with the size that the card really has at most
        """
        lost: list[tuple[int, bytes]] = []
        for offset in self.offsets:
            if (found := read(offset, PAGE)) != mark_page(self._key, offset):
                if read(offset, PAGE) != found:
                    raise unstable_read_error(offset)
                lost.append((offset, found))
            meter(PAGE)
        if not lost:
            return
        offset_by_page = {mark_page(self._key, offset): offset for offset in self.offsets}
        # An address that wraps around is reduced by a multiple of the real size.
        wrapped = [offset_by_page[found] - offset for offset, found in lost if offset_by_page.get(found, 0) > offset]
        # The other lost marks are beyond the real size.
        real = math.gcd(*wrapped) or lost[0][0]
        if len(lost) == 1 and lost[0][0] != self.offsets[-1]:
            raise BrambleError(
                f"a mark at byte {lost[0][0]:,} cannot be read back, and is always the same: the card is worn or counterfeit. "
                "Replace it"
            )
        raise BrambleError(
            f"the card is counterfeit: it holds at most {format_bytes(real)} ({real / 1e9:.2f} GB) and "
            f"reports {format_bytes(self._size)} ({self._size / 1e9:.2f} GB). Data beyond its real size is lost. Replace it"
        )


def filler_chunk(offset: int) -> bytes:
    """Return the CHUNK bytes of the filler at an offset. They differ between offsets."""
    return hashlib.shake_128(offset.to_bytes(8, "little")).digest(PAGE) * (CHUNK // PAGE)
