"""Writes a batch of cards, each in its own thread, and reads every byte back from the card itself.

Every size and offset is in bytes, every time in seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ansible_collections.bramble.cluster.plugins.module_utils.card import ledger as card_ledger
from ansible_collections.bramble.cluster.plugins.module_utils.card.content import Content, Run
from ansible_collections.bramble.cluster.plugins.module_utils.card.guard import Facts, loop_backing, reader
from ansible_collections.bramble.cluster.plugins.module_utils.card.image import Image
from ansible_collections.bramble.cluster.plugins.module_utils.card.probe import places, probe
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import BLOCK, CHUNK, PAGE, ZEROS, extents, is_zero
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import format_bytes

WRITTEN = "written"
UNCHANGED = "unchanged"
FAILED = "failed"
SKIPPED = "skipped"

MOST_BAD = 16  # chunks that read back wrong before a card is given up as worn or counterfeit
_BLKFLSBUF = 0x1261  # linux/fs.h
_PUNCH_HOLE = 0x02 | 0x01  # linux/falloc.h: FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_libc = ctypes.CDLL(None, use_errno=True)
Meter = Callable[[int], None]
"""Is called with every number of bytes got through."""


def unmetered(_length: int) -> None:
    """The meter of those who do not want to know."""


@dataclass
class Result:
    """What became of one card."""

    node: str
    slot: str
    result: str = SKIPPED
    bytes_written: int = 0
    bytes_verified: int = 0
    seconds_write: float = 0.0
    seconds_verify: float = 0.0
    fingerprint: str = ""
    error: str = ""

    @property
    def write_mb_s(self) -> float:
        """How fast it was written, in 10^6 bytes a second; 0 when nothing was."""
        return round(self.bytes_written / 1e6 / self.seconds_write, 1) if self.seconds_write else 0.0

    @property
    def verify_mb_s(self) -> float:
        """How fast it was read back, likewise."""
        return round(self.bytes_verified / 1e6 / self.seconds_verify, 1) if self.seconds_verify else 0.0

    def report(self) -> dict[str, object]:
        """The result as a module returns it."""
        rounded = {name: round(getattr(self, name), 2) for name in ("seconds_write", "seconds_verify")}
        return {**asdict(self), **rounded}


class Progress:
    """Appends events, one JSON object a line, to a file: {node, phase, done, total, time}; to nowhere without a path.

    Phases: prepare; compare, test, probe, write, verify (all but test with done and total in bytes); then the card's result.
    """

    def __init__(self, path: str | None = None, every: float = 0.25) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600) if path else -1
        self._every, self._last = every, dict[str, float]()

    def meter(self, node: str, phase: str, total: int) -> Meter:
        """A function to call with every number of bytes that a phase has got through."""
        done = 0

        def add(length: int) -> None:
            nonlocal done
            done += length
            self.tell(node, phase, done, total)

        add(0)
        return add

    def tell(self, node: str, phase: str, done: int = 0, total: int = 0) -> None:
        """Report how far a node's card is; too frequent reports of the same phase are dropped."""
        now = time.time()
        between = 0 < done < total
        if self._fd < 0 or (between and now - self._last.get(node, 0.0) < self._every):
            return
        event = {"node": node, "phase": phase, "done": done, "total": total, "time": round(now, 3)}
        self._last[node] = now
        with contextlib.suppress(OSError):  # a full disk here is no reason to fail a card
            os.write(self._fd, json.dumps(event).encode() + b"\n")


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


