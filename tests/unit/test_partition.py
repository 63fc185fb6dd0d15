"""Partition tables: MBR, GPT and hybrid MBR are read as Linux reads them, and what is damaged is refused."""

from __future__ import annotations

import contextlib
import random
import struct
import subprocess
import uuid
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from ansible_collections.bramble.cluster.plugins.module_utils.card.partition import (
    FAT_TYPES,
    LINUX_TYPES,
    Partition,
    boot_and_root,
    has_gpt,
    hybrid_ranges,
    parse_mbr,
    parse_partitions,
)
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import SECTOR
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from hypothesis import given
from hypothesis import strategies as st

SECTORS = 400  # of a disk
EFI, BASIC = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7"
LINUX, ROOT_ARM64 = "0FC63DAF-8483-4772-8E79-3D69D8477DE4", "B921B045-1DF0-41C3-AF44-4C6F280D3FAE"
LVM = "E6D6D379-F507-44C2-A23C-238F2A3DF928"
BOTH = ((EFI, 40, 99), (LINUX, 100, 300))
PROTECTIVE = (0xEE, 1, SECTORS - 1)


def mbr(*entries: tuple[int, int, int]) -> bytes:
    """Return a boot sector with partitions of (type, first sector, sectors)."""
    table = b"".join(struct.pack("<B3xB3xII", 0, *entry) for entry in entries)
    return bytes(446) + table.ljust(64, b"\0") + b"\x55\xaa"


def gpt_disk(entries: Sequence[tuple[str, int, int]] = BOTH, *mbr_entries: tuple[int, int, int], **changes: int) -> bytes:
    """Return a disk with a GPT with partitions of (type, first sector, last sector).

    :param changes: values of the header's fields other than the right ones
    """
    table = b"".join(
        struct.pack("<16s16sQQ80x", uuid.UUID(kind).bytes_le, uuid.uuid4().bytes, first, last) if kind else bytes(128)
        for kind, first, last in entries
    ).ljust(128 * 128, b"\0")
    fields = {"size": 92, "lba": 1, "first": 34, "last": SECTORS - 34, "table": 2, "count": 128, "entry": 128} | changes
    head = [0x10000, fields["size"], 0, 0, fields["lba"], SECTORS - 1, fields["first"], fields["last"]]
    head += [fields["table"], fields["count"], fields["entry"], fields.get("table_crc", zlib.crc32(table))]
    header = bytearray(struct.pack("<8sIIIIQQQQ16xQIII", b"EFI PART", *head))
    struct.pack_into("<I", header, 16, fields.get("crc", zlib.crc32(header[: fields["size"]])))
    disk = mbr(*(mbr_entries or (PROTECTIVE,))) + bytes(header).ljust(SECTOR, b"\0") + table
    return disk.ljust(SECTORS * SECTOR, b"\0")


