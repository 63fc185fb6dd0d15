"""Change the files of a node's network and apply them, and roll the change back unless it is confirmed.

This file is also a program that systemd runs on the node, so it imports only the standard library. PendingChange.stage_change
writes a copy of it beside the change. A pending change is the folder STATE/change. While it exists, the change is rolled back
when the rollback timer ends (systemd-run(1)), and at the next boot, before the network is set up.

    python3 rollback.py apply|roll-back
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

STATE = "/var/lib/bramble/network"
UNIT = "bramble-network-rollback"
UNITS = "/etc/systemd/system"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
SERVICE = f"""\
[Unit]
Description=Undo a change of the network that was not confirmed
ConditionPathExists={STATE}/change
DefaultDependencies=no
RequiresMountsFor={STATE} /etc
Wants=network-pre.target
Before=network-pre.target NetworkManager.service systemd-networkd.service networking.service
Conflicts=shutdown.target
Before=shutdown.target

[Service]
Type=oneshot
ExecStart=/usr/bin/python3 {STATE}/change/rollback.py roll-back

[Install]
WantedBy=multi-user.target
"""


class RollbackError(Exception):
    """A change cannot be made, confirmed or rolled back; the message tells why."""


class File(NamedTuple):
    """The content and the mode of a file, or the target `link` of a symbolic link."""

    content: bytes = b""
    mode: int = 0o644
    link: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the file as a mapping for JSON."""
        return {"content": base64.b64encode(self.content).decode(), "mode": self.mode, "link": self.link}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> File:
        """Return the file that `to_json` returned."""
        return cls(base64.b64decode(entry["content"]), entry["mode"], entry["link"])


# The wanted file at each path; None for no file.
Files = Mapping[str, "File | None"]
Command = Sequence[str]


def read_file(path: str) -> File | None:
    """Return the file at a path; None if there is none. Raises OSError."""
    if os.path.islink(path):
        return File(link=os.readlink(path))
    try:
        with open(path, "rb") as file:
            return File(file.read(), os.fstat(file.fileno()).st_mode & 0o7777)
    except FileNotFoundError:
        return None


def file_text(file: File | None) -> str:
    """Return the text of a file, with bytes that are not UTF-8 as surrogates; empty for no file."""
    return file.content.decode(errors="surrogateescape") if file else ""


def write_file(path: str, file: File | None) -> None:
    """Replace or remove a file in one step, so that a power cut leaves the old one or the new one. Raises OSError."""
    folder, name = os.path.split(path)
    if file is None:
        if not os.path.lexists(path):
            return
        os.unlink(path)
    else:
        os.makedirs(folder, exist_ok=True)
        # No network stack reads files with such a name.
        new = f"{folder}/.{name}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        if file.link:
            os.symlink(file.link, new)
        else:
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
                opened.write(file.content)
                os.fchmod(opened.fileno(), file.mode)
                opened.flush()
                os.fsync(opened.fileno())
        os.replace(new, path)
    sync_folder(folder)


def sync_folder(folder: str) -> None:
    """Write the entries of a folder to the disk, after a file was renamed or removed. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_files(files: Files) -> None:
    """Replace or remove files, one after the other. Raises OSError."""
    for path, file in files.items():
        write_file(path, file)


def run_command(command: Command) -> str:
    """Run a command, and return why it failed; empty if it succeeded."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{' '.join(command)}: {error}"
    if not result.returncode:
        return ""
    lines = (result.stderr.strip() or result.stdout.strip()).splitlines()
    return f"{' '.join(command)} ended with {result.returncode}: {lines[-1] if lines else 'it printed nothing'}"


def run_commands(commands: Sequence[Command]) -> str:
    """Run commands until one fails, and return why it failed; empty if all succeeded."""
    for command in commands:
        if problem := run_command(command):
            return problem
    return ""


def peer_ports(tables: Iterable[str]) -> list[int]:
    """Return the remote port of each TCP connection in the texts of /proc/net/tcp and tcp6 (proc_net_tcp, docs.kernel.org)."""
    rows = (line.split() for table in tables for line in table.splitlines()[1:])
    return sorted({int(row[2].rpartition(":")[2], 16) for row in rows if len(row) > 2} - {0})


