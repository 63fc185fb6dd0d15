"""The judgement of playbooks/status.yml."""

from __future__ import annotations

import json

from status import cluster_status

UP = {"rc": 0, "stdout": "93784.55 123.0\n0.42 0.30 0.20 1/90 4711\n"}


def scheduler(*nodes: str) -> dict:
    return {"rc": 0, "stdout": json.dumps({"nodes": {node: {"threads": 4} for node in nodes}})}


def test_all_well() -> None:
    status = cluster_status({"pi-client": UP, "pi-01": UP}, scheduler("pi-01"), ["pi-01"])
    assert status["problems"] == []
    assert status["lines"][2].split() == ["pi-01", "1", "d", "2", "h", "0.42", "4", "threads"]


def test_a_node_that_is_down() -> None:
    status = cluster_status({"pi-01": {"unreachable": True}}, scheduler(), ["pi-01"])
    assert "DOWN" in status["lines"][1]
    assert len(status["problems"]) == 1 and "pi-01 cannot be reached" in status["problems"][0]


def test_a_worker_that_has_not_joined() -> None:
    status = cluster_status({"pi-01": UP, "pi-02": UP}, scheduler("pi-02"), ["pi-01", "pi-02"])
    assert len(status["problems"]) == 1 and "--tags worker --limit pi-01" in status["problems"][0]


def test_a_scheduler_that_does_not_answer() -> None:
    for answer in ({"rc": 3, "stderr": "one\nbramble: no scheduler"}, {"unreachable": True}, {"rc": 127, "msg": "no"}):
        status = cluster_status({"pi-01": UP}, answer, ["pi-01"])
        assert len(status["problems"]) == 1, status
