"""What the people who run a cluster do when something is wrong: strangers, full disks, power cuts, a dead control machine."""

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
from tests.support.rehearsal import INVENTORY, Play, play

from . import conftest

OVERLAY = Path(__file__).parent / "ops"
STATE = ROOT / ".state/h-ops"
NET = "10.77.96"
SERVERS = ["pi-01", "pi-02"]

playbook = partial(play, inventory=[*INVENTORY, OVERLAY])
ssh = partial(rehearsal.ssh, STATE)
told = partial(conftest.told, STATE, options=("-o", "ConnectTimeout=5"))


# What pi-02 was known by, before it is swapped.
BEFORE: dict[str, str] = {}


def said(run: Play) -> str:
    """What a run's failed tasks said."""
    return "\n".join(run.failed.values())


def computes() -> bool:
    return json.loads(told("pi-client", "bramble nodes --json -"))["nodes"].keys() == set(SERVERS)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A client and two servers after site.yml."""
    with conftest.booted(playbook, STATE, SERVERS):
        yield


@pytest.fixture
def strangers() -> Iterator[None]:
    """Two hosts that are nobody's, on the switch: one at a free address, one at pi-01's."""
    bridge = conftest.switch("h-ops")
    try:
        with (
            conftest.stranger("hops-s1", bridge, f"{NET}.77/24"),
            conftest.stranger("hops-s2", bridge, f"{NET}.101/24"),
        ):
            yield
    finally:
        # This machine may still think that pi-01 is where the stranger was.
        subprocess.run(["ip", "neighbour", "flush", "dev", bridge], check=True)


def renumber(node: str, old: int, new: int) -> None:
    """Give a node another address, until it boots."""
    # The first one first: with it, its network's others go.
    change = f"ip address delete {NET}.{old}/24 dev eth0; ip address add {NET}.{new}/24 dev eth0"
    subprocess.run(["docker", "exec", f"h-ops-{node}", "run-on-node", "sh", "-c", change], check=True)


def discovered() -> dict[str, list[tuple[str, str]]]:
    """By node (or "" for strangers), verdict and address."""
    findings = json.loads((STATE / "reports/discover/discover.json").read_text())["findings"]
    found: dict[str, list[tuple[str, str]]] = {}
    for finding in findings:
        found.setdefault(finding["name"], []).append((finding["verdict"], finding["address"]))
    return found


@pytest.mark.usefixtures("strangers")
def test_discover_sees_strangers_a_doubled_address_and_a_wrong_one() -> None:
    renumber("pi-02", 102, 150)
    run = playbook("discover", check=False)
    assert run.status == "failed"
    found = discovered()
    assert found["pi-01"] == [("duplicate", f"{NET}.101")]
    assert found["pi-02"] == [("wrong address", f"{NET}.150")]
    assert ("unknown", f"{NET}.77") in found[""]
    assert "should be 10.77.96.102" in said(run) and "claimed by" in said(run)
    svg = (STATE / "reports/discover/discover.svg").read_text()
    assert "wrong address" in svg and "duplicate" in svg
    assert playbook("discover", variables={"discover_fail": False}).status == "successful"
    renumber("pi-02", 150, 102)


def test_discover_refuses_a_subnet_that_is_too_large() -> None:
    run = playbook("discover", variables={"discover_max_addresses": 128}, check=False)
    assert "has 256 addresses" in said(run) and "Nothing was sent" in said(run)


def test_status_names_a_full_disk_and_a_stopped_worker_whose_role_alone_mends_it() -> None:
    told("pi-02", "sudo systemctl disable --now bramble-worker")
    told("pi-01", "sudo fallocate -l 26G /var/tmp/full")
    run = playbook("status", variables={"status_max_disk": 80}, check=False)
    told("pi-01", "sudo rm /var/tmp/full")
    assert run.status == "failed"
    assert "worker of pi-02 has not joined" in said(run) and "bramble-worker of pi-02 is inactive" in said(run)
    assert "pi-01: / is " in said(run) and "status_max_disk is 80" in said(run)
    run = playbook("site", arguments="--tags worker --limit pi-02")
    assert {change.split(":")[0] for change in run.changes()} == {"pi-02"}
    assert computes()


def test_a_node_that_cannot_be_swapped_is_left_alone() -> None:
    for node, words in (("pi-1", "Did you mean pi-01?"), ("pi-client", "runs the scheduler"), ("pi-08", "'spare'")):
        run = playbook("swap", variables={"node": node}, check=False)
        assert words in said(run)
    assert not (STATE / "swap").exists()
    BEFORE["key"] = (STATE / "host_keys/pi-02.pub").read_text()
    BEFORE["authority"] = told("pi-01", "sudo cat /etc/bramble/tls/ca.pem")


def begin(*arguments: str) -> subprocess.Popen[str]:
    """ansible-playbook as a person starts it, in a process group of its own."""
    inventory = [word for source in (*INVENTORY, OVERLAY) for word in ("-i", str(source))]
    return subprocess.Popen(
        ["ansible-playbook", *inventory, *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def killed_at(task: str, *arguments: str) -> None:
    """Pull the control machine's plug as soon as it begins a task."""
    process = begin(*arguments)
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith("TASK") and task in line:
            os.killpg(process.pid, signal.SIGKILL)
            break
    else:
        pytest.fail(f"there was no task {task!r}:\n{''.join(seen[-40:])}")
    process.wait()


