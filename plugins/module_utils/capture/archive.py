"""Write the image of a captured card, sparse and compressed in one pass. All sizes and offsets are in bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from ansible_collections.bramble.cluster.plugins.module_utils.card.partition import Partition
from ansible_collections.bramble.cluster.plugins.module_utils.card.progress import Progress
from ansible_collections.bramble.cluster.plugins.module_utils.card.space import used_ranges
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import (
    CHUNK,
    SECTOR,
    ZEROS,
    data_extents,
    is_zero,
    read_exactly,
)
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.tools import TOOL_ENV

COMPRESSORS = {"zst": ("zstd", "-T0", "-q", "-c"), "xz": ("xz", "-T0", "-c")}


def resize_root_entry(mbr: bytes, size: int) -> bytes:
    """Return the first sector of a card with a new size of partition 2.

    Its last cylinder is set to the value for partitions beyond the range of cylinders, so that it is ignored.
    """
    sector = bytearray(mbr)
    entry = 446 + 16
    sector[entry + 5 : entry + 8] = b"\xfe\xff\xff"
    struct.pack_into("<I", sector, entry + 12, size // SECTOR)
    return bytes(sector)


def image_chunks(mbr: bytes, gaps: Path, parts: Sequence[tuple[Partition, Path]]) -> Iterator[tuple[int, bytes]]:
    """Yield the (offset, data) of an image that its file systems use, and what is before each of them, in order.

    Raises BrambleError.

    :param mbr: the first sector, with the new partition table
    :param gaps: a sparse file with the bytes outside the partitions, at their offsets
    :param parts: the partitions, in order, and their content
    """
    yield 0, mbr
    end = len(mbr)
    for partition, path in parts:
        with gaps.open("rb") as file:
            for low, high in data_extents(file.fileno(), end, partition.start):
                yield from _read_chunks(file.fileno(), low, high, 0)
        with path.open("rb") as file:
            # Aligned to single bytes, as adjacent bytes may belong to deleted files.
            copy = dataclasses.replace(partition, start=0)
            used = used_ranges(file.fileno(), copy, strict=True, alignment=1, skip_unused_inodes=True, check=False)
            for low, high in used:
                yield from _read_chunks(file.fileno(), low, high, partition.start)
        end = partition.end


def _read_chunks(fd: int, low: int, high: int, start: int) -> Iterator[tuple[int, bytes]]:
    """Yield the (offset, data) of a range of a file that begins at `start` in the image."""
    for at in range(low, high, CHUNK):
        yield start + at, read_exactly(fd, at, min(CHUNK, high - at))


@contextlib.contextmanager
def compressor(compression: str, target: IO[bytes]) -> Iterator[IO[bytes]]:
    """Yield a pipe: data that is written to it is compressed with all cores and written to `target`. Raises BrambleError."""
    command = COMPRESSORS[compression]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=target, stderr=subprocess.PIPE, env=TOOL_ENV)
    assert process.stdin
    is_broken = False
    try:
        yield process.stdin
    except BrokenPipeError:
        is_broken = True
    except BaseException:
        process.kill()
        raise
    finally:
        _, stderr = process.communicate()
    if process.returncode or is_broken:
        raise BrambleError(f"{command[0]} failed with exit code {process.returncode}: {stderr.decode(errors='replace').strip()}")


def write_image(
    image: Path, archive: Path, size: int, content: Iterator[tuple[int, bytes]], progress: Progress, node: str
) -> str:
    """Write a sparse image and its compressed archive, and return the SHA-256 of the image.

    The suffix of the archive's name determines the compression. Raises BrambleError.
    """
    digest, meter = hashlib.sha256(), progress.meter(node, "compress", size)
    with image.open("xb", buffering=0) as raw, archive.open("xb") as packed:
        raw.truncate(size)
        with compressor(archive.suffix[1:], packed) as pipe:
            at = 0
            for offset, data in itertools.chain(content, [(size, b"")]):
                while at < offset:
                    gap = ZEROS[: min(CHUNK, offset - at)]
                    digest.update(gap)
                    pipe.write(gap)
                    at += len(gap)
                    meter(len(gap))
                if not is_zero(data):
                    raw.seek(offset)
                    raw.write(data)
                digest.update(data)
                pipe.write(data)
                at += len(data)
                meter(len(data))
        for file in (raw, packed):
            os.fsync(file.fileno())
    return digest.hexdigest()
