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
def _at(offset: int, action: str) -> Iterator[None]:
    """Says where on the card an OSError happened."""
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
        self._blank = set[tuple[int, int]]()
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
        self._room = mmap.mmap(-1, CHUNK)  # aligned, as O_DIRECT wants it
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
        """Let it go."""
        os.close(self.fd)
        self._room.close()

    def check_same(self) -> None:
        """Raises BrambleError when it is another card than the guard saw, or has another size."""
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

    def _buffered(self, error: OSError) -> bool:
        """Give up O_DIRECT once, when a transfer does not suit it; False if that was not the reason."""
        flags = fcntl.fcntl(self.fd, fcntl.F_GETFL)
        if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
            return False
        fcntl.fcntl(self.fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return True

    def read(self, offset: int, length: int) -> bytes:
        """At most CHUNK bytes of the card. Raises BrambleError."""
        with _at(offset, "reading"), memoryview(self._room) as room:
            done = 0
            while done < length:
                try:
                    got = os.preadv(self.fd, [room[done:length]], offset + done)
                except OSError as error:
                    if self._buffered(error):
                        continue
                    raise
                if not got:
                    raise OSError(errno.EIO, "the card ends here")
                done += got
        return self._room[:length]

    def write(self, offset: int, data: bytes) -> None:
        """Put at most CHUNK bytes on the card. Raises BrambleError."""
        self._room[: len(data)] = data
        with _at(offset, "writing"), memoryview(self._room) as room:
            done = 0
            while done < len(data):
                try:
                    done += os.pwrite(self.fd, room[done : len(data)], offset + done)
                except OSError as error:
                    if not self._buffered(error):
                        raise
        self.written += len(data)

    def clear(self, run: Run, meter: Meter) -> list[tuple[int, int]]:
        """Make a run of the card zero: by a hole in a file, by writing only where it is not zero yet on a disk.

        Returns the (offset, length) of the pieces that were zero already.
        """
        blank: list[tuple[int, int]] = []
        if self.regular:
            place = ctypes.c_int64(run.offset), ctypes.c_int64(run.length)
            if _libc.fallocate64(self.fd, _PUNCH_HOLE, *place) == 0:
                return blank
        for offset, length in self.pieces(run):
            if is_zero(self.read(offset, length)):
                blank.append((offset, length))
            else:
                self.write(offset, ZEROS[:length])
            meter(0 if self.regular else length)
        return blank

    def work(self, content: Content) -> int:
        """How many bytes must pass to write or compare a content: the holes of a file cost nothing."""
        return content.data_bytes if self.regular else content.needed_bytes

    def pieces(self, run: Run) -> Iterator[tuple[int, int]]:
        """The (offset, length) of a run that must be read to know it: holes in a file are known to be zero."""
        stretches = [(run.offset, run.end)] if run.data or not self.regular else extents(self.fd, run.offset, run.end)
        for start, end in stretches:
            for offset in range(start - start % PAGE, end, CHUNK):
                yield offset, min(CHUNK, end - offset)

    def differences(
        self, content: Content, meter: Meter = unmetered, known: Container[tuple[int, int]] = ()
    ) -> Iterator[tuple[int, int, int]]:
        """(offset, length, first differing byte) of the pieces that do not hold what they must. Raises BrambleError.

        Pieces that are `known` to be right are not read.
        """
        for run in content.runs():
            for offset, length in self.pieces(run):
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

    def put(self, content: Content, meter: Meter = unmetered) -> None:
        """Write all of the content: the head is emptied first and filled last, and of it the block with the partition table.

        So a card that was interrupted never looks like one that is done. Zeros come after all data but that block: what was zero
        by itself then, read from the card, is so in spite of all that was written, and need not be read a second time. Raises
        BrambleError.
        """
        self.empty_head(content)
        self._fill(content, CHUNK, content.size, meter)
        self._fill(content, BLOCK, min(CHUNK, content.size), meter)
        self._blank = {piece for run in content.runs() if not run.data for piece in self.clear(run, meter)}
        self.flush()
        self._fill(content, 0, min(BLOCK, content.size), meter)

    def _fill(self, content: Content, start: int, end: int, meter: Meter) -> None:
        """Write the data between two places. Raises BrambleError."""
        for run in content.runs(start, end):
            if run.data:
                self.write(run.offset, content.read(run.offset, run.length))
                meter(run.length)
        self.flush()

    def empty_head(self, content: Content) -> None:
        """Take the partition table away: nobody shall take this card for one that is done. Raises BrambleError."""
        self.write(0, ZEROS[: min(CHUNK, content.size)])
        self.flush()

    def probe(self, meter: Meter = unmetered) -> None:
        """Check that the card is as big as it says. Raises BrambleError."""

        def put_back(offset: int, data: bytes) -> None:
            if is_zero(data):
                self.clear(Run(offset, len(data), False), unmetered)
            else:
                self.write(offset, data)

        try:
            probe(self.facts.bytes, self.read, put_back, self.flush, meter)
        finally:
            self.written = 0  # what counts is the image

    def flush(self) -> None:
        """Everything is on the card, and nothing of it in memory any more. Raises BrambleError."""
        with _at(0, "flushing what was written"):
            os.fsync(self.fd)
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
            if not self.regular:
                with contextlib.suppress(PermissionError):
                    fcntl.ioctl(self.fd, _BLKFLSBUF, 0)

    def verify(self, content: Content, meter: Meter = unmetered) -> None:
        """Read all of the content back. What is wrong is rewritten once, then all is read again.

        Raises BrambleError when it is still wrong; the card has no partition table then.
        """
        try:
            self._verify(content, meter)
        except BrambleError:
            with contextlib.suppress(BrambleError):
                self.empty_head(content)
            raise

    def _verify(self, content: Content, meter: Meter) -> None:
        bad = []
        for piece in self.differences(content, meter, self._blank):
            bad.append(piece)
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