def reader(disk: bytes) -> Callable[[int, int], bytes]:
    """Return a function that reads a disk in memory, within its limits only."""

    def read(offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= len(disk)
        return disk[offset : offset + length]

    return read


def parse(disk: bytes) -> list[Partition]:
    """Return the partitions of a disk in memory."""
    return parse_partitions(reader(disk), len(disk))


def test_partitions_of_an_mbr() -> None:
    disk = mbr((0x0C, 8, 8), (0x83, 16, 20), (0x05, 40, 10)) + bytes(99 * SECTOR)
    assert parse(disk) == [
        Partition(1, "0x0c", 8 * SECTOR, 8 * SECTOR),
        Partition(2, "0x83", 16 * SECTOR, 20 * SECTOR),
        Partition(3, "0x05", 40 * SECTOR, 10 * SECTOR),
    ]
    assert not has_gpt(disk[:SECTOR])


@pytest.mark.parametrize("root", [LINUX, ROOT_ARM64, *sorted(LINUX_TYPES - {"0x83"})])
@pytest.mark.parametrize("boot", [EFI, BASIC])
def test_boot_and_root_of_a_gpt(boot: str, root: str) -> None:
    disk = gpt_disk([(boot, 40, 99), (root, 100, 300), ("", 0, 0), (LVM, 301, 301)])
    partitions = parse(disk)
    assert has_gpt(disk[:SECTOR])
    assert partitions == [
        Partition(1, boot, 40 * SECTOR, 60 * SECTOR),
        Partition(2, root, 100 * SECTOR, 201 * SECTOR),
        Partition(4, LVM, 301 * SECTOR, SECTOR),
    ]
    assert boot_and_root(partitions) == (partitions[0], partitions[1])


def test_gpt_of_sfdisk(tmp_path: Path) -> None:
    """The table that util-linux writes is read as it was asked for."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(4 * 2**20))
    script = f"label: gpt\nstart=2048, size=1024, type={BASIC}\nstart=3072, size=2048, type={LVM}\n"
    subprocess.run(["sfdisk", "-q", path], input=script.encode(), check=True)
    assert parse(path.read_bytes()) == [
        Partition(1, BASIC, 2048 * SECTOR, 1024 * SECTOR),
        Partition(2, LVM, 3072 * SECTOR, 2048 * SECTOR),
    ]


@pytest.mark.parametrize(
    ("disk", "complaint"),
    [
        (gpt_disk(BOTH, (0xEE, 2, 9)), "does not begin at sector 1"),
        (mbr(PROTECTIVE) + bytes(99 * SECTOR), "no header in the second sector"),
        (mbr(PROTECTIVE), "damaged: it has no header"),
        (gpt_disk(crc=1), "checksum of its header"),
        (gpt_disk(size=91), "checksum of its header"),
        (gpt_disk(size=513), "checksum of its header"),
        (gpt_disk(table_crc=1), "checksum of its entries"),
        (gpt_disk(lba=2), "contradicts itself"),
        (gpt_disk(table=1), "contradicts itself"),
        (gpt_disk(first=33), "contradicts itself"),
        (gpt_disk(first=350, last=349), "contradicts itself"),
        (gpt_disk(entry=256), "128 entries of 256 bytes"),
        (gpt_disk(count=0), "0 entries"),
        (gpt_disk(count=2**31), "2,147,483,648 entries"),
        (gpt_disk(last=SECTORS), f"at least {(SECTORS + 1) * SECTOR:,} bytes, but it ends at {SECTORS * SECTOR:,}"),
        (gpt_disk([(EFI, 33, 99)]), "partition 1 is not within"),
        (gpt_disk([("", 0, 0), (EFI, 99, 98)]), "partition 2 is not within"),
        (gpt_disk([(EFI, 99, SECTORS - 33)]), "partition 1 is not within"),
        (gpt_disk([(EFI, 40, 100), (LINUX, 100, 120)]), "1 and 2 overlap"),
    ],
)
def test_gpt_refused(disk: bytes, complaint: str) -> None:
    with pytest.raises(BrambleError, match=complaint):
        parse(disk)


def test_backup_of_a_gpt_is_not_used(tmp_path: Path) -> None:
    """Linux does not use it either, so such a card would have no partitions."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(4 * 2**20))
    subprocess.run(["sfdisk", "-q", path], input=b"label: gpt\nsize=1024, type=U\n", check=True)
    disk = bytearray(path.read_bytes())
    assert len(parse(bytes(disk))) == 1
    disk[SECTOR + 30] ^= 1
    with pytest.raises(BrambleError, match="Linux does not use the backup at the end of the disk"):
        parse(bytes(disk))


def test_mbr_parser_refuses_a_gpt() -> None:
    with pytest.raises(BrambleError, match="is a GPT, not an MBR"):
        parse_mbr(gpt_disk()[:SECTOR], SECTORS * SECTOR)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([PROTECTIVE], []),
        ([(0x0C, 40, 60), (0x83, 100, 201), (0xEE, 1, 39)], []),
        ([(0xEF, 40, 60), (0xEE, 1, 39)], []),
        ([(0x83, 40, 60), (0xEE, 1, 39)], [(40, 100)]),  # the other type
        ([(0x0C, 100, 201), (0xEE, 1, 39)], [(100, 301)]),
        ([(0x0C, 40, 61), (0xEE, 1, 39)], [(40, 101)]),  # another size
        ([(0x07, 41, 5), (0x83, 300, 10), (0xEE, 1, 39)], [(41, 46), (300, 310)]),
    ],
)
def test_gpt_wins_over_a_hybrid_mbr(entries: list[tuple[int, int, int]], expected: list[tuple[int, int]]) -> None:
    disk = gpt_disk(BOTH, *entries)
    partitions = parse(disk)
    assert [partition.type for partition in partitions] == [EFI, LINUX]
    assert hybrid_ranges(disk[:SECTOR], partitions) == [(low * SECTOR, high * SECTOR) for low, high in expected]


GUIDS = st.sampled_from(["", LVM, *sorted((FAT_TYPES | LINUX_TYPES) - {f"{number:#04x}" for number in range(256)})])
LBA = st.integers(0, SECTORS + 9) | st.integers(0, 2**64 - 1)
FIELDS = st.dictionaries(st.sampled_from(["first", "last", "table"]), LBA, max_size=1)
NUMBERS = st.dictionaries(
    st.sampled_from(["count", "entry", "size"]), st.integers(0, 200) | st.integers(0, 2**32 - 1), max_size=1
)


@given(st.lists(st.tuples(GUIDS, LBA, LBA), max_size=6), FIELDS, NUMBERS, st.integers(0, SECTORS))
def test_partitions_of_any_gpt(
    entries: list[tuple[str, int, int]], fields: dict[str, int], numbers: dict[str, int], sectors: int
) -> None:
    """They never overlap or leave the disk, whatever the table says, and are those of the table."""
    disk = gpt_disk(entries, **fields, **numbers)[: sectors * SECTOR]
    with contextlib.suppress(BrambleError):
        partitions = parse(disk)
        used: set[int] = set()
        for partition in partitions:
            kind, first, last = entries[partition.number - 1]
            assert (partition.type, partition.start, partition.end) == (kind, first * SECTOR, (last + 1) * SECTOR)
            assert 33 < first <= last < sectors
            assert not used & set(range(first, last + 1))
            used |= set(range(first, last + 1))
        assert len(partitions) == sum(kind != "" for kind, _, _ in entries)


@given(st.integers(0, 2**32))
def test_damaged_gpt(seed: int) -> None:
    """A changed bit of the header or of the entries is always noticed."""
    disk, generator = bytearray(gpt_disk()), random.Random(seed)
    at = generator.choice([*range(SECTOR, SECTOR + 92), *range(2 * SECTOR, 34 * SECTOR)])
    disk[at] ^= 1 << generator.randrange(8)
    with pytest.raises(BrambleError):
        parse(bytes(disk))
