"""The partition table (MBR or GPT) of a card. All sizes and offsets are in bytes."""

from __future__ import annotations

import itertools
import struct
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import CHUNK, SECTOR, Range
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

# The type of the entry in an MBR that stands for a GPT.
_GPT_PROTECTIVE = 0xEE
# The types of the UEFI specification 2.10, table 5-7 (EFI system), of Microsoft (basic data), and of the Discoverable Partitions
# Specification (https://uapi-group.org/specifications/specs/discoverable_partitions_specification/).
FAT_TYPES = frozenset(
    {
        *("0x01", "0x04", "0x06", "0x0b", "0x0c", "0x0e"),
        "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",  # EFI system partition
        "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7",  # Microsoft basic data
    }
)
LINUX_TYPES = frozenset(
    {
        "0x83",
        "0FC63DAF-8483-4772-8E79-3D69D8477DE4",  # Linux file system data
        "69DAD710-2CE4-4E3C-B16C-21A1D49ABED3",  # root, 32-bit ARM
        "B921B045-1DF0-41C3-AF44-4C6F280D3FAE",  # root, 64-bit ARM
        "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709",  # root, x86-64
    }
)
_ENTRY_SIZE = 128  # of a GPT; Linux reads no other (block/partitions/efi.c, is_gpt_valid)
ReadFunction = Callable[[int, int], bytes]
"""Returns the bytes of a disk at an offset, with a length."""


@dataclass(frozen=True)
class Partition:
    """A partition. `type` is as its table has it: "0x0c" in an MBR, a GUID in capital letters in a GPT."""

    number: int
    type: str
    start: int
    size: int

    @property
    def end(self) -> int:
        """The offset after the last byte of the partition."""
        return self.start + self.size


def parse_partitions(read: ReadFunction, size: int) -> list[Partition]:
    """Return the partitions of a disk of `size` bytes, by number: the primary ones of an MBR, or all of a GPT.

    A GPT counts if the MBR has an entry for it, as in Linux (block/partitions/efi.c, find_valid_gpt). The other entries of a
    hybrid MBR are ignored; see hybrid_ranges. Raises BrambleError for a table that is missing or invalid.
    """
    sector = read(0, min(SECTOR, size))
    if not has_gpt(sector):
        return parse_mbr(sector, size)
    if not any(kind == _GPT_PROTECTIVE and first == 1 for _, _, kind, first, _ in _mbr_entries(sector)):
        raise _damaged_gpt("the entry for it in the MBR does not begin at sector 1")
    return _parse_gpt(read, size)


def has_gpt(sector: bytes) -> bool:
    """Return whether the first 512 bytes of a disk are an MBR with an entry that stands for a GPT."""
    return _is_mbr(sector) and any(kind == _GPT_PROTECTIVE for _, _, kind, _, _ in _mbr_entries(sector))


def parse_mbr(sector: bytes, size: int) -> list[Partition]:
    """Return the primary partitions of a disk of `size` bytes, by number, from its first 512 bytes.

    Raises BrambleError when there is no MBR, when it belongs to a GPT, and when partitions overlap or exceed the disk.
    Source: UEFI specification 2.10, section 5.2.1 "Legacy Master Boot Record".
    """
    if not _is_mbr(sector):
        raise BrambleError("it has no partition table (MBR)")
    if has_gpt(sector):
        raise BrambleError("its partition table is a GPT, not an MBR")
    partitions = []
    for number, status, kind, first, sectors in _mbr_entries(sector):
        if kind == 0 and sectors == 0:
            continue
        if status not in (0x00, 0x80) or kind == 0 or sectors == 0 or first == 0:
            raise BrambleError(f"partition {number} is invalid: this is not a partition table")
        partitions.append(Partition(number, f"{kind:#04x}", first * SECTOR, sectors * SECTOR))
    _check_places(partitions, size)
    return partitions


def hybrid_ranges(sector: bytes, partitions: Sequence[Partition]) -> list[Range]:
    """Return the ranges of those entries of a hybrid MBR that are not partitions of the GPT, too.

    Firmware that knows no GPT uses these ranges, whatever the GPT says about them.

    :param sector: the first 512 bytes of the disk
    :param partitions: the partitions of the GPT
    """
    known = {(partition.start, partition.size): partition.type for partition in partitions}
    ranges = []
    for _, _, kind, first, sectors in _mbr_entries(sector):
        start, size, name = first * SECTOR, sectors * SECTOR, f"{kind:#04x}"
        guid = known.get((start, size), "")
        is_same = (guid in LINUX_TYPES and name in LINUX_TYPES) or (guid in FAT_TYPES and name in {*FAT_TYPES, "0xef"})
        if kind not in (0, _GPT_PROTECTIVE) and size and not is_same:
            ranges.append((start, start + size))
    return ranges


