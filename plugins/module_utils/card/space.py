"""Which bytes of a partition its file system uses; the rest can be left out of a copy.

What an ext2/3/4 uses is what dumpe2fs (e2fsprogs) says, which knows every feature and checks every checksum; a FAT is read here.
Every size and offset is in bytes.
"""

from __future__ import annotations

import array
import itertools
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import CHUNK, PAGE, SECTOR, read_exactly
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.tools import TOOL_ENV

Range = tuple[int, int]
"""(start, end) of a stretch of bytes, end not included."""

EXT, FAT, UNKNOWN = "ext", "FAT", ""
_EXT_MAGIC = (1024 + 56, b"\x53\xef")
_DIRENT = 32
_SECONDS = 120  # for dumpe2fs, which needs a few on a slow card


def kind(fd: int, start: int, size: int) -> str:
    """What a partition looks like: EXT, FAT or UNKNOWN. Raises BrambleError when the file ends before the partition."""
    head = read_exactly(fd, start, min(size, 2048))
    at, magic = _EXT_MAGIC
    if head[at : at + 2] == magic:
        return EXT
    # Only a boot sector that says how large its sectors are is one; other things begin with a jump, too.
    if head[510:512] == b"\x55\xaa" and head[0] in (0xEB, 0xE9) and head[11:13] in (b"\0\2", b"\0\4", b"\0\x08", b"\0\x10"):
        return FAT
    return UNKNOWN


def used(fd: int, start: int, size: int, strict: bool = False, grain: int = PAGE, zeroed: bool = False) -> list[Range]:
    """The byte ranges of an open file or disk that the file system of the partition [start, start + size) uses.

    Sorted, apart, made of whole pages of the disk (or `grain`) except at the partition's own ends. All of it when it is not known
    what is used: an unknown or inconsistent file system, or an ext whose journal must be replayed. With `strict` that is a
    BrambleError with the reason. With `zeroed`, for those who put zeros in the place of the rest, inodes that were never used are
    left out, too (an ext4 takes an empty inode table for zeros). Raises BrambleError for a partition that is not within the file.
    """
    # Opened again: fd may be unbuffered (O_DIRECT), which takes only aligned reads.
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if size <= 0 or start < 0 or start + size > os.lseek(again, 0, os.SEEK_END):
            raise BrambleError(f"the partition at byte {start:,} ({size:,} bytes) is not within the disk")
        try:
            what = kind(again, start, size)
            if what == UNKNOWN:
                raise BrambleError("neither an ext2, ext3 or ext4 nor a FAT file system")
            inner = _ext(again, start, size, zeroed) if what == EXT else _fat(again, start, size)
            return list(_pages(inner, start, size, grain))
        except BrambleError:
            if strict:
                raise
            return [(start, start + size)]
    finally:
        os.close(again)


