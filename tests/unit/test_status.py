"""The evaluation of playbooks/status.yml."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bramble.cluster.plugins.filter.status import THROTTLED, cluster_status, columns, throttled_words
from ansible_collections.bramble.cluster.plugins.module_utils.card.ledger import this_writer
from hypothesis import given
from hypothesis import strategies as st

from tests.support import ROOT
from tests.support.rehearsal import INVENTORY

LIMITS = {"temperature": 80, "disk": 90, "memory": 5, "load": 4, "clock_offset": 5, "card_worn": 80, "restarts": 10}
UP: dict[str, Any] = {
    "uptime": 93784.55,
    "load": 0.42,
    "cores": 4,
    "memory_available": 0.8,
    "temperature": 48.2,
    "throttled": 0,
    "disks": {"/": {"used": 0.31, "bytes": 30_000_000_000, "read_only": False}},
    "card": {"life_time": 1, "pre_eol": 1, "ext4_errors": 0},
    "io_errors": [],
    "units": {"bramble-worker": {"active": "active", "restarts": 0, "bundle": "aaaa"}},
    "failed_units": [],
    "kernel": "6.12.1",
    "os": "Debian 13",
    "chrony": None,
    "clock_offset": 0.1,
    "clock_error": 0.3,
}


def scheduler(*nodes: str) -> dict[str, Any]:
    return {"rc": 0, "stdout": json.dumps({"nodes": {node: {"threads": 4} for node in nodes}})}


def problems(answers: dict[str, Any], ledger: dict[str, Any] | None = None) -> list[str]:
    """Return the problems when all workers have joined."""
    return cluster_status(answers, scheduler(*answers), list(answers), LIMITS, ledger or {})["problems"]


def test_no_problems() -> None:
    status = cluster_status({"pi-client": UP, "pi-01": UP}, scheduler("pi-01"), ["pi-01"], LIMITS, {})
    assert status["problems"] == []
    assert columns(status["rows"])[2] == "pi-01      1 d 2 h  0.42  48  ok     31 %  ok    ±0 s   4 threads"


def test_node_that_cannot_be_reached() -> None:
    status = cluster_status({"pi-01": {"unreachable": True}}, scheduler(), ["pi-01"], LIMITS, {})
    assert "DOWN" in status["rows"][1]
    assert len(status["problems"]) == 1 and "pi-01 cannot be reached" in status["problems"][0]


def test_node_without_a_status() -> None:
    assert "pi-01 has sent no status: no python" in problems({"pi-01": {"failed": True, "msg": "traceback\nno python"}})[0]


def test_card_whose_writing_has_not_ended() -> None:
    (problem,) = problems({"pi-01": UP}, {"pi-01": {"verdict": "writing", "writer": this_writer()}})
    assert f"pi-01 is not finished: writing: process {os.getpid()} is still writing it. Wait" in problem
    (problem,) = problems({"pi-01": UP}, {"pi-01": {"verdict": "writing"}})
    assert "interrupted" in problem and "cards.yml --limit pi-01 -e card_confirm=true" in problem
    assert problems({"pi-01": UP}, {"pi-01": {"verdict": "verified", "writer": this_writer()}}) == []


def test_missing_worker() -> None:
    status = cluster_status({"pi-01": UP, "pi-02": UP}, scheduler("pi-02"), ["pi-01", "pi-02"], LIMITS, {})
    assert len(status["problems"]) == 1 and "--tags worker --limit pi-01" in status["problems"][0]


def test_drained_worker() -> None:
    answer = {"rc": 0, "stdout": json.dumps({"nodes": {"pi-01": {"threads": 4, "drained": True}}})}
    status = cluster_status({"pi-01": UP}, answer, ["pi-01"], LIMITS, {})
    assert status["rows"][1][-1] == "DRAINED" and "pi-01 is drained" in status["problems"][0]


def test_scheduler_that_does_not_answer() -> None:
    for answer in ({"rc": 3, "stderr": "one\nbramble: no scheduler"}, {"unreachable": True}, {"rc": 127, "msg": "no"}):
        status = cluster_status({"pi-01": UP}, answer, ["pi-01"], LIMITS, {})
        assert len(status["problems"]) == 1, status


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"throttled": 0x50005}, "too little voltage (under-voltage, throttled)"),
        ({"throttled": 0x80000}, "throttled because of heat (soft temperature limit since boot)"),
        ({"temperature": 81.0}, "81 °C (status_max_temperature is 80)"),
        ({"disks": {"/": {"used": 0.95, "bytes": 1, "read_only": False}}}, "/ is 95 % full (status_max_disk is 90)"),
        ({"disks": {"/": {"used": 0.1, "bytes": 1, "read_only": True}}}, "read-only"),
        ({"card": {"life_time": 9, "pre_eol": None, "ext4_errors": None}}, "80 % or more worn"),
        ({"card": {"life_time": None, "pre_eol": 3, "ext4_errors": None}}, "its reserve is used up"),
        ({"card": {"life_time": None, "pre_eol": None, "ext4_errors": 2}}, "2 errors in its file system"),
        ({"io_errors": ["I/O error, dev mmcblk0"]}, "1 I/O errors in this boot, the last: I/O error, dev mmcblk0"),
        ({"load": 17.0}, "load of 4.2 for each core"),
        ({"memory_available": 0.04}, "4 % of its memory available"),
        ({"clock_offset": -6.0}, "6 s behind the control machine's"),
        ({"failed_units": ["foo.service"]}, "foo.service has failed"),
        ({"units": {"bramble-worker": {"active": "failed", "restarts": 0, "bundle": "a"}}}, "--tags worker --limit pi-01"),
        ({"units": {"bramble-worker": {"active": "active", "restarts": 11, "bundle": "a"}}}, "restarted 11 times"),
    ],
)
def test_each_problem_is_named(change: dict[str, Any], words: str) -> None:
    found = problems({"pi-01": UP | change})
    assert len(found) == 1 and words in found[0] and found[0].startswith(("pi-01", "bramble-worker of pi-01"))


def test_clock_offset_within_its_error_is_no_problem() -> None:
    assert problems({"pi-01": UP | {"clock_offset": 6.0, "clock_error": 2.0}}) == []


def test_different_versions_are_named() -> None:
    odd = UP | {"kernel": "6.6.1", "units": {"bramble-worker": {"active": "active", "restarts": 0, "bundle": "bbbb"}}}
    found = problems(
        {"pi-01": UP, "pi-02": UP, "pi-03": odd}, {"pi-01": {"image": "a"}, "pi-02": {"image": "a"}, "pi-03": {"image": "b"}}
    )
    assert len(found) == 3
    assert "packages: most have aaaa, bramble-worker of pi-03 has bbbb" in found[0]
    assert "kernel: most have 6.12.1, pi-03 has 6.6.1" in found[1]
    assert "image on its card: most have a, pi-03 has b" in found[2]


@given(st.integers(0, 2**24 - 1))
def test_every_bit_is_described_once(bits: int) -> None:
    words = throttled_words(bits)
    for bit, word in THROTTLED.items():
        is_described = bool(bits >> bit & 1) and not (bit >= 16 and bits >> (bit - 16) & 1)
        assert (word in words) == is_described
    assert any("unknown" in word for word in words) == bool(bits & ~0xF000F)


def test_playbook_reports_cards_and_nodes_when_no_node_can_be_reached(tmp_path: Path) -> None:
    """The play of status.yml itself, on addresses that refuse every connection, without the validation of keys."""
    text = (ROOT / "playbooks/status.yml").read_text()
    playbook = tmp_path / "status.yml"
    plays = text[text.index("- name: Check the status of the nodes") :]
    playbook.write_text(plays.replace("tasks/report.yml", str(ROOT / "playbooks/tasks/report.yml")))
    (tmp_path / "cards.json").write_text('{"pi-01": {"verdict": "writing"}}')
    values = {
        "ansible_host": "127.0.0.1",
        "ansible_port": 1,
        "cluster_state_dir": str(tmp_path),
        "cluster_reports_dir": str(tmp_path),
    }
    sources = [word for source in INVENTORY for word in ("-i", str(source))]
    command = ["ansible-playbook", *sources, "-e", json.dumps(values), str(playbook)]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "NODES": "2"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    status = json.loads((tmp_path / "status/status.json").read_text())
    assert done.returncode == 2 and any("pi-02 cannot be reached" in problem for problem in status["problems"])
    assert any("The new card of pi-01 is not finished: interrupted" in problem for problem in status["problems"])
