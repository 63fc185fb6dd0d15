"""Images: partition tables and block maps."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest
from ansible_collections.bramble.cluster.plugins.module_utils.card.content import Content
from ansible_collections.bramble.cluster.plugins.module_utils.card.image import Image, ImageChanged
from ansible_collections.bramble.cluster.plugins.module_utils.card.overlay import build_overlay
from ansible_collections.bramble.cluster.plugins.module_utils.card.partition import boot_and_root, parse_mbr
from ansible_collections.bramble.cluster.plugins.module_utils.card.root_files import RootFile
from ansible_collections.bramble.cluster.plugins.module_utils.card.workbench import Workbench
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import BLOCK, CHUNK, PAGE, SECTOR
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import format_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import tiny_image
from tests.support.tiny_image import BOOT_SIZE, BOOT_START, MIB, ROOT_SIZE, ROOT_START, SIZE

KEY = RootFile("/etc/ssh/ssh_host_ed25519_key", "a host key\n", 0o600)


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
        (mbr((0xEE, 1, 99)), "GPT, not an MBR"),
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


def test_fingerprint_depends_on_the_places_of_the_overlay(image: Path) -> None:
    """The same bytes in one page or in two, or at another offset, are another content."""
    overlays = [
        {0: b"a", PAGE: b"b"},
        {0: b"a" + struct.pack("<Q", PAGE) + b"b"},
        {0: b"b", PAGE: b"a"},
        {0: b"b", 2 * PAGE: b"a"},
    ]
    with Image(str(image)) as opened:
        assert len({Content(opened, overlay).fingerprint for overlay in overlays}) == len(overlays)


def test_image_must_be_whole_sectors(tmp_path: Path) -> None:
    (tmp_path / "odd.img").write_bytes(bytes(513))
    (tmp_path / "none.img").write_bytes(b"")
    for name in ("odd.img", "none.img"):
        with pytest.raises(BrambleError, match="not a whole number of 512-byte sectors"):
            Image(str(tmp_path / name))


def blocks(start: int, end: int) -> set[int]:
    """Return the numbers of the blocks of a range of bytes."""
    return set(range(start // BLOCK, -(-end // BLOCK)))


@pytest.mark.parametrize("label", ["dos", "gpt"])
def test_map_of_an_image_with_either_table(tmp_path: Path, label: str) -> None:
    """The table, the gaps, and the last MiB of each partition and of the image are needed, and most of the free space is not."""
    path = tmp_path / "tiny.img"
    tiny_image.build(path, label=label)
    with Image(str(path)) as image:
        boot, root = image.partitions()
        assert ((boot.start, boot.size), (root.start, root.size)) == ((BOOT_START, BOOT_SIZE), (ROOT_START, ROOT_SIZE))
        for start, end in ((0, BOOT_START), (ROOT_START - MIB, ROOT_START), (SIZE - 2 * MIB, SIZE)):
            assert blocks(start, end) <= image.needed_blocks
        assert len(image.needed_blocks) * BLOCK < 14 * MIB
        copy = bytearray(os.urandom(SIZE))
        for run in Content(image, {}).runs():
            copy[run.offset : run.end] = image.read(run.offset, run.length)
        # The file systems and the tables, with the backup at the end of a GPT, are complete.
        card = tmp_path / "card.img"
        card.write_bytes(copy)
        subprocess.run(["sfdisk", "--verify", card], check=True, capture_output=True)
        subprocess.run(["e2fsck", "-fn", f"{card}?offset={ROOT_START}"], check=True, capture_output=True)
        assert copy[:BOOT_START] == path.read_bytes()[:BOOT_START] and copy[-MIB:] == path.read_bytes()[-MIB:]
        with Workbench(image, str(tmp_path)) as bench:
            assert min(build_overlay(bench, {}, [KEY])) >= ROOT_START


def test_contradicting_entry_of_a_hybrid_mbr_is_copied_whole(tmp_path: Path) -> None:
    path = tmp_path / "tiny.img"
    tiny_image.build(path, label="gpt")
    with Image(str(path)) as image:
        free = blocks(ROOT_START, ROOT_START + ROOT_SIZE) - image.needed_blocks
        assert free
    entries = (0x0C, BOOT_START // SECTOR, BOOT_SIZE // SECTOR), (0x07, ROOT_START // SECTOR, 2**31), (0xEE, 1, 2047)
    with path.open("r+b") as file:
        file.write(mbr(*entries))
    with Image(str(path)) as image:
        assert free <= image.needed_blocks
        assert [partition.start for partition in image.partitions()] == [BOOT_START, ROOT_START]


def test_table_that_is_not_understood_is_copied_whole(image: Path, tmp_path: Path) -> None:
    path = tmp_path / "broken.img"
    path.write_bytes(mbr((0xEE, 1, 99)) + image.read_bytes()[SECTOR:])
    with Image(str(path)) as opened:
        assert opened.needed_blocks == blocks(0, SIZE)
        with pytest.raises(BrambleError, match="GPT partition table is damaged"):
            opened.partitions()


# Digests of blocks


def change(path: Path, offset: int, data: bytes) -> None:
    """Overwrite bytes of a file, and keep its time of change, as a program does that maps it into its memory."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@settings(deadline=None, max_examples=40)
