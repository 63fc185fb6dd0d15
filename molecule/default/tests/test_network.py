"""network: the address is on the wire, names resolve, nodes reach each other, and nothing else."""

from __future__ import annotations

import pytest
from conftest import ADDRESSES

testinfra_hosts = ["ssh://pi-client", "ssh://pi-01", "ssh://pi-02"]


def test_the_address_is_the_inventorys_alone(host) -> None:
    name = host.check_output("hostname")
    assert host.interface("eth0").addresses[0] == ADDRESSES[name]
    assert host.check_output("ip -4 -o addr show dev eth0 | wc -l") == "1"


def test_there_is_no_way_out(host) -> None:
    assert host.check_output("ip route show default") == ""


@pytest.mark.parametrize("name", ADDRESSES)
def test_every_node_is_known_by_name_and_reached(host, name: str) -> None:
    assert host.check_output(f"getent hosts {name}").split()[0] in {ADDRESSES[name], "127.0.1.1"}
    assert host.addr(name).port(22).is_reachable


def test_the_network_is_ours_not_cloud_inits(host) -> None:
    with host.sudo():
        netplan = host.file("/etc/netplan/50-cloud-init.yaml")
        assert netplan.contains("From Bramble's inventory") and netplan.mode == 0o600
        assert host.check_output("ls /etc/netplan") == "50-cloud-init.yaml"
