"""What became of every card: a JSON file, an entry per node, true at every moment.

An entry says `writing` before the first byte goes to its card, so what a power cut leaves behind is never taken for done.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import text_table

WRITING = "writing"
VERIFIED = "verified"
FAILED = "failed"

Entries = dict[str, dict[str, Any]]


def now() -> str:
    """The time, as in RFC 3339, in UTC and whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def merged(entry: Mapping[str, Any], values: Mapping[str, Any], fresh: bool) -> dict[str, Any]:
    """An entry with values added; with `fresh` of them alone."""
    return dict(values) if fresh else {**entry, **values}


class Ledger:
    """The ledger in a file; without a path it forgets everything. Raises BrambleError when the file is not one."""

    def __init__(self, path: str | None) -> None:
        self.path = os.path.abspath(path) if path else ""
        self.read()

    def read(self) -> Entries:
        """All entries, by node. Raises BrambleError."""
        try:
            with open(self.path, encoding="utf-8") as file:
                entries = json.load(file)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise BrambleError(f"The ledger {self.path} cannot be read: {error}. Repair it, or move it away.") from error
        if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
            raise BrambleError(f"The ledger {self.path} is not one: an object by node is expected. Repair it, or move it away.")
        return entries

    def note(self, node: str, values: Mapping[str, Any], fresh: bool = False) -> bool:
        """Add values to a node's entry (or with `fresh` make it anew); whether that changed it. Raises OSError, BrambleError."""
        if not self.path:
            return False
        with self._locked():
            entries = self.read()
            entry = merged(entries.get(node, {}), values, fresh)
            if entries.get(node) == entry:
                return False
            entries[node] = entry
            self._write(dict(sorted(entries.items())))
        return True

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        folder = os.path.dirname(self.path)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _write(self, entries: Entries) -> None:
        folder = os.path.dirname(self.path)
        with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".cards-", delete=False, encoding="utf-8") as file:
            try:
                json.dump(entries, file, indent=2)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
                owner = os.stat(folder)
                if not os.geteuid():  # with sudo it is the user's all the same
                    os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
                os.rename(file.name, self.path)
            except BaseException:
                os.unlink(file.name)
                raise


def table(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """The ledger for people: one line per card, aligned."""
    rows = [("node", "slot", "GB", "write MB/s", "verify MB/s", "verdict", "time")]
    for node, entry in entries.items():
        rates = [f"{entry[name]:.1f}" if entry.get(name) else "-" for name in ("write_mb_s", "verify_mb_s")]
        verdict = ": ".join(part for part in (entry.get("verdict", "-"), entry.get("reason", "")) if part)
        size = f"{entry['bytes'] / 1e9:.2f}" if entry.get("bytes") else "-"
        rows.append((node, entry.get("slot", "-"), size, *rates, verdict, entry.get("time", "-")))
    return text_table(rows, (2, 3, 4))
