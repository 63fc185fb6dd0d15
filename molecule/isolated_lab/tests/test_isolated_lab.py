"""The isolated lab on two nodes and a client that is connected to a simulated internet (scripts/outside.py), and its removal.

pi-01 has a second port that is connected to the simulated internet. No packet leaves the control machine. The tests depend on
each other and run in their order.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from scripts import outside
from tests.support import ROOT, rehearsal
from tests.support.nodes import failures, scenario
from tests.support.rehearsal import Play
from tests.support.tree import differences, node_snapshot

CLUSTER = scenario("isolated_lab")
STATE = CLUSTER.state
REPORT = ROOT / "reports/isolated_lab/molecule-isolated_lab"
SUBNET = "10.77.136.0/24"
SERVERS = ["pi-01", "pi-02"]
NODES = ["pi-client", *SERVERS]
TARGET = "10.77.136.101"
LAYERS = ["client", "firewall", "route", "resolver", "ipv6", "radio", "nic", "package"]
PROOF = "/run/bramble-lab/proof.json"

playbook, output = CLUSTER.playbook, CLUSTER.output
OUTSIDE = outside.Outside(CLUSTER.name, SUBNET, leak="pi-01")


def lab(arguments: str = "", check: bool = True, **variables: Any) -> Play:
    """Run playbooks/isolated_lab.yml with further variables."""
    # The playbook has many short tasks, for which this strategy needs a third of the time.
    strategy = {"ANSIBLE_STRATEGY": "mitogen_linear"}
    return playbook("isolated_lab", variables=variables, arguments=arguments, environment=strategy, check=check)


def report(phase: str = "isolated") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((REPORT / f"{phase}.json").read_text())
    return found


def trees() -> dict[str, dict[str, str]]:
    """Return the files of each node."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(NODES, pool.map(lambda node: node_snapshot(partial(output, node)), NODES), strict=True))


@contextmanager
def frames_at_the_uplink() -> Iterator[list[str]]:
    """Yield a list that has the frames of the lab at the client's uplink after the context has ended, as lines of tcpdump.

    Frames between the client and its gateway are left out.
    """
    frames: list[str] = []
    command = OUTSIDE.in_namespace("tcpdump", "--immediate-mode", "-l", "-n", "-i", outside.UPLINK, "not arp and not icmp6")
    command[-1] = f"({command[-1]}) or host ({' or '.join([*outside.INTERNET])}) or net {SUBNET} or net {outside.ADVERTISED}/64"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as capture:
        assert capture.stdout and capture.stderr
        assert "listening on" in capture.stderr.readline() + capture.stderr.readline()
        yield frames
        time.sleep(0.5)
        capture.terminate()
        # tcpdump may write an empty line when it is stopped.
        frames += filter(None, capture.stdout.read().splitlines())


@pytest.fixture(scope="module")
def base() -> dict[str, dict[str, str]]:
    """Return the files of the nodes before converge.yml, which ../before has recorded."""
    found: dict[str, dict[str, str]] = json.loads((STATE / "trees.json").read_text())
    return found


def test_forbidden_probes_succeed_before_the_isolation_and_fail_after_it() -> None:
    before, after = report("before"), report()
    assert before["forbidden"] - before["reached"] == 1  # pi-02 has no second port.
    assert (after["reached"], after["failed"], after["frames"]["lab"]) == (0, 0, 0) and before["frames"]["lab"] > 20
    hostile = [row for row in after["rows"] if row.get("as") == "hostile root"]
    assert {row["from"] for row in hostile} == set(SERVERS) and len(hostile) > 50
    for node in NODES:
        proof = json.loads(output(node, f"cat {PROOF}"))
        assert proof == {key: after[key] for key in ("at", "subnet", "forbidden", "reached", "allowed", "failed")}
        assert output(node, f"stat -c '%U %a' {PROOF}") == "root 644"
    assert "Yes, by the proof of" in (REPORT / "report.html").read_text() and (REPORT / "report.svg").exists()
    # The tools were installed from the client's mirror, and the targets were started after the proof.
    assert output("pi-02", "dpkg-query --show --showformat='${Status}' tcpdump") == "install ok installed"
    assert "<td>" in output("pi-client", f"lab curl -s 'http://{TARGET}:8080/search?q=tea'")


def test_a_second_run_changes_nothing_and_sends_no_frame_outside() -> None:
    with frames_at_the_uplink() as frames:
        assert lab().changes() == []
    assert frames == []


# The layers that are missing in each run. At most one is missing on each host, so that no other can be the cause of a failure.
MISSING: list[dict[str, str]] = [
    {"pi-client": "client"},
    {"pi-01": "nic", "pi-02": "firewall"},
    {"pi-01": "route", "pi-02": "resolver"},
    {"pi-01": "ipv6", "pi-02": "radio"},
    {"pi-01": "package"},
]


