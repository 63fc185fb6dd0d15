"""Finds cards that hold less than they say, in seconds: marks all over the card are written, then read back.

A counterfeit card has a controller that lies about its size. What is written beyond its real memory is lost, or lands on another
place: the address wraps around. See "f3: fight flash fraud", https://fight-flash-fraud.readthedocs.io, for how such cards behave.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable

from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import CHUNK, PAGE
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import format_bytes

STRIDE = 128 * 2**20  # real memory is a whole number of these; a finer grid would take longer than seconds


def places(size: int) -> list[int]:
    """Where the marks go on a card of `size` bytes: offsets, ascending, multiples of PAGE; the last is the card's last page.

    For a real memory of N bytes at least one pair of places is the same modulo N when N is a multiple of STRIDE, a power of two
    from CHUNK on, or an even share of the size (half, a third, … an eighth). The head of the card, CHUNK bytes, stays empty.
    """
    last = size // PAGE * PAGE - PAGE
    grid = range(0, size, STRIDE)
    powers = [1 << bit for bit in range(CHUNK.bit_length() - 1, size.bit_length())]
    shares = [size * part // whole // PAGE * PAGE for whole in range(2, 9) for part in range(1, whole)]
    return sorted({place + CHUNK for place in (*grid, *powers, *shares) if place + CHUNK <= last} | {last})


def mark(key: bytes, place: int) -> bytes:
    """The page of a place: no two places and no two runs have the same."""
    return hashlib.shake_128(key + place.to_bytes(8, "little")).digest(PAGE)


def probe(
    size: int,
    read: Callable[[int, int], bytes],
    write: Callable[[int, bytes], None],
    flush: Callable[[], None],
    meter: Callable[[int], None] = lambda _length: None,
) -> None:
    """Check that a card of `size` bytes has all of them. What was in the marked pages is put back.

    :param read: gives `length` bytes at an offset, from the card and not from a cache
    :param write: puts bytes at an offset
    :param flush: returns when everything written is on the card
    :param meter: is called with the bytes got through; `4 * PAGE * len(places(size))` in all
    :raises BrambleError: when a mark is not where it was put; the card is no use then, and nothing is put back
    """
    key = os.urandom(16)
    marks = {place: mark(key, place) for place in places(size)}
    before = {}
    for place in marks:
        before[place] = read(place, PAGE)
        meter(PAGE)
    for place, page in marks.items():
        write(place, page)
        meter(PAGE)
    flush()
    lost = []
    for place, page in marks.items():
        if (found := read(place, PAGE)) != page:
            lost.append((place, found))
        meter(PAGE)
    if lost:
        marked, where = list(marks), {page: place for place, page in marks.items()}
        # An address that wraps comes down by a multiple of the size of the real memory.
        wrapped = [where[found] - place for place, found in lost if where.get(found, 0) > place]
        real = math.gcd(*wrapped)
        if not wrapped and [place for place, _ in lost] == marked[-len(lost) :]:
            real = lost[0][0]
        if real <= marked[0]:
            raise BrambleError(f"what is written at byte {lost[0][0]:,} cannot be read back: worn or counterfeit, replace it")
        raise BrambleError(
            f"counterfeit: it holds at most {format_bytes(real)} ({real / 1e9:.2f} GB) and says {format_bytes(size)} "
            f"({size / 1e9:.2f} GB); what is written beyond is lost: replace it"
        )
    for place, page in before.items():
        write(place, page)
        meter(PAGE)
    flush()
