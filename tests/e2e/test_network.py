"""The network of nodes that run, when something goes wrong: locked out, cut off from power, an address that is in use.

pi-client has NetworkManager by netplan, pi-01 networkd by netplan, pi-02 is as Raspberry Pi OS bookworm: NetworkManager alone.
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
HERE, THERE = "10.77.91", "10.77.92"
# Half of what was the network: the nodes are in it, this machine is not.
LOCKED_OUT = {"cluster_subnet": f"{HERE}.96/27", "cluster_first_host": 4}
RENUMBERED = {"cluster_subnet": f"{THERE}.0/24", "network_from_subnet": f"{HERE}.0/24"}

playbook = partial(play, inventory=[*INVENTORY, OVERLAY])
network = partial(playbook, "site", arguments="--tags network")
# By SSH: so the node is where this machine takes it to be.
told = partial(conftest.told, STATE, options=("-o", "ConnectTimeout=5"))


def output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def inside(node: str, *command: str) -> str:
    """What a command on a node says, wherever the node is."""
    return output("docker", "exec", f"h-network-{node}", "run-on-node", *command).strip()


def until(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 90
    while not there():
        assert time.monotonic() < end
        time.sleep(0.5)


def has(node: str) -> list[str]:
    """A node's IPv4 addresses."""
    ports = json.loads(inside(node, "ip", "-json", "-4", "address", "show", "dev", "eth0"))
    return [f"{a['local']}/{a['prefixlen']}" for port in ports for a in port.get("addr_info", [])]


def address(node: str, subnet: str = HERE) -> str:
    return f"{subnet}.{100 + NODES.index(node)}"


def nothing_waits(node: str) -> None:
    """No change to be confirmed, no timer, no service that is not the card's own, and the system is well."""
    assert inside(node, "sh", "-c", "ls -d /var/lib/bramble/network/change* /etc/systemd/system/*bramble-network* || true") == ""
    active = inside(node, "systemctl", "list-units", "--state=active,activating,failed", "--no-legend", "bramble-network*")
    assert active == ""
    assert inside(node, "systemctl", "is-system-running", "--wait") == "running"


@pytest.fixture(scope="module", autouse=True)
def powered_off() -> Iterator[None]:
    """Power off and remove the cards, however the tests ended."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NODES", "2")
        yield
        playbook("rehearse", variables={"cluster_state": "absent"})
    shutil.rmtree(STATE, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def nodes(powered_off: None, bookworm: dict[str, Any]) -> None:
    """All three have booted from their cards, and have the network of the inventory."""
    playbook("cards", arguments="--limit pi-client")
    playbook("cards", variables={"identity_network_renderer": "networkd"}, arguments="--limit pi-01")
    playbook("cards", variables=bookworm, arguments="--limit pi-02")
    playbook("rehearse")
    network()


class Port:
    """This machine's port at the cluster's switch, with more addresses."""

    def __init__(self) -> None:
        self.name = conftest.switch("h-network")
        self.mac = Path(f"/sys/class/net/{self.name}/address").read_text().strip()
        self.added: list[str] = []

    def add(self, name: str) -> None:
        output("ip", "address", "add", name, "dev", self.name)
        self.added.append(name)

    def remove(self, name: str) -> None:
        output("ip", "address", "delete", name, "dev", self.name)
        self.added.remove(name)


@pytest.fixture
def port() -> Iterator[Port]:
    """Its addresses are gone afterwards."""
    port = Port()
    yield port
    # The primary one last: the others go with it.
    for name in reversed(port.added):
        port.remove(name)


def test_a_network_that_locks_everyone_out_is_undone_and_said() -> None:
    run = network(variables={**LOCKED_OUT, "network_confirm_timeout": 30}, check=False)
    assert run.status == "failed" and sorted(run.failed) == sorted(NODES)
    for node in NODES:
        message = run.failed[node]
        assert f"was given {address(node)}/27" in message
        assert f"undone (it was not confirmed in time): the node has {address(node)}/24 again" in message
        assert "Check cluster_subnet" in message
        assert has(node) == [f"{address(node)}/24"]
        assert told(node, "hostname") == node
        nothing_waits(node)
    assert network().changes() == []


def test_a_power_cut_before_it_is_confirmed_undoes_it() -> None:
    """Also when nobody is there any more to see it."""
    command = [
        "ansible-playbook",
        *(f"--inventory={source}" for source in (*INVENTORY, OVERLAY)),
        "playbooks/site.yml",
        "--tags",
        "network",
    ]
    variables = json.dumps({**LOCKED_OUT, "network_confirm_timeout": 600})
    with subprocess.Popen([*command, "--extra-vars", variables], cwd=ROOT, stdout=subprocess.DEVNULL) as running:
        until(lambda: all(has(node) == [f"{address(node)}/27"] for node in NODES))
        running.kill()
    containers = [f"h-network-{node}" for node in NODES]
    output("docker", "kill", *containers)
    output("docker", "start", *containers)
    playbook("rehearse")
    for node in NODES:
        assert has(node) == [f"{address(node)}/24"]
        nothing_waits(node)
        assert "restarted" in inside(node, "cat", "/var/lib/bramble/network/outcome.json")
    assert network().changes() == []


def test_an_address_that_somebody_has_stops_its_node_alone(port: Port) -> None:
    """While the cluster is renumbered; another run completes it."""
    run = network(variables=RENUMBERED, check=False)
    assert all(f"The control machine has no address in {THERE}.0/24" in run.failed[node] for node in NODES)
    port.add(f"{THERE}.9/24")
    port.add(f"{address('pi-01', THERE)}/24")
    run = network(variables=RENUMBERED, check=False)
    assert list(run.failed) == ["pi-01"]
    assert f"{address('pi-01', THERE)} is in use: {port.mac} answers" in run.failed["pi-01"]
    assert has("pi-01") == [f"{address('pi-01')}/24"]
    nothing_waits("pi-01")
    for node in ("pi-client", "pi-02"):
        assert has(node) == [f"{address(node, THERE)}/24"]
    port.remove(f"{address('pi-01', THERE)}/24")

    run = network(variables=RENUMBERED)
    assert {change.split(":")[0] for change in run.changes()} <= {"pi-01", "pi-client -> localhost"}
    for node in NODES:
        assert has(node) == [f"{address(node, THERE)}/24"]
        nothing_waits(node)