def test_each_layer_is_missing_in_one_run() -> None:
    assert sorted(layer for missing in MISSING for layer in missing.values()) == sorted(LAYERS)


@pytest.mark.parametrize("number", range(len(MISSING)))
def test_the_proof_fails_without_any_one_layer(number: int) -> None:
    """A probe of its own detects that a layer is missing. The layers that the previous test removed are installed again."""
    missing = MISSING[number]
    tags = {*missing.values(), *(MISSING[number - 1].values() if number else ())}
    layers = f"{{{{ {LAYERS} | difference([{missing}[inventory_hostname] | default('')]) }}}}"
    run = lab(f"--tags {','.join(sorted(tags))},verify", check=False, isolated_lab_layers=layers)
    assert run.status == "failed" and "The lab is not proven to be isolated" in failures(run)
    red = [row for row in report()["rows"] if row["must"] == "fail" and row["reached"]]
    found = {(row["from"], row["layer"]) for row in red if "layer" in row}
    # The second port has its own default route.
    assert set(missing.items()) <= found <= {*missing.items(), *([("pi-01", "route")] if "nic" in missing.values() else [])}
    traffic = {(row["from"], row["to"]) for row in red if "layer" not in row and row["to"] != "client"}
    frames_were_seen = "frames of the lab were seen at the client's uplink" in failures(run)
    if "client" in missing.values():
        # The node's own firewall does not stop raw frames, nor a root who flushes it.
        assert {row["kind"] for row in red if not row.get("as") and row["to"] == "internet"} == {"frame"}
        assert {"tcp 80, IPv4", "name server, IPv4"} <= {row["what"] for row in red if row.get("as") and row["to"] == "internet"}
        assert frames_were_seen
    elif "firewall" in missing.values():
        assert traffic == {("pi-01", "pi-02")} and not frames_were_seen  # SSH from another node gets through.
    elif "ipv6" in missing.values():
        # A router on the switch is a second gateway beside the client, for a root who has flushed the firewall.
        out = [row for row in red if (row["from"], row["to"]) in traffic]
        assert traffic == {("pi-01", "internet")} and not frames_were_seen
        assert all(row.get("as") and ":" in row.get("host", "") for row in out), out
    else:
        assert not traffic and not frames_were_seen, red
    assert all(output(node, f"test -e {PROOF} || echo none") == "none" for node in NODES)


def test_a_second_port_that_was_set_up_again_is_reported() -> None:
    lab("--tags package")
    output("pi-01", "sudo ip link set eth1 up")
    run = lab("--tags verify", check=False)
    assert "pi-01: another port that is up (eth1 (" in failures(run)
    run = lab("--tags nic,verify")
    assert any("more ports up than eth0: eth1 (" in event.get("stdout", "") for event in run.events)
    assert report()["reached"] == 0


def test_a_firewall_that_locks_the_control_machine_out_is_rolled_back() -> None:
    lockout = {"isolated_lab_control": "10.77.136.77", "isolated_lab_timeout": 30}
    run = lab("--tags firewall --limit pi-01", check=False, **lockout)
    assert "does not let the control machine in" in failures(run) and "isolated_lab_control" in failures(run)
    end = time.monotonic() + 60
    while rehearsal.ssh(STATE, "pi-01", "true", "-o", "ConnectTimeout=2").returncode:
        assert time.monotonic() < end
    assert lab("--tags firewall").changes() == []


def test_the_isolation_holds_after_a_reboot_and_targets_need_a_new_proof() -> None:
    """The table is loaded before the network starts, even though NetworkManager has a configuration of pi-01's second port."""
    with frames_at_the_uplink() as frames:
        for node in SERVERS:
            rehearsal.ssh(STATE, node, "sudo systemctl --no-block reboot")
        time.sleep(2)
        playbook("rehearse")
        assert all(output(node, f"test -e {PROOF} || echo none") == "none" for node in SERVERS)
        lab("--tags verify", isolated_lab_phase="rebooted")
    assert frames == []
    assert report("rebooted")["reached"] == 0
    stamp = "systemctl show --property {}TimestampMonotonic --value {}"
    table = int(output("pi-01", stamp.format("ExecMainExit", "bramble-lab")))
    assert 0 < table < int(output("pi-01", stamp.format("ExecMainStart", "NetworkManager")))


def test_the_removal_leaves_nothing(base: dict[str, dict[str, str]]) -> None:
    run = playbook("site", check=False)
    assert "Remove the profile first: ansible-playbook playbooks/isolated_lab.yml" in failures(run)
    lab(cluster_state="absent")
    after = trees()
    assert {node: differences(base[node], after[node]) for node in NODES} == {node: [] for node in NODES}
    assert playbook("site").changes() == []
    record = json.loads(output("pi-client", "bramble compute --scale 0.2 --json -"))
    assert record["lost"] == 0 and sorted(row["job"] for row in record["results"]) == list(range(16))
