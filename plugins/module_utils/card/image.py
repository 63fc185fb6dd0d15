"""A card image: its partitions, the blocks of it that hold data, and the few bytes in which one node's card differs.

Every size and offset is in bytes.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import struct
import subprocess
import tempfile
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

SECTOR = 512
PAGE = 4096  # grain of an overlay
BLOCK = 64 * 1024  # grain of a block map
CHUNK = 1024 * 1024  # most bytes in one read or write, and the head of a card that is written last
ZEROS = bytes(CHUNK)
MAP_VERSION = 1  # of a kept block map; a new one when what is in it means something else

# For the tools that look at file systems, and change them.
TOOL_ENV = {
    "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "MTOOLS_SKIP_CHECK": "1",
}
# Files laid on a card carry this time (2024-01-01 UTC), so that the same input always gives the same bytes.
EPOCH = "1704067200"
_TOOL_ENV = TOOL_ENV | {
    "SOURCE_DATE_EPOCH": EPOCH,  # mtools
    "E2FSPROGS_FAKE_TIME": EPOCH,  # https://git.kernel.org/pub/scm/fs/ext2/e2fsprogs.git, lib/ext2fs/openfs.c
}

GPT_PROTECTIVE = 0xEE
FAT_TYPES = frozenset({0x01, 0x04, 0x06, 0x0B, 0x0C, 0x0E})
LINUX_TYPE = 0x83

# No quoting exists in debugfs scripts that would be worth trusting: names with anything else are refused.
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9_@+.-]+)+")
_BOOT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")

CMDLINE = "cmdline.txt"
# An argument of the kernel's command line; a quoted part may hold spaces.
_ARGUMENT = re.compile(r'(?:[^\s"]|"[^"\n]*")+')

Overlay = dict[int, bytes]
"""Bytes that replace the image's, by offset; offsets are multiples of PAGE, values at most PAGE long."""


class CardError(Exception):
    """Something about an image or a card that a person must see; the message says what, where and what to do."""


def count(number: int) -> str:
    """A number of bytes for people: 31,914,983,424 bytes."""
    return f"{number:,} byte{'' if number == 1 else 's'}"


