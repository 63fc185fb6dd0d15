"""A card image: its size, its partitions, and the blocks of it that hold data. Every size and offset is in bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable

from ansible_collections.bramble.cluster.plugins.module_utils.card.partition import Partition, boot_and_root, parse_mbr
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import (
    BLOCK,
    CHUNK,
    SECTOR,
    ZEROS,
    extents,
    is_zero,
    read_exactly,
)
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import format_bytes

MAP_VERSION = 1  # of a kept block map; a new one when what is in it means something else


class Image:
    """A raw image, open for reading and scanned once: size, sha256, partitions, which blocks hold data, and which matter.

    What no file system uses does not matter: the contents of deleted files, and space that is free. With a `map_path` what was
    found is kept there (if `keep`), and an image that was not touched since is not read again.

    Raises BrambleError for something that is not a disk image, OSError when it cannot be read. Use it with `with`.
    """

    def __init__(self, path: str, map_path: str | None = None, keep: bool = True) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._stat = os.fstat(self.fd)
            self.size = self._stat.st_size
            if self.size == 0 or self.size % SECTOR:
                raise BrambleError(f"the image {path} is {format_bytes(self.size)}: not a whole number of {SECTOR}-byte sectors")
            if not (map_path and self._load(map_path)):
                self.sha256, data = self._scan()
                self.needed = self._needed()
                self.blocks = [block for block in data if block in self.needed]
                if map_path and keep:
                    self._save(map_path)
        except BaseException:
            os.close(self.fd)
            raise

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def _scan(self) -> tuple[str, list[int]]:
        """One pass: the sha256 of everything, and the numbers of the blocks that hold anything but zeros."""
        digest, blocks, at = hashlib.sha256(), list[int](), 0

        def skip_to(end: int) -> None:
            nonlocal at
            while at < end:
                length = min(CHUNK, end - at)
                digest.update(ZEROS if length == CHUNK else ZEROS[:length])
                at += length

        for start, end in extents(self.fd, 0, self.size):
            skip_to(start - start % BLOCK)  # an extent may begin inside a block
            while at < end:
                data = read_exactly(self.fd, at, min(CHUNK - at % CHUNK, self.size - at))
                digest.update(data)
                if not is_zero(data):
                    inner = range(0, len(data), BLOCK)
                    blocks += [(at + low) // BLOCK for low in inner if not is_zero(data[low : low + BLOCK])]
                at += len(data)
        skip_to(self.size)
        return digest.hexdigest(), blocks

    def _key(self) -> list[int]:
        """Changes when somebody writes to the image."""
        return [self._stat.st_ino, self._stat.st_size, self._stat.st_mtime_ns, self._stat.st_ctime_ns]

    def _load(self, path: str) -> bool:
        """Take what was found the last time, if this is the same image still."""
        try:
            with open(path, encoding="ascii") as file:
                known = json.load(file)
            if known["key"] != self._key() or known["version"] != MAP_VERSION:
                return False
            self.sha256 = str(known["sha256"])
            self.needed, data = (
                {block for low, high in known[name] for block in range(low, high)} for name in ("needed", "data")
            )
            self.blocks = sorted(data)
        except (OSError, ValueError, LookupError, TypeError):
            return False
        return True

    def _save(self, path: str) -> None:
        """Keep what was found. What cannot be kept is found again the next time."""

        def ranges(blocks: Iterable[int]) -> list[list[int]]:
            runs: list[list[int]] = []
            for block in sorted(blocks):
                if runs and runs[-1][1] == block:
                    runs[-1][1] = block + 1
                else:
                    runs.append([block, block + 1])
            return runs

        known = {"version": MAP_VERSION, "key": self._key(), "sha256": self.sha256}
        known |= {"needed": ranges(self.needed), "data": ranges(self.blocks)}
        with contextlib.suppress(OSError):
            with open(f"{path}.new", "w", encoding="ascii") as file:
                json.dump(known, file)
            os.rename(f"{path}.new", path)

    def _needed(self) -> set[int]:
        """The numbers of the blocks that a card must hold: all but what the file systems of the image do not use."""
        from ansible_collections.bramble.cluster.plugins.module_utils.card.space import (
            used,  # which itself is built on this module
        )

        try:
            partitions = parse_mbr(read_exactly(self.fd, 0, SECTOR), self.size)
        except BrambleError:
            return set(range(-(-self.size // BLOCK)))
        needed, at = set[int](), 0

        def need(start: int, end: int) -> None:
            needed.update(range(start // BLOCK, -(-end // BLOCK)))

        for partition in sorted(partitions, key=lambda partition: partition.start):
            need(at, partition.start)
            for start, end in used(self.fd, partition.start, partition.size):
                need(start, end)
            at = partition.end
        need(at, self.size)
        return needed

    def partitions(self) -> tuple[Partition, Partition]:
        """Its boot and root partitions. Raises BrambleError naming the image."""
        try:
            return boot_and_root(parse_mbr(read_exactly(self.fd, 0, SECTOR), self.size))
        except BrambleError as error:
            raise BrambleError(f"the image {self.path}: {error}") from None

    def check_untouched(self) -> None:
        """Raises BrambleError when someone wrote to the image since it was opened."""
        now = os.stat(self.path)
        if any(getattr(now, name) != getattr(self._stat, name) for name in ("st_dev", "st_ino", "st_size", "st_mtime_ns")):
            raise BrambleError(f"the image {self.path} was changed while cards were written from it: write them again")
