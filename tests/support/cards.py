"""Virtual cards, good and bad, that are real to the code under test: files, FUSE files, and loop devices on either.

Needs root, loop devices, and for bad ones /dev/fuse. All of it goes at the end of the Rig, or when the process is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from . import ROOT
from .flaw import Flaw

PATIENCE = 20.0  # seconds for a card to appear
BLKIO = Path("/sys/fs/cgroup/blkio")  # https://docs.kernel.org/admin-guide/cgroup-v1/blkio-controller.html
_LOOP_SET_FD, _LOOP_SET_CAPACITY = 0x4C00, 0x4C07  # linux/loop.h


class Card:
    """One virtual card: `file` is it as a file, `held` the file of what it really holds; `device` makes a block device of it."""

    def __init__(self, held: Path, flaw: Flaw | None, undo: contextlib.ExitStack) -> None:
        self.held, self.file, self._undo = held, held, undo
        self._server: subprocess.Popen[str] | None = None
        self._loop, self._device = -1, Path()
        if flaw:
            self.file = self._serve(held, flaw)

    def _serve(self, held: Path, flaw: Flaw) -> Path:
        folder = held.with_suffix(".mount")
        folder.mkdir()
        command: list[str | Path] = [sys.executable, "-m", "tests.support.flaw", folder, held, json.dumps(asdict(flaw))]
        self._server = server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, text=True)
        self._undo.callback(self._stop, server, folder)
        end = time.monotonic() + PATIENCE
        while not (folder / "card").exists():
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"no card appears in {folder}: is /dev/fuse there, and Debian's libfuse3-3?")
            time.sleep(0.01)
        return folder / "card"

    @staticmethod
    def _stop(server: subprocess.Popen[str], folder: Path) -> None:
        """Killing the server ends whatever still waits for it, so this cannot hang."""
        server.kill()
        server.wait()
        subprocess.run(["umount", "--lazy", folder], check=False)
        assert server.stdin
        server.stdin.close()

    def begins(self) -> bool:
        """Whether there is anything in its first sector: nobody takes it for a written card otherwise."""
        with self.held.open("rb") as file:
            return any(file.read(512))

    def device(self) -> Path:
        """A loop device on this card. The kernel detaches it when its last user, this process at the latest, is gone."""
        # Nothing of a bad card may be remembered in memory.
        direct = "on" if self._server else "off"
        command: list[str | Path] = ["losetup", "--find", "--show", f"--direct-io={direct}", self.file]
        made = subprocess.run(command, check=True, capture_output=True, text=True)
        self._device = Path(made.stdout.strip())
        self._hold()
        return self._device

    def _hold(self) -> None:
        self._loop = os.open(self._device, os.O_RDONLY | os.O_CLOEXEC)
        self._undo.callback(self.detach)
        subprocess.run(["losetup", "--detach", self._device], check=True)

    def exchange(self, other: Card) -> None:
        """Put another card into the same device."""
        self.detach()
        with other.file.open("r+b") as file, self._device.open("r+b") as device:
            fcntl.ioctl(device, _LOOP_SET_FD, file.fileno())
        self._hold()

    def detach(self) -> None:
        """Take the loop device away, as soon as nobody else has it open."""
        if self._loop >= 0:
            os.close(self._loop)
            self._loop = -1

    def pull(self) -> None:
        """Out of the reader: from now on everything fails."""
        if self._server:
            self._tell("pull")
        else:
            os.truncate(self.held, 0)
            if self._loop >= 0:
                fcntl.ioctl(self._loop, _LOOP_SET_CAPACITY)

    def release(self) -> None:
        """End a hold."""
        self._tell("release")

    def _tell(self, word: str) -> None:
        assert self._server and self._server.stdin
        self._server.stdin.write(f"{word}\n")
        self._server.stdin.flush()


class Rig(contextlib.ExitStack):
    """Virtual cards in a folder. Use it with `with`."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._group: Path | None = None

    def card(self, name: str, size: int, flaw: Flaw | None = None, fill: bytes = b"") -> Card:
        """A card of `size` bytes that begins with `fill`."""
        held = self._folder / f"{name}.img"
        with held.open("wb") as file:
            file.write(fill)
            file.truncate(size)
        return Card(held, flaw, self)

    def paced(self, name: str, size: int, rate: float) -> Path:
        """The block device of a card that reads and writes `rate` bytes a second for this process and its children.

        Paced by the kernel (cgroup v1, blkio), which costs no processor time; by FUSE where that is not there.
        """
        if not BLKIO.is_dir():
            return self.card(name, size, Flaw(rate=rate)).device()
        if not self._group:
            self._group = self._enter_group()
        device = self.card(name, size).device()
        number = Path("/sys/block", device.name, "dev").read_text().strip()
        for way in ("read", "write"):
            (self._group / f"blkio.throttle.{way}_bps_device").write_text(f"{number} {rate:.0f}\n")
        return device

    def _enter_group(self) -> Path:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        home = next(line.split(":")[2] for line in lines if line.split(":")[1] == "blkio")
        group = BLKIO / f"rig-{os.getpid()}"
        group.mkdir()
        self.callback(group.rmdir)
        self.callback((BLKIO / home.lstrip("/") / "cgroup.procs").write_text, f"{os.getpid()}\n")
        (group / "cgroup.procs").write_text(f"{os.getpid()}\n")
        return group
