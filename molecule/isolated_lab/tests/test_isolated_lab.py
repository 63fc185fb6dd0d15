"""The isolated lab on two nodes and a client that shares its "internet" (scripts/outside.py), and back. One story, in this order.

pi-01 has a second port into the outside. Nothing here leaves this machine.
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
from tests.support.nodes import scenario
from tests.support.rehearsal import Play
from tests.support.tree import differences, tree

CLUSTER = scenario("isolated_lab")
STATE = CLUSTER.state
REPORT = ROOT / "reports/isolated_lab/molecule-isolated_lab"
SUBNET = "10.77.136.0/24"
SERVERS = ["pi-01", "pi-02"]
NODES = ["pi-client", *SERVERS]
TARGET = "10.77.136.101"
LAYERS = ["client", "firewall", "route", "resolver", "ipv6", "radio", "nic", "package"]
PROOF = "/run/bramble-lab/proof.json"

playbook, told = CLUSTER.playbook, CLUSTER.output
OUTSIDE = outside.Outside(CLUSTER.name, SUBNET, leak="pi-01")


def lab(arguments: str = "", check: bool = True, **variables: Any) -> Play:
    # Many small steps: that takes a third of the time.
    quick = {"ANSIBLE_STRATEGY": "mitogen_linear"}
    return playbook("isolated_lab", variables=variables, arguments=arguments, environment=quick, check=check)


def report(phase: str = "isolated") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((REPORT / f"{phase}.json").read_text())
    return found


def trees() -> dict[str, dict[str, str]]:
    """What is on each node."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(NODES, pool.map(lambda node: tree(partial(told, node)), NODES), strict=True))


def why(run: Play) -> str:
    return "\n".join(run.failed.values())


@contextmanager
def frames_at_the_uplink() -> Iterator[list[str]]:
    """What tcpdump sees there meanwhile, when it is over; without what client and gateway have to say to each other."""
    seen: list[str] = []
    command = OUTSIDE.inside("tcpdump", "--immediate-mode", "-l", "-n", "-i", outside.UPLINK, "not arp and not icmp6")
    command[-1] = f"({command[-1]}) or host ({' or '.join([*outside.INTERNET])}) or net {SUBNET} or net {outside.ADVERTISED}/64"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as capture:
        assert capture.stdout and capture.stderr
        assert "listening on" in capture.stderr.readline() + capture.stderr.readline()
        yield seen
        time.sleep(0.5)
        capture.terminate()
        # When it is stopped it ends a line that it may have begun.
        seen += filter(None, capture.stdout.read().splitlines())


@pytest.fixture(scope="module")
def base() -> dict[str, dict[str, str]]:
    """What was on the nodes before converge.yml: see ../before."""
    found: dict[str, dict[str, str]] = json.loads((STATE / "trees.json").read_text())
    return found


def test_all_is_reached_before_and_nothing_after() -> None:
    before, after = report("before"), report()
    # 3 hosts; what gets through before is what is blocked after.
    assert before["forbidden"] - before["reached"] == 1  # pi-02 has no second port
    assert (after["reached"], after["failed"], after["frames"]["lab"]) == (0, 0, 0) and before["frames"]["lab"] > 20
    hostile = [row for row in after["rows"] if row.get("as") == "hostile root"]
    assert {row["from"] for row in hostile} == set(SERVERS) and len(hostile) > 50
    for node in NODES:
        proof = json.loads(told(node, f"cat {PROOF}"))
        assert proof == {key: after[key] for key in ("at", "subnet", "forbidden", "reached", "allowed", "failed")}
        assert told(node, f"stat -c '%U %a' {PROOF}") == "root 644"
    assert "Yes, by the proof of" in (REPORT / "report.html").read_text() and (REPORT / "report.svg").exists()
    # The tools came from the client's mirror, and the targets only after the proof.
    assert told("pi-02", "dpkg-query --show --showformat='${Status}' tcpdump") == "install ok installed"
    assert "<td>" in told("pi-client", f"lab curl -s 'http://{TARGET}:8080/search?q=tea'")


def test_the_second_run_changes_nothing_and_nobody_outside_hears_of_it() -> None:
    with frames_at_the_uplink() as seen:
        assert lab().changes() == []
    assert seen == []


# Which layer is missing where. At most one in each host, so that nothing else can have turned it red.
MISSING: list[dict[str, str]] = [
    {"pi-client": "client"},
    {"pi-01": "nic", "pi-02": "firewall"},
    {"pi-01": "route", "pi-02": "resolver"},
    {"pi-01": "ipv6", "pi-02": "radio"},
    {"pi-01": "package"},
]


def test_the_list_of_what_is_missing_has_every_layer() -> None:
    assert sorted(layer for missing in MISSING for layer in missing.values()) == sorted(LAYERS)


