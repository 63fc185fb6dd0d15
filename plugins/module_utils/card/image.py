"""A card image: its size, its partitions, and which of its blocks hold data. All sizes and offsets are in bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable

from ansible_collections.bramble.cluster.plugins.module_utils.card.partition import Partition, boot_and_root, parse_mbr
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
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import format_bytes

MAP_VERSION = 1  # of the format of a saved block map; increase it when the meaning of a field changes


class Image:
    """A raw image, opened for reading and scanned once for its SHA-256 and its blocks. A context manager.

    `needed_blocks` are the numbers of the blocks that a card must hold: all but those that the file systems do not use, such as
    free space and the contents of deleted files. `data_blocks` are those of them that are not zero, sorted.

    :param map_path: a file that keeps the result of the scan, so that an unchanged image is not read again
    :param save_map: whether to write this file
    :raises BrambleError: for a file that is no disk image
    :raises OSError: when the image cannot be read
    """

    def __init__(self, path: str, map_path: str | None = None, save_map: bool = True) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._stat = os.fstat(self.fd)
            self.size = self._stat.st_size
            if self.size == 0 or self.size % SECTOR:
                raise BrambleError(
                    f"the image {path} has {format_bytes(self.size)}, which is not a whole number of {SECTOR}-byte sectors"
                )
            if not (map_path and self._load_map(map_path)):
                self.sha256, data = self._scan()
                self.needed_blocks = self._find_needed_blocks()
                self.data_blocks = [block for block in data if block in self.needed_blocks]
                if map_path and save_map:
                    self._save_map(map_path)
        except BaseException:
            os.close(self.fd)
            raise

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def _scan(self) -> tuple[str, list[int]]:
        """Return the SHA-256 of the image and the numbers of its blocks that are not zero, in one pass."""
        digest, blocks, at = hashlib.sha256(), list[int](), 0

        def skip_to(end: int) -> None:
            nonlocal at
            while at < end:
                length = min(CHUNK, end - at)
                digest.update(ZEROS if length == CHUNK else ZEROS[:length])
                at += length

        for start, end in data_extents(self.fd, 0, self.size):
            skip_to(start - start % BLOCK)  # an extent can begin inside a block
            while at < end:
                data = read_exactly(self.fd, at, min(CHUNK - at % CHUNK, self.size - at))
                digest.update(data)
                if not is_zero(data):
                    inner = range(0, len(data), BLOCK)
                    blocks += [(at + low) // BLOCK for low in inner if not is_zero(data[low : low + BLOCK])]
                at += len(data)
        skip_to(self.size)
        return digest.hexdigest(), blocks

    def _file_state(self) -> list[int]:
        """Return numbers that change when the image is written to."""
        return [self._stat.st_ino, self._stat.st_size, self._stat.st_mtime_ns, self._stat.st_ctime_ns]

    def _load_map(self, path: str) -> bool:
        """Load a saved block map, and return whether it belongs to this image in its present state."""
        try:
            with open(path, encoding="ascii") as file:
                known = json.load(file)
            if known["key"] != self._file_state() or known["version"] != MAP_VERSION:
                return False
            self.sha256 = str(known["sha256"])
            self.needed_blocks, data = (
                {block for low, high in known[name] for block in range(low, high)} for name in ("needed", "data")
            )
            self.data_blocks = sorted(data)
        except (OSError, ValueError, LookupError, TypeError):
            return False
        return True

    def _save_map(self, path: str) -> None:
        """Save the block map. If that fails, the next run scans the image again."""

        def ranges(blocks: Iterable[int]) -> list[list[int]]:
            runs: list[list[int]] = []
            for block in sorted(blocks):
                if runs and runs[-1][1] == block:
                    runs[-1][1] = block + 1
                else:
                    runs.append([block, block + 1])
            return runs

        known = {"version": MAP_VERSION, "key": self._file_state(), "sha256": self.sha256}
        known |= {"needed": ranges(self.needed_blocks), "data": ranges(self.data_blocks)}
        with contextlib.suppress(OSError):
            replace_file(path, json.dumps(known), fsync=False)

    def _find_needed_blocks(self) -> set[int]:
        """Return the numbers of the blocks that a card must hold: all but those that the file systems do not use."""
        try:
            partitions = parse_mbr(read_exactly(self.fd, 0, SECTOR), self.size)
        except BrambleError:
            return set(range(-(-self.size // BLOCK)))
        needed, at = set[int](), 0

        def add_range(start: int, end: int) -> None:
            needed.update(range(start // BLOCK, -(-end // BLOCK)))

        for partition in sorted(partitions, key=lambda partition: partition.start):
            add_range(at, partition.start)
            for start, end in used_ranges(self.fd, partition.start, partition.size):
                add_range(start, end)
            at = partition.end
        add_range(at, self.size)
        return needed

    def partitions(self) -> tuple[Partition, Partition]:
        """Return the boot and the root partition. Raises BrambleError when one is missing."""
        try:
            return boot_and_root(parse_mbr(read_exactly(self.fd, 0, SECTOR), self.size))
        except BrambleError as error:
            raise BrambleError(f"the image {self.path}: {error}") from None

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes at an offset."""
        return read_exactly(self.fd, offset, length)

    def check_untouched(self) -> None:
        """Check that the image was not written to since it was opened. Raises BrambleError."""
        now = os.stat(self.path)
        if any(getattr(now, name) != getattr(self._stat, name) for name in ("st_dev", "st_ino", "st_size", "st_mtime_ns")):
            raise BrambleError(f"the image {self.path} was changed while cards were written from it: write them again")