@pytest.mark.parametrize("task", ["Drain the worker", "Write and verify all cards", "Install the packages"])
def test_a_swap_that_is_killed_goes_on(task: str) -> None:
    """The node is alive at first. Each time the run gets further than the last; the test after this one ends it."""
    killed_at(task, "playbooks/swap.yml", "-e", "node=pi-02", "-e", "swap_new_key=true")
    assert (STATE / "swap/pi-02.json").exists()


def test_the_swap_is_ended_by_another_run_and_the_old_card_is_worth_nothing() -> None:
    card = json.loads((STATE / "cards.json").read_text())["pi-02"]
    run = playbook("swap", variables={"node": "pi-02", "swap_new_key": True})
    # From where it was: the card was written by a run that was killed.
    assert not any("Write and verify" in change for change in run.changes())
    assert json.loads((STATE / "cards.json").read_text())["pi-02"]["time"] == card["time"]
    assert not (STATE / "swap/pi-02.json").exists()
    assert (STATE / "host_keys/pi-02.pub").read_text() != BEFORE["key"]
    assert BEFORE["key"].split()[1] not in (STATE / "ssh/known_hosts").read_text()
    assert told("pi-01", "sudo cat /etc/bramble/tls/ca.pem") != BEFORE["authority"]
    assert computes()


def test_a_node_that_loses_its_power_during_site_is_named_and_then_swapped() -> None:
    told("pi-01", "sudo rm /etc/systemd/journald.conf.d/bramble.conf")
    told("pi-02", "sudo rm /etc/systemd/journald.conf.d/bramble.conf")
    off: list[str] = []

    def pull(event: dict) -> None:
        if not off and "hostname" in str(event.get("event_data", {}).get("task", "")).replace(" ", "").lower():
            off.append("pi-02")
            threading.Thread(
                target=lambda: subprocess.run(["docker", "kill", "h-ops-pi-02"], check=True, capture_output=True)
            ).start()

    run = playbook("site", on_event=pull, check=False)
    assert off and set(run.failed) == {"pi-02"}, run.failed
    told("pi-01", "test -f /etc/systemd/journald.conf.d/bramble.conf")
    # It stays dead: a new card, with the key that it had.
    key = (STATE / "host_keys/pi-02.pub").read_text()
    (STATE / "cards/pi-02.img").unlink()
    playbook("swap", variables={"node": "pi-02"})
    assert (STATE / "host_keys/pi-02.pub").read_text() == key
    told("pi-02", "test -f /etc/systemd/journald.conf.d/bramble.conf")
    assert computes()
    assert playbook("site").changes() == []


def test_a_control_machine_that_dies_in_the_middle_can_begin_again() -> None:
    told("pi-01", "sudo rm -r /opt/bramble")
    killed_at("Install the packages", "playbooks/site.yml")
    playbook("site")
    deadline = time.monotonic() + 60
    while not computes() and time.monotonic() < deadline:
        time.sleep(1)
    assert computes()


def assert_nothing_is_installed() -> None:
    places = "/opt/bramble /etc/bramble/tls /etc/systemd/system/bramble-* /usr/local/bin/bramble"
    for node in ("pi-client", *SERVERS):
        assert told(node, f"ls -d {places} 2>/dev/null || true") == ""
        assert told(node, "getent passwd bramble; getent group bramble; true") == ""
        assert told(node, "systemctl list-units --all --plain --no-legend 'bramble-*'") == ""


def test_reset_takes_away_what_was_installed() -> None:
    refused = playbook("site", variables={"cluster_state": "gone"}, check=False)
    assert 'cluster_state is "gone"' in said(refused)
    playbook("site", variables={"cluster_state": "absent"})
    assert_nothing_is_installed()
    assert playbook("site", variables={"cluster_state": "absent"}).changes() == []
    dry = playbook("site", arguments="--check --diff")
    assert dry.changes(), "a node without anything needs changes"
    assert_nothing_is_installed()


def test_upgrade_stops_at_the_node_that_does_not_compute_and_goes_on_when_it_does() -> None:
    folder = "/etc/systemd/system/bramble-worker.service.d"
    told("pi-01", f"sudo mkdir {folder} && printf '[Service]\\nExecStartPre=/bin/false\\n' | sudo tee {folder}/fail.conf")
    run = playbook("upgrade", check=False)
    assert set(run.failed) == {"pi-01"}, run.failed
    assert told("pi-client", "ls /usr/local/bin/bramble")
    assert told("pi-02", "ls -d /opt/bramble 2>/dev/null || true") == "", "the next node must be as it was"
    told("pi-01", f"sudo rm -r {folder}")
    playbook("upgrade")
    assert computes()
    assert playbook("site").changes() == []
