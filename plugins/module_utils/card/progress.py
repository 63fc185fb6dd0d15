"""How far each card of a batch is: events in a file, one JSON object a line."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable

Meter = Callable[[int], None]
"""Is called with every number of bytes got through."""


def unmetered(_length: int) -> None:
    """The meter of those who do not want to know."""


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
            self.report(node, phase, done, total)

        add(0)
        return add

    def report(self, node: str, phase: str, done: int = 0, total: int = 0) -> None:
        """Report how far a node's card is; too frequent reports of the same phase are dropped."""
        now = time.time()
        between = 0 < done < total
        if self._fd < 0 or (between and now - self._last.get(node, 0.0) < self._every):
            return
        event = {"node": node, "phase": phase, "done": done, "total": total, "time": round(now, 3)}
        self._last[node] = now
        with contextlib.suppress(OSError):  # a full disk here is no reason to fail a card
            os.write(self._fd, json.dumps(event).encode() + b"\n")
