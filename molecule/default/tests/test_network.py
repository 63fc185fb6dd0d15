"""The role network: a node has its address and no other, names resolve, nodes reach each other, and nothing else is reachable."""

from __future__ import annotations

import json
from typing import Any

import pytest

ADDRESSES = {"pi-client": "10.77.131.100", "pi-01": "10.77.131.101", "pi-02": "10.77.131.102"}
testinfra_hosts = ["ssh://pi-client", "ssh://pi-01", "ssh://pi-02"]


def addresses(host: Any, family: str) -> list[tuple[str, int, str]]:
    (port,) = json.loads(host.check_output("ip -json address show dev eth0"))
    return [(a["local"], a["prefixlen"], a["scope"]) for a in port["addr_info"] if a["family"] == family]


def test_the_only_address_is_the_inventorys(host: Any) -> None:
    assert addresses(host, "inet") == [(ADDRESSES[host.check_output("hostname")], 24, "global")]


def test_there_is_no_default_route(host: Any) -> None:
    assert host.check_output("ip route show default") == ""
    assert host.check_output("ip -6 route show default") == ""


def test_ipv6_has_link_local_addresses_only(host: Any) -> None:
    """The kernel accepts no address from a router."""
    assert [scope for _, _, scope in addresses(host, "inet6")] in ([], ["link"])
    for name, value in (("accept_ra", "0"), ("autoconf", "0"), ("disable_ipv6", "0")):
        assert host.check_output(f"cat /proc/sys/net/ipv6/conf/eth0/{name}") == value


@pytest.mark.parametrize("name", ADDRESSES)
def test_every_node_resolves_and_is_reachable(host: Any, name: str) -> None:
    assert host.check_output(f"getent ahostsv4 {name}").split()[0] == ADDRESSES[name]
    assert host.addr(name).port(22).is_reachable


def test_netplan_has_the_inventorys_network_and_cloud_init_does_not_change_it(host: Any) -> None:
    with host.sudo():
        netplan = host.file("/etc/netplan/50-cloud-init.yaml")
        assert netplan.contains("From Bramble's inventory") and netplan.mode == 0o600
        assert host.check_output("ls /etc/netplan") == "50-cloud-init.yaml"
        assert host.file("/etc/cloud/cloud.cfg.d/99-bramble-network.cfg").contains("config: disabled")


def test_one_connection_manages_the_port(host: Any) -> None:
    active = host.check_output("nmcli --terse --fields NAME,DEVICE connection show --active").splitlines()
    assert [line for line in active if line.endswith(":eth0")] == ["netplan-eth0:eth0"]


def test_no_change_is_pending(host: Any) -> None:
    with host.sudo():
        assert host.run("ls -d /var/lib/bramble/network/change").rc == 2
    assert host.run("systemctl list-units --all --no-legend 'bramble-network*'").stdout == ""
