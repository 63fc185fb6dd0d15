"""The files and folders of a FAT file system in a file, which are changed in place.

What is kept stays byte by byte as it is, whatever the geometry: names, 8.3 aliases, attributes, times, positions and the boot
code. mtools cannot keep all of these when it copies files. Source of all offsets: Microsoft, "FAT32 File System Specification",
version 1.03 (2000). Sizes and offsets are in bytes, or where a comment says so in sectors or clusters.
"""

from __future__ import annotations

import array
import hashlib
import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.bramble.cluster.plugins.module_utils.card.fat import Fat, table_entries
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import SECTOR, read_exactly
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

_RECORD = 32  # the size of an entry of a folder
_DELETED = 0xE5
_LABEL, _FOLDER, _LONG_NAME = 0x08, 0x10, 0x0F  # attributes
_LOWER_BASE, _LOWER_EXTENSION = 0x08, 0x10  # flags of Windows NT for a short name in lower case, in byte 12
_CODE_PAGE = "cp850"  # that of the short names of mkfs.vfat and mtools
_INFO_SIGNATURES = ((0, 0x41615252), (484, 0x61417272))  # of the sector FSInfo
_MISSING = "the files of its FAT file system contradict its file allocation table: run fsck.vfat"


@dataclass
class FatFile:
    """A file, a folder, or the volume label, which is an entry of a folder, too.

    :param record: the 32 bytes with the short name
    :param long_records: the records of the long name, which precede it
    :param members: the entries of a folder
    """

    record: bytearray
    long_records: bytes
    members: list[FatFile] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The long name, or else the short one."""
        if self.long_records:
            starts = range(len(self.long_records) - _RECORD, -1, -_RECORD)  # the last part of a name comes first
            parts = (self.long_records[at + low : at + high] for at in starts for low, high in ((1, 11), (14, 26), (28, 32)))
            return b"".join(parts).decode("utf-16-le", "replace").partition("\0")[0]
        # A first byte of 0x05 stands for 0xE5, which would mark a deleted entry.
        raw = b"\xe5" + self.record[1:11] if self.record[0] == 5 else bytes(self.record[:11])
        base, extension = (part.decode(_CODE_PAGE, "replace").rstrip(" ") for part in (raw[:8], raw[8:]))
        base = base.lower() if self.record[12] & _LOWER_BASE else base
        extension = extension.lower() if self.record[12] & _LOWER_EXTENSION else extension
        return f"{base}.{extension}" if extension else base

    @property
    def is_label(self) -> bool:
        """Whether this is the volume label."""
        return bool(self.record[11] & _LABEL)

    @property
    def is_folder(self) -> bool:
        """Whether this is a folder, also "." and ".."."""
        return bool(self.record[11] & _FOLDER) and not self.is_label

    @property
    def is_dots(self) -> bool:
        """Whether this is the entry "." or ".." of a folder."""
        return bytes(self.record[:11]) in (b".          ", b"..         ")

    @property
    def size(self) -> int:
        """The size of a file; 0 for a folder."""
        return int.from_bytes(self.record[28:32], "little")

    def cluster(self, bits: int) -> int:
        """Return the number of the first cluster, which is 0 without content; `bits` is the kind of the FAT."""
        high, low = struct.unpack_from("<H", self.record, 20)[0], struct.unpack_from("<H", self.record, 26)[0]
        return int(high << 16 | low) if bits == 32 else int(low)  # OS/2 used the high half of FAT12 and FAT16 for something else

    def set_content(self, cluster: int, size: int) -> None:
        """Set the first cluster and the size."""
        struct.pack_into("<H", self.record, 20, cluster >> 16)
        struct.pack_into("<HI", self.record, 26, cluster & 0xFFFF, size)


class FatTree:
    """A FAT file system in the file `path`, whose changes take effect with `save`. A context manager.

    Raises BrambleError when its folders and its file allocation table contradict each other.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._boot = bytearray(read_exactly(self._fd, 0, SECTOR))
            self._fat = Fat.parse(bytes(self._boot))
            self._cluster_size = self._fat.sectors_per_cluster * self._fat.sector_size
            self._end_mark = (1 << min(self._fat.bits, 28)) - 8
            self._table = self._read_table()
            root_cluster = int.from_bytes(self._boot[44:48], "little") if self._fat.bits == 32 else 0
            self.root = FatFile(bytearray(_RECORD), b"")
            self.root.set_content(root_cluster, 0)
            self._read_folders()
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> FatTree:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    # The file allocation table

    @property
    def _table_offset(self) -> int:
        return self._fat.reserved_sectors * self._fat.sector_size

    def _read_table(self) -> array.array[int]:
        """Return the entries of the file allocation table, by cluster; there are none for the clusters 0 and 1."""
        count, bits = self._fat.clusters + 2, self._fat.bits
        return array.array("I", table_entries(read_exactly(self._fd, self._table_offset, -(-count * bits // 8)), bits))

    def _write_table(self) -> None:
        """Write all copies of the file allocation table."""
        count, bits = self._fat.clusters + 2, self._fat.bits
        if bits == 12:
            pairs = zip(self._table[0::2], self._table[1::2], strict=True)
            raw = b"".join((low | high << 12).to_bytes(3, "little") for low, high in pairs)[: -(-count * bits // 8)]
        else:
            entries = array.array("H" if bits == 16 else "I", self._table)
            if sys.byteorder == "big":
                entries.byteswap()
            raw = entries.tobytes()
        for copy in range(self._fat.copies):
            os.pwrite(self._fd, raw, self._table_offset + copy * self._fat.table * self._fat.sector_size)

    def _next(self, cluster: int) -> int:
        return self._table[cluster] & 0x0FFFFFFF

    def _set_next(self, cluster: int, value: int) -> None:
        # The highest four bits of an entry of FAT32 are reserved, and are kept.
        self._table[cluster] = self._table[cluster] & 0xF0000000 | value

    def _chain(self, first: int) -> list[int]:
        """Return the clusters of a file from its first one. Raises BrambleError."""
        chain, at = list[int](), first
        while at and at < self._end_mark:
            if not 2 <= at < self._fat.clusters + 2 or len(chain) > self._fat.clusters:
                raise BrambleError(_MISSING)
            chain.append(at)
            at = self._next(at)
        if first and not at:
            raise BrambleError(_MISSING)
        return chain

    # The content of files and folders

    def _ranges(self, file: FatFile) -> list[tuple[int, int]]:
        """Return the (offset, length) of the space that a file or folder takes. Raises BrambleError."""
        start = self._fat.data * self._fat.sector_size
        if file is self.root and not file.cluster(self._fat.bits):
            length = self._fat.root_entries * _RECORD
            return [(start - -(-length // self._fat.sector_size) * self._fat.sector_size, length)]
        return [
            (start + (cluster - 2) * self._cluster_size, self._cluster_size)
            for cluster in self._chain(file.cluster(self._fat.bits))
        ]

    def _content(self, file: FatFile) -> Iterator[bytes]:
        """Yield the clusters of a file or folder, with what follows its end in the last one."""
        return (read_exactly(self._fd, offset, length) for offset, length in self._ranges(file))

    def _write(self, file: FatFile, data: bytes) -> None:
        """Write the content of a file or folder, with zeros up to the end of the space that it takes."""
        at = 0
        for offset, length in self._ranges(file):
            os.pwrite(self._fd, data[at : at + length].ljust(length, b"\0"), offset)
            at += length

    def _read_folders(self) -> None:
        """Read all folders. Raises BrambleError."""
        waiting, known = [self.root], {self.root.cluster(self._fat.bits)}
        while waiting:
            folder, long_records = waiting.pop(), b""
            data = b"".join(self._content(folder))
            for at in range(0, len(data), _RECORD):
                record = data[at : at + _RECORD]
                if record[0] == 0:
                    break
                if record[0] == _DELETED:
                    long_records = b""
                elif record[11] & 0x3F == _LONG_NAME:
                    long_records += record
                else:
                    file, long_records = FatFile(bytearray(record), long_records), b""
                    folder.members.append(file)
                    if file.is_folder and not file.is_dots:
                        if (first := file.cluster(self._fat.bits)) in known:
                            raise BrambleError(_MISSING)
                        known.add(first)
                        waiting.append(file)

    def walk(self) -> Iterator[tuple[str, FatFile]]:
        """Yield the path and the entry of each file and folder."""
        waiting = [("", self.root)]
        while waiting:
            path, folder = waiting.pop()
            for file in folder.members:
                if not file.is_label and not file.is_dots:
                    yield path + file.name, file
                    if file.is_folder:
                        waiting.append((f"{path}{file.name}/", file))

    def read(self, file: FatFile) -> bytes:
        """Return the content of a file. Raises BrambleError."""
        data = b"".join(self._content(file))
        if len(data) < file.size:
            raise BrambleError(_MISSING)
        return data[: file.size]

    def digests(self) -> dict[str, str]:
        """Return attributes, times and the SHA-256 of the content of each file and folder, by path. Raises BrambleError."""
        return {
            path: f"{bytes(file.record[11:26]).hex()} {hashlib.sha256(self.read(file)).hexdigest() if not file.is_folder else ''}"
            for path, file in self.walk()
        }

    # Changes

    def remove(self, folder: FatFile, file: FatFile) -> None:
        """Remove a file, or a folder with its content. Raises BrambleError."""
        for member in list(file.members):
            if not member.is_dots:
                self.remove(file, member)
        for cluster in self._chain(file.cluster(self._fat.bits)):
            self._set_next(cluster, 0)
        folder.members.remove(file)

    def replace(self, file: FatFile, data: bytes) -> None:
        """Replace the content of a file, which keeps its attributes and times. Raises BrambleError when there is no space."""
        old = self._chain(file.cluster(self._fat.bits))
        for cluster in old:
            self._set_next(cluster, 0)
        needed = -(-len(data) // self._cluster_size)
        free = (cluster for cluster in range(2, self._fat.clusters + 2) if not self._next(cluster))
        chain = [cluster for cluster, _ in zip(free, range(needed), strict=False)]
        if len(chain) < needed:
            raise BrambleError(
                f"its boot partition has no space for the {len(data):,} bytes of {file.name}: remove files from the partition"
            )
        # Without content, there is no chain.
        for cluster, following in zip(chain, [*chain[1:], self._end_mark | 7], strict=False):
            self._set_next(cluster, following)
        file.set_content(chain[0] if chain else 0, len(data))
        self._write(file, data)

    def save(self) -> None:
        """Write all changes, without names and data of deleted files, and with marks of bad blocks removed. Raises BrambleError.

        Marks of bad blocks describe the old card. The file system is marked as unmounted.
        """
        for folder in [self.root, *(file for _, file in self.walk() if file.is_folder)]:
            self._write(folder, b"".join(bytes(member.long_records + member.record) for member in folder.members))
        for _, file in self.walk():
            if not file.is_folder and (rest := file.size % self._cluster_size):
                offset, length = self._ranges(file)[-1]
                os.pwrite(self._fd, bytes(length - rest), offset + rest)
        for cluster in range(2, self._fat.clusters + 2):
            if self._next(cluster) == self._end_mark - 1:
                self._set_next(cluster, 0)
        self._mark_unmounted()
        self._write_table()

    def _mark_unmounted(self) -> None:
        """Clear the marks of a file system in use, and correct the number of free clusters and the copy of the boot sector."""
        # Linux marks it in byte 37 or 65 of the boot sector, Windows in the entry of cluster 1.
        self._boot[65 if self._fat.bits == 32 else 37] &= 0xFE
        if self._fat.bits > 12:
            self._table[1] |= 1 << (27 if self._fat.bits == 32 else 15)
        os.pwrite(self._fd, self._boot, 0)
        if self._fat.bits < 32:
            return
        info, backup = struct.unpack_from("<HH", self._boot, 48)
        if 0 < info < self._fat.reserved_sectors:
            sector = bytearray(read_exactly(self._fd, info * self._fat.sector_size, SECTOR))
            if all(struct.unpack_from("<I", sector, at) == (signature,) for at, signature in _INFO_SIGNATURES):
                free = sum(not self._next(cluster) for cluster in range(2, self._fat.clusters + 2))
                struct.pack_into("<I", sector, 488, free)
                os.pwrite(self._fd, sector, info * self._fat.sector_size)
        if 0 < backup < self._fat.reserved_sectors:
            os.pwrite(self._fd, self._boot, backup * self._fat.sector_size)
