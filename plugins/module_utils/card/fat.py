"""Find the used clusters of a FAT12, FAT16 or FAT32 file system from its boot sector and its file allocation table.

Sizes and offsets are in bytes, or where a comment says so in sectors or clusters.
"""

from __future__ import annotations

import array
import os
import re
import struct
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import CHUNK, SECTOR, Range, is_zero, read_exactly
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.process import run_program
from ansible_collections.bramble.cluster.plugins.module_utils.core.tools import TOOL_ENV

_DIRECTORY_ENTRY = 32
_MAX_FAT12 = 0xFF4  # clusters; these limits are those of Linux, fs/fat/fat.h
_MAX_CLUSTERS = {12: _MAX_FAT12, 16: 0xFFF4, 32: 0x0FFFFFF6}
_MAX_COPIES = 2  # of the file allocation table; fsck.vfat (4.2) refuses more, which mkfs.vfat makes and Linux mounts
_SCRATCH = "/var/tmp"  # for large temporary files, as /tmp is often in memory (file-hierarchy(7))


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

        A FAT without a 16-bit length is FAT32, however few clusters it has, as in Linux (fs/fat/inode.c, fat_fill_super).
        Source: Microsoft, "FAT32 File System Specification", version 1.03 (2000); sizes and offsets are in sectors.
        """
        sector, per_cluster, reserved, copies, entries, total16 = struct.unpack_from("<HBHBHH", head, 11)
        table16, hidden, total32, table32 = struct.unpack_from("<H4xIII", head, 22)
        total, table = total16 or total32, table16 or table32
        if sector not in (512, 1024, 2048, 4096) or per_cluster == 0 or per_cluster & (per_cluster - 1):
            raise BrambleError("the boot sector of its FAT file system is invalid")
        if copies > _MAX_COPIES:
            raise BrambleError(
                f"its FAT file system has {copies} copies of its file allocation table, but fsck.vfat supports only {_MAX_COPIES}"
            )
        data = reserved + copies * table - (-entries * _DIRECTORY_ENTRY // sector)
        clusters = (total - data) // per_cluster
        bits = 32 if not table16 else 16 if clusters > _MAX_FAT12 else 12
        (volume_id,) = struct.unpack_from("<I", head, 67 if bits == 32 else 39)
        is_valid = (
            reserved and copies and table and 0 < clusters <= _MAX_CLUSTERS[bits] and (clusters + 2) * bits <= table * sector * 8
        )
        if not is_valid or (bits == 32) != (not entries):
            raise BrambleError("the boot sector of its FAT file system contradicts itself")
        return cls(bits, sector, per_cluster, reserved, copies, entries, hidden, volume_id, total, table, data, clusters)


def used_fat_ranges(fd: int, start: int, size: int, include_tail: bool) -> Iterator[Range]:
    """Yield the used ranges within a partition, sorted: everything before the first cluster, and the clusters in use.

    A cluster is in use when its entry in the first FAT is not 0. Raises BrambleError when the copies of the FAT differ, as it is
    then unknown which clusters are used.

    :param include_tail: count the space behind the last cluster, up to the end of the partition, as used
    """
    fat = Fat.parse(read_exactly(fd, start, SECTOR))
    if fat.sectors * fat.sector_size > size:
        raise BrambleError(f"its FAT file system is {fat.sectors * fat.sector_size:,} bytes, larger than its partition, {size:,}")
    tables = [start + (fat.reserved_sectors + copy * fat.table) * fat.sector_size for copy in range(fat.copies)]
    needed = -(-(fat.clusters + 2) * fat.bits // 8)
    data, cluster = fat.data * fat.sector_size, fat.sectors_per_cluster * fat.sector_size
    used = _allocated(fd, tables, needed, fat.clusters, fat.bits)
    end = data + fat.clusters * cluster
    yield 0, data
    yield from ((data + (low - 2) * cluster, data + (high - 2) * cluster) for low, high in used)
    if include_tail and end < size:
        yield end, size


# What fsck.vfat says of no damage: what a power cut or a running system leaves behind, labels of other programs than mkfs.vfat,
# and few clusters of a FAT32.
_HARMLESS_LINE = re.compile(
    r"fsck\.fat |There are differences between boot sector and its backup|This is mostly harmless|  [0-9, ]+:[0-9a-f]{2}/"
    r"|  Not automatically fixing this|Dirty bit is set| Automatically removing dirty bit"
    r"|Label '.*' stored in boot sector |Label in boot sector is |Volume label '.*' stored in root directory "
    r"|There is no label in boot sector, |  Auto-removing label|  Auto-copying volume label"
    r"|Warning: Filesystem is FAT32 |  but has only \d+ clusters, |  This may lead to problems"
    r"|Free cluster summary |  Auto-correcting|Leaving filesystem unchanged|.*: \d+ files, |\s*$"
)


def harmful_lines(output: str) -> list[str]:
    """Return the lines of the output of fsck.vfat that report damage."""
    return [line.strip() for line in output.splitlines() if not _HARMLESS_LINE.match(line)]


def check_fat(fd: int, start: int, size: int, used: Iterable[Range], only_harmful: bool = False) -> None:
    """Check a FAT file system with fsck.vfat, and change nothing. Raises BrambleError when it finds an error.

    fsck.vfat knows no offset, so it checks a sparse copy without a name, which needs the disk space of the used bytes.

    :param used: the used ranges of the disk
    :param only_harmful: ignore what does no harm, such as the mark of a file system in use
    """
    try:
        with tempfile.TemporaryFile(dir=os.environ.get("TMPDIR", _SCRATCH), buffering=0) as copy:
            copy.truncate(size)
            for low, high in used:
                for at in range(low, high, CHUNK):
                    data = read_exactly(fd, at, min(CHUNK, high - at))
                    if not is_zero(data):
                        os.pwrite(copy.fileno(), data, at - start)
            command = ["fsck.vfat", "-n", f"/proc/self/fd/{copy.fileno()}"]
            result = run_program(command, env=TOOL_ENV, pass_fds=(copy.fileno(),), merge_stderr=True, exit_codes=None)
    except OSError as error:
        raise BrambleError(f"its FAT file system cannot be copied for fsck.vfat: {error.strerror}") from None
    output = result.stdout.decode(errors="replace")
    problems = harmful_lines(output)
    if problems or (result.returncode and not only_harmful):
        lines = problems or [line.strip() for line in output.splitlines()[1:]]  # the first line is the version
        raise BrambleError("; ".join(["its FAT file system is damaged", *lines[:6]]))


def _allocated(fd: int, tables: list[int], needed: int, clusters: int, bits: int) -> Iterator[Range]:
    """Yield the ranges of clusters in use. Clusters are numbered from 2."""
    step = CHUNK // 2 * 3 if bits == 12 else CHUNK  # a multiple of the size of an entry
    begin, number = 0, 0
    for at in range(0, needed, step):
        amount = min(step, needed - at)
        chunk = read_exactly(fd, tables[0] + at, amount)
        if any(read_exactly(fd, table + at, amount) != chunk for table in tables[1:]):
            raise BrambleError("the two copies of its file allocation table differ: run fsck.vfat")
        for entry in table_entries(chunk, bits):
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


def table_entries(chunk: bytes, bits: int) -> Iterable[int]:
    """Return the entries of a chunk of a file allocation table, which begins with a whole entry."""
    if bits == 12:
        padded = chunk + bytes(-len(chunk) % 3)
        triples = zip(padded[0::3], padded[1::3], padded[2::3], strict=True)
        return (entry for low, mid, high in triples for entry in (low | (mid & 0x0F) << 8, mid >> 4 | high << 4))
    entries = array.array("H" if bits == 16 else "I", chunk)
    if sys.byteorder == "big":
        entries.byteswap()
    return entries