@pytest.mark.parametrize("number", range(len(MISSING)))
def test_without_any_one_layer_it_is_red(number: int) -> None:
    """A probe of its own misses it; those that the last test took away are put back."""
    missing = MISSING[number]
    tags = {*missing.values(), *(MISSING[number - 1].values() if number else ())}
    layers = f"{{{{ {LAYERS} | difference([{missing}[inventory_hostname] | default('')]) }}}}"
    run = lab(f"--tags {','.join(sorted(tags))},verify", check=False, isolated_lab_layers=layers)
    assert run.status == "failed" and "The lab is not proven to be isolated" in why(run)
    red = [row for row in report()["rows"] if row["must"] == "fail" and row["reached"]]
    found = {(row["from"], row["layer"]) for row in red if "layer" in row}
    # The second port has a default route of its own.
    assert set(missing.items()) <= found <= {*missing.items(), *([("pi-01", "route")] if "nic" in missing.values() else [])}
    traffic = {(row["from"], row["to"]) for row in red if "layer" not in row and row["to"] != "client"}
    frames = "frames of the lab were seen at the client's uplink" in why(run)
    if "client" in missing.values():
        # The node's own firewall is not containment: not against frames made by hand, not against root.
        assert {row["kind"] for row in red if not row.get("as") and row["to"] == "internet"} == {"frame"}
        assert {"tcp 80, IPv4", "name server, IPv4"} <= {row["what"] for row in red if row.get("as") and row["to"] == "internet"}
        assert frames
    elif "firewall" in missing.values():
        assert traffic == {("pi-01", "pi-02")} and not frames  # ssh from another node
    elif "ipv6" in missing.values():
        # The router that nobody asked for is on the switch: a way out beside the client's, for a root who flushed the firewall.
        out = [row for row in red if (row["from"], row["to"]) in traffic]
        assert traffic == {("pi-01", "internet")} and not frames
        assert all(row.get("as") and ":" in row.get("host", "") for row in out), out
    else:
        assert not traffic and not frames, red
    assert all(told(node, f"test -e {PROOF} || echo none") == "none" for node in NODES)


def test_a_second_port_that_comes_up_again_is_named() -> None:
    lab("--tags package")
    told("pi-01", "sudo ip link set eth1 up")
    run = lab("--tags verify", check=False)
    assert "pi-01: another port that is up (eth1 (" in why(run)
    run = lab("--tags nic,verify")
    assert any("more ports up than eth0: eth1 (" in event.get("stdout", "") for event in run.events)
    assert report()["reached"] == 0


def test_a_firewall_that_shuts_this_machine_out_undoes_itself() -> None:
    shut = {"isolated_lab_control": "10.77.136.77", "isolated_lab_timeout": 30}
    run = lab("--tags firewall --limit pi-01", check=False, **shut)
    assert "does not let the control machine in" in why(run) and "isolated_lab_control" in why(run)
    end = time.monotonic() + 60
    while rehearsal.ssh(STATE, "pi-01", "true", "-o", "ConnectTimeout=2").returncode:
        assert time.monotonic() < end
    assert lab("--tags firewall").changes() == []


def test_after_a_reboot_it_holds_and_targets_wait_for_a_new_proof() -> None:
    """pi-01 has its second port, and NetworkManager a configuration of it; the table is there before the network is."""
    with frames_at_the_uplink() as seen:
        for node in SERVERS:
            rehearsal.ssh(STATE, node, "sudo systemctl --no-block reboot")
        time.sleep(2)
        playbook("rehearse")
        assert all(told(node, f"test -e {PROOF} || echo none") == "none" for node in SERVERS)
        lab("--tags verify", isolated_lab_phase="rebooted")
    assert seen == []
    assert report("rebooted")["reached"] == 0
    stamp = "systemctl show --property {}TimestampMonotonic --value {}"
    table = int(told("pi-01", stamp.format("ExecMainExit", "bramble-lab")))
    assert 0 < table < int(told("pi-01", stamp.format("ExecMainStart", "NetworkManager")))


def test_the_way_back_leaves_nothing(base: dict[str, dict[str, str]]) -> None:
    run = playbook("site", check=False)
    assert "Remove the profile first: ansible-playbook playbooks/isolated_lab.yml" in why(run)
    lab(cluster_state="absent")
    after = trees()
    assert {node: differences(base[node], after[node]) for node in NODES} == {node: [] for node in NODES}
    assert playbook("site").changes() == []
    record = json.loads(told("pi-client", "bramble compute --scale 0.2 --json -"))
    assert record["lost"] == 0 and sorted(row["job"] for row in record["results"]) == list(range(16))
