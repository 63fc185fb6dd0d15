"""Playbooks on a cluster with problems: unknown hosts, full disks, power cuts, a control machine that is switched off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support import ROOT, rehearsal
from tests.support.nodes import failures
from tests.support.rehearsal import INVENTORY, play

from . import conftest

OVERLAY = Path(__file__).parent / "ops"
STATE = ROOT / ".state/h-ops"
NET = "10.77.96"
SERVERS = ["pi-01", "pi-02"]

playbook = partial(play, inventory=[*INVENTORY, OVERLAY])
ssh = partial(rehearsal.ssh, STATE)
output = partial(conftest.node_output, STATE, options=("-o", "ConnectTimeout=5"))


# The host key of pi-02 and the certificate of the authority, before pi-02 is swapped.
KEYS_BEFORE_SWAP: dict[str, str] = {}


def all_nodes_compute() -> bool:
    """Return whether the workers of all servers have joined the scheduler."""
    return json.loads(output("pi-client", "bramble nodes --json -"))["nodes"].keys() == set(SERVERS)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Set up a client and two servers with site.yml."""
    with conftest.running_cluster(playbook, STATE, SERVERS):
        yield


@pytest.fixture
def strangers() -> Iterator[None]:
    """Connect two hosts that are no nodes to the switch: one at a free address, one at the address of pi-01."""
    bridge = conftest.switch("h-ops")
    try:
        with (
            conftest.foreign_host("hops-s1", bridge, f"{NET}.77/24"),
            conftest.foreign_host("hops-s2", bridge, f"{NET}.101/24"),
        ):
            yield
    finally:
        # The control machine may still have the foreign host's hardware address for the address of pi-01.
        subprocess.run(["ip", "neighbour", "flush", "dev", bridge], check=True)


def renumber(node: str, old: int, new: int) -> None:
    """Give a node another address, until it boots again.

    :param old: the host part of its address
    :param new: the host part of its new address
    """
    # The old address is deleted first: if it were deleted last, the new one of the same subnet would be deleted with it.
    change = f"ip address delete {NET}.{old}/24 dev eth0; ip address add {NET}.{new}/24 dev eth0"
    subprocess.run(["docker", "exec", f"h-ops-{node}", "run-on-node", "sh", "-c", change], check=True)


def read_findings() -> dict[str, list[tuple[str, str]]]:
    """Return the verdicts and addresses in the report of discover.yml, by the name of the node ("" for other hosts)."""
    findings = json.loads((STATE / "reports/discover/discover.json").read_text())["findings"]
    found: dict[str, list[tuple[str, str]]] = {}
    for finding in findings:
        found.setdefault(finding["name"], []).append((finding["verdict"], finding["address"]))
    return found


@pytest.mark.usefixtures("strangers")
def test_discover_reports_unknown_hosts_and_duplicate_and_wrong_addresses() -> None:
    renumber("pi-02", 102, 150)
    run = playbook("discover", check=False)
    assert run.status == "failed"
    found = read_findings()
    assert found["pi-01"] == [("duplicate", f"{NET}.101")]
    assert found["pi-02"] == [("wrong address", f"{NET}.150")]
    assert ("unknown", f"{NET}.77") in found[""]
    assert "should be 10.77.96.102" in failures(run) and "claimed by" in failures(run)
    svg = (STATE / "reports/discover/discover.svg").read_text()
    assert "wrong address" in svg and "duplicate" in svg
    assert playbook("discover", variables={"discover_fail": False}).status == "successful"
    renumber("pi-02", 150, 102)


def test_discover_refuses_a_subnet_that_is_too_large() -> None:
    run = playbook("discover", variables={"discover_max_addresses": 128}, check=False)
    assert "has 256 addresses" in failures(run) and "Nothing was sent" in failures(run)


def test_status_reports_a_full_disk_and_a_stopped_worker_and_the_role_worker_repairs_it() -> None:
    output("pi-02", "sudo systemctl disable --now bramble-worker")
    output("pi-01", "sudo fallocate -l 26G /var/tmp/full")
    run = playbook("status", variables={"status_max_disk": 80}, check=False)
    output("pi-01", "sudo rm /var/tmp/full")
    assert run.status == "failed"
    assert "worker of pi-02 has not joined" in failures(run) and "bramble-worker of pi-02 is inactive" in failures(run)
    assert "pi-01: / is " in failures(run) and "status_max_disk is 80" in failures(run)
    run = playbook("site", arguments="--tags worker --limit pi-02")
    assert {change.split(":")[0] for change in run.changes()} == {"pi-02"}
    assert all_nodes_compute()


def test_a_node_that_cannot_be_swapped_is_refused() -> None:
    for node, words in (("pi-1", "Did you mean pi-01?"), ("pi-client", "runs the scheduler"), ("pi-08", "'spare'")):
        run = playbook("swap", variables={"node": node}, check=False)
        assert words in failures(run)
    assert not (STATE / "swap").exists()
    KEYS_BEFORE_SWAP["key"] = (STATE / "host_keys/pi-02.pub").read_text()
    KEYS_BEFORE_SWAP["authority"] = output("pi-01", "sudo cat /etc/bramble/tls/ca.pem")


