"""Images: partition tables and block maps."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.bramble.cluster.plugins.module_utils.card.content import Content
from ansible_collections.bramble.cluster.plugins.module_utils.card.image import Image
from ansible_collections.bramble.cluster.plugins.module_utils.card.partition import boot_and_root, parse_mbr
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import BLOCK, CHUNK, PAGE, SECTOR
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import format_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.tiny_image import BOOT_SIZE, BOOT_START, ROOT_SIZE, ROOT_START


def mbr(*entries: tuple[int, int, int]) -> bytes:
    """Return a boot sector with partitions of (type, first sector, sectors)."""
    table = b"".join(struct.pack("<B3xB3xII", 0, *entry) for entry in entries)
    return bytes(446) + table.ljust(64, b"\0") + b"\x55\xaa"


# Partition tables


def test_partitions_of_the_image(image: Path) -> None:
    with Image(str(image)) as opened:
        boot, root = opened.partitions()
    assert (boot.number, boot.start, boot.size, boot.end) == (1, BOOT_START, BOOT_SIZE, ROOT_START)
    assert (root.number, root.start, root.size) == (2, ROOT_START, ROOT_SIZE)


@pytest.mark.parametrize(
    ("sector", "complaint"),
    [
        (bytes(512), "no partition table"),
        (b"\x55\xaa", "no partition table"),
        (mbr((0xEE, 1, 99)), "GPT"),
        (mbr((0x0C, 8, 8), (0x83, 16, 90)), "ends at byte 54,272, beyond the end at 51,200"),
        (mbr((0x0C, 8, 9), (0x83, 16, 8)), "1 and 2 overlap"),
        (mbr((0x0C, 0, 8)), "partition 1 is invalid"),
        (mbr((0x00, 8, 8)), "partition 1 is invalid"),
        (mbr((0x0C, 8, 8)), "partition 2, the Linux root partition, is missing"),
        (mbr((0x83, 8, 8), (0x83, 16, 8)), "partition 1 has type 0x83, but a FAT boot partition is expected"),
    ],
)
def test_partition_table_refused(sector: bytes, complaint: str) -> None:
    with pytest.raises(BrambleError, match=complaint):
        boot_and_root(parse_mbr(sector, 100 * SECTOR))


SECTORS = st.integers(0, 99) | st.integers(0, 2**32 - 1)
TYPES = st.sampled_from([0x00, 0x05, 0x0C, 0x83, 0xEE])
TABLES = st.lists(st.tuples(TYPES, SECTORS, SECTORS), max_size=4).map(lambda entries: mbr(*entries))
RANDOM_SECTORS = st.binary(min_size=510, max_size=510).map(lambda head: head + b"\x55\xaa")


@given(st.binary(max_size=600) | RANDOM_SECTORS | TABLES, st.integers(0, 100).map(lambda sectors: sectors * SECTOR))
def test_partitions_never_overlap_or_leave_the_disk(sector: bytes, size: int) -> None:
    with contextlib.suppress(BrambleError):
        used: set[int] = set()
        for partition in parse_mbr(sector, size):
            assert 0 < partition.start < partition.end <= size
            sectors = set(range(partition.start // SECTOR, partition.end // SECTOR))
            assert not used & sectors
            used |= sectors


# Block maps


SPARSE = st.lists(st.sampled_from(["hole", "zeros", "data", "edge"]), min_size=1, max_size=40)


def build(pattern: list[str], tail: int) -> tuple[str, bytes]:
    """Write a file of 64 KiB blocks by a pattern, and a few more sectors. Return its path and its content."""
    content = bytearray()
    handle, path = tempfile.mkstemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    for number, kind in enumerate(pattern):
        block = bytearray(BLOCK)
        if kind == "data":
            block[:] = bytes([number % 255 + 1]) * BLOCK
        elif kind == "edge":
            block[-1] = 1
        if kind != "hole":
            os.pwrite(handle, block, number * BLOCK)
        content += block
    content += bytes(tail * SECTOR)
    os.ftruncate(handle, len(content))
    os.close(handle)
    return path, bytes(content)


@settings(deadline=None, max_examples=60)
@given(SPARSE, st.integers(0, 127), st.dictionaries(st.integers(0, 40 * 16), st.binary(min_size=1, max_size=PAGE), max_size=6))
def test_runs_and_overlay_rebuild_any_sparse_image(pattern: list[str], tail: int, pages: dict[int, bytes]) -> None:
    path, plain = build(pattern, tail)
    try:
        overlay = {page * PAGE: data for page, data in pages.items() if page * PAGE + len(data) <= len(plain)}
        wanted = bytearray(plain)
        for offset, data in overlay.items():
            wanted[offset : offset + len(data)] = data
        with Image(path) as image:
            assert image.sha256 == hashlib.sha256(plain).hexdigest()
            assert image.data_blocks == [at // BLOCK for at in range(0, len(plain), BLOCK) if any(plain[at : at + BLOCK])]
            content = Content(image, overlay)
            for limits in ((0, None), (0, CHUNK), (CHUNK, None)):
                at, end = limits[0], min(limits[1] or len(plain), len(plain))
                for run in content.runs(*limits):
                    assert run.offset == at and run.length > 0
                    at = run.end
                    if run.has_data:
                        assert run.offset // CHUNK == (run.end - 1) // CHUNK
                        assert content.read(run.offset, run.length) == wanted[run.offset : run.end]
                    else:
                        assert not any(wanted[run.offset : run.end])
                assert at == end or limits[0] >= len(plain)
            assert content.data_bytes == sum(run.length for run in content.runs() if run.has_data)
    finally:
        os.unlink(path)


def test_image_must_be_whole_sectors(tmp_path: Path) -> None:
    (tmp_path / "odd.img").write_bytes(bytes(513))
    (tmp_path / "none.img").write_bytes(b"")
    for name in ("odd.img", "none.img"):
        with pytest.raises(BrambleError, match="not a whole number of 512-byte sectors"):
            Image(str(tmp_path / name))


def test_changed_image_is_detected(card: Callable[..., Path]) -> None:
    path = card("image", fill=b"x" * BLOCK)
    with Image(str(path)) as image:
        image.check_untouched()
        path.write_bytes(b"y")
        with pytest.raises(BrambleError, match="was changed"):
            image.check_untouched()


# Overlays


def test_format_bytes() -> None:
    assert (format_bytes(1), format_bytes(31914983424)) == ("1 byte", "31,914,983,424 bytes")
