"""network: every stack is found and taken over, and the cluster is renumbered and back.

pi-client has NetworkManager by netplan, pi-01 networkd by netplan, pi-02 is like Raspberry Pi OS bookworm: NetworkManager alone.
The tests tell one story and run in their order.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from functools import partial

import pytest

from tests.support.nodes import scenario
from tests.support.rehearsal import Play

CLUSTER = scenario("network")
network = partial(CLUSTER.playbook, "site", arguments="--tags network")
NODES = ["pi-client", "pi-01", "pi-02"]
HERE, THERE = "10.77.132", "10.77.142"
RENUMBERED = {"cluster_subnet": f"{THERE}.0/24", "network_from_subnet": f"{HERE}.0/24"}


def address(node: str, subnet: str = HERE) -> str:
    return f"{subnet}.{100 + NODES.index(node)}"


def addresses(node: str) -> list[str]:
    """Return a node's IPv4 addresses."""
    ports = json.loads(CLUSTER.output_inside(node, "ip", "-json", "-4", "address", "show", "dev", "eth0"))
    return [f"{a['local']}/{a['prefixlen']}" for port in ports for a in port.get("addr_info", [])]


def stacks(run: Play) -> dict[str, str]:
    """Return the stack that configured the port of each node."""
    data = [event.get("event_data", {}) for event in run.events]
    return {entry["host"]: entry["res"]["stack"] for entry in data if "stack" in entry.get("res", {})}


def assert_nothing_is_pending(node: str) -> None:
    """No change to be confirmed, no timer, no service that is not the card's own, and the system is well."""
    files = "ls -d /var/lib/bramble/network/change* /etc/systemd/system/*bramble-network* || true"
    assert CLUSTER.output_inside(node, "sh", "-c", files) == ""
    units = ["list-units", "--state=active,activating,failed", "--no-legend", "bramble-network*"]
    assert CLUSTER.output_inside(node, "systemctl", *units) == ""
    assert CLUSTER.output_inside(node, "systemctl", "is-system-running", "--wait") == "running"


@pytest.fixture
def second_address() -> Iterator[None]:
    """This machine has an address in the other subnet, too."""
    words = [f"{THERE}.9/24", "dev", CLUSTER.switch()]
    subprocess.run(["ip", "address", "add", *words], check=True)
    yield
    subprocess.run(["ip", "address", "delete", *words], check=True)


def test_each_stack_is_found_and_taken_over() -> None:
    run = network()
    assert stacks(run) == {
        "pi-client": "netplan, carried out by NetworkManager",
        "pi-01": "netplan, carried out by networkd",
        "pi-02": "networkmanager",
    }
    assert run.changes() == []
    for node in NODES:
        assert addresses(node) == [f"{address(node)}/24"]
        assert CLUSTER.output(node, "getent hosts pi-client").split()[0] == address("pi-client")
        assert_nothing_is_pending(node)


@pytest.mark.usefixtures("second_address")
def test_the_cluster_is_renumbered_and_back_also_by_other_stacks() -> None:
    run = network(variables=RENUMBERED)
    assert {change.split(":")[0] for change in run.changes()} >= {*NODES}
    for node in NODES:
        assert addresses(node) == [f"{address(node, THERE)}/24"]
        assert CLUSTER.output(node, "getent hosts pi-01").split()[0] == address("pi-01", THERE)
        assert_nothing_is_pending(node)
    dry = network(variables={"network_from_subnet": f"{THERE}.0/24"}, arguments="--tags network --check --diff")
    assert {change.split(":")[0] for change in dry.changes()} >= set(NODES)
    assert addresses("pi-02") == [f"{address('pi-02', THERE)}/24"]

    # Nodes that were given to other stacks by hand.
    give_to_networkd("pi-01")
    give_to_ifupdown("pi-02")
    reboot("pi-01", "pi-02")
    run = network(variables={"network_from_subnet": f"{THERE}.0/24"})
    assert stacks(run)["pi-01"] == "networkd" and stacks(run)["pi-02"] == "ifupdown"
    for node in NODES:
        assert addresses(node) == [f"{address(node)}/24"]
        assert_nothing_is_pending(node)
    assert network().changes() == []
    reboot("pi-01", "pi-02")
    for node in NODES:
        assert addresses(node) == [f"{address(node)}/24"]


def write(node: str, path: str, text: str) -> None:
    CLUSTER.output_inside(node, "sh", "-c", f"cat >{path} <<'END'\n{text}END\n")


def reboot(*nodes: str) -> None:
    """Reboot nodes and wait until they answer by ssh."""
    look = "cat /proc/sys/kernel/random/boot_id"
    before = {node: CLUSTER.output_inside(node, "sh", "-c", look) for node in nodes}
    for node in nodes:
        CLUSTER.output_inside(node, "systemctl", "--no-block", "reboot")
    end = time.monotonic() + 90
    for node in nodes:
        while CLUSTER.ssh(node, look).stdout.strip() in ("", before[node]):
            assert time.monotonic() < end, f"{node} does not come back"
            time.sleep(0.5)


def give_to_networkd(node: str) -> None:
    CLUSTER.output_inside(node, "rm", "/etc/netplan/50-cloud-init.yaml")
    write(node, "/etc/systemd/network/wired.network", f"[Match]\nName=eth0\n[Network]\nAddress={address(node, THERE)}/24\n")
    CLUSTER.output_inside(node, "systemctl", "enable", "systemd-networkd")


def give_to_ifupdown(node: str) -> None:
    CLUSTER.output_inside(node, "sh", "-c", "rm /etc/NetworkManager/system-connections/*")
    stanza = f"allow-hotplug eth0\niface eth0 inet static\n  address {address(node, THERE)}\n  netmask 255.255.255.0\n"
    write(node, "/etc/network/interfaces", f"auto lo eth0\niface lo inet loopback\n{stanza}")
    CLUSTER.output_inside(node, "systemctl", "disable", "NetworkManager")
    CLUSTER.output_inside(node, "systemctl", "enable", "networking")