def make_blanks(batch: Sequence[Facts]) -> None:
    """Make virtual cards that do not exist yet: sparse, for their owner only. Raises BrambleError."""
    for facts in batch:
        try:
            os.makedirs(os.path.dirname(facts.device), mode=0o700, exist_ok=True)
            fd = os.open(facts.device, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.truncate(facts.bytes)
                status = os.fstat(file.fileno())
        except OSError as error:
            raise BrambleError(
                f"{facts.node}: the virtual card {facts.slot} cannot be made: {error}. Nothing was written."
            ) from error
        facts.identity, facts.blank = ("file", status.st_dev, status.st_ino), False


def space_needed(image: Image, batch: Sequence[Facts], extra: int, folder: str) -> None:
    """Raises BrambleError unless the file systems of file cards, and of `folder` for the working copy, have room.

    `extra` is what the nodes' own files may add to each card.
    """
    needs: dict[int, int] = {}
    paths: dict[int, str] = {}

    def want(path: str, size: int) -> None:
        device = os.stat(path).st_dev
        needs[device] = needs.get(device, 0) + size
        paths.setdefault(device, path)

    want(folder, len(image.blocks) * BLOCK + extra)
    for facts in batch:
        if facts.blank:
            folder = os.path.dirname(facts.device)
            while not os.path.isdir(folder):
                folder = os.path.dirname(folder)
            want(folder, len(image.blocks) * BLOCK + extra)
        elif facts.kind == "file":
            fd = os.open(facts.device, os.O_RDONLY | os.O_CLOEXEC)
            try:
                held = {
                    block
                    for start, end in extents(fd, 0, image.size)
                    for block in range(-(-start // BLOCK), -(-end // BLOCK) if end == image.size else end // BLOCK)
                }
            finally:
                os.close(fd)
            want(os.path.dirname(facts.device), sum(block not in held for block in image.blocks) * BLOCK + extra)
    for device, need in needs.items():
        room = os.statvfs(paths[device])
        free = room.f_bavail * room.f_frsize
        if need > free:
            raise BrambleError(
                f"No space: {paths[device]} needs {format_bytes(need)} ({need / 2**30:.2f} GiB), "
                f"{format_bytes(free)} ({free / 2**30:.2f} GiB) are free. Nothing was written; make room there and run it again."
            )


def full_test(device: str) -> None:
    """Let f3probe (https://fight-flash-fraud.readthedocs.io) look for the card's real size. Raises BrambleError.

    Of what was on the card nothing is left.
    """
    command = ["f3probe", "--destructive", device]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        words = " ".join(line.strip() for line in done.stdout.splitlines()[1:] if "WARNING" not in line)
        raise BrambleError(f"f3probe found it bad: {words[-600:]}")


def entry(facts: Facts, result: Result, content: Content, verdict: str) -> dict[str, Any]:
    """What the ledger says of a card."""
    return {
        "slot": facts.slot,
        "device": facts.device,
        "bus": facts.bus,
        "reader_serial": facts.serial,
        "bytes": facts.bytes,
        "image": os.path.basename(content.image.path),
        "image_sha256": content.image.sha256,
        "fingerprint": content.fingerprint,
        "bytes_written": result.bytes_written,
        "write_mb_s": result.write_mb_s,
        "verify_mb_s": result.verify_mb_s,
        "verdict": verdict,
        "reason": result.error,
        "time": card_ledger.now(),
    }


def _close_entry(card: Card, result: Result, content: Content, ledger: card_ledger.Ledger) -> None:
    """Note how it ended. A card found unchanged keeps its entry if that says so already."""
    if result.result == UNCHANGED:
        known = ledger.read().get(result.node, {})
        same = {"verdict": card_ledger.VERIFIED, "fingerprint": content.fingerprint, "slot": card.facts.slot}
        if same.items() <= known.items():
            return
    verdict = card_ledger.FAILED if result.result == FAILED else card_ledger.VERIFIED
    ledger.note(result.node, entry(card.facts, result, content, verdict), fresh=True)


def _do(
    card: Card, content: Content, result: Result, progress: Progress, check: bool, full: bool, ledger: card_ledger.Ledger
) -> None:
    """Bring one card to its content, and note in `result` how far it came. Raises BrambleError."""
    total = card.work(content)
    start = time.monotonic()
    if next(card.differences(content, progress.meter(result.node, "compare", total)), None) is None:
        result.result, result.bytes_verified = UNCHANGED, content.needed_bytes
        result.seconds_verify = time.monotonic() - start
        return
    if not check:
        ledger.note(result.node, entry(card.facts, result, content, card_ledger.WRITING), fresh=True)
        card.empty_head(content)
        if full:
            progress.tell(result.node, "test")
            full_test(card.facts.device)
        card.probe(progress.meter(result.node, "probe", 4 * PAGE * len(places(card.facts.bytes))))
        start = time.monotonic()
        try:
            card.put(content, progress.meter(result.node, "write", total))
            result.seconds_write = time.monotonic() - start
            card.verify(content, progress.meter(result.node, "verify", total))
            card.check_same()
            result.seconds_verify = time.monotonic() - start - result.seconds_write
        finally:
            result.bytes_written = card.written
        result.bytes_verified = content.needed_bytes
    result.result = WRITTEN


def write_batch(
    batch: Sequence[Facts],
    contents: Mapping[str, Content],
    progress: Progress,
    check: bool = False,
    only_good: bool = False,
    full: bool = False,
    ledger: card_ledger.Ledger | None = None,
) -> list[Result]:
    """Bring every card of a batch to its content (by node), all at once; one card's trouble is only its own.

    All cards are opened before the first is written: raises BrambleError when one cannot be, unless `only_good`. With `check`
    nothing is written, and the results say what would be. With `full`, f3probe tests each card that is written.
    """
    ledger = ledger or card_ledger.Ledger(None)
    work: list[tuple[Card, Result]] = []
    results = [Result(facts.node, facts.slot, fingerprint=contents[facts.node].fingerprint) for facts in batch]

    def run(card: Card, result: Result) -> None:
        content = contents[result.node]
        try:
            _do(card, content, result, progress, check, full, ledger)
        except BrambleError as error:
            result.result, result.error = FAILED, str(error)
        except Exception as error:  # a thread's error must not get lost
            result.result, result.error = FAILED, f"{type(error).__name__}: {error}"
        finally:
            card.close()
        if not check:
            try:
                _close_entry(card, result, content, ledger)
            except (BrambleError, OSError) as error:
                result.result, result.error = FAILED, f"it could not be noted in the ledger: {error}"
        progress.tell(result.node, result.result)

    for facts, result in zip(batch, results, strict=True):
        try:
            work.append((Card(facts, writable=not check), result))
        except BrambleError as error:
            if not only_good:
                for card, _ in work:
                    card.close()
                raise BrambleError(f"{error}. Nothing was written.") from error
            result.result, result.error = FAILED, str(error)
    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