def _pages(ranges: Iterable[Range], start: int, size: int, grain: int) -> Iterator[Range]:
    """Ranges within a partition as absolute ones: widened to whole pages of the disk, cut at the partition's ends, merged."""
    begin = end = -1
    for low, high in sorted(ranges):
        first = max((start + low) // grain * grain, start)
        if first > end:
            if end > begin:
                yield begin, end
            begin = first
        end = max(end, min(-(-(start + high) // grain) * grain, start + size))
    if end > begin:
        yield begin, end


# ext2, ext3, ext4

_GROUP = re.compile(r"Group (\d+): \(Blocks (\d+)-(\d+)\)")
_TABLE = re.compile(r"  Inode table at (\d+)-(\d+) ")
_COUNT = re.compile(r"  (\d+) free blocks, \d+ free inodes, \d+ directories(?:, (\d+) unused inodes)?$")
_RANGES = re.compile(r"  Free blocks: (.*)$")


def _ext(fd: int, start: int, size: int, zeroed: bool) -> list[Range]:
    """The used blocks, as ranges within the partition; with `zeroed` without unused inodes. Raises BrambleError."""
    command = ["dumpe2fs", f"/proc/self/fd/{fd}?offset={start}"]
    try:
        done = subprocess.run(command, capture_output=True, check=False, env=TOOL_ENV, pass_fds=(fd,), timeout=_SECONDS)
    except FileNotFoundError:
        raise BrambleError("dumpe2fs is not installed on this machine: apt install e2fsprogs") from None
    except subprocess.TimeoutExpired:
        raise BrambleError(f"dumpe2fs has not read the file system in {_SECONDS} s") from None
    lines = done.stdout.decode(errors="replace").splitlines()
    notes = [line for line in done.stderr.decode(errors="replace").splitlines()[1:] if line]  # the first is its version
    if done.returncode or notes or "*** Run e2fsck now!" in lines:
        raise BrambleError("; ".join(["its ext file system is damaged", *notes]))
    head = itertools.takewhile(lambda line: not _GROUP.match(line), lines)
    fields = dict(line.split(":", 1) for line in head if ":" in line)
    try:
        features, state = fields["Filesystem features"].split(), fields["Filesystem state"].strip()
        block, blocks, first, inodes = (
            int(fields[name]) for name in ("Block size", "Block count", "First block", "Inodes per group")
        )
        inode = int(fields.get("Inode size", 128))  # revision 0 has only this
    except (KeyError, ValueError):
        raise BrambleError("dumpe2fs does not describe its ext file system") from None
    if "needs_recovery" in features:
        raise BrambleError("its ext file system was not unmounted: what it uses is known only when its journal has been replayed")
    if state != "clean":
        raise BrambleError(f"its ext file system is {state}")
    if "bigalloc" in features:
        # The last cluster's end is not told by dumpe2fs (1.47), and no card has it.
        raise BrambleError("its ext file system has the feature bigalloc, which is not supported")
    if not 0 < inode <= block:
        raise BrambleError(f"its ext file system has inodes of {inode:,} bytes")
    if blocks * block > size:
        raise BrambleError(f"its ext file system is {blocks * block:,} bytes, larger than its partition, {size:,}")
    unused = list(_free(lines, first, blocks))
    if zeroed:
        unused += _unused_inodes(lines, inodes, block // inode)
    return [(low * block, high * block) for low, high in _others(unused, blocks)]


def _free(lines: list[str], first: int, blocks: int) -> Iterator[Range]:
    """The free ranges of blocks. Raises BrambleError unless the groups follow one another, and what is free adds up in each."""
    expected, low, high, said = first, 0, 0, -1
    for line in lines:
        if found := _GROUP.match(line):
            low, high = int(found[2]), int(found[3]) + 1
            if low != expected or not low < high <= blocks or said >= 0:
                raise BrambleError("the groups of its ext file system make no sense")
            expected, said = high, -2
        elif said == -2 and (found := _COUNT.match(line)):
            said = int(found[1])
        elif said >= 0 and (found := _RANGES.match(line)):
            for part in filter(None, found[1].split(", ")):
                begin, _, last = part.partition("-")
                if not low <= int(begin) <= int(last or begin) < high:
                    raise BrambleError("the free blocks of its ext file system make no sense")
                low = int(last or begin) + 1
                said -= low - int(begin)
                yield int(begin), low
            if said:
                raise BrambleError("its ext file system counts its free blocks wrong: run e2fsck")
            said = -1
    if expected != blocks or said != -1:
        raise BrambleError("dumpe2fs does not tell all groups of its ext file system")


def _unused_inodes(lines: list[str], inodes: int, per_block: int) -> Iterator[Range]:
    """The ranges of blocks at the ends of the inode tables that never held an inode, where that is known."""
    table = 0, 0
    for line in lines:
        if found := _TABLE.match(line):
            table = int(found[1]), int(found[2]) + 1
        elif (found := _COUNT.match(line)) and found[2]:
            begin = table[0] + -(-(inodes - int(found[2])) // per_block)
            if table[0] <= begin < table[1]:
                yield begin, table[1]


def _others(ranges: list[Range], end: int) -> Iterator[Range]:
    """What is between ranges, from 0 to `end`."""
    at = 0
    for low, high in sorted(ranges):
        if at < low:
            yield at, low
        at = max(at, high)
    if at < end:
        yield at, end


# FAT12, FAT16, FAT32


@dataclass(frozen=True)
class Fat:
    """What the boot sector of a FAT says; `sectors` is all of it."""

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
        """From the first 512 bytes. Raises BrambleError.

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


def _fat(fd: int, start: int, size: int) -> list[Range]:
    """All up to the clusters, and the clusters in use, as ranges within the partition. Raises BrambleError.

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
    """The ranges of clusters in use: numbers from 2 on."""
    step = CHUNK // 2 * 3 if bits == 12 else CHUNK  # whole entries
    begin, number = 0, 0
    for at in range(0, needed, step):
        amount = min(step, needed - at)
        piece = read_exactly(fd, tables[0] + at, amount)
        if any(read_exactly(fd, table + at, amount) != piece for table in tables[1:]):
            raise BrambleError("the two copies of the table of its FAT file system differ: run fsck.vfat")
        for entry in _entries(piece, bits):
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


def _entries(piece: bytes, bits: int) -> Iterable[int]:
    """The entries of a piece of a FAT."""
    if bits == 12:
        padded = piece + bytes(-len(piece) % 3)
        triples = zip(padded[0::3], padded[1::3], padded[2::3], strict=True)
        return (entry for low, mid, high in triples for entry in (low | (mid & 0x0F) << 8, mid >> 4 | high << 4))
    entries = array.array("H" if bits == 16 else "I", piece)
    if sys.byteorder == "big":
        entries.byteswap()
    return entries
