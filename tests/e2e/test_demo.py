"""`make demo`: blank cards to sixteen jobs, once, for real."""

from __future__ import annotations

import math

import pytest

from .conftest import SERVERS

pytestmark = pytest.mark.xdist_group("demo")


def test_every_stage_is_timed(demo: dict) -> None:
    names = [stage["name"] for stage in demo["summary"]["stages"]]
    assert names == ["packages", "engine", "image", "cards", "boot", "site", "compute", "pi", "workstation"]
    assert all(stage["seconds"] >= 0 for stage in demo["summary"]["stages"])


def test_sixteen_jobs_ran_on_all_servers(demo: dict) -> None:
    compute = demo["summary"]["compute"]
    assert (compute["jobs"], compute["lost"]) == (16, 0)
    assert sorted(compute["per_node"]) == SERVERS
    assert sum(compute["per_node"].values()) == 16


def test_more_nodes_are_faster_and_right(demo: dict) -> None:
    pi = demo["summary"]["pi"]
    assert [run["nodes"] for run in pi["runs"]] == [1, 2]
    seconds = [run["seconds"] for run in pi["runs"]]
    assert seconds == sorted(seconds, reverse=True)
    assert math.isclose(pi["speedup"], seconds[0] / seconds[-1], rel_tol=0.01)
    # How well is for `make bench-speedup`; that nodes add up at all is for this test.
    assert pi["speedup"] > 1.3
    assert abs(pi["value"] - math.pi) < 4 * 1.642 / math.sqrt(pi["points"])


def test_the_picture_is_one(demo: dict) -> None:
    assert (demo["folder"] / "speedup.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_table_says_it(demo: dict) -> None:
    for words in ("Sixteen jobs", "speed-up", "efficiency", "2 nodes", "one whole core", "Next:", *SERVERS):
        assert words in demo["stdout"]


def test_nothing_runs_afterwards(demo: dict) -> None:
    assert demo["left"] == []
