"""Used space: only unused ranges are left out, and no input raises another error than BrambleError."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.bramble.cluster.plugins.module_utils.card.partition import Partition
from ansible_collections.bramble.cluster.plugins.module_utils.card.space import EXT, FAT, UNKNOWN, file_system_kind, used_ranges
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import PAGE, SECTOR
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from hypothesis import given, settings
from hypothesis import strategies as st

MIB = 1024 * 1024
START = 3 * MIB + 7 * SECTOR  # the offset of a partition that does not begin at a page
SCRATCH = "/dev/shm" if os.path.isdir("/dev/shm") else None
EXTS = {
    "ext2": "-t ext2 -b 1024",
    "ext2, old": "-t ext2 -b 1024 -r 0 -O none",
    "ext3": "-t ext3 -b 2048",
    "ext4": "-t ext4 -b 4096",
    "ext4, 1 KiB": "-t ext4 -b 1024 -J size=1",
    "meta_bg": "-t ext4 -b 1024 -O meta_bg,^resize_inode",
    "32bit": "-t ext4 -O ^64bit,^metadata_csum",
    "flex_bg": "-t ext4 -b 1024 -G 4 -E packed_meta_blocks=1",
    "uninit": "-t ext4 -b 1024 -O ^metadata_csum,uninit_bg -E lazy_itable_init=1",
    "sparse_super2": "-t ext4 -b 1024 -O sparse_super2",
    "inline": "-t ext4 -b 1024 -I 256 -O inline_data",
}
FATS = {
    "FAT12": (12, 3 * MIB, ""),
    "FAT16": (16, 20 * MIB, ""),
    "FAT32": (32, 48 * MIB, "-s 1"),
    "FAT32, 1 KiB": (32, 80 * MIB, "-s 2"),
}


def run(*command: str | Path, stdin: str = "", exit_codes: tuple[int, ...] = (0,)) -> bytes:
    """Return the output of a command."""
    done = subprocess.run(command, input=stdin.encode(), capture_output=True, check=False)
    assert done.returncode in exit_codes, f"{command}: {done.stdout!r} {done.stderr!r}"
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files and folders, some empty, some large, some to be deleted."""
    top = tmp_path_factory.mktemp("tree")
    (top / "deep/er").mkdir(parents=True)
    for number in range(40):
        folder = (top, top / "deep", top / "deep/er")[number % 3]
        (folder / f"file{number:02}").write_bytes(os.urandom(number * number * 40))
    return top


