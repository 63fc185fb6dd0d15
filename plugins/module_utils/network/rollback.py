"""Change the files of a node's network and apply them, so that the change undoes itself unless it is confirmed.

This file is also a program, which works on the node with nobody logged in, so it needs only the standard library: Change.stage
puts a copy of it beside the change. A change that waits to be confirmed is the folder STATE/change; while it is there, the
network is changed back when its timer runs out (systemd-run(1)) and at the next boot, before the network is set up.

    python3 switch.py apply|undo
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
UNIT = "bramble-network-undo"
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
ExecStart=/usr/bin/python3 {STATE}/change/switch.py undo

[Install]
WantedBy=multi-user.target
"""


class RollbackError(Exception):
    """What can not be done, for people."""


class File(NamedTuple):
    """A file as it is or shall be: its bytes and mode, or with `link` where a symbolic link leads."""

    content: bytes = b""
    mode: int = 0o644
    link: str = ""

    def pack(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"content": base64.b64encode(self.content).decode(), "mode": self.mode, "link": self.link}

    @classmethod
    def unpack(cls, packed: Mapping[str, Any]) -> File:
        """The reverse of pack."""
        return cls(base64.b64decode(packed["content"]), packed["mode"], packed["link"])


# What shall be at each path; None is nothing.
Files = Mapping[str, "File | None"]
Command = Sequence[str]


def read(path: str) -> File | None:
    """The file at a path, None if there is none. Raises OSError."""
    if os.path.islink(path):
        return File(link=os.readlink(path))
    try:
        with open(path, "rb") as file:
            return File(file.read(), os.fstat(file.fileno()).st_mode & 0o7777)
    except FileNotFoundError:
        return None


def text(file: File | None) -> str:
    """A file's text, in which bytes that are none survive."""
    return file.content.decode(errors="surrogateescape") if file else ""


def put(path: str, file: File | None) -> None:
    """Make it so that after a power cut there is the old file or the new one. Raises OSError."""
    folder, name = os.path.split(path)
    if file is None:
        if not os.path.lexists(path):
            return
        os.unlink(path)
    else:
        os.makedirs(folder, exist_ok=True)
        # A name that none of those who read these folders takes for a configuration.
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
    sync(folder)


def sync(folder: str) -> None:
    """Make what was renamed or removed in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def put_all(files: Files) -> None:
    """Make all of them so. Raises OSError."""
    for path, file in files.items():
        put(path, file)


def run(command: Command) -> str:
    """Run a command. Returns what is wrong, empty if all is well."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{' '.join(command)}: {error}"
    if not done.returncode:
        return ""
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return f"{' '.join(command)} ended with {done.returncode}: {said[-1] if said else 'it said nothing'}"


def run_all(commands: Sequence[Command]) -> str:
    """Run commands until one fails. Returns what is wrong, empty if all is well."""
    for command in commands:
        if wrong := run(command):
            return wrong
    return ""


def connections(tables: Iterable[str]) -> list[int]:
    """The other side's port of each TCP connection in /proc/net/tcp and tcp6 (proc_net_tcp, docs.kernel.org)."""
    rows = (line.split() for table in tables for line in table.splitlines()[1:])
    return sorted({int(row[2].rpartition(":")[2], 16) for row in rows if len(row) > 2} - {0})


