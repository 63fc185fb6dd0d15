"""`make demo` from blank cards to sixteen jobs, and playbooks on the cluster that it has made. See also test_ops.py."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from .conftest import SERVERS, STATE, playbook, ssh

powered_on = pytest.mark.usefixtures("cluster")


def test_every_stage_is_timed(demo: dict) -> None:
    names = [stage["name"] for stage in demo["summary"]["stages"]]
    assert names == ["packages", "engine", "image", "cards", "boot", "site", "compute", "pi", "workstation"]
    assert all(stage["seconds"] >= 0 for stage in demo["summary"]["stages"])


def test_sixteen_jobs_ran_on_all_servers(demo: dict) -> None:
    compute = demo["summary"]["compute"]
    assert (compute["jobs"], compute["lost"]) == (16, 0)
    assert sorted(compute["per_node"]) == SERVERS
    assert sum(compute["per_node"].values()) == 16


def test_more_nodes_are_faster_and_the_result_is_right(demo: dict) -> None:
    pi = demo["summary"]["pi"]
    assert [run["nodes"] for run in pi["runs"]] == [1, 2]
    seconds = [run["seconds"] for run in pi["runs"]]
    assert seconds == sorted(seconds, reverse=True)
    assert math.isclose(pi["speedup"], seconds[0] / seconds[-1], rel_tol=0.01)
    # `make bench-speedup` measures the speed-up. This test only checks that there is one.
    assert pi["speedup"] > 1.3
    assert abs(pi["value"] - math.pi) < 4 * 1.642 / math.sqrt(pi["points"])


def test_the_picture_is_a_png(demo: dict) -> None:
    assert (demo["folder"] / "speedup.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_output_has_the_results(demo: dict) -> None:
    for words in ("Sixteen jobs", "speed-up", "efficiency", "2 nodes", "one whole core", "Next:", *SERVERS):
        assert words in demo["stdout"]


def test_no_resources_remain_after_the_demo(demo: dict) -> None:
    assert demo["left"] == []


@powered_on
def test_a_second_run_changes_nothing() -> None:
    run = playbook("site")
    assert run.changes() == []
    assert not any(run.changed.values())


@powered_on
def test_a_workload_that_does_not_exist_is_refused() -> None:
    run = playbook("run", variables={"workload": "nonsense"}, check=False)
    assert any("Choose one with -e workload=NAME" in message for message in run.failed.values())


@powered_on
def test_a_card_in_another_host_is_flashed_there(tmp_path: Path) -> None:
    there = {
        "card_host": "pi-client",
        "card_slot": "/var/tmp/{{ inventory_hostname }}.img",
        "card_ledger_file": f"{tmp_path}/cards.json",
    }
    dry = playbook("cards", variables=there, arguments="--check --limit pi-02")
    assert dry.status == "successful" and ssh("pi-client", "ls /var/tmp/pi-02.img").returncode == 2
    run = playbook("cards", variables=there, arguments="--limit pi-02")
    assert {change.split(":")[0] for change in run.changes()} == {"pi-02"}
    found = ssh("pi-client", "sudo mtype -i /var/tmp/pi-02.img@@8M ::user-data && stat -c %s /var/tmp/pi-02.img")
    assert "hostname: pi-02" in found.stdout and found.stdout.endswith("31914983424\n")
    (entry,) = json.loads((tmp_path / "cards.json").read_text()).values()
    assert (entry["verdict"], entry["slot"]) == ("verified", "/var/tmp/pi-02.img")
    assert ssh("pi-client", "sudo rm -r /var/tmp/pi-02.img /var/tmp/bramble-cards").returncode == 0


@powered_on
def test_the_ledger_has_the_cards_and_their_nodes() -> None:
    ledger = json.loads((STATE / "cards.json").read_text())
    assert [ledger[node]["verdict"] for node in SERVERS] == ["verified"] * len(SERVERS)
    assert all(len(ledger[node]["mac"].split(":")) == 6 for node in SERVERS)


@powered_on
def test_a_card_that_is_in_use_is_refused(tmp_path: Path) -> None:
    run = playbook("cards", arguments="--limit pi-01,pi-02", check=False)
    assert run.status == "failed"
    assert any("IN USE" in message for message in run.failed.values())
    assert ssh("pi-01", "true").returncode == 0
