"""A card image: its size, its partitions, which of its blocks hold data, and their digests.

All sizes and offsets are in bytes.
"""

from __future__ import annotations

import array
import base64
import bisect
import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from ansible_collections.bramble.cluster.plugins.module_utils.card.partition import (
    Partition,
    boot_and_root,
    has_gpt,
    hybrid_ranges,
    parse_partitions,
)
from ansible_collections.bramble.cluster.plugins.module_utils.card.space import used_ranges
from ansible_collections.bramble.cluster.plugins.module_utils.core.atomic import replace_file
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import (
    BLOCK,
    CHUNK,
    SECTOR,
    ZEROS,
    data_extents,
    is_zero,
    read_exactly,
)
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.file_state import FileState
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import format_bytes

MAP_VERSION = 2  # of the format of a saved block map; increase it when the meaning of a field changes
# The first and last bytes of a partition, and the last of a card, can hold marks of what was there before, for which other tools
# would take the new content: superblocks of btrfs (at 64 KiB) and md (format 0.90 within the last 128 KiB, 1.0 within 12 KiB),
# ZFS labels (512 KiB), a backup GPT.
TAIL = 2**20
_DIGEST_SIZE = 8


class ImageChanged(BrambleError):
    """An image does not have the content any more that was verified."""


class Image:
    """A raw image, opened for reading and scanned once for its SHA-256 and its blocks. A context manager.

    `needed_blocks` are the numbers of the blocks that a card must hold: all but those that the file systems do not use, such as
    free space and the contents of deleted files. `data_blocks` are those of them that are not zero, sorted.

    :param map_path: a file that keeps the result of the scan, so that an unchanged image is not read again
    :param save_map: whether to write this file
    :raises BrambleError: for a file that is no disk image, for one that is written to while it is scanned, and for a tool that is
        not installed
    :raises OSError: when the image cannot be read
    """

    def __init__(self, path: str, map_path: str | None = None, save_map: bool = True) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._state = FileState.of(self.fd)
            self.size = self._state.bytes
            if self.size == 0 or self.size % SECTOR:
                raise BrambleError(
                    f"the image {path} has {format_bytes(self.size)}, which is not a whole number of {SECTOR}-byte sectors"
                )
            if not (map_path and self._load_map(map_path)):
                self.sha256, self._filled_blocks, self._digests = self._scan()
                self.needed_blocks = self._find_needed_blocks()
                if self.is_touched():
                    raise ImageChanged(f"the image {path} was changed while it was read: run the same command again")
                if map_path and save_map:
                    self._save_map(map_path)
            self.data_blocks = [block for block in self._filled_blocks if block in self.needed_blocks]
        except BaseException:
            os.close(self.fd)
            raise

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def read(self, offset: int, length: int, check: bool = True) -> bytes:
        """Return `length` bytes at an offset, which are those that the image had when its SHA-256 was computed.

        :param check: raise ImageChanged when the image was changed since then
        """
        if not 0 <= offset <= offset + length <= self.size:
            raise ValueError(f"the {length} bytes at {offset} are not within the image")
        start, end = offset // BLOCK * BLOCK, min(-(-(offset + length) // BLOCK) * BLOCK, self.size)
        try:
            data = read_exactly(self.fd, start, end - start)
        except BrambleError:  # it was truncated
            raise self._changed(os.fstat(self.fd).st_size) from None
        for at in range(start, end, BLOCK) if check else ():
            block = data[at - start : at - start + BLOCK]
            if not self._is_original(at // BLOCK, block):
                raise self._changed(at)
        return data[offset - start : offset - start + length]

    def _is_original(self, number: int, block: bytes) -> bool:
        """Return whether a block has the content that it had when it was scanned."""
        index = bisect.bisect_left(self._filled_blocks, number)
        if index == len(self._filled_blocks) or self._filled_blocks[index] != number:
            return is_zero(block)
        return _digest(block) == self._digests[index * _DIGEST_SIZE : (index + 1) * _DIGEST_SIZE]

    def _changed(self, offset: int) -> ImageChanged:
        """Return the error for an image that was changed at an offset."""
        return ImageChanged(
            f"the image {self.path} was changed since it was verified, at byte {offset:,}: write the cards again when nothing "
            "changes it any more"
        )

    def _scan(self) -> tuple[str, array.array[int], bytes]:
        """Return the SHA-256 of the image, the numbers of its blocks that are not zero, and their digests, in one pass."""
        sha256, blocks, digests, at = hashlib.sha256(), array.array("I"), bytearray(), 0
        pending: Future[None] | None = None

        with ThreadPoolExecutor(max_workers=1) as pool:

            def update(data: bytes) -> None:
                # The SHA-256 is computed while this thread computes the digests of the blocks; both release the interpreter lock.
                nonlocal pending
                if pending:
                    pending.result()
                pending = pool.submit(sha256.update, data)

            def skip_to(end: int) -> None:
                nonlocal at
                while at < end:
                    length = min(CHUNK, end - at)
                    update(ZEROS if length == CHUNK else ZEROS[:length])
                    at += length

            for start, end in data_extents(self.fd, 0, self.size):
                skip_to(start - start % BLOCK)  # an extent can begin inside a block
                while at < end:
                    data = read_exactly(self.fd, at, min(CHUNK - at % CHUNK, self.size - at))
                    update(data)
                    if not is_zero(data):
                        for low in range(0, len(data), BLOCK):
                            block = data[low : low + BLOCK]
                            if not is_zero(block):
                                blocks.append((at + low) // BLOCK)
                                digests += _digest(block)
                    at += len(data)
            skip_to(self.size)
        return sha256.hexdigest(), blocks, bytes(digests)

    def _file_state(self) -> list[int]:
        """Return numbers that change when the image is written to, also if its modification time is put back."""
        return list(self._state)

    def is_touched(self) -> bool:
        """Return whether the open image was written to, or its file was removed or renamed, since it was opened."""
        return FileState.of(self.fd) != self._state

    def _load_map(self, path: str) -> bool:
        """Load a saved block map, and return whether it is complete and belongs to this image in its present state."""
        try:
            with open(path, encoding="ascii") as file:
                checksum, _, text = file.read().partition("\n")
            if hashlib.sha256(text.encode()).hexdigest() != checksum:
                return False
            known = json.loads(text)
            if known["version"] != MAP_VERSION or known["key"] != self._file_state():
                return False
            self.sha256 = str(known["sha256"])
            self.needed_blocks = set(_expand(known["needed"]))
            self._filled_blocks = array.array("I", _expand(known["filled"]))
            self._digests = base64.b64decode(known["digests"], validate=True)
        except (OSError, ValueError, LookupError, TypeError, OverflowError):
            return False
        return len(self._digests) == len(self._filled_blocks) * _DIGEST_SIZE

    def _save_map(self, path: str) -> None:
        """Save the block map, with a checksum in its first line. If that fails, the next run scans the image again."""
        known = {"version": MAP_VERSION, "key": self._file_state(), "sha256": self.sha256}
        known |= {"needed": _runs(sorted(self.needed_blocks)), "filled": _runs(self._filled_blocks)}
        text = json.dumps(known | {"digests": base64.b64encode(self._digests).decode()})
        with contextlib.suppress(OSError):
            replace_file(path, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}", fsync=False)

    def _find_needed_blocks(self) -> set[int]:
        """Return the numbers of the blocks that a card must hold: all but those that the file systems do not use."""
        try:
            partitions = parse_partitions(self.read, self.size)
        except ImageChanged:
            raise
        except BrambleError:
            return set(range(-(-self.size // BLOCK)))
        needed, at = set[int](), 0

        def add_range(start: int, end: int) -> None:
            needed.update(range(start // BLOCK, -(-min(end, self.size) // BLOCK)))

        for partition in sorted(partitions, key=lambda partition: partition.start):
            add_range(at, partition.start)
            for start, end in used_ranges(self.fd, partition):
                add_range(start, end)
            add_range(partition.start, min(partition.start + TAIL, partition.end))
            add_range(max(partition.start, partition.end - TAIL), partition.end)
            at = partition.end
        add_range(at, self.size)
        add_range(max(0, self.size - TAIL), self.size)
        sector = self.read(0, SECTOR)
        if has_gpt(sector):
            for start, end in hybrid_ranges(sector, partitions):
                add_range(start, end)
        return needed

    def partitions(self) -> tuple[Partition, Partition]:
        """Return the boot and the root partition. Raises BrambleError when one is missing."""
        try:
            return boot_and_root(parse_partitions(self.read, self.size))
        except ImageChanged:
            raise
        except BrambleError as error:
            raise BrambleError(f"the image {self.path}: {error}") from None


def _digest(block: bytes) -> bytes:
    """Return the digest of a block.

    SHA-256 is faster here than BLAKE2b (1,180 and 470 MB/s), as processors have instructions for it.
    """
    return hashlib.sha256(block).digest()[:_DIGEST_SIZE]


def _runs(blocks: Iterable[int]) -> list[list[int]]:
    """Return sorted numbers of blocks as runs: [first, last + 1]."""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and runs[-1][1] == block:
            runs[-1][1] = block + 1
        else:
            runs.append([block, block + 1])
    return runs


def _expand(runs: Iterable[tuple[int, int]]) -> Iterable[int]:
    """Return the numbers of blocks of runs."""
    return itertools.chain.from_iterable(range(low, high) for low, high in runs)
