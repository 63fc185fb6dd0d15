"""Show the progress of the modules that read or write cards: as a table on a terminal, otherwise as lines."""

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
except ImportError:  # an Ansible outside of this project's .venv may lack rich
    HAS_RICH = False

# This is evaluated when the plugin is loaded, before Ansible forks, as its workers have no terminal.
IS_TERMINAL = HAS_RICH and sys.stdout.isatty() and not C.config.get_config_value("ANSIBLE_NOCOLOR")
LOCAL_TMP: str = C.DEFAULT_LOCAL_TMP  # type: ignore[attr-defined]  # Ansible makes its constants at run time
POLL_INTERVAL = 1.0  # seconds between two reads of the progress file
LINE_INTERVAL = 5.0  # seconds after which a line is shown again even without progress, as with a slow card


class ProgressReader:
    """Reads the events of a progress file, and formats the state of all cards for the user."""

    def __init__(self, path: str, offset: int = 0) -> None:
        self._path, self._offset, self._incomplete_line = path, offset, b""
        self._cards: dict[str, dict[str, Any]] = {}
        self._history: list[tuple[float, int]] = []  # (time, bytes done on all cards), the newest last

    def read_events(self) -> None:
        """Read the events that were appended since the last call. An incomplete line is kept until its end is written."""
        if not os.path.exists(self._path):
            return
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            new = file.read()
        self._offset += len(new)
        *lines, self._incomplete_line = (self._incomplete_line + new).split(b"\n")
        for line in lines:
            event = json.loads(line)
            card = self._cards.setdefault(event["node"], {"passed": 0, "done": 0, "phase": ""})
            if event["phase"] != card["phase"]:
                card["passed"] += card["done"]
                card["since"] = event["monotonic"]
            card |= event

    def summary_line(self, now: float) -> str:
        """Return one line with the state of all cards, their total speed, and the remaining time; "" before the first event."""
        if not self._cards:
            return ""
        self._history.append((now, sum(card["passed"] + card["done"] for card in self._cards.values())))
        self._history = [entry for entry in self._history if entry[0] > now - 2 * LINE_INTERVAL]
        words = [f"{node} {self._state_text(card)}" for node, card in self._cards.items()]
        (before, low), (after, high) = self._history[0], self._history[-1]
        rate = (high - low) / (after - before) if after > before else 0.0
        if rate > 0 and (remaining := max(map(self._remaining_bytes, self._cards.values()))):
            busy = sum(1 for card in self._cards.values() if self._remaining_bytes(card))
            words += [f"{rate / 1e6:.0f} MB/s", f"eta {remaining * busy / rate:.0f} s"]
        return "cards  " + "  ".join(words)

    def progress_table(self, width: int) -> str:
        """Return a table for a terminal of `width` columns: for each card a progress bar, its speed, and the remaining time."""
        grid = Table.grid(padding=(0, 2), expand=False)
        for justify in ("left", "left", "left", "right", "right", "right"):
            grid.add_column(justify=justify, no_wrap=True)
        for node, card in self._cards.items():
            rate = self._rate(card)
            remaining = self._remaining_bytes(card)
            grid.add_row(
                node,
                str(card["phase"]),
                ProgressBar(card["total"] or 1, card["done"], width=max(10, min(40, width - 60))) if card["total"] else "",
                f"{100 * card['done'] // card['total']} %" if card["total"] else "",
                f"{rate / 1e6:.1f} MB/s" if rate else "",
                f"{remaining / rate:.0f} s left" if rate and remaining else "",
            )
        screen = Console(file=io.StringIO(), force_terminal=True, width=width, legacy_windows=False)
        with screen.capture() as text:
            screen.print(grid)
        return str(text.get())

    @staticmethod
    def _rate(card: dict[str, Any]) -> float:
        """Return the speed of a card in its present phase, in bytes per second."""
        return float(card["done"] / (card["monotonic"] - card["since"])) if card["monotonic"] > card["since"] else 0.0

    @staticmethod
    def _state_text(card: dict[str, Any]) -> str:
        if not card["total"]:
            return str(card["phase"])
        percent = f"{100 * card['done'] // card['total']} %"
        return percent if card["phase"] == "write" else f"{card['phase']} {percent}"

    @staticmethod
    def _remaining_bytes(card: dict[str, Any]) -> int:
        """Return how many bytes a card still has to transfer. All bytes that are written are read back afterwards."""
        if not card["total"]:
            return 0
        return int(card["total"] - card["done"] + (card["total"] if card["phase"] == "write" else 0))


class LineView:
    """Shows progress as lines, for output that is not a terminal."""

    def __init__(self, display: Display) -> None:
        self._display, self._shown, self._shown_at = display, "", time.monotonic()

    def show(self, reader: ProgressReader, last: bool) -> None:
        """Show a line if it has changed, or after LINE_INTERVAL."""
        now = time.monotonic()
        line = reader.summary_line(now)
        if line and (line != self._shown or (now - self._shown_at >= LINE_INTERVAL and not last)):
            self._display.display(line)
            self._shown, self._shown_at = line, now


class TableView:
    """Shows progress as a table on a terminal, which is drawn again in place."""

    def __init__(self, display: Display) -> None:
        self._display, self._height = display, 0

    def show(self, reader: ProgressReader, last: bool) -> None:
        """Draw the table over the previous one."""
        text = reader.progress_table(self._display.columns or 80)
        # Move the cursor to the first line of the previous table, and clear everything below: ECMA-48, CPL and ED.
        clear = f"\x1b[{self._height}F\x1b[J" if self._height else ""
        self._display.display(clear + text, screen_only=True, newline=False)
        self._height = text.count("\n")


def show_progress(path: str, view: LineView | TableView, stop: threading.Event, offset: int = 0) -> None:
    """Show the events of a progress file until `stop` is set. An error in the file only ends the display, not the module."""
    reader = ProgressReader(path, offset)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        stopping = False
        while not stopping:
            stopping = stop.wait(POLL_INTERVAL)
            reader.read_events()
            view.show(reader, stopping)


class CardAction(ActionBase):
    """Runs the module of the same name, and shows its progress if it runs on the control machine."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module. A progress_file of the caller is used and kept."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        if self._connection.transport != "local":
            return result | self._execute_module(module_args=arguments, task_vars=task_vars)
        given_path = arguments.get("progress_file")
        if given_path:
            path = os.path.abspath(os.path.expanduser(given_path))
            start = os.path.getsize(path) if os.path.exists(path) else 0
        else:
            handle, path = tempfile.mkstemp(prefix="cards-", suffix=".jsonl", dir=LOCAL_TMP)
            os.close(handle)
            start = 0
        arguments["progress_file"] = path
        stop = threading.Event()
        view = TableView(Display()) if IS_TERMINAL else LineView(Display())
        thread = threading.Thread(target=show_progress, args=(path, view, stop, start), daemon=True)
        thread.start()
        try:
            return result | self._execute_module(module_args=arguments, task_vars=task_vars)
        finally:
            stop.set()
            thread.join()
            if not given_path:
                os.unlink(path)
