"""How far each card of a batch is: events in a file, one JSON object a line."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable

Meter = Callable[[int], None]
"""A function that is called with the length of every stretch that a phase has done, in bytes."""


def unmetered(_length: int) -> None:
    """Count nothing: the meter of work that nobody watches."""


class Progress:
    """The file to which events are appended, as lines of JSON: {node, phase, done, total, time}. Without a path there is none.

    Phases: prepare; compare, test, probe, write, verify (all but test with done and total in bytes); then the card's result.
    """

    def __init__(self, path: str | None = None, every: float = 0.25) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600) if path else -1
        self._every, self._last = every, dict[str, float]()

    def meter(self, node: str, phase: str, total: int) -> Meter:
        """Return the meter of a phase of one node's card, of `total` bytes."""
        done = 0

        def add(length: int) -> None:
            nonlocal done
            done += length
            self.report(node, phase, done, total)

        add(0)
        return add

    def report(self, node: str, phase: str, done: int = 0, total: int = 0) -> None:
        """Append how far a node's card is, in bytes; reports within `every` seconds of the last one are dropped."""
        now = time.time()
        between = 0 < done < total
        if self._fd < 0 or (between and now - self._last.get(node, 0.0) < self._every):
            return
        event = {"node": node, "phase": phase, "done": done, "total": total, "time": round(now, 3)}
        self._last[node] = now
        with contextlib.suppress(OSError):  # a full disk here is no reason to fail a card
            os.write(self._fd, json.dumps(event).encode() + b"\n")
