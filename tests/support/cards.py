"""Virtual cards, good and bad, which behave like real ones: files, FUSE files, and loop devices on both.

They need root, loop devices, and for bad cards /dev/fuse. All are removed at the end of the Rig, or when the process is killed.
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

TIMEOUT = 20.0  # seconds for a card to appear
BLKIO = Path("/sys/fs/cgroup/blkio")  # https://docs.kernel.org/admin-guide/cgroup-v1/blkio-controller.html
_LOOP_SET_FD, _LOOP_SET_CAPACITY = 0x4C00, 0x4C07  # linux/loop.h


class Card:
    """One virtual card. `file` is the card as a file, `backing` the file with its real content, `device` a block device on it."""

    def __init__(self, backing: Path, flaw: Flaw | None, cleanup: contextlib.ExitStack) -> None:
        self.backing, self.file, self._cleanup = backing, backing, cleanup
        self._server: subprocess.Popen[str] | None = None
        self._loop, self._device = -1, Path()
        if flaw:
            self.file = self._serve(backing, flaw)

    def _serve(self, backing: Path, flaw: Flaw) -> Path:
        folder = backing.with_suffix(".mount")
        folder.mkdir()
        command: list[str | Path] = [sys.executable, "-m", "tests.support.flaw", folder, backing, json.dumps(asdict(flaw))]
        self._server = server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, text=True)
        self._cleanup.callback(self._stop, server, folder)
        end = time.monotonic() + TIMEOUT
        while not (folder / "card").exists():
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"no card appears in {folder}: this needs /dev/fuse and the Debian package libfuse3-3")
            time.sleep(0.01)
        return folder / "card"

    @staticmethod
    def _stop(server: subprocess.Popen[str], folder: Path) -> None:
        """Stop the server of a bad card. It is killed, so that a process that still waits for it cannot make this hang."""
        server.kill()
        server.wait()
        subprocess.run(["umount", "--lazy", folder], check=False)
        assert server.stdin
        server.stdin.close()

    def has_boot_sector(self) -> bool:
        """Return whether the first sector is not empty. A card with an empty one does not look complete."""
        with self.backing.open("rb") as file:
            return any(file.read(512))

    def device(self) -> Path:
        """Return a new loop device on this card. The kernel detaches it when its last user, at the latest this process, ends."""
        # The content of a bad card must not be cached in memory.
        direct = "on" if self._server else "off"
        command: list[str | Path] = ["losetup", "--find", "--show", f"--direct-io={direct}", self.file]
        made = subprocess.run(command, check=True, capture_output=True, text=True)
        self._device = Path(made.stdout.strip())
        self._keep_open()
        return self._device

    def _keep_open(self) -> None:
        self._loop = os.open(self._device, os.O_RDONLY | os.O_CLOEXEC)
        self._cleanup.callback(self.detach)
        subprocess.run(["losetup", "--detach", self._device], check=True)

    def exchange(self, other: Card) -> None:
        """Replace the card in the device by another one."""
        self.detach()
        with other.file.open("r+b") as file, self._device.open("r+b") as device:
            fcntl.ioctl(device, _LOOP_SET_FD, file.fileno())
        self._keep_open()

    def detach(self) -> None:
        """Close the loop device, which is then detached unless another process has it open."""
        if self._loop >= 0:
            os.close(self._loop)
            self._loop = -1

    def pull(self) -> None:
        """Simulate pulling the card out of its reader: every further access fails."""
        if self._server:
            self._send_command("pull")
        else:
            os.truncate(self.backing, 0)
            if self._loop >= 0:
                fcntl.ioctl(self._loop, _LOOP_SET_CAPACITY)

    def release(self) -> None:
        """Let a write continue that waits because of Flaw.holds_after."""
        self._send_command("release")

    def _send_command(self, command: str) -> None:
        assert self._server and self._server.stdin
        self._server.stdin.write(f"{command}\n")
        self._server.stdin.flush()


class Rig(contextlib.ExitStack):
    """Creates virtual cards in a folder. A context manager."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._group: Path | None = None

    def card(self, name: str, size: int, flaw: Flaw | None = None, fill: bytes = b"") -> Card:
        """Return a new card of `size` bytes that begins with `fill`."""
        backing = self._folder / f"{name}.img"
        with backing.open("wb") as file:
            file.write(fill)
            file.truncate(size)
        return Card(backing, flaw, self)

    def throttled_device(self, name: str, size: int, rate: float) -> Path:
        """Return the block device of a new card that reads and writes `rate` bytes per second for this process and its children.

        The kernel limits the rate (cgroup v1, blkio), which needs no processor time; without this controller, FUSE does.
        """
        if not BLKIO.is_dir():
            return self.card(name, size, Flaw(rate=rate)).device()
        if not self._group:
            self._group = self._enter_group()
        device = self.card(name, size).device()
        number = Path("/sys/block", device.name, "dev").read_text().strip()
        for direction in ("read", "write"):
            (self._group / f"blkio.throttle.{direction}_bps_device").write_text(f"{number} {rate:.0f}\n")
        return device

    def _enter_group(self) -> Path:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        parent = next(line.split(":")[2] for line in lines if line.split(":")[1] == "blkio")
        group = BLKIO / f"rig-{os.getpid()}"
        group.mkdir()
        self.callback(group.rmdir)
        self.callback((BLKIO / parent.lstrip("/") / "cgroup.procs").write_text, f"{os.getpid()}\n")
        (group / "cgroup.procs").write_text(f"{os.getpid()}\n")
        return group