def read_files(folder: Path) -> dict[str, bytes]:
    """Return the content of all files below a folder, by path."""
    files = [path for path in folder.rglob("*") if path.is_file() and "lost+found" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def write_to_disk(part: Path, disk: Path, after: int = 5 * SECTOR) -> int:
    """Write a file system to a disk at START, and return its size."""
    size = part.stat().st_size
    with disk.open("wb") as file:
        file.truncate(START + size + after)
        file.seek(START)
        with part.open("rb") as source:
            shutil.copyfileobj(source, file)
    return size


def partition(size: int, start: int = START, type: str = "0x83") -> Partition:
    """Return a partition of a disk."""
    return Partition(1, type, start, size)


def copy_used_ranges(disk: Path, size: int, part: Path, type: str, skip_unused_inodes: bool = False) -> int:
    """Copy the used ranges of a partition, with random bytes (or zeros) in between, and return the number of used bytes."""
    with disk.open("rb") as file, part.open("wb") as copy:
        where = partition(size, type=type)
        ranges = list(used_ranges(file.fileno(), where, strict=True, skip_unused_inodes=skip_unused_inodes))
        assert_valid(ranges, START, size)
        for at in range(0, size, MIB):
            copy.write(bytes(min(MIB, size - at)) if skip_unused_inodes else os.urandom(min(MIB, size - at)))
        for low, high in ranges:
            file.seek(low)
            copy.seek(low - START)
            copy.write(file.read(high - low))
    return sum(high - low for low, high in ranges)


def assert_valid(ranges: list[tuple[int, int]], start: int, size: int) -> None:
    """Check that ranges are sorted, do not touch, consist of whole pages, and are within the partition."""
    end = -1
    for low, high in ranges:
        assert end < low < high and start <= low and high <= start + size
        assert low == start or low % PAGE == 0
        assert high == start + size or high % PAGE == 0
        end = high


# Real file systems


def dump_files(part: Path, folder: Path) -> dict[str, bytes]:
    """Return the content of all files in an ext file system, by path."""
    folder.mkdir()
    run("debugfs", "-R", f"rdump / {folder}", part)
    return read_files(folder)


@pytest.mark.parametrize("options", EXTS.values(), ids=EXTS)
def test_ext_copy_of_used_ranges_is_complete(options: str, tree: Path, tmp_path: Path) -> None:
    part, disk, copy = tmp_path / "part", tmp_path / "disk", tmp_path / "copy"
    run("mke2fs", "-q", "-F", *options.split(), "-d", tree, part, "40m")
    gone = [f"file{number:02}" for number in range(0, 40, 6)]
    run("debugfs", "-w", "-f", "-", part, stdin="".join(f"rm {name}\n" for name in gone))
    run("e2fsck", "-fy", part, exit_codes=(0, 1))
    before = dump_files(part, tmp_path / "before")
    assert not set(gone) & set(before) and len(before) == 40 - len(gone)
    amount = copy_used_ranges(disk, write_to_disk(part, disk), copy, "0x83")
    run("e2fsck", "-fn", copy)
    assert dump_files(copy, tmp_path / "after") == before
    assert sum(map(len, before.values())) < amount < 12 * MIB

    less = copy_used_ranges(disk, part.stat().st_size, copy, "0x83", skip_unused_inodes=True)
    assert less <= amount and (less < amount - MIB) == (b"unused inodes" in run("dumpe2fs", part))
    run("e2fsck", "-fn", copy)
    assert dump_files(copy, tmp_path / "less") == before
    # All inodes are still usable.
    run("debugfs", "-w", "-f", "-", copy, stdin="".join(f"mkdir new{number}\n" for number in range(200)))
    run("e2fsck", "-fn", copy)


@pytest.mark.parametrize(("bits", "size", "options"), FATS.values(), ids=FATS)
def test_fat_copy_of_used_ranges_is_complete(bits: int, size: int, options: str, tree: Path, tmp_path: Path) -> None:
    part, disk, copy = tmp_path / "part", tmp_path / "disk", tmp_path / "copy"
    with part.open("wb") as file:
        file.truncate(size)
    run("mkfs.vfat", "-F", str(bits), *options.split(), part)
    run("mcopy", "-i", part, "-s", *sorted(tree.iterdir()), "::/")
    run("mdel", "-i", part, *(f"::file{number:02}" for number in range(0, 40, 6)))

    def read_fat(where: Path, folder: Path) -> dict[str, bytes]:
        folder.mkdir()
        run("mcopy", "-i", where, "-s", "-n", "::/", folder)
        return read_files(folder)

    before = read_fat(part, tmp_path / "before")
    assert len(before) == 40 - 7
    amount = copy_used_ranges(disk, write_to_disk(part, disk), copy, "0x0c")
    run("fsck.vfat", "-n", copy)
    assert read_fat(copy, tmp_path / "after") == before
    assert sum(map(len, before.values())) < amount < 5 * MIB


def test_file_opened_with_direct_io(tree: Path, tmp_path: Path) -> None:
    part, disk = tmp_path / "part", tmp_path / "disk"
    run("mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, part, "40m")
    size = write_to_disk(part, disk)
    with disk.open("rb") as file:
        buffered = list(used_ranges(file.fileno(), partition(size), strict=True))
    fd = os.open(disk, os.O_RDONLY | os.O_DIRECT)
    try:
        assert list(used_ranges(fd, partition(size), strict=True)) == buffered
    finally:
        os.close(fd)


# Ranges that are not known to be free count as used


@pytest.fixture
def disk(tree: Path, tmp_path: Path) -> Iterator[Callable[..., tuple[Path, int]]]:
    """A function that creates a disk with an ext4 file system: disk(options, debugfs commands)."""

    def make(options: str = "-t ext4 -b 1024", commands: str = "") -> tuple[Path, int]:
        part = tmp_path / "part"
        run("mke2fs", "-q", "-F", *options.split(), "-d", tree, part, "40m")
        if commands:
            run("debugfs", "-w", "-f", "-", part, stdin=commands)
        return tmp_path / "disk", write_to_disk(part, tmp_path / "disk")

    yield make


def strict_error(path: Path, size: int, start: int = START, type: str = "0x83", check: bool = True) -> str:
    """Return the error with `strict`; without it, the whole partition must count as used."""
    with path.open("rb") as file:
        assert list(used_ranges(file.fileno(), partition(size, start, type), check=check)) == [(start, start + size)]
        with pytest.raises(BrambleError) as caught:
            used_ranges(file.fileno(), partition(size, start, type), strict=True, check=check)
    return str(caught.value)


def patch(path: Path, offset: int, data: bytes) -> None:
    """Overwrite bytes of the partition."""
    with path.open("r+b") as file:
        file.seek(START + offset)
        file.write(data)


def test_journal_that_must_be_replayed(disk: Callable[..., tuple[Path, int]]) -> None:
    assert "journal" in strict_error(*disk(commands="feature needs_recovery\n"))


def test_not_unmounted_and_no_journal(disk: Callable[..., tuple[Path, int]]) -> None:
    assert "is not clean" in strict_error(*disk("-t ext2", "set_super_value state 0\n"))


def test_bigalloc(disk: Callable[..., tuple[Path, int]]) -> None:
    assert "bigalloc" in strict_error(*disk("-t ext4 -O bigalloc -C 16384 -b 4096"))


def test_a_damaged_bitmap(disk: Callable[..., tuple[Path, int]]) -> None:
    path, size = disk()
    (where,) = [line for line in run("dumpe2fs", f"{path}?offset={START}").decode().splitlines() if "Block bitmap at" in line][:1]
    patch(path, int(where.split()[3]) * 1024, b"\xaa" * 8)
    assert "damaged" in strict_error(path, size)


def test_a_bitmap_that_does_not_match_the_count(disk: Callable[..., tuple[Path, int]]) -> None:
    """Without checksums, only the count shows the damage."""
    assert "wrong count of free blocks" in strict_error(*disk("-t ext2 -b 1024", "freeb 9000 5\nset_bg 1 free_blocks_count 7\n"))


def test_a_damaged_superblock(disk: Callable[..., tuple[Path, int]]) -> None:
    path, size = disk()
    patch(path, 1024 + 4, b"\xff\xff")
    assert "damaged" in strict_error(path, size)


def test_a_file_system_larger_than_its_partition(disk: Callable[..., tuple[Path, int]]) -> None:
    path, size = disk()
    assert "larger than its partition" in strict_error(path, size - SECTOR)


def test_an_unknown_file_system(disk: Callable[..., tuple[Path, int]]) -> None:
    path, size = disk()
    assert "holds no valid ext2, ext3 or ext4 file system" in strict_error(path, size - 4 * MIB, START + 4 * MIB)


def test_a_partition_outside_the_disk(disk: Callable[..., tuple[Path, int]]) -> None:
    path, size = disk()
    with path.open("rb") as file:
        for start, length in ((START, size + 6 * SECTOR), (-SECTOR, size), (START, 0), (START, -1), (10**12, SECTOR)):
            with pytest.raises(BrambleError, match="not within"):
                used_ranges(file.fileno(), partition(length, start))


def test_copies_of_a_fat_that_differ(tmp_path: Path) -> None:
    part = tmp_path / "part"
    with part.open("wb") as file:
        file.truncate(20 * MIB)
    run("mkfs.vfat", "-F", "16", part)
    (reserved,) = struct.unpack_from("<H", part.read_bytes(), 14)
    size = write_to_disk(part, tmp_path / "disk")
    patch(tmp_path / "disk", reserved * SECTOR + 100, b"\xff\xff")
    assert "differ" in strict_error(tmp_path / "disk", size, type="0x0c")


# Arbitrary data


@contextlib.contextmanager
def disk_with_data(data: bytes, start: int, after: int) -> Iterator[int]:
    """Yield a descriptor of a disk with `data` at `start`."""
    with tempfile.TemporaryFile(dir=SCRATCH) as file:
        file.truncate(start + len(data) + after)
        file.seek(start)
        file.write(data)
        file.flush()
        yield file.fileno()


def check_used_ranges(data: bytes, start: int, after: int) -> None:
    """Check that used_ranges returns valid ranges, or with `strict` raises BrambleError."""
    with disk_with_data(data, start, after) as fd:
        for type in ("0x83", "0x0c"):
            where = partition(len(data), start, type)
            ranges = list(used_ranges(fd, where))
            assert_valid(ranges, start, len(data))
            assert_valid(list(used_ranges(fd, where, skip_unused_inodes=True, check=False)), start, len(data))
            with contextlib.suppress(BrambleError):
                assert list(used_ranges(fd, where, strict=True)) == ranges
        assert file_system_kind(fd, start, len(data)) in (EXT, FAT, UNKNOWN)


STARTS = st.sampled_from([0, SECTOR, PAGE, MIB + SECTOR])


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=8192), STARTS, st.integers(0, 9999))
def test_any_bytes(data: bytes, start: int, after: int) -> None:
    check_used_ranges(data, start, after)