def ssh_client_port(pid: int, proc: str = "/proc") -> int:
    """Return the remote port of the SSH connection that a process belongs to (sshd(8), SSH_CONNECTION); 0 if there is none."""
    while pid > 1:
        with contextlib.suppress(OSError), open(f"{proc}/{pid}/environ", "rb") as file:
            for word in file.read().split(b"\0"):
                if word.startswith(b"SSH_CONNECTION="):
                    return int(word.split()[1])
        try:
            with open(f"{proc}/{pid}/stat", encoding="utf-8", errors="replace") as stat:
                pid = int(stat.read().rpartition(")")[2].split()[1])
        except OSError:
            return 0
    return 0


class PendingChange:
    """The change that waits to be confirmed. A node has at most one.

    :param state: the folder for the change
    :param units: the folder for its systemd service
    """

    def __init__(self, state: str = STATE, units: str = UNITS) -> None:
        self.state, self.folder, self.units = state, f"{state}/change", units

    @property
    def _unit(self) -> dict[str, File]:
        """The files of the service that rolls the change back at boot, and of the link that enables it."""
        service = f"{self.units}/{UNIT}.service"
        wanted = f"{self.units}/multi-user.target.wants/{UNIT}.service"
        return {service: File(SERVICE.encode()), wanted: File(link=service)}

    def staged_change(self) -> dict[str, Any] | None:
        """Return the staged change; None if there is none. Raises OSError, ValueError."""
        try:
            with open(f"{self.folder}/plan.json", encoding="utf-8") as file:
                plan: dict[str, Any] = json.load(file)
                return plan
        except FileNotFoundError:
            return None

    def stage_change(self, name: str, files: Files, commands: Mapping[str, Sequence[Command]], program: str = "") -> None:
        """Write a change and its rollback to the disk, and change nothing yet. Raises RollbackError, OSError.

        :param name: identifies the change
        :param commands: as in StackCommands: before, new, old, boot and last
        :param program: the text of this file; by default Python reads it, which fails under mitogen
        """
        if self.staged_change():
            raise RollbackError(
                "Another change of the network waits to be confirmed. Wait until it is rolled back, then try again."
            )
        before = {path: read_file(path) for path in files}
        with open(BOOT_ID, encoding="ascii") as file:
            boot = file.read().strip()
        plan = {
            "name": name,
            "boot": boot,
            "new": {path: entry and entry.to_json() for path, entry in files.items()},
            "old": {path: entry and entry.to_json() for path, entry in before.items()},
            "commands": commands,
        }
        if not program:
            assert __spec__ and __spec__.loader
            program = __spec__.loader.get_source(__spec__.name)  # type: ignore[attr-defined]
        os.makedirs(self.state, mode=0o700, exist_ok=True)
        write_file(f"{self.state}/outcome.json", None)
        shutil.rmtree(f"{self.folder}.new", ignore_errors=True)
        write_file(f"{self.folder}.new/plan.json", File(json.dumps(plan).encode(), 0o600))
        write_file(f"{self.folder}.new/rollback.py", File(program.encode(), 0o600))
        # The service comes first: it does nothing without the folder, and the folder must never exist without the service.
        write_files(self._unit)
        os.rename(f"{self.folder}.new", self.folder)
        sync_folder(self.state)

    def start_timers(self, seconds: int) -> None:
        """Start the rollback timer, of `seconds`, then the timer that applies the change in one second. Raises RollbackError."""
        timer = ["systemd-run", "--quiet", "--collect", "--timer-property=AccuracySec=100ms"]
        problem = run_commands(
            [
                ["systemctl", "daemon-reload"],
                [*timer, f"--unit={UNIT}-timer", f"--on-active={seconds}", "systemctl", "start", "--no-block", UNIT],
                # systemd applies the change, because it may cut this login, and only after this login has its answer.
                [
                    *timer,
                    "--unit=bramble-network-apply",
                    "--on-active=1",
                    "/usr/bin/python3",
                    f"{self.folder}/rollback.py",
                    "apply",
                ],
            ]
        )
        if problem:
            self._remove_pending_change()
            raise RollbackError(f"The network was not changed, because the rollback timer did not start: {problem}")

    def apply_change(self) -> None:
        """Change the files and apply them. When that fails, roll the change back at once. Raises OSError."""
        plan = self.staged_change()
        if not plan:
            return
        for command in plan["commands"]["before"]:
            run_command(command)
        self._write_packed(plan["new"])
        if problem := run_commands(plan["commands"]["new"]):
            self._record_outcome(why=problem)
            run_command(["systemctl", "start", "--no-block", UNIT])
        else:
            # A login must be newer than the change to confirm it: an older connection may work although no new one can be made.
            self._record_outcome(
                old_connections=peer_ports(file_text(read_file(f"/proc/net/{name}")) for name in ("tcp", "tcp6"))
            )

    def roll_back(self) -> None:
        """Restore the old files and apply them. At boot only restore them, before the network is set up. Raises OSError."""
        with self._lock(fcntl.LOCK_EX):
            plan = self.staged_change()
            if not plan:
                return
            with open(BOOT_ID, encoding="ascii") as file:
                booting = file.read().strip() != plan["boot"]
            why = self._read_outcome().get("why") or ("the node was restarted" if booting else "it was not confirmed in time")
            if booting:
                self._write_packed(plan["old"])
                problem = run_commands(plan["commands"]["boot"])
            else:
                run_command(["systemctl", "stop", "bramble-network-apply.timer", "bramble-network-apply.service"])
                for command in plan["commands"]["before"]:
                    run_command(command)
                self._write_packed(plan["old"])
                problem = run_commands(plan["commands"]["old"])
                if problem:
                    run_commands(plan["commands"]["last"])
            self._record_outcome(name=plan["name"], rolled_back=True, why=why, wrong=problem)
            self._remove_pending_change()
            if not booting:
                self._stop_timer()

    def confirm(self, name: str) -> None:
        """Confirm the change. Raises RollbackError if it was rolled back, or if this login is older than the change; OSError."""
        with self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB):
            plan = self.staged_change()
            if not plan or plan["name"] != name:
                raise RollbackError(
                    f"The change was rolled back already: {self._read_outcome().get('why', 'the reason is unknown')}."
                )
            if (old := self._read_outcome().get("old_connections")) is None:
                raise RollbackError("The change is not applied yet. Try again in a few seconds.")
            if ssh_client_port(os.getpid()) in (0, *old):
                raise RollbackError(
                    "This login is older than the change, so it does not prove that a new login works. Log in again."
                )
            self._remove_pending_change()
            write_file(f"{self.state}/outcome.json", None)
        self._stop_timer()

    def outcome(self, name: str) -> dict[str, Any]:
        """Return the outcome of a rolled back change: `why`, and what went `wrong` then. Raises RollbackError for others."""
        outcome = self._read_outcome()
        if not outcome.get("rolled_back") or outcome["name"] != name:
            raise RollbackError(f"The change {name} was not rolled back. Restart the node, which rolls it back.")
        return outcome

    @staticmethod
    def _write_packed(packed: Mapping[str, Any]) -> None:
        """Replace or remove the files of a plan. Raises OSError."""
        write_files({path: entry and File.from_json(entry) for path, entry in packed.items()})

    def _record_outcome(self, **words: Any) -> None:
        """Record the outcome of the change. Raises OSError."""
        write_file(f"{self.state}/outcome.json", File(json.dumps(words).encode(), 0o600))

    def _read_outcome(self) -> dict[str, Any]:
        """Return the recorded outcome of the change; {} if there is none."""
        file = read_file(f"{self.state}/outcome.json")
        outcome: dict[str, Any] = json.loads(file.content) if file else {}
        return outcome

    def _remove_pending_change(self) -> None:
        """Remove the pending change in one step, after which nothing is rolled back."""
        shutil.rmtree(f"{self.folder}.old", ignore_errors=True)
        os.rename(self.folder, f"{self.folder}.old")
        sync_folder(self.state)
        write_files(dict.fromkeys(self._unit))
        shutil.rmtree(f"{self.folder}.old", ignore_errors=True)

    @staticmethod
    def _stop_timer() -> None:
        run_command(["systemctl", "stop", f"{UNIT}-timer.timer"])
        run_command(["systemctl", "daemon-reload"])

    @contextlib.contextmanager
    def _lock(self, how: int) -> Iterator[None]:
        """Hold the lock of rollback and confirm (flock(2)). Raises RollbackError if another has it and `how` has LOCK_NB."""
        os.makedirs(self.state, mode=0o700, exist_ok=True)
        with open(f"{self.state}/lock", "w", encoding="ascii") as lock:
            try:
                fcntl.flock(lock, how)
            except BlockingIOError:
                raise RollbackError("The change is being rolled back. Wait a minute, then try again.") from None
            yield


if __name__ == "__main__":
    {"apply": PendingChange().apply_change, "roll-back": PendingChange().roll_back}[sys.argv[1]]()
