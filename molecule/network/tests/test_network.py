"""The role network: it configures the port with every stack, and the cluster is renumbered and back.

pi-client has netplan with NetworkManager, pi-01 has netplan with networkd, and pi-02 has NetworkManager alone, as Raspberry Pi OS
bookworm. The tests depend on each other and run in their order.
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
SUBNET, NEW_SUBNET = "10.77.132", "10.77.142"
RENUMBERED = {"cluster_subnet": f"{NEW_SUBNET}.0/24", "network_from_subnet": f"{SUBNET}.0/24"}


def address(node: str, subnet: str = SUBNET) -> str:
    """Return the address that the inventory derives for a node."""
    return f"{subnet}.{100 + NODES.index(node)}"


def addresses(node: str) -> list[str]:
    """Return the IPv4 addresses that a node has now."""
    ports = json.loads(CLUSTER.output_inside(node, "ip", "-json", "-4", "address", "show", "dev", "eth0"))
    return [f"{a['local']}/{a['prefixlen']}" for port in ports for a in port.get("addr_info", [])]


def stacks(run: Play) -> dict[str, str]:
    """Return the stack that configured the port of each node."""
    data = [event.get("event_data", {}) for event in run.events]
    return {entry["host"]: entry["res"]["stack"] for entry in data if "stack" in entry.get("res", {})}


def assert_nothing_is_pending(node: str) -> None:
    """Fail if a node has a change to be confirmed, a rollback timer, a service of this role, or a failed unit."""
    files = "ls -d /var/lib/bramble/network/change* /etc/systemd/system/*bramble-network* || true"
    assert CLUSTER.output_inside(node, "sh", "-c", files) == ""
    units = ["list-units", "--state=active,activating,failed", "--no-legend", "bramble-network*"]
    assert CLUSTER.output_inside(node, "systemctl", *units) == ""
    assert CLUSTER.output_inside(node, "systemctl", "is-system-running", "--wait") == "running"


@pytest.fixture
def second_address() -> Iterator[None]:
    """Give the control machine an address in the new subnet, too."""
    address_arguments = [f"{NEW_SUBNET}.9/24", "dev", CLUSTER.switch()]
    subprocess.run(["ip", "address", "add", *address_arguments], check=True)
    yield
    subprocess.run(["ip", "address", "delete", *address_arguments], check=True)


def test_each_stack_is_detected_and_configured() -> None:
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
def test_the_cluster_is_renumbered_and_back_with_other_stacks() -> None:
    run = network(variables=RENUMBERED)
    assert {change.split(":")[0] for change in run.changes()} >= {*NODES}
    for node in NODES:
        assert addresses(node) == [f"{address(node, NEW_SUBNET)}/24"]
        assert CLUSTER.output(node, "getent hosts pi-01").split()[0] == address("pi-01", NEW_SUBNET)
        assert_nothing_is_pending(node)
    dry = network(variables={"network_from_subnet": f"{NEW_SUBNET}.0/24"}, arguments="--tags network --check --diff")
    assert {change.split(":")[0] for change in dry.changes()} >= set(NODES)
    assert addresses("pi-02") == [f"{address('pi-02', NEW_SUBNET)}/24"]

    # Two nodes get another stack before the cluster is renumbered back.
    configure_with_networkd("pi-01")
    configure_with_ifupdown("pi-02")
    reboot("pi-01", "pi-02")
    run = network(variables={"network_from_subnet": f"{NEW_SUBNET}.0/24"})
    assert stacks(run)["pi-01"] == "networkd" and stacks(run)["pi-02"] == "ifupdown"
    for node in NODES:
        assert addresses(node) == [f"{address(node)}/24"]
        assert_nothing_is_pending(node)
    assert network().changes() == []
    reboot("pi-01", "pi-02")
    for node in NODES:
        assert addresses(node) == [f"{address(node)}/24"]


def write_file(node: str, path: str, text: str) -> None:
    CLUSTER.output_inside(node, "sh", "-c", f"cat >{path} <<'END'\n{text}END\n")


def reboot(*nodes: str) -> None:
    """Reboot nodes and wait until they answer by SSH."""
    read_boot_id = "cat /proc/sys/kernel/random/boot_id"
    before = {node: CLUSTER.output_inside(node, "sh", "-c", read_boot_id) for node in nodes}
    for node in nodes:
        CLUSTER.output_inside(node, "systemctl", "--no-block", "reboot")
    end = time.monotonic() + 90
    for node in nodes:
        while CLUSTER.ssh(node, read_boot_id).stdout.strip() in ("", before[node]):
            assert time.monotonic() < end, f"{node} did not boot again within 90 s"
            time.sleep(0.5)


def configure_with_networkd(node: str) -> None:
    CLUSTER.output_inside(node, "rm", "/etc/netplan/50-cloud-init.yaml")
    network_file = f"[Match]\nName=eth0\n[Network]\nAddress={address(node, NEW_SUBNET)}/24\n"
    write_file(node, "/etc/systemd/network/wired.network", network_file)
    CLUSTER.output_inside(node, "systemctl", "enable", "systemd-networkd")


def configure_with_ifupdown(node: str) -> None:
    CLUSTER.output_inside(node, "sh", "-c", "rm /etc/NetworkManager/system-connections/*")
    stanza = f"allow-hotplug eth0\niface eth0 inet static\n  address {address(node, NEW_SUBNET)}\n  netmask 255.255.255.0\n"
    write_file(node, "/etc/network/interfaces", f"auto lo eth0\niface lo inet loopback\n{stanza}")
    CLUSTER.output_inside(node, "systemctl", "disable", "NetworkManager")
    CLUSTER.output_inside(node, "systemctl", "enable", "networking")
