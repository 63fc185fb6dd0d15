"""The partition table (MBR) of a card. All sizes and offsets are in bytes."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import SECTOR
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

GPT_PROTECTIVE = 0xEE
FAT_TYPES = frozenset({0x01, 0x04, 0x06, 0x0B, 0x0C, 0x0E})
LINUX_TYPE = 0x83


@dataclass(frozen=True)
class Partition:
    """One primary partition; start and size in bytes."""

    number: int
    type: int
    start: int
    size: int

    @property
    def end(self) -> int:
        """The offset after the last byte of the partition."""
        return self.start + self.size


def parse_mbr(sector: bytes, size: int) -> list[Partition]:
    """Return the primary partitions of a disk of `size` bytes, by number, from its first 512 bytes.

    Raises BrambleError when there is no MBR, when it belongs to a GPT, and when partitions overlap or exceed the disk.
    Source: UEFI specification 2.10, section 5.2.1 "Legacy Master Boot Record".
    """
    if len(sector) < SECTOR or sector[510:512] != b"\x55\xaa":
        raise BrambleError("it has no partition table (MBR)")
    partitions = []
    for number in range(1, 5):
        status, kind, first, sectors = struct.unpack_from("<B3xB3xII", sector, 446 + 16 * (number - 1))
        if kind == GPT_PROTECTIVE:
            raise BrambleError("it has a GPT partition table; the card of a Raspberry Pi needs an MBR")
        if kind == 0 and sectors == 0:
            continue
        if status not in (0x00, 0x80) or kind == 0 or sectors == 0 or first == 0:
            raise BrambleError(f"partition {number} is invalid: this is not a partition table")
        partition = Partition(number, kind, first * SECTOR, sectors * SECTOR)
        if partition.end > size:
            raise BrambleError(f"partition {number} ends at byte {partition.end:,}, beyond the end at {size:,}")
        partitions.append(partition)
    by_start = sorted(partitions, key=lambda partition: partition.start)
    for one, other in itertools.pairwise(by_start):
        if one.end > other.start:
            raise BrambleError(f"partitions {one.number} and {other.number} overlap")
    return partitions


def boot_and_root(partitions: Sequence[Partition]) -> tuple[Partition, Partition]:
    """Return partition 1 (FAT, the boot partition) and 2 (Linux, the root). Raises BrambleError when one is missing."""
    found = {partition.number: partition for partition in partitions}
    for number, name, types in ((1, "FAT boot", FAT_TYPES), (2, "Linux root", {LINUX_TYPE})):
        if number not in found:
            raise BrambleError(f"partition {number}, the {name} partition, is missing")
        if found[number].type not in types:
            raise BrambleError(f"partition {number} has type {found[number].type:#04x}, but a {name} partition is expected")
    return found[1], found[2]
