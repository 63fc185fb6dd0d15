"""Run the module image_fetch, and show its progress."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import tempfile
import threading
import time
from typing import Any

from ansible import constants as C
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import printable, replace_invalid

LOCAL_TMP: str = C.DEFAULT_LOCAL_TMP  # type: ignore[attr-defined]  # Ansible makes its constants at run time
POLL_INTERVAL = 1.0  # seconds between two reads of the progress file
LINE_INTERVAL = 5.0  # seconds between two lines about one phase


def progress_line(first: dict[str, Any], last: dict[str, Any]) -> str:
    """Return a line for the user about a phase, from its first and its last event: progress, speed, and remaining time."""
    done, total = last["done"], last["total"]
    words = [f"image  {printable(last['image'])}", last["phase"]]
    if total:
        words.append(f"{100 * done // total} % of {total / 1e6:,.0f} MB")
    elif done:
        words.append(f"{done / 1e6:,.0f} MB")
    seconds = last["seconds"] - first["seconds"]
    rate = (done - first["done"]) / seconds if seconds > 0 else 0.0
    if rate > 0:
        words.append(f"{rate / 1e6:.1f} MB/s")
        if total > done:
            words.append(f"eta {(total - done) / rate:.0f} s")
    return "  ".join(words)


def show_progress(path: str, display: Display, stop: threading.Event) -> None:
    """Show lines about the phases until `stop` is set. An error in the file only ends the display, not the module."""
    first: dict[str, Any] = {"phase": None}
    last: dict[str, Any] = {}
    shown, shown_at, offset = "", 0.0, 0
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        stopping = False
        while not stopping:
            stopping = stop.wait(POLL_INTERVAL)
            with open(path, "rb") as file:
                file.seek(offset)
                new = file.read().rpartition(b"\n")[0]
            offset += len(new) + 1 if new else 0
            is_new_phase = False
            for event in map(json.loads, new.splitlines()):
                if event["phase"] != first["phase"]:
                    first, is_new_phase = event, True
                last = event
            if last:
                text, now = progress_line(first, last), time.monotonic()
                if text != shown and (is_new_phase or stopping or now >= shown_at + LINE_INTERVAL):
                    display.display(text)
                    shown, shown_at = text, now


class ActionModule(ActionBase):
    """Runs the module image_fetch, and shows its progress if it runs on the control machine, where its events can be read."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module. With a progress_file of the caller, the events are only written to this file."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        if arguments.get("src") and self._connection.transport == "local":
            # The module need not run in the folder where ansible-playbook was started, which is that of this process.
            source = os.fsencode(os.path.join(os.getcwd(), str(arguments.pop("src"))))
            try:
                arguments["src"] = source.decode()
            except UnicodeDecodeError:
                arguments["src_base64"] = base64.b64encode(source).decode()
        # An argument can only be UTF-8.
        arguments["name"] = replace_invalid(str(arguments.get("name", "")))
        if self._connection.transport != "local" or arguments.get("progress_file"):
            return result | self._execute_module(module_args=arguments, task_vars=task_vars)
        handle, path = tempfile.mkstemp(prefix="image-", suffix=".jsonl", dir=LOCAL_TMP)
        os.close(handle)
        stop = threading.Event()
        thread = threading.Thread(target=show_progress, args=(path, Display(), stop), daemon=True)
        thread.start()
        try:
            return result | self._execute_module(module_args=arguments | {"progress_file": path}, task_vars=task_vars)
        finally:
            stop.set()
            thread.join()
            os.unlink(path)
