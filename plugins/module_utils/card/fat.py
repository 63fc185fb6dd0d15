"""Find what a FAT12, FAT16 or FAT32 file system uses, from its boot sector and its table.

Every size and offset is in bytes, unless it is in sectors or clusters.
"""

from __future__ import annotations

import array
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import CHUNK, SECTOR, Range, read_exactly
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

_DIRENT = 32


@dataclass(frozen=True)
class Fat:
    """What the boot sector of a FAT says; `sectors` is the size of the file system."""

    bits: int
    sector: int
    per_cluster: int
    reserved: int
    copies: int
    root_entries: int
    hidden: int
    number: int
    sectors: int
    table: int
    data: int
    clusters: int

    @classmethod
    def parse(cls, head: bytes) -> Fat:
        """Parse the first 512 bytes of a partition. Raises BrambleError.

        Source: Microsoft, "FAT32 File System Specification", version 1.03 (2000); sizes and places in sectors.
        """
        sector, per_cluster, reserved, copies, entries, total16 = struct.unpack_from("<HBHBHH", head, 11)
        table16, hidden, total32, table32 = struct.unpack_from("<H4xIII", head, 22)
        total, table = total16 or total32, table16 or table32
        if sector not in (512, 1024, 2048, 4096) or per_cluster == 0 or per_cluster & (per_cluster - 1):
            raise BrambleError("the boot sector of its FAT file system makes no sense")
        data = reserved + copies * table - (-entries * _DIRENT // sector)
        clusters = (total - data) // per_cluster
        bits = 12 if clusters < 4085 else 16 if clusters < 65525 else 32
        (number,) = struct.unpack_from("<I", head, 67 if bits == 32 else 39)
        sound = (
            reserved and copies in (1, 2) and table and 0 < clusters <= 0x0FFFFFF5 and (clusters + 2) * bits <= table * sector * 8
        )
        if not sound or (bits == 32) != (not table16) or (bits == 32) != (not entries):
            raise BrambleError("the boot sector of its FAT file system contradicts itself")
        return cls(bits, sector, per_cluster, reserved, copies, entries, hidden, number, total, table, data, clusters)


def used_fat_ranges(fd: int, start: int, size: int) -> list[Range]:
    """Return all up to the clusters, and the clusters in use, as ranges within the partition. Raises BrambleError.

    A cluster is in use when its entry in the first FAT is not 0; the two copies must agree, or it is not known what is used.
    """
    fat = Fat.parse(read_exactly(fd, start, SECTOR))
    if fat.sectors * fat.sector > size:
        raise BrambleError(f"its FAT file system is {fat.sectors * fat.sector:,} bytes, larger than its partition, {size:,}")
    tables = [start + (fat.reserved + copy * fat.table) * fat.sector for copy in range(fat.copies)]
    needed = -(-(fat.clusters + 2) * fat.bits // 8)
    data, cluster = fat.data * fat.sector, fat.per_cluster * fat.sector
    busy = _allocated(fd, tables, needed, fat.clusters, fat.bits)
    return [(0, data), *((data + (low - 2) * cluster, data + (high - 2) * cluster) for low, high in busy)]


def _allocated(fd: int, tables: list[int], needed: int, clusters: int, bits: int) -> Iterator[Range]:
    """Yield the ranges of clusters in use: numbers from 2 on."""
    step = CHUNK // 2 * 3 if bits == 12 else CHUNK  # whole entries
    begin, number = 0, 0
    for at in range(0, needed, step):
        amount = min(step, needed - at)
        chunk = read_exactly(fd, tables[0] + at, amount)
        if any(read_exactly(fd, table + at, amount) != chunk for table in tables[1:]):
            raise BrambleError("the two copies of the table of its FAT file system differ: run fsck.vfat")
        for entry in _entries(chunk, bits):
            if number >= clusters + 2:
                break
            busy = number >= 2 and entry & 0x0FFFFFFF != 0
            if busy and not begin:
                begin = number
            elif not busy and begin:
                yield begin, number
                begin = 0
            number += 1
    if begin:
        yield begin, clusters + 2


def _entries(chunk: bytes, bits: int) -> Iterable[int]:
    """Return the entries of a chunk of a FAT."""
    if bits == 12:
        padded = chunk + bytes(-len(chunk) % 3)
        triples = zip(padded[0::3], padded[1::3], padded[2::3], strict=True)
        return (entry for low, mid, high in triples for entry in (low | (mid & 0x0F) << 8, mid >> 4 | high << 4))
    entries = array.array("H" if bits == 16 else "I", chunk)
    if sys.byteorder == "big":
        entries.byteswap()
    return entries
