"""Find counterfeit cards in seconds: write marks all over the card, then read them back.

The controller of a counterfeit card reports more bytes than the card has. Data that is written beyond its real memory is lost, or
the address wraps around and the data overwrites other data. See "f3: fight flash fraud",
https://fight-flash-fraud.readthedocs.io, for how these cards behave.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable

from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import CHUNK, PAGE
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import format_bytes

STRIDE = 128 * 2**20  # real memory is a multiple of this; a finer grid would take minutes


def mark_offsets(size: int) -> list[int]:
    """Return the offsets of the marks on a card of `size` bytes: multiples of PAGE in ascending order, up to the last page.

    If the real memory has N bytes, at least two offsets are equal modulo N, where N is a multiple of STRIDE, a power of two
    from CHUNK on, or an even share of the size (half, a third, … an eighth). The head of the card, CHUNK bytes, gets no mark.
    """
    last = size // PAGE * PAGE - PAGE
    grid = range(0, size, STRIDE)
    powers = [1 << bit for bit in range(CHUNK.bit_length() - 1, size.bit_length())]
    shares = [size * part // whole // PAGE * PAGE for whole in range(2, 9) for part in range(1, whole)]
    return sorted({offset + CHUNK for offset in (*grid, *powers, *shares) if offset + CHUNK <= last} | {last})


def mark_page(key: bytes, offset: int) -> bytes:
    """Return the content of the mark at an offset. It differs between offsets, and between runs by their `key`."""
    return hashlib.shake_128(key + offset.to_bytes(8, "little")).digest(PAGE)


def probe(
    size: int,
    read: Callable[[int, int], bytes],
    write: Callable[[int, bytes], None],
    flush: Callable[[], None],
    meter: Callable[[int], None] = lambda _length: None,
) -> None:
    """Check that a card really has `size` bytes. The previous content of the marked pages is restored.

    :param read: returns `length` bytes at an offset, from the card itself and not from a cache
    :param write: writes bytes at an offset
    :param flush: returns when everything written is on the card
    :param meter: is called with the number of bytes after each step, `4 * PAGE * len(mark_offsets(size))` in total
    :raises BrambleError: when a mark is not read back; nothing is restored then, as the card is unusable
    """
    key = os.urandom(16)
    marks = {offset: mark_page(key, offset) for offset in mark_offsets(size)}
    before = {}
    for offset in marks:
        before[offset] = read(offset, PAGE)
        meter(PAGE)
    for offset, page in marks.items():
        write(offset, page)
        meter(PAGE)
    flush()
    lost = []
    for offset, page in marks.items():
        if (found := read(offset, PAGE)) != page:
            lost.append((offset, found))
        meter(PAGE)
    if lost:
        offsets, offset_by_page = list(marks), {page: offset for offset, page in marks.items()}
        # An address that wraps around is reduced by a multiple of the real size.
        wrapped = [offset_by_page[found] - offset for offset, found in lost if offset_by_page.get(found, 0) > offset]
        real = math.gcd(*wrapped)
        if not wrapped and [offset for offset, _ in lost] == offsets[-len(lost) :]:
            real = lost[0][0]
        if real <= offsets[0]:
            raise BrambleError(f"a mark at byte {lost[0][0]:,} cannot be read back: the card is worn or counterfeit. Replace it")
        raise BrambleError(
            f"the card is counterfeit: it holds at most {format_bytes(real)} ({real / 1e9:.2f} GB) and "
            f"reports {format_bytes(size)} ({size / 1e9:.2f} GB). Data beyond its real size is lost. Replace it"
        )
    for offset, page in before.items():
        write(offset, page)
        meter(PAGE)
    flush()