def login(pid: int, proc: str = "/proc") -> int:
    """The other side's port of a process's SSH connection, as sshd told its child; 0 if there is none (sshd(8))."""
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
    """The change that waits to be confirmed. There is one at most.

    :param state: where it is kept
    :param units: where systemd finds its service
    """

    def __init__(self, state: str = STATE, units: str = UNITS) -> None:
        self.state, self.folder, self.units = state, f"{state}/change", units

    @property
    def _unit(self) -> dict[str, File]:
        service = f"{self.units}/{UNIT}.service"
        wanted = f"{self.units}/multi-user.target.wants/{UNIT}.service"
        return {service: File(SERVICE.encode()), wanted: File(link=service)}

    def plan(self) -> dict[str, Any] | None:
        """What was staged, None if nothing waits. Raises OSError, ValueError."""
        try:
            with open(f"{self.folder}/plan.json", encoding="utf-8") as file:
                plan: dict[str, Any] = json.load(file)
                return plan
        except FileNotFoundError:
            return None

    def stage(self, name: str, files: Files, commands: Mapping[str, Sequence[Command]], program: str = "") -> None:
        """Note a change, and how to undo it; nothing is changed yet. Raises RollbackError, OSError.

        :param name: tells this change from others
        :param commands: down: before the files change, errors do not count; new: to apply the new ones; old: to apply the old
            ones again; boot: when the old ones are put back before the network comes up; last: when `old` fails
        :param program: the text of this file; by default asked of Python, but under mitogen it does not know
        """
        if self.plan():
            raise RollbackError("Another change of the network waits to be confirmed.")
        before = {path: read(path) for path in files}
        with open(BOOT_ID, encoding="ascii") as file:
            boot = file.read().strip()
        plan = {
            "name": name,
            "boot": boot,
            "new": {path: entry and entry.pack() for path, entry in files.items()},
            "old": {path: entry and entry.pack() for path, entry in before.items()},
            "commands": commands,
        }
        if not program:
            assert __spec__ and __spec__.loader
            program = __spec__.loader.get_source(__spec__.name)  # type: ignore[attr-defined]
        os.makedirs(self.state, mode=0o700, exist_ok=True)
        put(f"{self.state}/outcome.json", None)
        shutil.rmtree(f"{self.folder}.new", ignore_errors=True)
        put(f"{self.folder}.new/plan.json", File(json.dumps(plan).encode(), 0o600))
        put(f"{self.folder}.new/switch.py", File(program.encode(), 0o600))
        # Without the folder this service does nothing, and with it the service must be there.
        put_all(self._unit)
        os.rename(f"{self.folder}.new", self.folder)
        sync(self.state)

    def arm(self, seconds: int) -> None:
        """Start what undoes the change after so many seconds, then what applies it a second from now. Raises RollbackError."""
        timer = ["systemd-run", "--quiet", "--collect", "--timer-property=AccuracySec=100ms"]
        wrong = run_all(
            [
                ["systemctl", "daemon-reload"],
                [*timer, f"--unit={UNIT}-timer", f"--on-active={seconds}", "systemctl", "start", "--no-block", UNIT],
                # Not by this login, which it may cut, and not before this login has had its answer.
                [
                    *timer,
                    "--unit=bramble-network-apply",
                    "--on-active=1",
                    "/usr/bin/python3",
                    f"{self.folder}/switch.py",
                    "apply",
                ],
            ]
        )
        if wrong:
            self._forget()
            raise RollbackError(f"The network was not changed, as nothing could undo it: {wrong}")

    def apply(self) -> None:
        """Change the files, and apply them. What can not be applied is undone at once. Raises OSError."""
        plan = self.plan()
        if not plan:
            return
        for command in plan["commands"]["down"]:
            run(command)
        self._put(plan["new"])
        if wrong := run_all(plan["commands"]["new"]):
            self._note(why=wrong)
            run(["systemctl", "start", "--no-block", UNIT])
        else:
            # Those that are there already prove nothing: a connection can outlive the way to make one.
            self._note(old_connections=connections(text(read(f"/proc/net/{name}")) for name in ("tcp", "tcp6")))

    def undo(self) -> None:
        """Put the old files back, and apply them; at boot only the files, as the network is yet to come. Raises OSError."""
        with self._alone(fcntl.LOCK_EX):
            plan = self.plan()
            if not plan:
                return
            with open(BOOT_ID, encoding="ascii") as file:
                booting = file.read().strip() != plan["boot"]
            why = self._noted().get("why") or ("the node was restarted" if booting else "it was not confirmed in time")
            if booting:
                self._put(plan["old"])
                wrong = run_all(plan["commands"]["boot"])
            else:
                run(["systemctl", "stop", "bramble-network-apply.timer", "bramble-network-apply.service"])
                for command in plan["commands"]["down"]:
                    run(command)
                self._put(plan["old"])
                wrong = run_all(plan["commands"]["old"])
                if wrong:
                    run_all(plan["commands"]["last"])
            self._note(name=plan["name"], undone=True, why=why, wrong=wrong)
            self._forget()
            if not booting:
                self._disarm()

    def confirm(self, name: str) -> None:
        """Let the change stay. Raises RollbackError if it is undone already, or if this login is older than it; OSError."""
        with self._alone(fcntl.LOCK_EX | fcntl.LOCK_NB):
            plan = self.plan()
            if not plan or plan["name"] != name:
                raise RollbackError(f"The change is undone already: {self._noted().get('why', 'nobody knows why')}.")
            if (old := self._noted().get("old_connections")) is None:
                raise RollbackError("The change is not applied yet.")
            if login(os.getpid()) in (0, *old):
                raise RollbackError("This login is older than the change: it does not prove that there can be another.")
            self._forget()
            put(f"{self.state}/outcome.json", None)
        self._disarm()

    def outcome(self, name: str) -> dict[str, Any]:
        """Of a change that was undone: `why`, and `wrong`, what went wrong then. Raises RollbackError if it is not undone."""
        noted = self._noted()
        if not noted.get("undone") or noted["name"] != name:
            raise RollbackError("The change is not undone.")
        return noted

    @staticmethod
    def _put(packed: Mapping[str, Any]) -> None:
        put_all({path: entry and File.unpack(entry) for path, entry in packed.items()})

    def _note(self, **words: Any) -> None:
        put(f"{self.state}/outcome.json", File(json.dumps(words).encode(), 0o600))

    def _noted(self) -> dict[str, Any]:
        file = read(f"{self.state}/outcome.json")
        noted: dict[str, Any] = json.loads(file.content) if file else {}
        return noted

    def _forget(self) -> None:
        """At once: from here on nothing is undone."""
        shutil.rmtree(f"{self.folder}.old", ignore_errors=True)
        os.rename(self.folder, f"{self.folder}.old")
        sync(self.state)
        put_all(dict.fromkeys(self._unit))
        shutil.rmtree(f"{self.folder}.old", ignore_errors=True)

    @staticmethod
    def _disarm() -> None:
        run(["systemctl", "stop", f"{UNIT}-timer.timer"])
        run(["systemctl", "daemon-reload"])

    @contextlib.contextmanager
    def _alone(self, how: int) -> Iterator[None]:
        """Undoing and confirming exclude each other: flock(2). Raises RollbackError if it is locked and how has LOCK_NB."""
        os.makedirs(self.state, mode=0o700, exist_ok=True)
        with open(f"{self.state}/lock", "w", encoding="ascii") as lock:
            try:
                fcntl.flock(lock, how)
            except BlockingIOError:
                raise RollbackError("The change is being undone.") from None
            yield


if __name__ == "__main__":
    {"apply": PendingChange().apply, "undo": PendingChange().undo}[sys.argv[1]]()
