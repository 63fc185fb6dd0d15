"""One card, opened exclusively: read, write, clear, compare and verify it without a cache in between.

All sizes and offsets are in bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import stat
from collections.abc import Iterator

from ansible_collections.bramble.cluster.plugins.module_utils.card import exclusive
from ansible_collections.bramble.cluster.plugins.module_utils.card.content import Content, Run
from ansible_collections.bramble.cluster.plugins.module_utils.card.facts import Facts
from ansible_collections.bramble.cluster.plugins.module_utils.card.image import TAIL
from ansible_collections.bramble.cluster.plugins.module_utils.card.probe import (
    FILLER,
    CapacityProbe,
    filler_chunk,
    unstable_read_error,
)
from ansible_collections.bramble.cluster.plugins.module_utils.card.progress import Meter, unmetered
from ansible_collections.bramble.cluster.plugins.module_utils.card.sysfs import find_reader, loop_backing_file
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import (
    BLOCK,
    CHUNK,
    PAGE,
    ZEROS,
    Range,
    data_extents,
    is_zero,
)
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

MAX_BAD_CHUNKS = 16  # with more wrong chunks than this, a card counts as worn or counterfeit
STABLE_READS = 2  # how often a wrong chunk is read again, to see whether it is always the same
_BLKFLSBUF = 0x1261  # linux/fs.h
_PUNCH_HOLE = 0x02 | 0x01  # linux/falloc.h: FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def _locate_error(offset: int, action: str) -> Iterator[None]:
    """Turn an OSError into a BrambleError that names the action and the byte of the card."""
    try:
        yield
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "?")
        raise BrambleError(f"{action} failed at byte {offset:,}: {error.strerror} ({name})") from error


class Card:
    """One card, opened exclusively, and with O_DIRECT where the file system supports it.

    Raises BrambleError unless the device still is the card that the guard saw, with the same size, and is not in use.
    """

    def __init__(self, facts: Facts, writable: bool = True) -> None:
        self.facts, self.written = facts, 0
        self.is_file = facts.kind == "file"
        flags = os.O_RDWR if writable else os.O_RDONLY
        try:
            try:
                self.fd = exclusive.open_card(facts.device, flags | os.O_DIRECT, not self.is_file)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self.fd = exclusive.open_card(facts.device, flags, not self.is_file)
        except OSError as error:
            raise BrambleError(f"{facts.device} cannot be opened: {error.strerror}") from error
        self._upper: int | None = None
        self._buffer = mmap.mmap(-1, CHUNK)  # an anonymous mapping is aligned to pages, as O_DIRECT requires
        try:
            self.check_same_card()
            self._upper = self._open_upper_file()
            self.check_still_ours()
        except BrambleError:
            self.close()
            raise

    def _open_upper_file(self) -> int | None:
        """Return a descriptor of the file of this card in an upper layer; None if there is none. Raises BrambleError."""
        try:
            return exclusive.open_upper_file(self.facts.device)
        except OSError as error:
            raise BrambleError(
                f"the file of {self.facts.device} in the upper layer cannot be opened: {error.strerror}"
            ) from error

    def close(self) -> None:
        """Close the card, so that another process can open it."""
        os.close(self.fd)
        if self._upper is not None:
            os.close(self._upper)
        self._buffer.close()

    def check_same_card(self) -> None:
        """Check that this still is the card that the guard saw, with the same size and under its name. Raises BrambleError."""
        try:
            problem = next(itertools.chain(self._changes(), self._changes_of_name()), "")
        except OSError as error:
            problem = f"its state cannot be read ({error.strerror})"
        if problem:
            raise BrambleError(
                f"{self.facts.device} is not the card that was checked before: {problem}. Check the slots, then run the same "
                "command again"
            )

    def check_still_ours(self) -> None:
        """Check that no other program uses this card, and that it is still the same one. Raises BrambleError."""
        try:
            exclusive.claim(self.fd, self.facts.device, self._upper)
        except OSError as error:
            raise BrambleError(f"{self.facts.device} cannot be locked: {error.strerror}") from error
        self.check_same_card()

    def _changes(self) -> Iterator[str]:
        """Yield how what is open differs from the card that the guard saw. Raises OSError."""
        status, size = os.fstat(self.fd), os.lseek(self.fd, 0, os.SEEK_END)
        if not (stat.S_ISREG(status.st_mode) if self.is_file else stat.S_ISBLK(status.st_mode)):
            yield "it is of another kind"
        if size != self.facts.bytes:
            yield f"it has {size:,} bytes, and had {self.facts.bytes:,}"
        if self.facts.identity[0] == "block":
            node = os.path.realpath(f"/sys/dev/block/{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}")
            if find_reader(node).serial != self.facts.serial:
                yield "it is in another reader"
            with contextlib.suppress(FileNotFoundError), open(f"{node}/diskseq", encoding="ascii") as file:
                if file.read().strip() != self.facts.identity[2]:
                    yield "the card was exchanged"
        else:
            behind = (status.st_dev, status.st_ino) if self.is_file else loop_backing_file(f"/proc/self/fd/{self.fd}")
            if behind != self.facts.identity[1:]:
                yield "it is another file"
        if self.is_file and self.facts.birth and exclusive.file_status(fd=self.fd).birth != self.facts.birth:
            yield "the file was deleted and created again"

    def _changes_of_name(self) -> Iterator[str]:
        """Yield why the name of the slot no longer leads to what is open. Raises OSError."""
        if (leads_to := os.path.realpath(self.facts.slot)) != self.facts.device:
            yield f"{self.facts.slot} now leads to {leads_to}"
        try:
            status, opened = os.stat(self.facts.device, follow_symlinks=False), os.fstat(self.fd)
        except FileNotFoundError:
            yield f"{self.facts.slot} was deleted or renamed"
            return
        is_same = os.path.samestat(status, opened) if self.is_file else status.st_rdev == opened.st_rdev
        if not is_same or stat.S_IFMT(status.st_mode) != stat.S_IFMT(opened.st_mode):
            yield f"{self.facts.slot} is now the name of another file or device"

    def _disable_direct_io(self, error: OSError) -> bool:
        """Return whether a transfer failed because of O_DIRECT, which is then disabled: the caller can try again."""
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
                    if self._disable_direct_io(error):
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
                    if not self._disable_direct_io(error):
                        raise
        self.written += len(data)

    def clear(self, run: Run, meter: Meter) -> None:
        """Set a run of the card to zero: in a file by a hole, on a disk where it is not zero. Raises BrambleError."""
        if self.is_file:
            place = ctypes.c_int64(run.offset), ctypes.c_int64(run.length)
            if _libc.fallocate64(self.fd, _PUNCH_HOLE, *place) == 0:
                return
        for offset, length in self.chunks_to_read(run):
            if not is_zero(self.read(offset, length)):
                self.write(offset, ZEROS[:length])
            meter(0 if self.is_file else length)

    def bytes_to_transfer(self, content: Content) -> int:
        """Return how many bytes are transferred to write or compare a content. The holes of a file need no transfer."""
        return content.data_bytes if self.is_file else content.needed_bytes

    def chunks_to_read(self, run: Run) -> Iterator[tuple[int, int]]:
        """Yield the (offset, length) of the chunks of a run that must be read to compare it. Holes in a file are zero."""
        stretches = [(run.offset, run.end)] if run.has_data or not self.is_file else data_extents(self.fd, run.offset, run.end)
        for start, end in stretches:
            for offset in range(start - start % PAGE, end, CHUNK):
                yield offset, min(CHUNK, end - offset)

    def differences(
        self, content: Content, meter: Meter = unmetered, start: int = 0, check_image: bool = True
    ) -> Iterator[tuple[int, int, int]]:
        """Yield (offset, length, offset of the first wrong byte) of each chunk from `start` on that differs from a content.

        :param check_image: check all of the image, and not only where the card differs, for changes since its scan
        :raises BrambleError: when the card cannot be read, or the image was changed
        """
        places = ((offset, length, run.has_data) for run in content.runs(start) for offset, length in self.chunks_to_read(run))
        for offset, length, data in content.read_ahead(places, check_image):
            meter(length if data is not None or not self.is_file else 0)
            found = self.read(offset, length)
            if is_zero(found) if data is None else found == data:
                continue
            wanted = content.read(offset, length)
            if found != wanted:
                first = next(at for at in range(length) if found[at] != wanted[at])
                yield offset, length, offset + first

    def write_content(self, content: Content, meter: Meter = unmetered) -> None:
        """Write all of a content except its first page, which `verify` writes last. Raises BrambleError.

        The head is cleared first, so that an interrupted card never looks complete. The end of the image is written before the
        rest, so that a cache of the card no longer holds it when it is read back: on a counterfeit card, the end is what is lost.
        """
        self.clear_head(content)
        end_start = max(CHUNK, (content.image.size - FILLER) // CHUNK * CHUNK)
        for start, end in ((end_start, content.tail_start), (CHUNK, end_start), (BLOCK, CHUNK)):
            self._write_data(content, start, end, meter)
        for run in content.runs(BLOCK, content.tail_start):
            if not run.has_data:
                self.clear(run, meter)
        self.write(0, self._head_without_table(content))
        self.flush()
        meter(min(BLOCK, content.size))

    def clear_tail(self, content: Content, meter: Meter = unmetered) -> None:
        """Set the end of the card to zero, where other tools look for RAID, ZFS and GPT. Raises BrambleError."""
        for run in content.runs(content.tail_start):
            self.clear(run, meter)
        self.flush()

    @staticmethod
    def _head_without_table(content: Content) -> bytes:
        """Return the first block of a content, with zeros in its first page, which has the partition table."""
        head = content.read(0, min(BLOCK, content.size))
        return bytes(len(head[:PAGE])) + head[PAGE:]

    def _write_data(self, content: Content, start: int, end: int, meter: Meter) -> None:
        """Write the data of a content from `start` to `end`. Raises BrambleError."""
        places = ((run.offset, run.length, True) for run in content.runs(start, end) if run.has_data)
        for offset, length, data in content.read_ahead(places):
            assert data is not None
            self.write(offset, data)
            meter(length)
        self.flush()

    def clear_head(self, content: Content) -> None:
        """Overwrite the partition table with zeros, so that the card does not look complete. Raises BrambleError."""
        self.write(0, ZEROS[: min(CHUNK, content.size)])
        self.flush()

    def capacity_probe(self, content: Content) -> CapacityProbe:
        """Return the marks that show whether the card has as many bytes as it reports."""
        runs: list[Range] = []
        for run in content.runs(0, content.tail_start):
            if runs and runs[-1][1] == run.offset:
                runs[-1] = runs[-1][0], run.end
            else:
                runs.append((run.offset, run.end))
        # The last block of an image is written whole.
        return CapacityProbe(self.facts.bytes, -(-content.image.size // BLOCK) * BLOCK, runs)

    def write_marks(self, probe: CapacityProbe, meter: Meter = unmetered) -> None:
        """Write the marks of a probe, and check that they can be read back. Raises BrambleError."""
        written = self.written
        probe.write_marks(self.write, meter)
        self.flush()
        probe.check(self.read, meter)
        self.written = written  # only the bytes of the content are counted

    def check_marks(self, probe: CapacityProbe, meter: Meter = unmetered) -> None:
        """Check that the content has not overwritten a mark of a probe. Raises BrambleError.

        Before that, so much is written that a cache of the card no longer holds the marks. A file has no such cache, and gets its
        holes back.
        """
        written = self.written
        if not self.is_file:
            for low, high in (probe.filler, *probe.end_filler):
                for offset in range(low, high, CHUNK):
                    self.write(offset, filler_chunk(offset)[: high - offset])
            self.flush()
        probe.check(self.read, meter)
        if self.is_file:
            for offset in probe.offsets:
                self.clear(Run(offset, PAGE, False), unmetered)
        self.written = written

    def flush(self) -> None:
        """Wait until everything is written to the card, and drop it from the page cache. Raises BrambleError."""
        with _locate_error(0, "flushing"):
            os.fsync(self.fd)
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
            if not self.is_file:
                with contextlib.suppress(PermissionError):
                    fcntl.ioctl(self.fd, _BLKFLSBUF, 0)

    def verify(self, content: Content, meter: Meter = unmetered) -> None:
        """Read a content back that was written by `write_content`, then write and verify its first page.

        Wrong chunks are written once more, and then everything is read again. The card gets its partition table only after all
        else was read back right, so that a card that is interrupted at any time does not look complete. Raises BrambleError.
        """
        try:
            self._read_back(content, meter)
            length = min(BLOCK, content.size)
            self.write(0, content.read(0, min(PAGE, length)))
            self.flush()
            meter(length)
            # The end is read once more: on a card that is a little smaller than it reports, the first page is there as well.
            end_start = max(BLOCK, (content.size - TAIL) // BLOCK * BLOCK)
            if self.read(0, length) != content.read(0, length):
                raise self._wrong_read_error(content, 0, length)
            for offset, size, _ in self.differences(content, start=end_start):
                raise self._wrong_read_error(content, offset, size)
            self.check_still_ours()
        except BrambleError:
            with contextlib.suppress(BrambleError):
                self.clear_head(content)
            raise

    def _read_back(self, content: Content, meter: Meter) -> None:
        """Read all of a content but its first page back, and repair it once. Raises BrambleError."""
        head = self._head_without_table(content)
        bad = [] if self.read(0, len(head)) == head else [(0, len(head))]
        # What was written came from the image when it was checked, so it need not be checked again unless it was touched.
        is_touched = content.image.is_touched()
        for offset, length, _ in self.differences(content, meter, BLOCK, check_image=is_touched):
            bad.append((offset, length))
            if len(bad) > MAX_BAD_CHUNKS:
                raise self._wrong_read_error(content, *bad[0], f"more than {MAX_BAD_CHUNKS} MiB are wrong, the first ")
        if not bad and content.image.is_touched() == is_touched:
            return
        for offset, length in bad:
            self.write(offset, content.read(offset, length) if offset else head)
        self.flush()
        # Everything is read again: on a counterfeit card, a write to one address also changes another.
        again = "also after writing that again, it is read back wrong "
        for offset, length, _ in self.differences(content, start=BLOCK):
            raise self._wrong_read_error(content, offset, length, again)
        if self.read(0, len(head)) != head:
            raise BrambleError(f"{again}in its first {len(head):,} bytes: the card is worn or counterfeit. Replace it")

    def _wrong_read_error(self, content: Content, offset: int, length: int, what: str = "it is read back wrong ") -> BrambleError:
        """Return the error for a chunk that is not read back as it was written: the fault of the card, or of its reader.

        Most such reports come from readers, hubs, cables and power supplies, which deliver other bytes each time. What a bad card
        delivers is wrong, but always the same.
        """
        first = self.read(offset, length)
        for _ in range(STABLE_READS):
            self.flush()
            if (again := self.read(offset, length)) != first:
                return unstable_read_error(offset + next(at for at in range(length) if again[at] != first[at]))
        wanted = content.read(offset, length)
        wrong = next((at for at in range(length) if first[at] != wanted[at]), None)
        if wrong is None:
            return unstable_read_error(offset)
        return BrambleError(f"{what}at byte {offset + wrong:,}, and always the same: the card is worn or counterfeit. Replace it")
