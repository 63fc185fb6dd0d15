"""What a card must hold: the image, with the few bytes in which one node differs. Every size and offset is in bytes."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ansible_collections.bramble.cluster.plugins.module_utils.card.image import Image
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import BLOCK, CHUNK, read_exactly

Overlay = dict[int, bytes]
"""Bytes that replace the image's, by offset; offsets are multiples of PAGE, values at most PAGE long."""


@dataclass(frozen=True)
class Run:
    """A stretch of a card: data (never crossing a multiple of CHUNK) or zeros (of any length)."""

    offset: int
    length: int
    data: bool

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.offset + self.length


class Content:
    """What one card must hold from its first byte to the end of the image: the image, with a node's overlay on it.

    The space that no file system uses is left as it is on the card.
    """

    def __init__(self, image: Image, overlay: Overlay) -> None:
        self.image = image
        self.size = image.size
        self._overlay: dict[int, list[tuple[int, bytes]]] = {}
        for offset, data in sorted(overlay.items()):
            self._overlay.setdefault(offset // BLOCK, []).append((offset, data))
        filled = {*image.blocks, *self._overlay}
        self.blocks = [(block, block in filled) for block in sorted(filled | image.needed)]
        digest = hashlib.sha256(bytes.fromhex(image.sha256))
        for offset, data in sorted(overlay.items()):
            digest.update(struct.pack("<QI", offset, len(data)) + data)
        self.fingerprint = digest.hexdigest()

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes of what the card must hold at `offset`."""
        data = read_exactly(self.image.fd, offset, length)
        blocks = range(offset // BLOCK, (offset + length - 1) // BLOCK + 1)
        patches = [patch for block in blocks for patch in self._overlay.get(block, ())]
        if patches:
            mixed = bytearray(data)
            for start, patch in patches:
                low, high = max(start, offset), min(start + len(patch), offset + length)
                if low < high:
                    mixed[low - offset : high - offset] = patch[low - start : high - start]
            data = bytes(mixed)
        return data

    def runs(self, start: int = 0, end: int | None = None) -> Iterator[Run]:
        """Yield the runs of [start, end), in order; both limits are multiples of BLOCK or the end."""
        end = self.size if end is None else min(end, self.size)
        first, last = (bisect.bisect_left(self.blocks, (limit,)) for limit in (start // BLOCK, -(-end // BLOCK)))
        low = high = -1
        kind = False
        for block, data in itertools.islice(self.blocks, first, last):
            if block != high or data != kind or (data and block * BLOCK % CHUNK == 0):
                if low >= 0:
                    yield Run(low * BLOCK, (high - low) * BLOCK, kind)
                low, kind = block, data
            high = block + 1
        if low >= 0:
            yield Run(low * BLOCK, min(high * BLOCK, end) - low * BLOCK, kind)

    @property
    def data_bytes(self) -> int:
        """How many bytes are in runs of data."""
        return sum(run.length for run in self.runs() if run.data)

    @property
    def needed_bytes(self) -> int:
        """How many bytes are in runs, of data or of zeros."""
        return sum(run.length for run in self.runs())
