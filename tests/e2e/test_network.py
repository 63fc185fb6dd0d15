"""The role network with faults: the control machine is locked out, a node loses its power, an address is in use.

pi-client has netplan with NetworkManager, pi-01 has netplan with networkd, and pi-02 has NetworkManager alone, as Raspberry Pi OS
bookworm.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT
from tests.support.rehearsal import INVENTORY, play

from . import conftest

OVERLAY = Path(__file__).parent / "network"
STATE = ROOT / ".state/h-network"
NODES = ["pi-client", "pi-01", "pi-02"]
SUBNET, NEW_SUBNET = "10.77.91", "10.77.92"
# A part of the network that contains the nodes, but not the control machine.
LOCKED_OUT = {"cluster_subnet": f"{SUBNET}.96/27", "cluster_first_host": 4}
RENUMBERED = {"cluster_subnet": f"{NEW_SUBNET}.0/24", "network_from_subnet": f"{SUBNET}.0/24"}

playbook = partial(play, inventory=[*INVENTORY, OVERLAY])
network = partial(playbook, "site", arguments="--tags network")
# The commands run by SSH, so they also check that the control machine reaches the node at its address.
output = partial(conftest.node_output, STATE, options=("-o", "ConnectTimeout=5"))


def local_output(*command: str | Path) -> str:
    """Return what a command on the control machine writes; it must succeed."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def output_inside(node: str, *command: str) -> str:
    """Return what a command on a node writes, whatever the node's address is; it must succeed."""
    return local_output("docker", "exec", f"h-network-{node}", "run-on-node", *command).strip()


def wait_until(is_met: Callable[[], bool]) -> None:
    """Wait until a condition is met, for at most 90 seconds."""
    end = time.monotonic() + 90
    while not is_met():
        assert time.monotonic() < end, "The condition was not met within 90 s."
        time.sleep(0.5)


def addresses(node: str) -> list[str]:
    """Return the IPv4 addresses that a node has now."""
    ports = json.loads(output_inside(node, "ip", "-json", "-4", "address", "show", "dev", "eth0"))
    return [f"{a['local']}/{a['prefixlen']}" for port in ports for a in port.get("addr_info", [])]


def address(node: str, subnet: str = SUBNET) -> str:
    """Return the address that the inventory derives for a node."""
    return f"{subnet}.{100 + NODES.index(node)}"


def assert_nothing_is_pending(node: str) -> None:
    """Fail if a node has a change to be confirmed, a rollback timer, a service of this role, or a failed unit."""
    list_files = "ls -d /var/lib/bramble/network/change* /etc/systemd/system/*bramble-network* || true"
    assert output_inside(node, "sh", "-c", list_files) == ""
    active = output_inside(node, "systemctl", "list-units", "--state=active,activating,failed", "--no-legend", "bramble-network*")
    assert active == ""
    assert output_inside(node, "systemctl", "is-system-running", "--wait") == "running"


@pytest.fixture(scope="module", autouse=True)
def powered_off() -> Iterator[None]:
    """Power off the nodes and remove their cards, even if tests have failed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NODES", "2")
        yield
        playbook("rehearse", variables={"cluster_state": "absent"})
    shutil.rmtree(STATE, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def nodes(powered_off: None, bookworm: dict[str, Any]) -> None:
    """Boot all three nodes from their cards, and apply the network of the inventory."""
    playbook("cards", arguments="--limit pi-client")
    playbook("cards", variables={"identity_network_renderer": "networkd"}, arguments="--limit pi-01")
    playbook("cards", variables=bookworm, arguments="--limit pi-02")
    playbook("rehearse")
    network()


class Port:
    """The control machine's port at the cluster's switch, to which addresses can be added."""

    def __init__(self) -> None:
        self.name = conftest.switch("h-network")
        self.mac = Path(f"/sys/class/net/{self.name}/address").read_text().strip()
        self.added: list[str] = []

    def add(self, name: str) -> None:
        local_output("ip", "address", "add", name, "dev", self.name)
        self.added.append(name)

    def remove(self, name: str) -> None:
        local_output("ip", "address", "delete", name, "dev", self.name)
        self.added.remove(name)


@pytest.fixture
def port() -> Iterator[Port]:
    """Yield the control machine's port, and remove the addresses that were added."""
    port = Port()
    yield port
    # The primary address is removed last, because the others of its subnet are removed with it.
    for name in reversed(port.added):
        port.remove(name)


def test_a_network_that_locks_the_control_machine_out_is_rolled_back_and_reported() -> None:
    run = network(variables={**LOCKED_OUT, "network_confirm_timeout": 30}, check=False)
    assert run.status == "failed" and sorted(run.failed) == sorted(NODES)
    for node in NODES:
        message = run.failed[node]
        assert f"was given {address(node)}/27" in message
        assert f"rolled back (it was not confirmed in time): the node has {address(node)}/24 again" in message
        assert "Check cluster_subnet" in message
        assert addresses(node) == [f"{address(node)}/24"]
        assert output(node, "hostname") == node
        assert_nothing_is_pending(node)
    assert network().changes() == []


def test_a_power_cut_before_the_confirmation_rolls_the_change_back() -> None:
    """The rollback does not need the control machine: the playbook was killed before."""
    command = [
        "ansible-playbook",
        *(f"--inventory={source}" for source in (*INVENTORY, OVERLAY)),
        "playbooks/site.yml",
        "--tags",
        "network",
    ]
    variables = json.dumps({**LOCKED_OUT, "network_confirm_timeout": 600})
    with subprocess.Popen([*command, "--extra-vars", variables], cwd=ROOT, stdout=subprocess.DEVNULL) as running:
        wait_until(lambda: all(addresses(node) == [f"{address(node)}/27"] for node in NODES))
        running.kill()
    containers = [f"h-network-{node}" for node in NODES]
    local_output("docker", "kill", *containers)
    local_output("docker", "start", *containers)
    playbook("rehearse")
    for node in NODES:
        assert addresses(node) == [f"{address(node)}/24"]
        assert_nothing_is_pending(node)
        assert "restarted" in output_inside(node, "cat", "/var/lib/bramble/network/outcome.json")
    assert network().changes() == []


def test_an_address_in_use_stops_only_the_node_that_should_get_it(port: Port) -> None:
    """The cluster is renumbered at that time, and another run completes that."""
    run = network(variables=RENUMBERED, check=False)
    assert all(f"The control machine has no address in {NEW_SUBNET}.0/24" in run.failed[node] for node in NODES)
    port.add(f"{NEW_SUBNET}.9/24")
    port.add(f"{address('pi-01', NEW_SUBNET)}/24")
    run = network(variables=RENUMBERED, check=False)
    assert list(run.failed) == ["pi-01"]
    assert f"{address('pi-01', NEW_SUBNET)} is in use: {port.mac} answers" in run.failed["pi-01"]
    assert addresses("pi-01") == [f"{address('pi-01')}/24"]
    assert_nothing_is_pending("pi-01")
    for node in ("pi-client", "pi-02"):
        assert addresses(node) == [f"{address(node, NEW_SUBNET)}/24"]
    port.remove(f"{address('pi-01', NEW_SUBNET)}/24")

    run = network(variables=RENUMBERED)
    assert {change.split(":")[0] for change in run.changes()} <= {"pi-01", "pi-client -> localhost"}
    for node in NODES:
        assert addresses(node) == [f"{address(node, NEW_SUBNET)}/24"]
        assert_nothing_is_pending(node)