def aligned(rows: Sequence[Sequence[str]], numbers: Container[int]) -> str:
    """A table for people, a line per row; columns (by index) of `numbers` stand at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


@dataclass(frozen=True)
class Partition:
    """One primary partition; start and size in bytes."""

    number: int
    type: int
    start: int
    size: int

    @property
    def end(self) -> int:
        """The first byte after the partition."""
        return self.start + self.size


def parse_mbr(sector: bytes, size: int) -> list[Partition]:
    """The primary partitions of a disk of `size` bytes, by number, from its first 512 bytes.

    Source: UEFI specification 2.10, section 5.2.1 "Legacy Master Boot Record".
    Raises CardError when there is no MBR, it only stands before a GPT, or a partition overlaps another or leaves the disk.
    """
    if len(sector) < SECTOR or sector[510:512] != b"\x55\xaa":
        raise CardError("no partition table (MBR) at its start")
    partitions = []
    for number in range(1, 5):
        status, kind, first, sectors = struct.unpack_from("<B3xB3xII", sector, 446 + 16 * (number - 1))
        if kind == GPT_PROTECTIVE:
            raise CardError("it has a GPT partition table; a Raspberry Pi card needs an MBR one")
        if kind == 0 and sectors == 0:
            continue
        if status not in (0x00, 0x80) or kind == 0 or sectors == 0 or first == 0:
            raise CardError(f"partition {number} makes no sense: this is not a partition table")
        partition = Partition(number, kind, first * SECTOR, sectors * SECTOR)
        if partition.end > size:
            raise CardError(f"partition {number} ends at byte {partition.end:,}, beyond the end, {size:,}")
        partitions.append(partition)
    by_start = sorted(partitions, key=lambda partition: partition.start)
    for one, other in itertools.pairwise(by_start):
        if one.end > other.start:
            raise CardError(f"partitions {one.number} and {other.number} overlap")
    return partitions


def boot_and_root(partitions: Sequence[Partition]) -> tuple[Partition, Partition]:
    """Partition 1 (FAT, what the Pi boots from) and partition 2 (Linux, the root). Raises CardError when one is missing."""
    found = {partition.number: partition for partition in partitions}
    for number, name, types in ((1, "FAT boot", FAT_TYPES), (2, "Linux root", {LINUX_TYPE})):
        if number not in found:
            raise CardError(f"partition {number}, the {name} partition, is missing")
        if found[number].type not in types:
            raise CardError(f"partition {number} has type {found[number].type:#04x}; a {name} partition is expected")
    return found[1], found[2]


def extents(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """(start, end) of what is not a hole in [start, end) of a file, by lseek(2) SEEK_DATA; all of it where that is unknown."""
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
            stop = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            if error.errno != errno.EINVAL:
                raise
            stop = end
        if start < end:
            yield start, min(stop, end)
        start = stop


def is_zero(data: bytes) -> bool:
    """Whether there is nothing but zeros in at most CHUNK bytes."""
    return data == ZEROS if len(data) == CHUNK else data == ZEROS[: len(data)]


def read(fd: int, offset: int, length: int) -> bytes:
    """Exactly `length` bytes; raises CardError when the file ends before."""
    data = os.pread(fd, length, offset)
    while len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            raise CardError(f"it ends at byte {os.fstat(fd).st_size:,}, before {offset + length:,}")
        data += more
    return data


class Image:
    """A raw image, open for reading and scanned once: size, sha256, partitions, which blocks hold data, and which matter.

    What no file system uses does not matter: the contents of deleted files, and space that is free. With a `map_path` what was
    found is kept there (if `keep`), and an image that was not touched since is not read again.

    Raises CardError for something that is not a disk image, OSError when it cannot be read. Use it with `with`.
    """

    def __init__(self, path: str, map_path: str | None = None, keep: bool = True) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._stat = os.fstat(self.fd)
            self.size = self._stat.st_size
            if self.size == 0 or self.size % SECTOR:
                raise CardError(f"the image {path} is {count(self.size)}: not a whole number of {SECTOR}-byte sectors")
            if not (map_path and self._load(map_path)):
                self.sha256, data = self._scan()
                self.needed = self._needed()
                self.blocks = [block for block in data if block in self.needed]
                if map_path and keep:
                    self._save(map_path)
        except BaseException:
            os.close(self.fd)
            raise

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def _scan(self) -> tuple[str, list[int]]:
        """One pass: the sha256 of everything, and the numbers of the blocks that hold anything but zeros."""
        digest, blocks, at = hashlib.sha256(), list[int](), 0

        def skip_to(end: int) -> None:
            nonlocal at
            while at < end:
                length = min(CHUNK, end - at)
                digest.update(ZEROS if length == CHUNK else ZEROS[:length])
                at += length

        for start, end in extents(self.fd, 0, self.size):
            skip_to(start - start % BLOCK)  # an extent may begin inside a block
            while at < end:
                data = read(self.fd, at, min(CHUNK - at % CHUNK, self.size - at))
                digest.update(data)
                if not is_zero(data):
                    inner = range(0, len(data), BLOCK)
                    blocks += [(at + low) // BLOCK for low in inner if not is_zero(data[low : low + BLOCK])]
                at += len(data)
        skip_to(self.size)
        return digest.hexdigest(), blocks

    def _key(self) -> list[int]:
        """Changes when somebody writes to the image."""
        return [self._stat.st_ino, self._stat.st_size, self._stat.st_mtime_ns, self._stat.st_ctime_ns]

    def _load(self, path: str) -> bool:
        """Take what was found the last time, if this is the same image still."""
        try:
            with open(path, encoding="ascii") as file:
                known = json.load(file)
            if known["key"] != self._key() or known["version"] != MAP_VERSION:
                return False
            self.sha256 = str(known["sha256"])
            self.needed, data = (
                {block for low, high in known[name] for block in range(low, high)} for name in ("needed", "data")
            )
            self.blocks = sorted(data)
        except (OSError, ValueError, LookupError, TypeError):
            return False
        return True

    def _save(self, path: str) -> None:
        """Keep what was found. What cannot be kept is found again the next time."""

        def ranges(blocks: Iterable[int]) -> list[list[int]]:
            runs: list[list[int]] = []
            for block in sorted(blocks):
                if runs and runs[-1][1] == block:
                    runs[-1][1] = block + 1
                else:
                    runs.append([block, block + 1])
            return runs

        known = {"version": MAP_VERSION, "key": self._key(), "sha256": self.sha256}
        known |= {"needed": ranges(self.needed), "data": ranges(self.blocks)}
        with contextlib.suppress(OSError):
            with open(f"{path}.new", "w", encoding="ascii") as file:
                json.dump(known, file)
            os.rename(f"{path}.new", path)

    def _needed(self) -> set[int]:
        """The numbers of the blocks that a card must hold: all but what the file systems of the image do not use."""
        from ansible_collections.bramble.cluster.plugins.module_utils.card.space import (
            used,  # which itself is built on this module
        )

        try:
            partitions = parse_mbr(read(self.fd, 0, SECTOR), self.size)
        except CardError:
            return set(range(-(-self.size // BLOCK)))
        needed, at = set[int](), 0

        def need(start: int, end: int) -> None:
            needed.update(range(start // BLOCK, -(-end // BLOCK)))

        for partition in sorted(partitions, key=lambda partition: partition.start):
            need(at, partition.start)
            for start, end in used(self.fd, partition.start, partition.size):
                need(start, end)
            at = partition.end
        need(at, self.size)
        return needed

    def partitions(self) -> tuple[Partition, Partition]:
        """Its boot and root partitions. Raises CardError naming the image."""
        try:
            return boot_and_root(parse_mbr(read(self.fd, 0, SECTOR), self.size))
        except CardError as error:
            raise CardError(f"the image {self.path}: {error}") from None

    def check_untouched(self) -> None:
        """Raises CardError when someone wrote to the image since it was opened."""
        now = os.stat(self.path)
        if any(getattr(now, name) != getattr(self._stat, name) for name in ("st_dev", "st_ino", "st_size", "st_mtime_ns")):
            raise CardError(f"the image {self.path} was changed while cards were written from it: write them again")


@dataclass(frozen=True)
class Run:
    """A stretch of a card: data (never crossing a multiple of CHUNK) or zeros (of any length)."""

    offset: int
    length: int
    data: bool

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.offset + self.length


class Content:
    """What one card must hold from its first byte to the end of the image: the image, with a node's overlay on it.

    Of the space that no file system uses nothing is said.
    """

    def __init__(self, image: Image, overlay: Overlay) -> None:
        self.image = image
        self.size = image.size
        self._overlay: dict[int, list[tuple[int, bytes]]] = {}
        for offset, data in sorted(overlay.items()):
            self._overlay.setdefault(offset // BLOCK, []).append((offset, data))
        filled = {*image.blocks, *self._overlay}
        self.blocks = [(block, block in filled) for block in sorted(filled | image.needed)]
        self.overlay_bytes = sum(map(len, overlay.values()))
        digest = hashlib.sha256(bytes.fromhex(image.sha256))
        for offset, data in sorted(overlay.items()):
            digest.update(struct.pack("<QI", offset, len(data)) + data)
        self.fingerprint = digest.hexdigest()

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes of what the card must hold at `offset`."""
        data = read(self.image.fd, offset, length)
        blocks = range(offset // BLOCK, (offset + length - 1) // BLOCK + 1)
        patches = [patch for block in blocks for patch in self._overlay.get(block, ())]
        if patches:
            mixed = bytearray(data)
            for start, patch in patches:
                low, high = max(start, offset), min(start + len(patch), offset + length)
                if low < high:
                    mixed[low - offset : high - offset] = patch[low - start : high - start]
            data = bytes(mixed)
        return data

    def runs(self, start: int = 0, end: int | None = None) -> Iterator[Run]:
        """The runs of [start, end), in order; both limits are multiples of BLOCK or the end."""
        end = self.size if end is None else min(end, self.size)
        first, last = (bisect.bisect_left(self.blocks, (limit,)) for limit in (start // BLOCK, -(-end // BLOCK)))
        low = high = -1
        kind = False
        for block, data in itertools.islice(self.blocks, first, last):
            if block != high or data != kind or (data and block * BLOCK % CHUNK == 0):
                if low >= 0:
                    yield Run(low * BLOCK, (high - low) * BLOCK, kind)
                low, kind = block, data
            high = block + 1
        if low >= 0:
            yield Run(low * BLOCK, min(high * BLOCK, end) - low * BLOCK, kind)

    @property
    def data_bytes(self) -> int:
        """How many bytes are in runs of data."""
        return sum(run.length for run in self.runs() if run.data)

    @property
    def needed_bytes(self) -> int:
        """How many bytes are in runs, of data or of zeros."""
        return sum(run.length for run in self.runs())


@dataclass(frozen=True)
class RootFile:
    """A file for the root file system, owned by root; `mode` as in chmod (0o600)."""

    path: str
    content: str
    mode: int


def check_names(boot_files: Mapping[str, str], root_files: Sequence[RootFile]) -> None:
    """Raises CardError for a name that cannot be laid on a card exactly as it is written."""
    for name in boot_files:
        if not _BOOT_NAME.fullmatch(name):
            raise CardError(f"boot file name {name!r}: letters, digits and _ . + - only, and no folders")
    names = [name.lower() for name in boot_files] + [file.path for file in root_files]
    if twice := {name for name in names if names.count(name) > 1}:
        raise CardError(f"two files of one name: {', '.join(sorted(twice))}")
    for file in root_files:
        if not _ROOT_PATH.fullmatch(file.path) or {".", ".."} & set(file.path.split("/")):
            raise CardError(f"root file path {file.path!r}: absolute, and letters, digits and _ @ + . - only")
        if not 0 <= file.mode <= 0o7777:
            raise CardError(f"root file {file.path}: mode {file.mode:o} is not between 0 and 7777")


def set_arguments(cmdline: str, values: Mapping[str, str]) -> str:
    """A kernel command line (what is in cmdline.txt) with new values for the arguments that it has; none is added.

    Everything else stays as it is: order, spacing, lines that are comments. Raises CardError for a value that is not one word.
    Source: https://docs.kernel.org/admin-guide/kernel-parameters.html
    """
    for name, value in values.items():
        if not re.fullmatch(r'[^\s"]*', value):
            raise CardError(f"kernel argument {name}: {value!r} is not one word")

    def new(found: re.Match[str]) -> str:
        name, equals, _ = found[0].partition("=")
        return f"{name}={values[name]}" if equals and name in values else found[0]

    lines = cmdline.splitlines(keepends=True)
    return "".join(line if line.lstrip().startswith("#") else _ARGUMENT.sub(new, line) for line in lines)


def _folders_above(path: str) -> list[str]:
    """The folders above a path, the outermost first: /a and /a/b for /a/b/c."""
    names = path.split("/")[1:-1]
    return ["/" + "/".join(names[: depth + 1]) for depth in range(len(names))]


class Workbench:
    """A private sparse copy of an image in which a node's files are laid to see which bytes they change.

    The copy has no name (O_TMPFILE, or unlinked at once), and neither have the files on their way into it: even a crash
    leaves no private key behind. Use it with `with`; it takes as much disk as the image has data.
    """

    def __init__(self, image: Image, folder: str) -> None:
        self.image = image
        self.boot, self.root = image.partitions()
        self._file = tempfile.TemporaryFile(dir=folder, prefix=".card-")  # noqa: SIM115 (closed by __exit__)
        self.fd = self._file.fileno()
        os.ftruncate(self.fd, image.size)
        for run in Content(image, {}).runs():
            if run.data:
                os.pwrite(self.fd, read(image.fd, run.offset, run.length), run.offset)

    def __enter__(self) -> Workbench:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def overlay(
        self, boot_files: Mapping[str, str], root_files: Sequence[RootFile], arguments: Mapping[str, str] | None = None
    ) -> Overlay:
        """The bytes that change when these files are laid on the image; the same every time.

        `arguments` are new values for those of the kernel's command line that the image has.
        Every file is read back, and the root file system checked. Raises CardError when a file does not arrive.
        """
        check_names(boot_files, root_files)
        boot_files = {**self._cmdline(arguments or {}), **boot_files}
        if boot_files:
            self._lay_boot(boot_files)
        if root_files:
            self._lay_root(root_files)
        changed = self._changed()
        for offset, data in changed.items():
            os.pwrite(self.fd, read(self.image.fd, offset, len(data)), offset)
        return changed

    def _run(self, *command: str, stdin: bytes = b"", keep: Sequence[int] = ()) -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run(
                command, input=stdin, capture_output=True, check=False, env=_TOOL_ENV, pass_fds=(self.fd, *keep)
            )
        except FileNotFoundError:
            package = "mtools" if command[0].startswith("m") else "e2fsprogs"
            raise CardError(f"{command[0]} is not installed on this machine: apt install {package}") from None

    @property
    def _drive(self) -> str:
        """The boot partition, for mtools."""
        return f"/proc/self/fd/{self.fd}@@{self.boot.start}"

    def _cmdline(self, arguments: Mapping[str, str]) -> dict[str, str]:
        """The image's cmdline.txt, as a boot file, if it has these arguments with other values."""
        found = self._run("mtype", "-i", self._drive, f"::{CMDLINE}").stdout if arguments else b""
        try:
            before = found.decode()
        except UnicodeDecodeError:
            raise CardError(f"{CMDLINE} on partition 1 of {self.image.path} is not text") from None
        after = set_arguments(before, arguments)
        return {CMDLINE: after} if after != before else {}

    def _lay_boot(self, files: Mapping[str, str]) -> None:
        drive = self._drive
        for name, text in sorted(files.items()):
            content = text.encode()
            result = self._run("mcopy", "-o", "-i", drive, "-", f"::{name}", stdin=content)
            if result.returncode or self._run("mtype", "-i", drive, f"::{name}").stdout != content:
                why = "; ".join(result.stderr.decode(errors="replace").splitlines()) or "it does not read back"
                raise CardError(f"boot file {name} cannot be laid on partition 1 of {self.image.path}: {why}")

    def _lay_root(self, files: Sequence[RootFile]) -> None:
        device = f"/proc/self/fd/{self.fd}?offset={self.root.start}"

        def look(request: str) -> bytes:
            return self._run("debugfs", "-R", request, device).stdout

        # Only what is not there is made: debugfs' mkdir of a folder that exists leaves a lost inode behind.
        folders = {folder: None for file in files for folder in _folders_above(file.path)}
        script = [f"mkdir {folder}" for folder in folders if b"Inode:" not in look(f"stat {folder}")]
        sources = []
        try:
            for file in files:
                sources.append(os.memfd_create("card"))
                with open(sources[-1], "wb", closefd=False) as source:
                    source.write(file.content.encode())
                if b"Inode:" in look(f"stat {file.path}"):
                    script.append(f"rm {file.path}")
                script.append(f"write /proc/self/fd/{sources[-1]} {file.path}")
                fields = {"mode": f"0{0o100000 | file.mode:o}", "uid": "0", "gid": "0"}
                script += [f"set_inode_field {file.path} {field} {value}" for field, value in fields.items()]
            laid = self._run("debugfs", "-w", "-f", "-", device, stdin="\n".join([*script, ""]).encode(), keep=sources)
        finally:
            for fd in sources:
                os.close(fd)
        notes = "; ".join(laid.stderr.decode(errors="replace").splitlines()[1:])  # the first is the version
        for file in files:
            right = rf"Type: regular\s+Mode:\s+0*{file.mode:o}\s.*User:\s+0\s+Group:\s+0\s"
            stat = look(f"stat {file.path}").decode(errors="replace")
            if not re.search(right, stat, re.DOTALL) or look(f"cat {file.path}") != file.content.encode():
                why = notes or "it does not read back"
                raise CardError(f"root file {file.path} cannot be laid on partition 2 of {self.image.path}: {why}")
        check = self._run("e2fsck", "-fn", device)
        if check.returncode:
            lines = check.stdout.decode(errors="replace").split("\n")
            why = "; ".join(line for line in lines if line and not line.startswith("Pass"))
            raise CardError(f"partition 2 of {self.image.path} is not a clean ext4 file system: {why}")

    def _changed(self) -> Overlay:
        overlay = {}
        for start, end in extents(self.fd, 0, self.image.size):
            stop = min(-(-end // PAGE) * PAGE, self.image.size)
            for at in range(start - start % PAGE, stop, CHUNK):
                length = min(CHUNK, stop - at)
                ours, theirs = read(self.fd, at, length), read(self.image.fd, at, length)
                if ours != theirs:
                    for inner in range(0, length, PAGE):
                        page = ours[inner : inner + PAGE]
                        if page != theirs[inner : inner + PAGE]:
                            overlay[at + inner] = page
        return overlay
