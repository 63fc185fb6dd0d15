"""What people do with a cluster after the first day: run site.yml again, write cards elsewhere. See test_ops.py for more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import SERVERS, STATE, playbook, ssh

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.xdist_group("demo")]


def test_a_second_run_changes_nothing() -> None:
    run = playbook("site")
    assert run.changes() == []
    assert not any(run.changed.values())


def test_a_workload_that_does_not_exist_is_refused() -> None:
    run = playbook("run", variables={"workload": "nonsense"}, check=False)
    assert any("Say which workload" in message for message in run.failed.values())


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


def test_the_ledger_knows_the_cards_and_their_nodes() -> None:
    ledger = json.loads((STATE / "cards.json").read_text())
    assert [ledger[node]["verdict"] for node in SERVERS] == ["verified"] * len(SERVERS)
    assert all(len(ledger[node]["mac"].split(":")) == 6 for node in SERVERS)


def test_a_card_with_the_right_content_is_left_alone_and_one_in_use_is_refused(tmp_path: Path) -> None:
    run = playbook("cards", arguments="--limit pi-01,pi-02", check=False)
    assert run.status == "failed"
    assert any("IN USE" in message for message in run.failed.values())
    assert ssh("pi-01", "true").returncode == 0
