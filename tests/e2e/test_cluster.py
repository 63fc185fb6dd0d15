"""What people do with a cluster after the first day: run site.yml again, one role, swap a node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import SERVERS, STATE, playbook, ssh

pytestmark = pytest.mark.usefixtures("cluster")


def sixteen_jobs(folder: Path) -> dict:
    playbook("run", variables={"workload": "compute", "workload_args": "--scale 0.1", "run_report_dir": str(folder)})
    return json.loads((folder / "compute.json").read_text())


def test_a_second_run_changes_nothing() -> None:
    run = playbook("site")
    assert run.changes() == []
    assert not any(run.changed.values())


def test_a_workload_that_does_not_exist_is_refused() -> None:
    run = playbook("run", variables={"workload": "nonsense"}, check=False)
    assert any("Say which workload" in message for message in run.failed.values())


def test_status_is_well() -> None:
    assert playbook("status").status == "successful"


def test_status_names_a_worker_that_is_missing_and_its_role_alone_mends_it() -> None:
    assert ssh("pi-02", "sudo systemctl disable --now bramble-worker").returncode == 0
    run = playbook("status", check=False)
    assert run.status == "failed"
    assert any("worker of pi-02 has not joined" in message for message in run.failed.values())
    run = playbook("site", arguments="--tags worker --limit pi-02")
    assert {change.split(":")[0] for change in run.changes()} == {"pi-02"}
    assert playbook("status").status == "successful"


def test_a_node_is_swapped(tmp_path: Path) -> None:
    """Its card and its board are gone; a blank card takes their place."""
    host_key = (STATE / "host_keys/pi-03.pub").read_text()
    playbook("rehearse", variables={"standin_state": "absent"}, arguments="--limit pi-03")
    (STATE / "cards/pi-03.img").unlink()
    assert ssh("pi-03", "true").returncode == 255

    run = playbook("cards", arguments="--limit pi-03")
    assert {change.split(":")[0] for change in run.changes()} == {"pi-03"}
    playbook("rehearse", variables={"standin_cpus": 0}, arguments="--limit pi-03")
    assert (STATE / "host_keys/pi-03.pub").read_text() == host_key

    dry = playbook("site", arguments="--check --diff --limit pi-03")
    assert dry.changes(), "a fresh node needs changes"
    assert ssh("pi-03", "ls /opt/bramble /etc/bramble/tls").returncode == 2, "a dry run changed the node"

    playbook("site", arguments="--limit pi-03")
    assert playbook("site", arguments="--limit pi-03").changes() == []
    report = sixteen_jobs(tmp_path)
    assert (report["jobs"], report["lost"], sorted(report["per_node"])) == (16, 0, SERVERS)


def test_a_card_in_another_host_is_flashed_there(tmp_path: Path) -> None:
    there = {
        "card_host": "pi-client",
        "card_slot": "/var/tmp/{{ inventory_hostname }}.img",
        "card_ledger_file": f"{tmp_path}/cards.json",
    }
    dry = playbook("cards", variables=there, arguments="--check --limit pi-04")
    assert dry.status == "successful" and ssh("pi-client", "ls /var/tmp/pi-04.img").returncode == 2
    run = playbook("cards", variables=there, arguments="--limit pi-04")
    assert {change.split(":")[0] for change in run.changes()} == {"pi-04"}
    found = ssh("pi-client", "sudo mtype -i /var/tmp/pi-04.img@@8M ::user-data && stat -c %s /var/tmp/pi-04.img")
    assert "hostname: pi-04" in found.stdout and found.stdout.endswith("31914983424\n")
    (entry,) = json.loads((tmp_path / "cards.json").read_text()).values()
    assert (entry["verdict"], entry["slot"]) == ("verified", "/var/tmp/pi-04.img")
    assert ssh("pi-client", "sudo rm -r /var/tmp/pi-04.img /var/tmp/bramble-cards").returncode == 0


def test_the_ledger_knows_the_cards_and_their_nodes() -> None:
    ledger = json.loads((STATE / "cards.json").read_text())
    assert [ledger[node]["verdict"] for node in SERVERS] == ["verified"] * len(SERVERS)
    assert all(len(ledger[node]["mac"].split(":")) == 6 for node in SERVERS)


def test_a_card_with_the_right_content_is_left_alone_and_one_in_use_is_refused(tmp_path: Path) -> None:
    run = playbook("cards", arguments="--limit pi-01,pi-02", check=False)
    assert run.status == "failed"
    assert any("IN USE" in message for message in run.failed.values())
    assert ssh("pi-01", "true").returncode == 0