def boot_and_root(partitions: Sequence[Partition]) -> tuple[Partition, Partition]:
    """Return partition 1 (FAT, the boot partition) and 2 (Linux, the root). Raises BrambleError when one is missing."""
    found = {partition.number: partition for partition in partitions}
    for number, name, types in ((1, "FAT boot", FAT_TYPES), (2, "Linux root", LINUX_TYPES)):
        if number not in found:
            raise BrambleError(f"partition {number}, the {name} partition, is missing")
        if found[number].type not in types:
            raise BrambleError(f"partition {number} has type {found[number].type}, but a {name} partition is expected")
    return found[1], found[2]


def _is_mbr(sector: bytes) -> bool:
    """Return whether the first 512 bytes of a disk have the signature of an MBR."""
    return len(sector) >= SECTOR and sector[510:512] == b"\x55\xaa"


def _mbr_entries(sector: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield number, status, type, first sector and number of sectors of the four entries of an MBR."""
    for number in range(1, 5):
        yield number, *struct.unpack_from("<B3xB3xII", sector, 446 + 16 * (number - 1))


def _check_places(partitions: Sequence[Partition], size: int) -> None:
    """Check that partitions do not overlap, and are within a disk of `size` bytes. Raises BrambleError."""
    for partition in partitions:
        if partition.end > size:
            raise BrambleError(f"partition {partition.number} ends at byte {partition.end:,}, beyond the end at {size:,}")
    by_start = sorted(partitions, key=lambda partition: partition.start)
    for one, other in itertools.pairwise(by_start):
        if one.end > other.start:
            raise BrambleError(f"partitions {one.number} and {other.number} overlap")


def _parse_gpt(read: ReadFunction, size: int) -> list[Partition]:
    """Return the partitions of the primary GPT. The backup at the end of the disk is not used, as in Linux.

    Raises BrambleError when the GPT is invalid.
    Source: UEFI specification 2.10, section 5.3 "GUID Partition Table (GPT) Disk Layout".
    """
    if size < 2 * SECTOR:
        raise _damaged_gpt("it has no header")
    header = read(SECTOR, SECTOR)
    signature, _, length, checksum, _, lba, _, first, last = struct.unpack_from("<8sIIIIQQQQ", header)
    entries_lba, count, entry_size, entries_checksum = struct.unpack_from("<QIII", header, 72)
    if signature != b"EFI PART":
        raise _damaged_gpt("it has no header in the second sector of 512 bytes")
    if not 92 <= length <= SECTOR or zlib.crc32(header[:16] + bytes(4) + header[20:length]) != checksum:
        raise _damaged_gpt("the checksum of its header is wrong")
    if (last + 1) * SECTOR > size:
        raise BrambleError(f"its GPT describes a disk of at least {(last + 1) * SECTOR:,} bytes, but it ends at {size:,}")
    entries_bytes = count * entry_size
    if entry_size != _ENTRY_SIZE or not 0 < entries_bytes <= CHUNK:
        raise _damaged_gpt(f"it has {count:,} entries of {entry_size:,} bytes")
    if lba != 1 or entries_lba < 2 or entries_lba * SECTOR + entries_bytes > first * SECTOR or first > last:
        raise _damaged_gpt("its header contradicts itself")
    entries = read(entries_lba * SECTOR, entries_bytes)
    if zlib.crc32(entries) != entries_checksum:
        raise _damaged_gpt("the checksum of its entries is wrong")
    partitions = []
    for number, (kind, begin, end) in enumerate(struct.iter_unpack("<16s16xQQ80x", entries), 1):
        if kind == bytes(16):
            continue
        if not first <= begin <= end <= last:
            raise _damaged_gpt(f"partition {number} is not within the sectors {first:,} to {last:,}")
        guid = str(uuid.UUID(bytes_le=kind)).upper()
        partitions.append(Partition(number, guid, begin * SECTOR, (end + 1 - begin) * SECTOR))
    _check_places(partitions, size)
    return partitions


def _damaged_gpt(reason: str) -> BrambleError:
    """Return the error for a GPT that Linux would not use."""
    return BrambleError(
        f"its GPT partition table is damaged: {reason}. Linux does not use the backup at the end of the disk: download or build "
        "the image again, or restore the table with gdisk"
    )