def start_playbook(*arguments: str) -> subprocess.Popen[str]:
    """Start ansible-playbook in its own process group."""
    inventory = [word for source in (*INVENTORY, OVERLAY) for word in ("-i", str(source))]
    return subprocess.Popen(
        ["ansible-playbook", *inventory, *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def kill_at_task(task: str, *arguments: str) -> None:
    """Run a playbook, and kill it as soon as it begins a task."""
    process = start_playbook(*arguments)
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith("TASK") and task in line:
            os.killpg(process.pid, signal.SIGKILL)
            break
    else:
        pytest.fail(f"The playbook did not run the task {task!r}. Its last lines:\n{''.join(seen[-40:])}")
    process.wait()


@pytest.mark.parametrize("task", ["Drain the worker", "Write and verify all cards", "Install the packages"])
def test_a_swap_that_is_killed_can_continue(task: str) -> None:
    """The node is alive at first. Each run gets further than the previous one; the next test completes the swap."""
    kill_at_task(task, "playbooks/swap.yml", "-e", "node=pi-02", "-e", "swap_new_key=true")
    assert (STATE / "swap/pi-02.json").exists()


def test_another_run_completes_the_swap_and_the_old_card_has_no_valid_key() -> None:
    card = json.loads((STATE / "cards.json").read_text())["pi-02"]
    run = playbook("swap", variables={"node": "pi-02", "swap_new_key": True})
    # The card was written by a run that was killed, so it is not written again.
    assert not any("Write and verify" in change for change in run.changes())
    assert json.loads((STATE / "cards.json").read_text())["pi-02"]["time"] == card["time"]
    assert not (STATE / "swap/pi-02.json").exists()
    assert (STATE / "host_keys/pi-02.pub").read_text() != KEYS_BEFORE_SWAP["key"]
    assert KEYS_BEFORE_SWAP["key"].split()[1] not in (STATE / "ssh/known_hosts").read_text()
    assert output("pi-01", "sudo cat /etc/bramble/tls/ca.pem") != KEYS_BEFORE_SWAP["authority"]
    assert all_nodes_compute()


def test_a_node_that_loses_its_power_during_site_is_reported_and_then_swapped() -> None:
    output("pi-01", "sudo rm /etc/systemd/journald.conf.d/bramble.conf")
    output("pi-02", "sudo rm /etc/systemd/journald.conf.d/bramble.conf")
    powered_off: list[str] = []

    def cut_power(event: dict) -> None:
        if not powered_off and "hostname" in str(event.get("event_data", {}).get("task", "")).replace(" ", "").lower():
            powered_off.append("pi-02")
            threading.Thread(
                target=lambda: subprocess.run(["docker", "kill", "h-ops-pi-02"], check=True, capture_output=True)
            ).start()

    run = playbook("site", on_event=cut_power, check=False)
    assert powered_off and set(run.failed) == {"pi-02"}, run.failed
    output("pi-01", "test -f /etc/systemd/journald.conf.d/bramble.conf")
    # The node stays off, and gets a new card with the same host key.
    key = (STATE / "host_keys/pi-02.pub").read_text()
    (STATE / "cards/pi-02.img").unlink()
    playbook("swap", variables={"node": "pi-02"})
    assert (STATE / "host_keys/pi-02.pub").read_text() == key
    output("pi-02", "test -f /etc/systemd/journald.conf.d/bramble.conf")
    assert all_nodes_compute()
    assert playbook("site").changes() == []


def test_site_completes_after_a_run_that_was_killed() -> None:
    output("pi-01", "sudo rm -r /opt/bramble")
    kill_at_task("Install the packages", "playbooks/site.yml")
    playbook("site")
    deadline = time.monotonic() + 60
    while not all_nodes_compute() and time.monotonic() < deadline:
        time.sleep(1)
    assert all_nodes_compute()


def assert_nothing_is_installed() -> None:
    places = "/opt/bramble /etc/bramble/tls /etc/systemd/system/bramble-* /usr/local/bin/bramble"
    for node in ("pi-client", *SERVERS):
        assert output(node, f"ls -d {places} 2>/dev/null || true") == ""
        assert output(node, "getent passwd bramble; getent group bramble; true") == ""
        assert output(node, "systemctl list-units --all --plain --no-legend 'bramble-*'") == ""


def test_cluster_state_absent_removes_what_was_installed() -> None:
    refused = playbook("site", variables={"cluster_state": "gone"}, check=False)
    assert 'cluster_state is "gone"' in failures(refused)
    playbook("site", variables={"cluster_state": "absent"})
    assert_nothing_is_installed()
    assert playbook("site", variables={"cluster_state": "absent"}).changes() == []
    dry = playbook("site", arguments="--check --diff")
    assert dry.changes(), "A dry run on nodes without the engine must show changes."
    assert_nothing_is_installed()


def test_upgrade_stops_at_a_node_that_does_not_compute_and_another_run_completes() -> None:
    folder = "/etc/systemd/system/bramble-worker.service.d"
    output("pi-01", f"sudo mkdir {folder} && printf '[Service]\\nExecStartPre=/bin/false\\n' | sudo tee {folder}/fail.conf")
    run = playbook("upgrade", check=False)
    assert set(run.failed) == {"pi-01"}, run.failed
    assert output("pi-client", "ls /usr/local/bin/bramble")
    assert output("pi-02", "ls -d /opt/bramble 2>/dev/null || true") == "", "The nodes after the failed one must be unchanged."
    output("pi-01", f"sudo rm -r {folder}")
    playbook("upgrade")
    assert all_nodes_compute()
    assert playbook("site").changes() == []
