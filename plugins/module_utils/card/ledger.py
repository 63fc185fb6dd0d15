"""The ledger: a JSON file with the result of every card, one entry per node.

The verdict of an entry is `writing` before the first byte is written to the card, so a card that a power cut interrupted never
counts as written. The entry then also names the process that writes, which goes on when its ansible-playbook is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from ansible_collections.bramble.cluster.plugins.module_utils.card.sysfs import process_fields
from ansible_collections.bramble.cluster.plugins.module_utils.core.atomic import replace_file
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import text_table

WRITING = "writing"
INTERRUPTED = "interrupted"
VERIFIED = "verified"
FAILED = "failed"

Entries = dict[str, dict[str, Any]]
Writer = dict[str, str | int]


def now() -> str:
    """Return the time in UTC to the second, in the format of RFC 3339."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def this_writer() -> Writer:
    """Return what identifies this process, until its machine is booted again."""
    return {"pid": os.getpid(), "start_ticks": _start_ticks(os.getpid()), "boot_id": _boot_id(), "host": platform.node()}


def running_writer(entry: Mapping[str, Any]) -> int:
    """Return the ID of the process on this machine that is writing the card of an entry; 0 if there is none."""
    writer = _writer(entry)
    pid = writer.get("pid")
    is_here = entry.get("verdict") == WRITING and writer.get("boot_id") == _boot_id()
    return pid if is_here and isinstance(pid, int) and _start_ticks(pid) == writer.get("start_ticks") else 0


def _writer(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the writer of an entry; {} if it has none that is valid."""
    writer = entry.get("writer")
    return writer if isinstance(writer, dict) else {}


def describe_verdict(entry: Mapping[str, Any]) -> str:
    """Return the verdict of an entry and its reason; for a card whose writing has begun, whether it still goes on."""
    verdict, reason = entry.get("verdict", "-"), entry.get("reason", "")
    if verdict == WRITING:
        writer = _writer(entry)
        if pid := running_writer(entry):
            reason = f"process {pid} is still writing it"
        elif writer and writer.get("boot_id") != _boot_id() and writer.get("host") != platform.node():
            reason = f"process {writer.get('pid')} on {writer.get('host')} has begun"
        else:
            verdict, reason = INTERRUPTED, "write it again"
    return ": ".join(part for part in (verdict, reason) if part)


def _boot_id() -> str:
    """Return the ID of this boot of this machine; see random(4)."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _start_ticks(pid: int) -> int:
    """Return when a process was started, in clock ticks since the boot (proc(5), stat, field 22); -1 if it does not exist."""
    try:
        fields = process_fields(pid)
    except OSError:
        return -1
    return -1 if not fields or fields[0] == "Z" else int(fields[19])


def merge_entry(entry: Mapping[str, Any], values: Mapping[str, Any], fresh: bool) -> dict[str, Any]:
    """Return an entry with values added, or with `fresh` an entry of these values only."""
    return dict(values) if fresh else {**entry, **values}


class Ledger:
    """The ledger in a file; without a path, nothing is recorded. Raises BrambleError when the file is not a ledger."""

    def __init__(self, path: str | None) -> None:
        self.path = os.path.join(os.getcwd(), path) if path else ""
        self.read()

    def read(self) -> Entries:
        """Return all entries, by node. Raises BrambleError."""
        try:
            with open(self.path, encoding="utf-8") as file:
                entries = json.load(file)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise BrambleError(f"The ledger {self.path} cannot be read: {error}. Repair the file, or move it away.") from error
        if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
            raise BrambleError(
                f"{self.path} is not a ledger: it must be a JSON object of objects, by node. Repair the file, or move it away."
            )
        return entries

    def record(self, node: str, values: Mapping[str, Any], fresh: bool = False) -> bool:
        """Add values to the entry of a node, or with `fresh` replace it, and return whether it changed.

        Raises OSError, BrambleError.
        """
        if not self.path:
            return False
        with self._locked():
            entries = self.read()
            entry = merge_entry(entries.get(node, {}), values, fresh)
            if entries.get(node) == entry:
                return False
            entries[node] = entry
            self._write(dict(sorted(entries.items())))
        return True

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the ledger: one process at a time can change it."""
        folder = os.path.dirname(self.path)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _write(self, entries: Entries) -> None:
        """Replace the file of the ledger. Raises OSError."""
        replace_file(self.path, json.dumps(entries, indent=2) + "\n", mode=0o600, folder_owner=True)


def table(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """Return entries of the ledger as a table for the user, one line per card."""
    rows = [("node", "slot", "GB", "write MB/s", "verify MB/s", "verdict", "time")]
    for node, entry in entries.items():
        rates = [f"{entry[name]:.1f}" if entry.get(name) else "-" for name in ("write_mb_s", "verify_mb_s")]
        size = f"{entry['bytes'] / 1e9:.2f}" if entry.get("bytes") else "-"
        rows.append((node, entry.get("slot", "-"), size, *rates, describe_verdict(entry), entry.get("time", "-")))
    return text_table(rows, (2, 3, 4))
