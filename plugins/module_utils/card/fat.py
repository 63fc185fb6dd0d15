"""Find the used clusters of a FAT12, FAT16 or FAT32 file system from its boot sector and its file allocation table.

Sizes and offsets are in bytes, or where a comment says so in sectors or clusters.
"""

from __future__ import annotations

import array
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import CHUNK, SECTOR, Range, read_exactly
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

_DIRECTORY_ENTRY = 32


@dataclass(frozen=True)
class Fat:
    """The values of the boot sector of a FAT file system; `sectors` is its size, `table` and `data` are in sectors, too."""

    bits: int
    sector_size: int
    sectors_per_cluster: int
    reserved_sectors: int
    copies: int
    root_entries: int
    hidden: int
    volume_id: int
    sectors: int
    table: int
    data: int
    clusters: int

    @classmethod
    def parse(cls, head: bytes) -> Fat:
        """Parse the first 512 bytes of a partition. Raises BrambleError.

        Source: Microsoft, "FAT32 File System Specification", version 1.03 (2000); sizes and offsets are in sectors.
        """
        sector, per_cluster, reserved, copies, entries, total16 = struct.unpack_from("<HBHBHH", head, 11)
        table16, hidden, total32, table32 = struct.unpack_from("<H4xIII", head, 22)
        total, table = total16 or total32, table16 or table32
        if sector not in (512, 1024, 2048, 4096) or per_cluster == 0 or per_cluster & (per_cluster - 1):
            raise BrambleError("the boot sector of its FAT file system is invalid")
        data = reserved + copies * table - (-entries * _DIRECTORY_ENTRY // sector)
        clusters = (total - data) // per_cluster
        bits = 12 if clusters < 4085 else 16 if clusters < 65525 else 32
        (volume_id,) = struct.unpack_from("<I", head, 67 if bits == 32 else 39)
        is_valid = (
            reserved and copies in (1, 2) and table and 0 < clusters <= 0x0FFFFFF5 and (clusters + 2) * bits <= table * sector * 8
        )
        if not is_valid or (bits == 32) != (not table16) or (bits == 32) != (not entries):
            raise BrambleError("the boot sector of its FAT file system contradicts itself")
        return cls(bits, sector, per_cluster, reserved, copies, entries, hidden, volume_id, total, table, data, clusters)


def used_fat_ranges(fd: int, start: int, size: int) -> list[Range]:
    """Return the used ranges within a partition: everything before the first cluster, and the clusters in use.

    A cluster is in use when its entry in the first FAT is not 0. Raises BrambleError when the copies of the FAT differ, as it is
    then unknown which clusters are used.
    """
    fat = Fat.parse(read_exactly(fd, start, SECTOR))
    if fat.sectors * fat.sector_size > size:
        raise BrambleError(f"its FAT file system is {fat.sectors * fat.sector_size:,} bytes, larger than its partition, {size:,}")
    tables = [start + (fat.reserved_sectors + copy * fat.table) * fat.sector_size for copy in range(fat.copies)]
    needed = -(-(fat.clusters + 2) * fat.bits // 8)
    data, cluster = fat.data * fat.sector_size, fat.sectors_per_cluster * fat.sector_size
    used = _allocated(fd, tables, needed, fat.clusters, fat.bits)
    return [(0, data), *((data + (low - 2) * cluster, data + (high - 2) * cluster) for low, high in used)]


def _allocated(fd: int, tables: list[int], needed: int, clusters: int, bits: int) -> Iterator[Range]:
    """Yield the ranges of clusters in use. Clusters are numbered from 2."""
    step = CHUNK // 2 * 3 if bits == 12 else CHUNK  # a multiple of the size of an entry
    begin, number = 0, 0
    for at in range(0, needed, step):
        amount = min(step, needed - at)
        chunk = read_exactly(fd, tables[0] + at, amount)
        if any(read_exactly(fd, table + at, amount) != chunk for table in tables[1:]):
            raise BrambleError("the two copies of its file allocation table differ: run fsck.vfat")
        for entry in _entries(chunk, bits):
            if number >= clusters + 2:
                break
            is_used = number >= 2 and entry & 0x0FFFFFFF != 0
            if is_used and not begin:
                begin = number
            elif not is_used and begin:
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