@given(SPARSE, st.integers(0, 127), st.integers(0, 2**32))
def test_changed_block_is_never_returned(pattern: list[str], tail: int, seed: int) -> None:
    path, plain = build(pattern, tail)
    generator = random.Random(seed)
    try:
        with Image(path) as image:
            for _ in range(4):
                start, end = sorted(generator.randrange(len(plain) + 1) for _ in range(2))
                assert image.read(start, end - start) == plain[start:end]
            at = generator.randrange(len(plain))
            change(Path(path), at, bytes([plain[at] ^ 1 << generator.randrange(8)]))
            first = at // BLOCK * BLOCK
            for start, end in ((0, len(plain)), (at, at + 1), (first, first + 1)):
                with pytest.raises(
                    ImageChanged, match=rf"was changed since it was verified, at byte {first:,}: write the cards again"
                ):
                    image.read(start, end - start)
            assert image.read(0, first) == plain[:first]
            assert image.read(first + BLOCK, 0) == b"" if first + BLOCK <= len(plain) else True
            change(Path(path), at, plain[at : at + 1])
            assert image.read(0, len(plain)) == plain
            os.truncate(path, first)
            with pytest.raises(ImageChanged, match=f"at byte {first:,}"):
                image.read(at, 1)
    finally:
        os.unlink(path)


@pytest.mark.parametrize(("offset", "length"), [(-1, 2), (0, SIZE + 1), (SIZE, 1), (5, -1)])
def test_bytes_outside_the_image(image: Path, offset: int, length: int) -> None:
    with Image(str(image)) as opened, pytest.raises(ValueError, match="not within the image"):
        opened.read(offset, length)


def test_image_that_changes_during_the_scan(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, map_path = tmp_path / "tiny.img", tmp_path / "map"
    path.write_bytes(image.read_bytes())
    scan = Image._scan

    def scan_and_change(self: Image) -> object:
        result = scan(self)
        with path.open("r+b") as file:
            file.seek(SIZE - 1)
            file.write(b"x")
        return result

    monkeypatch.setattr(Image, "_scan", scan_and_change)
    with pytest.raises(ImageChanged, match="was changed while it was read: run the same command again"):
        Image(str(path), str(map_path))
    assert not map_path.exists()


def state(image: Image) -> tuple[object, ...]:
    """Return all that an image knows from its scan."""
    return image.sha256, image.needed_blocks, image.data_blocks, image._filled_blocks, image._digests


@pytest.fixture
def is_scanned(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A list that gets an item for each image that is scanned."""
    scans: list[bool] = []
    scan = Image._scan

    def count_scan(self: Image) -> object:
        scans.append(True)
        return scan(self)

    monkeypatch.setattr(Image, "_scan", count_scan)
    return scans


def test_saved_map_is_the_same(image: Path, tmp_path: Path, is_scanned: list[bool]) -> None:
    map_path = str(tmp_path / "map")
    with Image(str(image), map_path, save_map=False) as opened:
        first = state(opened)
    assert not os.path.exists(map_path)
    for scans in (2, 2, 2):
        with Image(str(image), map_path) as opened:
            assert state(opened) == first and len(is_scanned) == scans
            assert opened.read(ROOT_START, MIB) == image.read_bytes()[ROOT_START : ROOT_START + MIB]


@pytest.mark.parametrize("damage", ["truncated", "edited", "bit", "empty", "old", "binary", "short digests"])
def test_damaged_map_is_ignored(image: Path, tmp_path: Path, is_scanned: list[bool], damage: str) -> None:
    map_path = tmp_path / "map"
    with Image(str(image), str(map_path)) as opened:
        first = state(opened)
    text = map_path.read_text()
    checksum, _, body = text.partition("\n")
    known = json.loads(body)
    assert hashlib.sha256(body.encode()).hexdigest() == checksum
    short = json.dumps(known | {"digests": known["digests"][:-12]})
    old = json.dumps(known | {"version": 1})
    damaged = {
        "truncated": text[:-20].encode(),
        "edited": text.replace("[0, ", "[1, ", 1).encode(),
        "bit": (text[:-9] + chr(ord(text[-9]) ^ 1) + text[-8:]).encode(),
        "empty": b"",
        "old": f"{hashlib.sha256(old.encode()).hexdigest()}\n{old}".encode(),
        "binary": b"\xff" * 99,
        "short digests": f"{hashlib.sha256(short.encode()).hexdigest()}\n{short}".encode(),
    }[damage]
    assert damaged != text.encode()
    map_path.write_bytes(damaged)
    with Image(str(image), str(map_path)) as opened:
        assert state(opened) == first
    assert len(is_scanned) == 2 and map_path.read_text() == text


@pytest.mark.parametrize("other", ["dev", "ino", "size", "mtime_ns", "ctime_ns"])
def test_map_of_another_state_is_ignored(
    image: Path, tmp_path: Path, is_scanned: list[bool], monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    map_path = str(tmp_path / "map")
    index = ["dev", "ino", "size", "mtime_ns", "ctime_ns"].index(other)
    real = Image._file_state
    with Image(str(image), map_path) as opened:
        assert real(opened)[index] == getattr(image.stat(), f"st_{other}")
    monkeypatch.setattr(Image, "_file_state", lambda self: [value + (at == index) for at, value in enumerate(real(self))])
    with Image(str(image), map_path):
        pass
    assert len(is_scanned) == 2


def test_format_bytes() -> None:
    assert (format_bytes(1), format_bytes(31914983424)) == ("1 byte", "31,914,983,424 bytes")
