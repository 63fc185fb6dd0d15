"""The map of used space: what it does not understand is copied whole, and a copy of its ranges is complete."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.bramble.cluster.plugins.module_utils.card.content import Content
from ansible_collections.bramble.cluster.plugins.module_utils.card.fat import Fat
from ansible_collections.bramble.cluster.plugins.module_utils.card.image import Image
from ansible_collections.bramble.cluster.plugins.module_utils.card.partition import Partition
from ansible_collections.bramble.cluster.plugins.module_utils.card.ranges import RangeList, gaps
from ansible_collections.bramble.cluster.plugins.module_utils.card.space import used_ranges
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import BLOCK, PAGE, SECTOR
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.tools import TOOL_ENV
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.support import ROOT

MIB = 2**20
START = 3 * MIB + 7 * SECTOR  # the offset of a partition that does not begin at a page
EXT, FAT = "0x83", "0x0c"
SCRATCH = "/dev/shm" if os.path.isdir("/dev/shm") else None
Make = Callable[..., tuple[Path, int]]


def run(*command: str | Path, stdin: str = "", exit_codes: tuple[int, ...] = (0,)) -> str:
    """Return the output of a command."""
    done = subprocess.run(command, input=stdin.encode(), capture_output=True, check=False)
    assert done.returncode in exit_codes, f"{command}: {done.stdout!r} {done.stderr!r}"
    return done.stdout.decode(errors="replace")


def make_ext(path: Path, size: int, options: str = "-t ext4 -b 1024", files: Path | None = None) -> None:
    """Create an ext file system in a new file."""
    path.unlink(missing_ok=True)
    source = ("-d", str(files)) if files else ()
    run("mke2fs", "-q", "-F", *options.split(), *source, path, f"{size // 1024}k")


def make_fat(path: Path, size: int, *options: str) -> None:
    """Create a FAT file system in a new file."""
    with path.open("wb") as file:
        file.truncate(size)
    run("mkfs.vfat", *options, path)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Make]:
    """Writes a file system to a disk at START: disk(file system, bytes behind it) is the path of the disk, and both sizes."""

    def make(part: Path, tail: int = 0) -> tuple[Path, int]:
        path, size = tmp_path / "disk", part.stat().st_size + tail
        with path.open("wb") as file, part.open("rb") as source:
            file.truncate(START + size + 5 * SECTOR)
            file.seek(START)
            shutil.copyfileobj(source, file)
        return path, size

    yield make


def used(path: Path, size: int, type: str, **options: bool) -> list[tuple[int, int]]:
    """Return the used ranges of the partition."""
    with path.open("rb") as file:
        return list(used_ranges(file.fileno(), Partition(1, type, START, size), **options))


def reason(path: Path, size: int, type: str, check: bool = True) -> str:
    """Return why the whole partition counts as used."""
    assert used(path, size, type, check=check) == [(START, START + size)]
    with pytest.raises(BrambleError) as caught:
        used(path, size, type, check=check, strict=True)
    return str(caught.value)


def patch(path: Path, offset: int, data: bytes) -> None:
    """Overwrite bytes of the partition."""
    with path.open("r+b") as file:
        file.seek(START + offset)
        file.write(data)


# Type, size and file system agree


@pytest.mark.parametrize(
    "type", ["0x05", "0x0f", "0x85", "0x0c", "0x8e", "0xfd", "0x82", "0x00", "E6D6D379-F507-44C2-A23C-238F2A3DF928"]
)
def test_ext_in_a_partition_of_another_type(disk: Make, tmp_path: Path, type: str) -> None:
    make_ext(tmp_path / "part", 20 * MIB)
    path, size = disk(tmp_path / "part")
    assert type in reason(path, size, type)
    assert sum(high - low for low, high in used(path, size, EXT)) < 4 * MIB


@pytest.mark.parametrize("type", ["0x05", "0x07", "0x83", "0x17", "0FC63DAF-8483-4772-8E79-3D69D8477DE4"])
def test_fat_in_a_partition_of_another_type(disk: Make, tmp_path: Path, type: str) -> None:
    make_fat(tmp_path / "part", 20 * MIB)
    path, size = disk(tmp_path / "part")
    assert type in reason(path, size, type)
    assert sum(high - low for low, high in used(path, size, FAT)) < MIB


def test_extended_partition_over_an_old_file_system(tmp_path: Path) -> None:
    """The superblock of the old file system is still there, and describes nothing that is on the disk."""
    path, part = tmp_path / "disk", tmp_path / "part"
    make_ext(part, 16 * MIB)
    with path.open("wb") as file:
        file.write(bytes(MIB) + part.read_bytes())
    table = "label: dos\nstart=2048, size=32768, type=5\nstart=10240, size=4096, type=83\n"
    run("sfdisk", "-q", "--no-reread", "--wipe", "never", "--wipe-partitions", "never", path, stdin=table)
    with Image(str(path)) as image:
        assert image.needed_blocks == set(range(17 * MIB // BLOCK))


SIGNATURES = {
    "LUKS": (0, b"LUKS\xba\xbe\0\1"),
    "btrfs": (65600, b"_BHRfS_M"),
    "ISO 9660": (32768, b"\1CD001\1"),
    "an MBR": (446, struct.pack("<B3xB3xII", 0, 0x83, 9, 99).ljust(64, b"\0") + b"\x55\xaa"),
    "FAT": (
        0,
        b"\xeb\x3c\x90mkfs.fat\0\2\1\1\0\2\xe0\0\x40\x0b\xf0\x09\0\x12\0\2\0".ljust(54, b"\0")
        + b"FAT12   ".ljust(456)
        + b"\x55\xaa",
    ),
    "md 0.90": (20 * MIB - 65536 - MIB % 65536, struct.pack("<IIII", 0xA92B4EFC, 0, 90, 0)),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_ext_with_the_signature_of_something_else(disk: Make, tmp_path: Path, name: str) -> None:
    make_ext(tmp_path / "part", 20 * MIB, "-t ext4 -b 4096 -O ^has_journal")
    path, size = disk(tmp_path / "part")
    patch(path, *SIGNATURES[name])
    message = reason(path, size, EXT)
    assert "blkid" in message, message


def test_fat_over_an_old_ext(disk: Make, tmp_path: Path) -> None:
    """The reserved sectors of a FAT can still have the superblock of an ext file system."""
    make_ext(tmp_path / "old", 20 * MIB)
    make_fat(tmp_path / "part", 20 * MIB, "-R", "8")
    path, size = disk(tmp_path / "part")
    patch(path, 1024, (tmp_path / "old").read_bytes()[1024:2048])
    assert "no valid FAT" in reason(path, size, FAT)
    assert "holds the signatures of several" in reason(path, size, EXT)


def test_a_partition_as_small_as_a_floppy(disk: Make, tmp_path: Path) -> None:
    """blkid shows only the first of several signatures there."""
    make_ext(tmp_path / "part", MIB)
    assert "smaller than 2,097,152 bytes" in reason(*disk(tmp_path / "part"), EXT)


# The tail


@pytest.mark.parametrize(("make", "type"), [(make_ext, EXT), (make_fat, FAT)])
def test_data_behind_the_file_system_is_used(disk: Make, tmp_path: Path, make: Callable[..., None], type: str) -> None:
    make(tmp_path / "part", 20 * MIB)
    path, size = disk(tmp_path / "part", tail=3 * MIB)
    patch(path, 20 * MIB, b"\x11" * PAGE)
    without = used(path, size, type, include_tail=False)
    ranges = used(path, size, type)
    assert ranges[-1][1] == START + size and ranges[-1][0] <= START + 20 * MIB
    assert without[-1][1] < START + 20 * MIB
    assert sum(high - low for low, high in ranges) < 8 * MIB


def test_sectors_behind_the_last_whole_cluster_are_used(disk: Make, tmp_path: Path) -> None:
    make_fat(tmp_path / "part", 80 * MIB + 3 * 1024, "-F", "32", "-s", "2", "-a")
    fat = Fat.parse((tmp_path / "part").read_bytes()[:SECTOR])
    end = (fat.data + fat.clusters * fat.sectors_per_cluster) * SECTOR
    part = tmp_path / "part"
    with part.open("r+b") as file:  # one sector more, which is no whole cluster
        file.truncate(end + SECTOR)
        file.seek(32)
        file.write(struct.pack("<I", end // SECTOR + 1))
    path, size = disk(part)
    assert Fat.parse(part.read_bytes()[:SECTOR]).clusters == fat.clusters
    with path.open("rb") as file:
        ranges = list(used_ranges(file.fileno(), Partition(1, FAT, START, size), alignment=1, check=False))
    assert ranges[-1] == (START + end, START + end + SECTOR)


# What the file system's own tools object to


UNCERTAIN = {
    "recovery": ("", "feature needs_recovery", "journal must be replayed"),
    "orphan file": ("-O orphan_file", "feature orphan_present", "orphan_present"),
    "orphan list": ("", "set_super_value last_orphan 11", "deleted files that must be removed"),
    "external journal": ("", "set_super_value journal_inum 0", "journal on another device"),
    "fast commit": ("-O fast_commit", "", "fast_commit"),
    "mmp": ("-O mmp", "", "has the feature mmp"),
    "not clean": ("", "set_super_value state 0", "not clean"),
    "with errors": ("", "set_super_value state 3", "with errors"),
    "first block": ("", "set_super_value first_data_block 0", "ext"),
}


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(("options", "command", "complaint"), UNCERTAIN.values(), ids=UNCERTAIN)
def test_ext_that_a_mount_would_change(
    disk: Make, tmp_path: Path, options: str, command: str, complaint: str, check: bool
) -> None:
    make_ext(tmp_path / "part", 20 * MIB, f"-t ext4 -b 1024 {options}")
    if command:
        run("debugfs", "-w", "-R", command, tmp_path / "part")
    assert complaint in reason(*disk(tmp_path / "part"), EXT, check)


def test_journal_with_content(disk: Make, tmp_path: Path) -> None:
    """The superblock of the journal says that it has something to replay, while the file system does not."""
    make_ext(tmp_path / "part", 20 * MIB)
    blocks = run("debugfs", "-R", "blocks <8>", tmp_path / "part").split()
    path, size = disk(tmp_path / "part")
    patch(path, int(blocks[0]) * 1024 + 28, struct.pack(">I", 1))  # s_start: include/linux/jbd2.h
    assert "journal that must be replayed" in reason(path, size, EXT, check=False)


def test_damage_that_only_e2fsck_sees(disk: Make, tmp_path: Path) -> None:
    make_ext(tmp_path / "part", 20 * MIB)
    run("debugfs", "-w", "-R", "set_inode_field <2> links_count 99", tmp_path / "part")
    path, size = disk(tmp_path / "part")
    message = reason(path, size, EXT)
    assert message.startswith("its ext file system is damaged; Inode 2 ref count is 99"), message
    assert len(used(path, size, EXT, check=False)) > 1


def test_damage_that_only_fsck_vfat_sees(disk: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of clusters without a file, in both copies of the FAT. No copy is left."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    make_fat(tmp_path / "part", 20 * MIB, "-F", "16")
    fat = Fat.parse((tmp_path / "part").read_bytes()[:SECTOR])
    path, size = disk(tmp_path / "part")
    for copy in range(2):
        patch(path, (fat.reserved_sectors + copy * fat.table) * SECTOR + 200, b"\xff\xff")
    assert "FAT file system is damaged; Reclaimed 1 unused cluster" in reason(path, size, FAT)
    assert len(used(path, size, FAT, check=False)) > 1
    assert not list((tmp_path / "scratch").iterdir())


def test_fat_that_cannot_be_checked(disk: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    make_fat(tmp_path / "part", 20 * MIB)
    assert "cannot be copied for fsck.vfat: No such file or directory" in reason(*disk(tmp_path / "part"), FAT)


@pytest.mark.parametrize(
    ("tool", "type", "package"),
    [
        ("blkid", EXT, "util-linux"),
        ("dumpe2fs", EXT, "e2fsprogs"),
        ("e2fsck", EXT, "e2fsprogs"),
        ("blkid", FAT, "util-linux"),
        ("fsck.vfat", FAT, "dosfstools"),
    ],
)
def test_missing_tool_is_named(
    disk: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str, type: str, package: str
) -> None:
    make_ext(tmp_path / "part", 20 * MIB)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in {"blkid", "dumpe2fs", "e2fsck", "fsck.vfat"} - {tool}:
        (tools / name).symlink_to(shutil.which(name, path=TOOL_ENV["PATH"]) or "")
    monkeypatch.setitem(TOOL_ENV, "PATH", str(tools))
    with pytest.raises(BrambleError, match=f"{tool} is not installed on .*. Next: apt-get install {package}"):
        used(*disk(tmp_path / "part"), type)


# FAT types


@pytest.mark.parametrize(
    ("size", "options", "bits"),
    [
        (4 * MIB, ("-F", "12"), 12),
        (20 * MIB, ("-F", "16"), 16),
        (20 * MIB, ("-F", "32", "-s", "8"), 32),  # 5,106 clusters
        (30 * MIB, ("-F", "32", "-s", "1"), 32),  # 60,462 clusters
        (3 * MIB, ("-F", "32", "-s", "8"), 32),  # so few that its number would make it a FAT12
        (48 * MIB, ("-F", "32", "-s", "1"), 32),
    ],
)
def test_bits_of_a_fat_are_those_of_linux(disk: Make, tmp_path: Path, size: int, options: tuple[str, ...], bits: int) -> None:
    make_fat(tmp_path / "part", size, *options)
    assert Fat.parse((tmp_path / "part").read_bytes()[:SECTOR]).bits == bits
    path, length = disk(tmp_path / "part")
    assert sum(high - low for low, high in used(path, length, FAT, strict=True)) < 2 * MIB


@pytest.mark.parametrize(("clusters", "bits"), [(4084, 12), (4085, 16), (65524, 16), (65525, 0)])
def test_limits_of_fat12_and_fat16(clusters: int, bits: int) -> None:
    """With more clusters than a FAT16 can have, Linux refuses to mount (fs/fat/inode.c)."""
    head = bytearray(SECTOR)
    struct.pack_into("<HBHBHHxHxxxxxxxxII", head, 11, 512, 1, 1, 2, 512, 0, 260, 1 + 2 * 260 + 32 + clusters, 0)
    if bits:
        assert (Fat.parse(bytes(head)).bits, Fat.parse(bytes(head)).clusters) == (bits, clusters)
    else:
        with pytest.raises(BrambleError, match="contradicts itself"):
            Fat.parse(bytes(head))


# Memory

PEAK = """
import sys
from ansible_collections.bramble.cluster.plugins.module_utils.card.partition import Partition
from ansible_collections.bramble.cluster.plugins.module_utils.card.space import used_ranges

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

