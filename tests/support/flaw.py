"""A file that behaves like a bad card, card by FUSE: python -m tests.support.flaw FOLDER BACKING FLAW.

FOLDER gets one file, `card`, of the size of BACKING, which has the real content of the card. FLAW is the JSON of a Flaw.
Lines on standard input are commands: "pull" removes the card, and "release" lets a waiting write continue. At the end of the
input, the folder is unmounted.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

NEVER = 2**63


@dataclass(frozen=True)
class Flaw:
    """The faults of a card; by default, it has none. Offsets and sizes are in bytes."""

    wraps_at: int = NEVER  # the real size: addresses from here on wrap around to 0
    drops_from: int = NEVER  # writes from here on are acknowledged but lost
    full_after: int = NEVER  # after this many written bytes, a write fails (ENOSPC)
    fails_after: int = NEVER  # after this many written bytes, a write fails (EIO)
    pulled_after: int = NEVER  # after this many written bytes, every access fails (EIO)
    holds_after: int = NEVER  # after this many written bytes, a write waits for "release"
    flips_bit_at: int = NEVER  # a bit of the byte at this offset is wrong after the first write to it
    stuck_bit_at: int = NEVER  # a bit of the byte at this offset is wrong after every write to it
    rate: float = 0  # the speed of reading and writing in bytes per second; 0 is no limit


class Throttle:
    """Limits the rate of transfers. A small credit compensates for sleeps that end late, so that the rate is exact."""

    CREDIT = 0.05  # seconds

    def __init__(self, rate: float) -> None:
        self._rate, self._due = rate, 0.0

    def wait_for(self, length: int) -> None:
        """Wait for the time that `length` more bytes take."""
        if self._rate:
            now = time.monotonic()
            self._due = max(self._due, now - self.CREDIT) + length / self._rate
            time.sleep(max(0.0, self._due - now))


class BadCard:
    """The operations of the file system; see mfusepy.Operations for their names.

    The card processes one read or write at a time. getattr never waits for them, as the kernel calls it when loop devices are
    listed.
    """

    use_ns = True

    def __init__(self, backing: str, flaw: Flaw) -> None:
        self.fd, self.flaw, self.throttle = os.open(backing, os.O_RDWR), flaw, Throttle(flaw.rate)
        self.size, self._busy = os.fstat(self.fd).st_size, threading.Lock()
        self.written, self.is_pulled, self.released, self.has_flipped = 0, False, threading.Event(), False

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2, "st_ino": 1}
        if path != "/card":
            raise OSError(errno.ENOENT, path)
        return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_ino": 2, "st_size": self.size}

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", "card"]

    def statfs(self, path: str) -> dict[str, int]:
        return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": 2**30, "f_bfree": 2**30, "f_bavail": 2**30}

    def open(self, path: str, flags: int) -> int:
        return self.fd

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        with self._busy:
            self._check_present()
            self.throttle.wait_for(size)
            size = min(size, self.size - offset)
            return b"".join(os.pread(self.fd, length, start) for start, length in self._backing_ranges(offset, size))

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        with self._busy:
            return self._write(path, data, offset)

    def _write(self, path: str, data: bytes, offset: int) -> int:
        self.throttle.wait_for(len(data))
        flaw, at = self.flaw, 0
        if self.written + len(data) > flaw.holds_after:
            self.released.wait()
        if self.written + len(data) > flaw.pulled_after:
            self.is_pulled = True
        self._check_present()
        if self.written + len(data) > flaw.full_after:
            raise OSError(errno.ENOSPC, path)
        if self.written + len(data) > flaw.fails_after:
            raise OSError(errno.EIO, path)
        self.written += len(data)
        data = self._flip_bits(data, offset)
        for start, length in self._backing_ranges(offset, len(data)):
            kept = max(0, min(length, flaw.drops_from - start))
            os.pwrite(self.fd, data[at : at + kept], start)
            at += length
        return len(data)

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self._check_present()
        return 0

    def _check_present(self) -> None:
        if self.is_pulled:
            raise OSError(errno.EIO, "pulled")

    def _backing_ranges(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Return the (offset, length) ranges of the backing file that hold a range of addresses."""
        places = []
        while length > 0:
            start = offset % self.flaw.wraps_at
            piece = min(length, self.flaw.wraps_at - start)
            places.append((start, piece))
            offset, length = offset + piece, length - piece
        return places

    def _flip_bits(self, data: bytes, offset: int) -> bytes:
        for place in (self.flaw.stuck_bit_at, NEVER if self.has_flipped else self.flaw.flips_bit_at):
            if offset <= place < offset + len(data):
                self.has_flipped = self.has_flipped or place == self.flaw.flips_bit_at
                at = place - offset
                data = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
        return data


def main() -> None:
    """Serve the card until it is unmounted, or the parent process has ended."""
    folder, backing, flaw = sys.argv[1:]
    os.environ["FUSE_LIBRARY_NAME"] = "fuse3"  # requests of 1 MiB; libfuse 2 stops at 128 KiB
    import mfusepy

    card = BadCard(backing, Flaw(**json.loads(flaw)))

    def handle_commands() -> None:
        for line in sys.stdin:
            card.is_pulled = card.is_pulled or line == "pull\n"
            card.released.set()
        subprocess.run(["umount", "--lazy", folder], check=False)
        os._exit(0)

    threading.Thread(target=handle_commands, daemon=True).start()
    mfusepy.FUSE(card, folder, foreground=True, max_threads=4, direct_io=True, use_ino=True, fsname="card")


if __name__ == "__main__":
    main()
