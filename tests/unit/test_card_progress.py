"""The progress that the user sees while cards are written, and the modules as Ansible runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bramble.cluster.plugins.plugin_utils import card_progress as action
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import ROOT

SECRET = "-----BEGIN OPENSSH PRIVATE KEY-----\nnever to be seen\n"


def event(node: str, phase: str, done: int = 0, total: int = 0) -> str:
    """Return a line of a progress file."""
    return json.dumps({"node": node, "phase": phase, "done": done, "total": total, "time": 0, "monotonic": 0}) + "\n"


def test_summary_line(tmp_path: Path) -> None:
    path = tmp_path / "events"
    reader = action.ProgressReader(str(path))
    reader.read_events()
    assert reader.summary_line(0.0) == ""
    path.write_text(event("pi-client", "prepare"))
    reader.read_events()
    assert reader.summary_line(0.0) == "cards  pi-client prepare"
    with path.open("a") as file:
        file.write(event("pi-client", "write", 42_000_000, 100_000_000) + event("pi-01", "write", 100_000_000, 100_000_000))
        file.write(event("pi-01", "verify", 10_000_000, 100_000_000))
    reader.read_events()
    # 152 MB in 4 s; pi-client has 158 MB left while both cards are busy.
    assert reader.summary_line(4.0) == "cards  pi-client 42 %  pi-01 verify 10 %  38 MB/s  eta 8 s"
    with path.open("a") as file:
        file.write(event("pi-client", "failed") + event("pi-01", "written"))
    reader.read_events()
    assert reader.summary_line(5.0) == "cards  pi-client failed  pi-01 written"


def test_earlier_events_are_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_text(event("pi-09", "written"))
    reader = action.ProgressReader(str(path), path.stat().st_size)
    reader.read_events()
    assert reader.summary_line(0.0) == ""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.integers(0, 400), max_size=5).map(sorted))
def test_incomplete_lines_are_completed_later(tmp_path: Path, cuts: list[int]) -> None:
    events = "".join(event("pi-01", "write", done, 90) for done in range(0, 91, 30))
    path = tmp_path / "events"
    path.write_text("")
    reader = action.ProgressReader(str(path))
    for cut in [*cuts, len(events)]:
        path.write_text(events[:cut])
        reader.read_events()
    assert reader.summary_line(0.0) == "cards  pi-01 100 %"


def test_only_changes_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(action, "POLL_INTERVAL", 0.01)
    path, stop, shown = tmp_path / "events", threading.Event(), list[str]()
    display: Any = type("Display", (), {"display": staticmethod(shown.append)})
    thread = threading.Thread(target=action.show_progress, args=(str(path), action.LineView(display), stop))
    thread.start()
    path.write_text(event("pi-01", "prepare"))
    while not shown:
        stop.wait(0.01)
    stop.wait(0.1)
    with path.open("a") as file:
        file.write(event("pi-01", "written"))
    stop.set()
    thread.join()
    assert shown == ["cards  pi-01 prepare", "cards  pi-01 written"]


@pytest.mark.parametrize("invalid", ["not json\n", "[]\n", '{"node": "pi-01"}\n'])
def test_invalid_events_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invalid: str) -> None:
    monkeypatch.setattr(action, "POLL_INTERVAL", 0.01)
    (tmp_path / "events").write_text(invalid)
    display: Any = None
    action.show_progress(str(tmp_path / "events"), action.LineView(display), threading.Event())


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., str]:
    """A function that runs one task on localhost with ansible-playbook, and returns its output."""

    def run(task: dict[str, Any], *options: str) -> str:
        book = tmp_path / "play.yml"
        variables = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
        book.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "vars": variables, "tasks": [task]}]))
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", *options, str(book)]
        environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment).stdout

    return run


def test_modules_run_by_ansible(
    image: Path, sha256: str, card: Callable[..., Path], play: Callable[..., str], tmp_path: Path
) -> None:
    key = {"path": "/etc/ssh/ssh_host_ed25519_key", "content": SECRET, "mode": "0600"}
    files = {"boot_files": {"user-data": "hostname: pi-01\nnever to be seen\n"}, "root_files": [key]}
    cards = [{"node": node, "slot": str(card(node)), **files} for node in ("pi-01", "pi-02")]
    task = {"bramble.cluster.card_write": {"image": str(image), "image_sha256": sha256, "cards": cards, "confirm": True}}
    output = play(task, "--diff", "-vvv")
    assert "\ncards  pi-01 written  pi-02 written\n" in output
    assert "+root file /etc/ssh/ssh_host_ed25519_key" in output
    assert "changed=1" in output and "failed=0" in output
    assert "never to be seen" not in output
    task["bramble.cluster.card_write"]["progress_file"] = str(tmp_path / "events.jsonl")
    output = play(task, "--check")
    assert "\ncards  pi-01 unchanged  pi-02 unchanged\n" in output and "changed=0" in output
    assert "unchanged" in (tmp_path / "events.jsonl").read_text()
    facts = {"bramble.cluster.card_facts": {"image": str(image), "cards": [{"node": "pi-01", "slot": cards[0]["slot"]}]}}
    assert "verdict: OK" in play(facts, "-v")
