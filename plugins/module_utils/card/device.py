"""One card, open for this process alone: read, write, clear, compare and verify it, without any cache between.

Every size and offset is in bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Container, Iterator

from ansible_collections.bramble.cluster.plugins.module_utils.card.content import Content, Run
from ansible_collections.bramble.cluster.plugins.module_utils.card.facts import Facts
from ansible_collections.bramble.cluster.plugins.module_utils.card.probe import probe
from ansible_collections.bramble.cluster.plugins.module_utils.card.progress import Meter, unmetered
from ansible_collections.bramble.cluster.plugins.module_utils.card.sysfs import loop_backing, reader
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import BLOCK, CHUNK, PAGE, ZEROS, extents, is_zero
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

MOST_BAD = 16  # chunks that read back wrong before a card is given up as worn or counterfeit
_BLKFLSBUF = 0x1261  # linux/fs.h
_PUNCH_HOLE = 0x02 | 0x01  # linux/falloc.h: FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def _locate_error(offset: int, action: str) -> Iterator[None]:
    """Turn an OSError into a BrambleError that names the byte of the card."""
    try:
        yield
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "?")
        raise BrambleError(f"{action} failed at byte {offset:,}: {error.strerror} ({name})") from error


class Card:
    """One card, open for this process alone and unbuffered where that works.

    Opens exactly what the guard saw: raises BrambleError when the card was exchanged, resized or taken since.
    """

    def __init__(self, facts: Facts, writable: bool = True) -> None:
        self.facts, self.written = facts, 0
        self._zero_chunks = set[tuple[int, int]]()
        self.regular = facts.kind == "file"
        mode = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW | (0 if self.regular else os.O_EXCL)
        try:
            try:
                self.fd = os.open(facts.device, mode | os.O_DIRECT)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self.fd = os.open(facts.device, mode)
        except OSError as error:
            raise BrambleError(f"{facts.device} cannot be opened: {error.strerror}") from error
        self._buffer = mmap.mmap(-1, CHUNK)  # aligned, as O_DIRECT wants it
        try:
            self.check_same()
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # also keeps udev away
        except OSError as error:
            self.close()
            raise BrambleError(f"{facts.device} is being written by another process") from error
        except BrambleError:
            self.close()
            raise

    def close(self) -> None:
        """Close the card: another process may open it."""
        os.close(self.fd)
        self._buffer.close()

    def check_same(self) -> None:
        """Check that it is the card that the guard saw, with the same size. Raises BrambleError."""
        status, size = os.fstat(self.fd), os.lseek(self.fd, 0, os.SEEK_END)
        kind_matches = stat.S_ISREG(status.st_mode) if self.regular else stat.S_ISBLK(status.st_mode)
        same = kind_matches and size == self.facts.bytes
        same = same and os.path.realpath(self.facts.slot) == self.facts.device
        if self.facts.identity[0] == "block":
            node = os.path.realpath(f"/sys/dev/block/{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}")
            same = same and reader(node).serial == self.facts.serial
            with contextlib.suppress(FileNotFoundError), open(f"{node}/diskseq", encoding="ascii") as file:
                same = same and file.read().strip() == self.facts.identity[2]
        else:
            behind = (status.st_dev, status.st_ino) if self.regular else loop_backing(self.facts.device)
            same = same and behind == self.facts.identity[1:]
        if not same:
            raise BrambleError(f"{self.facts.device} is not the card it was a moment ago: check the slots and start again")

    def _gave_up_direct_io(self, error: OSError) -> bool:
        """Give up O_DIRECT, and return True, when it is why a transfer failed: the caller tries again."""
        flags = fcntl.fcntl(self.fd, fcntl.F_GETFL)
        if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
            return False
        fcntl.fcntl(self.fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return True

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes of the card, at most CHUNK. Raises BrambleError."""
        with _locate_error(offset, "reading"), memoryview(self._buffer) as buffer:
            done = 0
            while done < length:
                try:
                    got = os.preadv(self.fd, [buffer[done:length]], offset + done)
                except OSError as error:
                    if self._gave_up_direct_io(error):
                        continue
                    raise
                if not got:
                    raise OSError(errno.EIO, "the card ends here")
                done += got
        return self._buffer[:length]

    def write(self, offset: int, data: bytes) -> None:
        """Write at most CHUNK bytes to the card. Raises BrambleError."""
        self._buffer[: len(data)] = data
        with _locate_error(offset, "writing"), memoryview(self._buffer) as buffer:
            done = 0
            while done < len(data):
                try:
                    done += os.pwrite(self.fd, buffer[done : len(data)], offset + done)
                except OSError as error:
                    if not self._gave_up_direct_io(error):
                        raise
        self.written += len(data)

    def clear(self, run: Run, meter: Meter) -> list[tuple[int, int]]:
        """Make a run of the card zero: by a hole in a file, by writing only where it is not zero yet on a disk.

        Returns the (offset, length) of the chunks that were zero already. Raises BrambleError.
        """
        blank: list[tuple[int, int]] = []
        if self.regular:
            place = ctypes.c_int64(run.offset), ctypes.c_int64(run.length)
            if _libc.fallocate64(self.fd, _PUNCH_HOLE, *place) == 0:
                return blank
        for offset, length in self.chunks_to_read(run):
            if is_zero(self.read(offset, length)):
                blank.append((offset, length))
            else:
                self.write(offset, ZEROS[:length])
            meter(0 if self.regular else length)
        return blank

    def bytes_to_transfer(self, content: Content) -> int:
        """Return how many bytes are transferred to write or compare a content; the holes of a file cost nothing."""
        return content.data_bytes if self.regular else content.needed_bytes

    def chunks_to_read(self, run: Run) -> Iterator[tuple[int, int]]:
        """Yield the (offset, length) of what of a run must be read to compare it: holes in a file are known to be zero."""
        stretches = [(run.offset, run.end)] if run.data or not self.regular else extents(self.fd, run.offset, run.end)
        for start, end in stretches:
            for offset in range(start - start % PAGE, end, CHUNK):
                yield offset, min(CHUNK, end - offset)

    def differences(
        self, content: Content, meter: Meter = unmetered, known: Container[tuple[int, int]] = ()
    ) -> Iterator[tuple[int, int, int]]:
        """Yield (offset, length, offset of the first wrong byte) of the chunks that differ from a content. Raises BrambleError.

        Chunks that are `known` to be right are not read.
        """
        for run in content.runs():
            for offset, length in self.chunks_to_read(run):
                meter(length if run.data or not self.regular else 0)
                if (offset, length) in known:
                    continue
                found = self.read(offset, length)
                if not run.data and is_zero(found):
                    continue
                wanted = content.read(offset, length)
                if found != wanted:
                    first = next(at for at in range(length) if found[at] != wanted[at])
                    yield offset, length, offset + first

    def write_content(self, content: Content, meter: Meter = unmetered) -> None:
        """Write all of a content: the head is emptied first and filled last, its block with the partition table at the very end.

        So a card that was interrupted never looks complete. Zeros come after all data but that block: a chunk that is read as
        zero then has survived all writes, and need not be read a second time. Raises BrambleError.
        """
        self.empty_head(content)
        self._write_data(content, CHUNK, content.size, meter)
        self._write_data(content, BLOCK, min(CHUNK, content.size), meter)
        self._zero_chunks = {chunk for run in content.runs() if not run.data for chunk in self.clear(run, meter)}
        self.flush()
        self._write_data(content, 0, min(BLOCK, content.size), meter)

    def _write_data(self, content: Content, start: int, end: int, meter: Meter) -> None:
        """Write the data of a content from `start` to `end`. Raises BrambleError."""
        for run in content.runs(start, end):
            if run.data:
                self.write(run.offset, content.read(run.offset, run.length))
                meter(run.length)
        self.flush()

    def empty_head(self, content: Content) -> None:
        """Write zeros over the partition table, so that nobody takes the card for a complete one. Raises BrambleError."""
        self.write(0, ZEROS[: min(CHUNK, content.size)])
        self.flush()

    def probe(self, meter: Meter = unmetered) -> None:
        """Check that the card has as many bytes as it says. Raises BrambleError."""

        def restore(offset: int, data: bytes) -> None:
            if is_zero(data):
                self.clear(Run(offset, len(data), False), unmetered)
            else:
                self.write(offset, data)

        try:
            probe(self.facts.bytes, self.read, restore, self.flush, meter)
        finally:
            self.written = 0  # what counts is the image

    def flush(self) -> None:
        """Wait until everything is on the card, and drop it from memory. Raises BrambleError."""
        with _locate_error(0, "flushing what was written"):
            os.fsync(self.fd)
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
            if not self.regular:
                with contextlib.suppress(PermissionError):
                    fcntl.ioctl(self.fd, _BLKFLSBUF, 0)

    def verify(self, content: Content, meter: Meter = unmetered) -> None:
        """Read all of a content back; write wrong chunks once more, then read everything again.

        Raises BrambleError when one is still wrong; the card has no partition table then.
        """
        try:
            self._read_back(content, meter)
        except BrambleError:
            with contextlib.suppress(BrambleError):
                self.empty_head(content)
            raise

    def _read_back(self, content: Content, meter: Meter) -> None:
        """Read a content back, and mend it once. Raises BrambleError."""
        bad = []
        for chunk in self.differences(content, meter, self._zero_chunks):
            bad.append(chunk)
            if len(bad) > MOST_BAD:
                raise BrambleError(
                    f"over {MOST_BAD} MiB read back wrong, from byte {bad[0][2]:,} on: worn or counterfeit, replace it"
                )
        if not bad:
            return
        for offset, length, _ in bad:
            self.write(offset, content.read(offset, length))
        self.flush()
        # From the start: on a counterfeit card, mending one place breaks another.
        for _, _, first in self.differences(content):
            raise BrambleError(
                f"reads back wrong at byte {first:,}, also after writing it again: worn or counterfeit, replace it"
            )
