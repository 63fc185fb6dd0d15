"""The content of a card: an image, with the overlay of one node. All sizes and offsets are in bytes."""

from __future__ import annotations

import array
import bisect
import hashlib
import itertools
import struct
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ansible_collections.bramble.cluster.plugins.module_utils.card.image import TAIL, Image
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import BLOCK, CHUNK

Overlay = dict[int, bytes]
"""Bytes that replace those of the image, by offset. Offsets are multiples of PAGE; values have at most PAGE bytes."""


@dataclass(frozen=True)
class Run:
    """A range of a card that holds either data (within one CHUNK) or zeros (of any length)."""

    offset: int
    length: int
    has_data: bool

    @property
    def end(self) -> int:
        """The offset after the last byte."""
        return self.offset + self.length


class Content:
    """The content of one card: the image with the overlay of a node, and zeros in the last TAIL bytes of the card.

    Space that no file system uses, and the space between the image and the tail, do not belong to the content.

    :param card_bytes: the size of the card; by default, it ends with the image, and has no tail
    """

    def __init__(self, image: Image, overlay: Overlay, card_bytes: int | None = None) -> None:
        self.image = image
        self.size = image.size if card_bytes is None else card_bytes
        self._overlay: dict[int, list[tuple[int, bytes]]] = {}
        for offset, data in sorted(overlay.items()):
            self._overlay.setdefault(offset // BLOCK, []).append((offset, data))
        filled = {*image.data_blocks, *self._overlay}
        self.tail_start = max(-(-image.size // BLOCK) * BLOCK, (self.size - TAIL) // BLOCK * BLOCK)
        tail = range(self.tail_start // BLOCK, -(-self.size // BLOCK))
        # Twice the number of each block, plus whether it has data: millions of blocks need little memory.
        self._blocks = array.array(
            "Q", (2 * block + (block in filled) for block in sorted(filled.union(image.needed_blocks, tail)))
        )
        digest = hashlib.sha256(bytes.fromhex(image.sha256))
        for offset, data in sorted(overlay.items()):
            digest.update(struct.pack("<QI", offset, len(data)) + data)
        self.fingerprint = digest.hexdigest()

    def read(self, offset: int, length: int, check: bool = True) -> bytes:
        """Return `length` bytes of the content at `offset`.

        :param check: raise BrambleError when the image was changed there after its scan
        """
        from_image = max(0, min(length, self.image.size - offset))
        data = (self.image.read(offset, from_image, check) if from_image else b"") + bytes(length - from_image)
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

    def read_ahead(self, places: Iterable[tuple[int, int, bool]], check: bool = True) -> Iterator[tuple[int, int, bytes | None]]:
        """Yield (offset, length, bytes) of some places, each read by another thread while the place before it is processed.

        :param places: (offset, length, whether to read it); the bytes are None if not
        :param check: raise BrambleError when the image was changed there after its scan
        """
        with ThreadPoolExecutor(max_workers=1) as pool:
            ahead = (
                (offset, length, pool.submit(self.read, offset, length, check) if is_read else None)
                for offset, length, is_read in places
            )
            # A pair takes the next place, which begins to read it, before the present one is yielded.
            for (offset, length, future), _ in itertools.pairwise(itertools.chain(ahead, [(0, 0, None)])):
                yield offset, length, future.result() if future else None

    def runs(self, start: int = 0, end: int | None = None) -> Iterator[Run]:
        """Yield the runs of [start, end), in order. Both limits are multiples of BLOCK, or the end of the content."""
        end = self.size if end is None else min(end, self.size)
        first, last = (bisect.bisect_left(self._blocks, 2 * limit) for limit in (start // BLOCK, -(-end // BLOCK)))
        low = high = -1
        low_has_data = False
        for entry in itertools.islice(self._blocks, first, last):
            block, has_data = entry >> 1, bool(entry & 1)
            if block != high or has_data != low_has_data or (has_data and block * BLOCK % CHUNK == 0):
                if low >= 0:
                    yield Run(low * BLOCK, (high - low) * BLOCK, low_has_data)
                low, low_has_data = block, has_data
            high = block + 1
        if low >= 0:
            yield Run(low * BLOCK, min(high * BLOCK, end) - low * BLOCK, low_has_data)

    @property
    def data_bytes(self) -> int:
        """The number of bytes in runs of data."""
        return sum(run.length for run in self.runs() if run.has_data)

    @property
    def needed_bytes(self) -> int:
        """The number of bytes in all runs, of data or of zeros."""
        return sum(run.length for run in self.runs())
