"""A file that behaves like a bad card, served by FUSE: python -m tests.support.flaw FOLDER BACKING FLAW.

FOLDER gets one file, `card`, as large as BACKING, which is what the card really holds. FLAW is the JSON of a Flaw.
Lines on standard input: "pull" takes the card away, "release" ends a hold; at its end the folder is unmounted.
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
    """What is wrong with a card. Places and sizes are in bytes; by default nothing is."""

    wraps_at: int = NEVER  # what it really has: an address from here on is another name for one from 0 on
    drops_from: int = NEVER  # writes from here on are acknowledged and lost
    full_after: int = NEVER  # once so much was written, a write fails (ENOSPC)
    fails_after: int = NEVER  # once so much was written, a write fails (EIO)
    pulled_after: int = NEVER  # once so much was written, everything fails (EIO)
    holds_after: int = NEVER  # once so much was written, a write waits for "release"
    flips: int = NEVER  # a bit of the byte here is wrong after the first write to it
    stuck: int = NEVER  # and here after every write
    rate: float = 0  # at most so many bytes a second, reading or writing; 0 is no limit


class Clock:
    """Paces transfers. A little credit makes up for sleeps that end late, so that the rate is exact."""

    CREDIT = 0.05  # seconds

    def __init__(self, rate: float) -> None:
        self._rate, self._due = rate, 0.0

    def take(self, length: int) -> None:
        """Wait until `length` bytes more have had their time."""
        if self._rate:
            now = time.monotonic()
            self._due = max(self._due, now - self.CREDIT) + length / self._rate
            time.sleep(max(0.0, self._due - now))


class Served:
    """The operations of the file system; see mfusepy.Operations for their names.

    The card does one thing at a time. What it is, it says at once also then: the kernel asks that for whoever lists loop devices.
    """

    use_ns = True

    def __init__(self, backing: str, flaw: Flaw) -> None:
        self.fd, self.flaw, self.clock = os.open(backing, os.O_RDWR), flaw, Clock(flaw.rate)
        self.size, self._busy = os.fstat(self.fd).st_size, threading.Lock()
        self.written, self.pulled, self.released, self.flipped = 0, False, threading.Event(), False

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
            self._present()
            self.clock.take(size)
            size = min(size, self.size - offset)
            return b"".join(os.pread(self.fd, length, start) for start, length in self._places(offset, size))

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        with self._busy:
            return self._write(path, data, offset)

    def _write(self, path: str, data: bytes, offset: int) -> int:
        self.clock.take(len(data))
        flaw, at = self.flaw, 0
        if self.written + len(data) > flaw.holds_after:
            self.released.wait()
        if self.written + len(data) > flaw.pulled_after:
            self.pulled = True
        self._present()
        if self.written + len(data) > flaw.full_after:
            raise OSError(errno.ENOSPC, path)
        if self.written + len(data) > flaw.fails_after:
            raise OSError(errno.EIO, path)
        self.written += len(data)
        data = self._spoilt(data, offset)
        for start, length in self._places(offset, len(data)):
            kept = max(0, min(length, flaw.drops_from - start))
            os.pwrite(self.fd, data[at : at + kept], start)
            at += length
        return len(data)

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self._present()
        return 0

    def _present(self) -> None:
        if self.pulled:
            raise OSError(errno.EIO, "pulled")

    def _places(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Where an address range really is: (offset, length) pieces of the backing file."""
        places = []
        while length > 0:
            start = offset % self.flaw.wraps_at
            piece = min(length, self.flaw.wraps_at - start)
            places.append((start, piece))
            offset, length = offset + piece, length - piece
        return places

    def _spoilt(self, data: bytes, offset: int) -> bytes:
        for place in (self.flaw.stuck, NEVER if self.flipped else self.flaw.flips):
            if offset <= place < offset + len(data):
                self.flipped = self.flipped or place == self.flaw.flips
                at = place - offset
                data = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
        return data


def main() -> None:
    """Serve until unmounted, or until the one who started this is gone."""
    folder, backing, flaw = sys.argv[1:]
    os.environ["FUSE_LIBRARY_NAME"] = "fuse3"  # requests of 1 MiB; libfuse 2 stops at 128 KiB
    import mfusepy

    served = Served(backing, Flaw(**json.loads(flaw)))

    def obey() -> None:
        for line in sys.stdin:
            served.pulled = served.pulled or line == "pull\n"
            served.released.set()
        subprocess.run(["umount", "--lazy", folder], check=False)
        os._exit(0)

    threading.Thread(target=obey, daemon=True).start()
    mfusepy.FUSE(served, folder, foreground=True, max_threads=4, direct_io=True, use_ino=True, fsname="card")


if __name__ == "__main__":
    main()