path, type, alignment, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
with open(path, "rb") as file:
    before = peak()
    ranges = used_ranges(file.fileno(), Partition(1, type, 0, size), strict=True, alignment=alignment, check=False)
    print(peak() - before, sum(1 for _ in ranges), ranges.total)
"""


def peak_memory(path: Path, type: str, alignment: int) -> tuple[int, int, int]:
    """Return the memory that the map takes, the number of its ranges, and their bytes."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/.config"}
    command = [sys.executable, "-c", PEAK, str(path), type, str(alignment), str(path.stat().st_size)]
    memory, ranges, total = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout.split()
    return int(memory), int(ranges), int(total)


@pytest.mark.parametrize("alignment", [1, PAGE])
def test_memory_for_a_fragmented_fat(tmp_path: Path, alignment: int) -> None:
    """2 GiB, with every other cluster of 512 bytes in use."""
    path = tmp_path / "part"
    make_fat(path, 2048 * MIB, "-F", "32", "-s", "1")
    with path.open("r+b") as file:
        fat = Fat.parse(file.read(SECTOR))
        for copy in range(2):
            file.seek((fat.reserved_sectors + copy * fat.table) * SECTOR + 12)
            file.write(struct.pack("<II", 0, 0x0FFFFFFF) * ((fat.clusters - 1) // 2))
    memory, ranges, total = peak_memory(path, FAT, alignment)
    assert memory < 32 * MIB, f"{memory:,}"
    if alignment == 1:
        assert ranges >= fat.clusters // 2 and total >= fat.clusters // 2 * SECTOR
    else:
        assert (ranges, total) == (1, 2048 * MIB)


def test_memory_for_a_fragmented_ext(tmp_path: Path) -> None:
    """2 GiB, with every other block of 1 KiB free."""
    path = tmp_path / "part"
    make_ext(path, 2048 * MIB, "-t ext2 -b 1024 -O none -N 4096")
    free = 0
    with path.open("r+b") as file:
        file.seek(2048)
        table = bytearray(file.read(256 * 32))
        for group in range(256):
            (bitmap,) = struct.unpack_from("<I", table, group * 32)
            file.seek(bitmap * 1024)
            bits = int.from_bytes(file.read(1024), "little") | int.from_bytes(b"\x55" * 1024, "little")
            file.seek(bitmap * 1024)
            file.write(bits.to_bytes(1024, "little"))
            free += 8192 - bits.bit_count()
            struct.pack_into("<H", table, group * 32 + 12, 8192 - bits.bit_count())
        file.seek(2048)
        file.write(table)
    memory, ranges, total = peak_memory(path, EXT, 1)
    assert memory < 64 * MIB, f"{memory:,}"
    assert total == 2048 * MIB - free * 1024 and ranges > free * 0.99 > 10**6


RANGES = st.lists(st.tuples(st.integers(0, 300) | st.integers(0, 2**40), st.integers(1, 300) | st.integers(1, 2**40)))


@given(RANGES)
def test_range_list_keeps_any_ranges(steps: list[tuple[int, int]]) -> None:
    ranges, at = [], 0
    for gap, length in steps:
        ranges.append((at + gap, at + gap + length))
        at += gap + length
    compact = RangeList(ranges)
    assert list(compact) == list(compact) == ranges
    assert compact.total == sum(length for _, length in steps)
    holes = list(gaps(compact, at + 1))
    assert sum(high - low for low, high in holes) + compact.total == at + 1


def test_gaps_between_overlapping_ranges() -> None:
    assert list(gaps([(2, 9), (3, 4), (6, 7), (11, 12)], 15)) == [(0, 2), (9, 11), (12, 15)]
    assert list(gaps([(0, 9), (2, 15)], 15)) == []


@pytest.mark.parametrize("ranges", [[(1, 1)], [(2, 1)], [(-1, 1)], [(0, 5), (4, 6)], [(5, 6), (0, 1)]])
def test_range_list_refuses_disorder(ranges: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="does not follow"):
        RangeList(ranges)


# Copies of random disks


EXT_OPTIONS = st.sampled_from(
    [
        "-t ext2 -b 1024",
        "-t ext2 -b 1024 -r 0 -O none",
        "-t ext3 -b 1024 -J size=1",
        "-t ext4 -b 1024 -J size=1",
        "-t ext4 -b 2048 -O ^has_journal -G 4",
        "-t ext4 -b 4096 -O ^has_journal,^metadata_csum,^64bit",
        "-t ext4 -b 1024 -O ^has_journal,inline_data,meta_bg,^resize_inode -I 256",
    ]
)
FAT_OPTIONS = st.sampled_from(
    [("-F", "12", "-s", "4"), ("-F", "16", "-s", "1"), ("-F", "16", "-s", "1", "-f", "1"), ("-F", "12", "-S", "1024")]
)
FILES = st.lists(st.integers(0, 3000) | st.integers(0, 400_000), min_size=1, max_size=8)
FILE_SYSTEM = st.tuples(st.just("ext"), EXT_OPTIONS) | st.tuples(st.just("fat"), FAT_OPTIONS)
PARTITION = st.tuples(FILE_SYSTEM, FILES, st.sets(st.integers(0, 7)), st.integers(0, 300), st.booleans())


def build_file_system(path: Path, kind: str, options: str | tuple[str, ...], sizes: list[int], gone: set[int]) -> None:
    """Create a file system of 5 MiB with files of random bytes, some of which are deleted again."""
    names = [f"f{number}" for number in range(len(sizes))]
    deleted = [name for number, name in enumerate(names) if number in gone]
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        for name, size in zip(names, sizes, strict=True):
            Path(folder, name).write_bytes(os.urandom(size))
        if kind == "ext":
            assert isinstance(options, str)
            make_ext(path, 5 * MIB, options, Path(folder))
            run("debugfs", "-w", "-f", "-", path, stdin="".join(f"rm {name}\n" for name in deleted))
            run("e2fsck", "-fy", path, exit_codes=(0, 1))
        else:
            make_fat(path, 5 * MIB, *options)
            run("mcopy", "-i", path, *(Path(folder, name) for name in names), "::/")
            if deleted:
                run("mdel", "-i", path, *(f"::{name}" for name in deleted))


def read_files(path: Path, kind: str) -> dict[str, bytes]:
    """Return the content of the files of a file system, by name, after its own tool has checked it."""
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        if kind == "ext":
            run("e2fsck", "-fn", path)
            run("debugfs", "-R", f"rdump / {folder}", path)
        else:
            run("fsck.vfat", "-n", path)
            run("mcopy", "-i", path, "-s", "-n", "::/", folder)
        return {file.name: file.read_bytes() for file in Path(folder).iterdir() if file.is_file()}


@settings(deadline=None, max_examples=10, phases=(Phase.explicit, Phase.reuse, Phase.generate))  # shrinking takes minutes
@given(st.lists(PARTITION, min_size=1, max_size=4), st.sampled_from(["dos", "gpt"]), st.integers(0, 2**32))
def test_copy_of_the_map_is_complete(partitions: list, label: str, seed: int) -> None:
    """Whatever was on a card before, it has the same files as the image, and all bytes of the partitions of another type."""
    generator = random.Random(seed)
    types = {"dos": {"ext": "83", "fat": "c", "other": "8e"}, "gpt": {"ext": "L", "fat": "U", "other": "V"}}[label]
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        disk, part, places, at, script = Path(folder, "disk"), Path(folder, "part"), [], 2048, [f"label: {label}"]
        with disk.open("wb") as file:
            for (kind, options), sizes, gone, tail, is_other in partitions:
                build_file_system(part, kind, options, sizes, gone)
                size = 5 * MIB + tail * SECTOR
                at += generator.randrange(300)
                file.seek(at * SECTOR)
                file.write(part.read_bytes() + generator.randbytes(tail * SECTOR))
                places.append((at * SECTOR, size, kind, is_other))
                script.append(f"start={at}, size={size // SECTOR}, type={types['other' if is_other else kind]}")
                at += size // SECTOR
            file.truncate(at * SECTOR + MIB)
        run("sfdisk", "-q", "--no-reread", "--wipe", "never", "--wipe-partitions", "never", disk, stdin="\n".join(script))
        copy, original = bytearray(generator.randbytes(disk.stat().st_size)), disk.read_bytes()
        with Image(str(disk)) as image:
            for piece in Content(image, {}).runs():
                copy[piece.offset : piece.end] = original[piece.offset : piece.end] if piece.has_data else bytes(piece.length)
            needed = len(image.needed_blocks) * BLOCK
        assert copy[: 34 * SECTOR] == original[: 34 * SECTOR] and copy[-MIB:] == original[-MIB:]
        for start, size, kind, is_other in places:
            assert copy[start + size - MIB : start + size] == original[start + size - MIB : start + size]
            if is_other:
                assert copy[start : start + size] == original[start : start + size]
            part.write_bytes(original[start : start + 5 * MIB])
            before = read_files(part, kind)
            part.write_bytes(copy[start : start + 5 * MIB])
            assert read_files(part, kind) == before
            with disk.open("rb") as file:
                fine = Partition(1, "0x83" if kind == "ext" else "0x0c", start, size)
                ranges = used_ranges(file.fileno(), fine, strict=True, alignment=1)
            assert sum(map(len, before.values())) < ranges.total < size - MIB
        assert needed <= len(original) + BLOCK
