"""The checks of the inventory, and what is derived from it."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.bramble.cluster.plugins.filter.cluster import (
    address_in,
    cluster_problems,
    host_values,
    image_manifests,
    part_hosts,
    prefix_of,
)
from ansible_collections.bramble.cluster.plugins.lookup.login_problems import login_problems
from hypothesis import given
from hypothesis import strategies as st

from tests.support import ROOT

GROUPS = ["cluster", "client", "servers", "scheduler", "worker", "spare", "active"]


def problems(nodes: dict, subnet: str = "192.168.1.0/24", **groups: list[str]) -> list[str]:
    hosts = {"cluster": list(nodes), "active": list(nodes), "scheduler": list(nodes)[:1], **groups}
    return cluster_problems(nodes, hosts, subnet, GROUPS)


def node(number: Any, address: str | None = None) -> dict:
    return {"node_number": number, "node_address": address or f"192.168.1.{100 + number}"}


def test_valid_inventory_has_no_problems() -> None:
    assert problems({"pi-client": node(0), "pi-01": node(1)}) == []


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ({"pi-01": node(1), "pi-02": node(1, "192.168.1.9")}, ["pi-01 and pi-02", "node_number 1"]),
        ({"pi-01": node(1), "pi-02": node(2, "192.168.1.101")}, ["pi-01 and pi-02", "address 192.168.1.101"]),
        ({"pi-01": node(1, "10.0.0.1")}, ["pi-01", "10.0.0.1, outside cluster_subnet 192.168.1.0/24"]),
        ({"pi-01": node(1, "192.168.1.255")}, ["pi-01", "network or broadcast address"]),
        ({"pi-01": {"node_number": 900, "node_address": False}}, ["pi-01", "no address in", "254 nodes"]),
        ({"Pi_01": node(1)}, ["'Pi_01'", "valid host name"]),
        ({"pi-01-": node(1)}, ["'pi-01-'", "valid host name"]),
        ({"pi-01": {}}, ["pi-01 has no node_number"]),
        ({"pi-01": node("1", "192.168.1.1")}, ["node_number '1'"]),
        ({"pi-01": node(-1, "192.168.1.1")}, ["node_number -1"]),
    ],
)
def test_each_problem_is_named(nodes: dict, words: list[str]) -> None:
    found = problems(nodes)
    assert len(found) == 1, found
    for word in words:
        assert word in found[0]


def test_problems_of_groups_are_named() -> None:
    nodes = {"pi-01": node(1)}
    assert "Did you mean 'worker'?" in problems(nodes, workers=["pi-01"])[0]
    assert "not in 'cluster'" in problems(nodes, worker=["stranger"])[0]
    assert "exactly one" in problems(nodes, scheduler=[])[0]


def test_active_nodes_are_those_that_are_not_spare() -> None:
    nodes = {"pi-01": node(1), "pi-02": node(2)}
    assert problems(nodes, spare=["pi-02"], active=["pi-01"]) == []
    assert "-i inventory/active.yml" in problems(nodes, spare=["pi-02"])[0]
    assert "has 0 hosts, and 2 nodes are not spare" in problems(nodes, active=[])[0]


def test_own_inventory_has_known_groups_and_every_server_in_kubernetes() -> None:
    inventory = yaml.safe_load((ROOT / "inventory/hosts.yml").read_text())
    known = yaml.safe_load((ROOT / "inventory/group_vars/all/cluster.yml").read_text())["cluster_groups"]
    assert set(inventory) | set(inventory["cluster"]["children"]) | {"active"} == set(known)
    servers = list(inventory["cluster"]["children"]["servers"]["hosts"])
    control_plane, workers = (list(inventory[f"microk8s_{group}"]["hosts"]) for group in ("control_plane", "worker"))
    assert control_plane == servers[:3] and control_plane + workers == servers


@pytest.mark.parametrize("subnet", ["192.168.1.0/33", "192.168.1.1/24", "nonsense", ""])
def test_invalid_subnet_is_named(subnet: str) -> None:
    assert "cluster_subnet" in problems({"pi-01": node(1)}, subnet)[0]


@given(
    numbers=st.lists(st.integers(0, 400), min_size=1, max_size=12),
    prefix=st.integers(22, 28),
    first=st.integers(0, 200),
)
def test_no_problem_means_distinct_usable_addresses(numbers: list[int], prefix: int, first: int) -> None:
    network = ipaddress.IPv4Network(f"10.1.0.0/{prefix}")
    nodes = {
        f"n{index}": {"node_number": number, "node_address": str(network.network_address + first + number)}
        for index, number in enumerate(numbers)
    }
    addresses = [ipaddress.IPv4Address(variables["node_address"]) for variables in nodes.values()]
    is_valid = len(set(addresses)) == len(addresses) and set(addresses) <= set(network.hosts())
    assert (problems(nodes, str(network)) == []) == is_valid


@given(prefix=st.integers(8, 30), number=st.integers(0, 5000))
def test_addresses_of_a_subnet(prefix: int, number: int) -> None:
    network = ipaddress.IPv4Network(f"10.0.0.0/{prefix}")
    expected = network.network_address + number
    assert address_in(str(network), number) == (str(expected) if expected in network else "")
    assert prefix_of(str(network)) == prefix


@pytest.mark.parametrize("subnet", ["10.0.0.1/24", "nonsense", "fe80::/64", ""])
def test_invalid_subnet_has_no_addresses(subnet: str) -> None:
    assert (address_in(subnet, 1), prefix_of(subnet)) == ("", -1)


def test_login_problems(tmp_path: Path) -> None:
    key, known = tmp_path / "id", tmp_path / "known_hosts"
    both = login_problems(["pi-01"], str(key), str(known))
    assert "cards.yml generates it" in both[0]
    assert "--limit pi-01" in both[1]
    key.touch()
    known.write_text("# comment\n10.0.0.1,pi-01 ssh-ed25519 AAAA\n")
    assert login_problems(["pi-01"], str(key), str(known)) == []
    assert "pi-02" in login_problems(["pi-01", "pi-02"], str(key), str(known))[0]


def test_part_runs_on_the_group_of_its_name_or_on_all_nodes() -> None:
    groups = {"worker": ["pi-01"], "active": ["pi-01"]}
    assert part_hosts("worker", "present", groups, {}) == "worker:&active"
    assert part_hosts("base", "present", groups, {}) == "active"


def test_part_of_another_state_runs_on_no_node() -> None:
    groups, hostvars = {"active": ["pi-01"]}, {"pi-01": {"cluster_state": "absent"}}
    assert part_hosts("absent", "absent", groups, hostvars) == "active"
    assert part_hosts("base", "present", groups, hostvars) == "active:!active"


def test_host_values() -> None:
    hostvars = {"pi-01": {"up": True}, "pi-02": {}, "pi-03": {"up": False}}
    assert host_values(["pi-03", "pi-01", "pi-02", "gone"], hostvars, "up") == {"pi-03": False, "pi-01": True}


def test_image_manifests() -> None:
    one, other = ({"cluster_image": name, "cluster_architecture": "arm64"} for name in ("debian", "kali"))
    hostvars = {"pi-01": one, "pi-02": other, "pi-03": one}
    assert image_manifests(hostvars, hostvars, "/cache") == ["/cache/debian-arm64.json", "/cache/kali-arm64.json"]
