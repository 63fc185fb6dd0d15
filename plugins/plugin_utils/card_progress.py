"""Progress of the modules that read or write cards: bars on a terminal, else lines."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
import threading
import time
from typing import Any

from ansible import constants as C
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

try:
    from rich.console import Console
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    HAS_RICH = True
except ImportError:  # an Ansible that is not this project's
    HAS_RICH = False

# Plugins are loaded before Ansible forks; its workers have no terminal.
TERMINAL = HAS_RICH and sys.stdout.isatty() and not C.config.get_config_value("ANSIBLE_NOCOLOR")
LOCAL_TMP: str = C.DEFAULT_LOCAL_TMP  # type: ignore[attr-defined]  # Ansible makes its constants at run time
EVERY = 1.0  # seconds between two looks at the progress file
AT_LEAST = 5.0  # seconds after which a line is shown although nothing moved: someone may be waiting for a slow card


class Tail:
    """What the events of a progress file amount to, as one line for people."""

    def __init__(self, path: str, offset: int = 0) -> None:
        self._path, self._offset, self._rest = path, offset, b""
        self._cards: dict[str, dict[str, Any]] = {}
        self._moved: list[tuple[float, int]] = []  # (time, bytes done on all cards), the newest last

    def read(self) -> None:
        """Take in what was appended since the last time; a half-written line waits for its end."""
        if not os.path.exists(self._path):
            return
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            new = file.read()
        self._offset += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        for line in lines:
            event = json.loads(line)
            card = self._cards.setdefault(event["node"], {"passed": 0, "done": 0, "phase": ""})
            if event["phase"] != card["phase"]:
                card["passed"] += card["done"]
                card["since"] = event["time"]
            card |= event

    def line(self, now: float) -> str:
        """The state of all cards, the speed of all together, and the time that is left; "" before the first event."""
        if not self._cards:
            return ""
        self._moved.append((now, sum(card["passed"] + card["done"] for card in self._cards.values())))
        self._moved = [moved for moved in self._moved if moved[0] > now - 2 * AT_LEAST]
        words = [f"{node} {self._state(card)}" for node, card in self._cards.items()]
        (before, low), (after, high) = self._moved[0], self._moved[-1]
        rate = (high - low) / (after - before) if after > before else 0.0
        if rate > 0 and (left := max(map(self._left, self._cards.values()))):
            busy = sum(1 for card in self._cards.values() if self._left(card))
            words += [f"{rate / 1e6:.0f} MB/s", f"eta {left * busy / rate:.0f} s"]
        return "cards  " + "  ".join(words)

    def bars(self, width: int) -> str:
        """The same as a table for a terminal of `width` columns: a bar for each card, its speed, and the time that is left."""
        grid = Table.grid(padding=(0, 2), expand=False)
        for justify in ("left", "left", "left", "right", "right", "right"):
            grid.add_column(justify=justify, no_wrap=True)
        for node, card in self._cards.items():
            rate = self._rate(card)
            left = self._left(card)
            grid.add_row(
                node,
                str(card["phase"]),
                ProgressBar(card["total"] or 1, card["done"], width=max(10, min(40, width - 60))) if card["total"] else "",
                f"{100 * card['done'] // card['total']} %" if card["total"] else "",
                f"{rate / 1e6:.1f} MB/s" if rate else "",
                f"{left / rate:.0f} s left" if rate and left else "",
            )
        screen = Console(file=io.StringIO(), force_terminal=True, width=width, legacy_windows=False)
        with screen.capture() as text:
            screen.print(grid)
        return str(text.get())

    @staticmethod
    def _rate(card: dict[str, Any]) -> float:
        """Bytes a second in this phase."""
        return float(card["done"] / (card["time"] - card["since"])) if card["time"] > card["since"] else 0.0

    @staticmethod
    def _state(card: dict[str, Any]) -> str:
        if not card["total"]:
            return str(card["phase"])
        percent = f"{100 * card['done'] // card['total']} %"
        return percent if card["phase"] == "write" else f"{card['phase']} {percent}"

    @staticmethod
    def _left(card: dict[str, Any]) -> int:
        """Bytes that a card has still to get through: what is written must be read again."""
        if not card["total"]:
            return 0
        return int(card["total"] - card["done"] + (card["total"] if card["phase"] == "write" else 0))


class Lines:
    """For a log: a line whenever something moved."""

    def __init__(self, display: Display) -> None:
        self._display, self._shown, self._shown_at = display, "", time.monotonic()

    def show(self, tail: Tail, last: bool) -> None:
        """Show what is new."""
        now = time.monotonic()
        line = tail.line(now)
        if line and (line != self._shown or (now - self._shown_at >= AT_LEAST and not last)):
            self._display.display(line)
            self._shown, self._shown_at = line, now


class Bars:
    """For a terminal: a table that is drawn over again."""

    def __init__(self, display: Display) -> None:
        self._display, self._height = display, 0

    def show(self, tail: Tail, last: bool) -> None:
        """Draw it."""
        text = tail.bars(self._display.columns or 80)
        # Up to its first line, then all below is cleared: ECMA-48, CPL and ED.
        up = f"\x1b[{self._height}F\x1b[J" if self._height else ""
        self._display.display(up + text, screen_only=True, newline=False)
        self._height = text.count("\n")


def show(path: str, view: Lines | Bars, stop: threading.Event, offset: int = 0) -> None:
    """Show the events of a progress file until told to stop. Progress is a courtesy: an error only ends it."""
    tail = Tail(path, offset)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        stopping = False
        while not stopping:
            stopping = stop.wait(EVERY)
            tail.read()
            view.show(tail, stopping)


class CardAction(ActionBase):
    """Runs the module of the same name, with progress where its events can be read: on the control machine."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module; a progress_file of the caller's own is used, and kept."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        if self._connection.transport != "local":
            return result | self._execute_module(module_args=arguments, task_vars=task_vars)
        own = arguments.get("progress_file")
        if own:
            path = os.path.abspath(os.path.expanduser(own))
            start = os.path.getsize(path) if os.path.exists(path) else 0
        else:
            handle, path = tempfile.mkstemp(prefix="cards-", suffix=".jsonl", dir=LOCAL_TMP)
            os.close(handle)
            start = 0
        arguments["progress_file"] = path
        stop = threading.Event()
        view = Bars(Display()) if TERMINAL else Lines(Display())
        thread = threading.Thread(target=show, args=(path, view, stop, start), daemon=True)
        thread.start()
        try:
            return result | self._execute_module(module_args=arguments, task_vars=task_vars)
        finally:
            stop.set()
            thread.join()
            if not own:
                os.unlink(path)
