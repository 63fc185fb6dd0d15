"""The filters of playbooks/swap.yml."""

from __future__ import annotations

import pytest
from ansible_collections.bramble.cluster.plugins.filter.swap import (
    card_advice,
    swap_problems,
    swap_seconds,
    swap_state,
    swap_table,
)

GROUPS = {"cluster": ["pi-client", "pi-01", "pi-02"], "scheduler": ["pi-client"], "spare": ["pi-02"], "worker": ["pi-01"]}
MARK = {"began": "2026-11-22T10:00:00Z", "new_key": False}


@pytest.mark.parametrize(
    ("node", "slot", "words"),
    [
        ("", "/dev/x", "Name the node to swap"),
        ("pi-1", "/dev/x", "There is no node 'pi-1' in the inventory. Did you mean pi-01?"),
        ("zebra", "/dev/x", "The servers are: pi-01, pi-02."),
        ("pi-client", "/dev/x", "runs the scheduler"),
        ("pi-02", "/dev/x", "'spare'"),
        ("pi-01", "", "-e card_slot=/dev/disk/by-path/"),
    ],
)
def test_nodes_that_cannot_be_swapped(node: str, slot: str, words: str) -> None:
    (problem,) = swap_problems(GROUPS, node, slot)
    assert words in problem


def test_node_that_can_be_swapped() -> None:
    assert swap_problems(GROUPS, "pi-01", "/dev/x") == []


@pytest.mark.parametrize(
    ("entry", "written"),
    [
        ({}, False),
        ({"verdict": "verified", "time": "2026-11-22T09:59:59Z"}, False),
        ({"verdict": "verified", "time": "2026-11-22T10:00:00Z"}, True),
        ({"verdict": "writing", "time": "2026-11-22T10:00:05Z"}, False),
        ({"verdict": "failed", "time": "2026-11-22T10:00:05Z"}, False),
    ],
)
def test_card_is_written_when_it_was_verified_since_the_start(entry: dict, written: bool) -> None:
    assert swap_state(MARK, {"pi-01": entry, "pi-02": {"verdict": "verified", "time": "2027"}}, "pi-01")["written"] is written


def test_seconds_by_stage() -> None:
    ends = [("", 100.0), ("drain", 102.5), ("power off", 112.5), ("write the card", 150.0), ("boot", 170.0), ("set up", 200.0)]
    seconds = swap_seconds(ends)
    assert list(seconds.values()) == [2.5, 10.0, 37.5, 20.0, 30.0, 100.0, 32.5]
    assert swap_table(seconds)[-1].split() == ["Ansible's", "part", "32.5", "s"]


def test_advice_for_a_card() -> None:
    assert card_advice("a\nb", fit=True)[:2] == ["a", "b"]
    assert card_advice("", fit=True)[-1].endswith("-e card_confirm=true")
    assert "Insert another card" in card_advice("", fit=False)[-1]
