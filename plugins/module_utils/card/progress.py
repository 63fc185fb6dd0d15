"""The progress of each card of a batch: events in a file, one JSON object per line."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

Meter = Callable[[int], None]
"""A function that is called with the number of bytes that a phase has processed since the last call."""


def unmetered(_length: int) -> None:
    """Report nothing: the meter of a phase without progress."""


class Progress:
    """Appends events to a file, as lines of JSON: {node, phase, done, total, time, monotonic}. Without a path, writes nothing.

    The phases are prepare, compare, test, probe, write and verify, then the result of the card. `done` and `total` are in bytes,
    and 0 for prepare and test. Speeds are calculated from `monotonic` (seconds), as the clock (`time`) may be set meanwhile.

    :param min_seconds: the shortest time between two events within a phase of a card
    :raises BrambleError: when the file cannot be opened
    """

    def __init__(self, path: str | None = None, min_seconds: float = 0.25) -> None:
        self._fd = -1
        if path:
            # Without O_NONBLOCK, a FIFO would make the cards wait for its reader.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            try:
                self._fd = os.open(path, flags, 0o600)
            except OSError as error:
                raise BrambleError(
                    f"The file for progress, {path}, cannot be opened: {error.strerror}. Nothing was changed. Name a plain file "
                    "in an existing folder"
                ) from None
        self._min_seconds, self._last_report = min_seconds, dict[str, float]()

    def meter(self, node: str, phase: str, total: int) -> Meter:
        """Return the meter for a phase of a node's card that processes `total` bytes."""
        done = 0

        def add(length: int) -> None:
            nonlocal done
            done += length
            self.report(node, phase, done, total)

        add(0)
        return add

    def report(self, node: str, phase: str, done: int = 0, total: int = 0) -> None:
        """Append an event: a node's card has processed `done` of `total` bytes. Events in quick succession are dropped."""
        now = time.monotonic()
        between = 0 < done < total
        if self._fd < 0 or (between and now - self._last_report.get(node, -math.inf) < self._min_seconds):
            return
        event = {
            "node": node,
            "phase": phase,
            "done": done,
            "total": total,
            "time": round(time.time(), 3),
            "monotonic": round(now, 3),
        }
        self._last_report[node] = now
        with contextlib.suppress(OSError):  # a full disk under this file must not fail a card
            os.write(self._fd, json.dumps(event).encode() + b"\n")