NUMBER = st.integers(0, 255) | st.integers(0, 65535) | st.sampled_from([1, 2, 512, 4096])
BPB = st.tuples(st.sampled_from([512, 1024, 4096]), *[NUMBER] * 5, NUMBER, NUMBER, st.integers(0, 2**32 - 1) | NUMBER)


@settings(deadline=None, max_examples=400)
@given(BPB, st.binary(max_size=60_000), STARTS)
def test_any_boot_sector(numbers: tuple[int, ...], rest: bytes, start: int) -> None:
    length, per_cluster, reserved, copies, entries, total, fat16, total32, fat32 = numbers
    sector = bytearray(SECTOR)
    sector[0], sector[510:] = 0xEB, b"\x55\xaa"
    struct.pack_into(
        "<HBHBHHxHxxxxxxxxII", sector, 11, length, per_cluster % 256, reserved, copies % 4, entries, total, fat16, total32, fat32
    )
    check_used_ranges(bytes(sector) + rest + bytes(4096), start, 0)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Small real file systems."""
    folder, made = tmp_path_factory.mktemp("small"), {}
    for name, options in (("ext2", "-t ext2 -b 1024 -g 256"), ("ext4", "-t ext4 -b 1024 -O ^has_journal")):
        run("mke2fs", "-q", "-F", *options.split(), folder / name, "2m")
    for name, bits in (("FAT12", "12"), ("FAT16", "16")):
        (folder / name).write_bytes(bytes(2 * MIB if bits == "12" else 3 * MIB))
        run("mkfs.vfat", "-F", bits, "-s", "1", folder / name)
    for path in folder.iterdir():
        made[path.name] = path.read_bytes()
    return made


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_any_damage(small: dict[str, bytes], data: st.DataObject) -> None:
    """Real file systems with changed bytes, most of them in metadata, or truncated."""
    bytes_ = bytearray(small[data.draw(st.sampled_from(sorted(small)))])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, 4096) | st.integers(0, len(bytes_) - 1))
        bytes_[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.just(len(bytes_)) | st.integers(1, len(bytes_)))
    check_used_ranges(bytes(bytes_[:cut]), data.draw(STARTS), 0)
