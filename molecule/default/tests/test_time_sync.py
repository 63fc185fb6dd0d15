"""The role time_sync: all nodes have the client's time, and services that need the right time wait for it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support.nodes import CLIENT, SERVERS

testinfra_hosts = [f"ssh://{name}" for name in (CLIENT, *SERVERS)]


def test_chrony_runs_and_timesyncd_is_removed(host: Any) -> None:
    assert host.service("chrony").is_running and host.service("chrony").is_enabled
    assert not host.package("systemd-timesyncd").is_installed


def test_every_node_follows_the_client(host: Any) -> None:
    with host.sudo():
        lines = host.check_output("chronyc -c -n sources").splitlines()
        tracking = host.check_output("chronyc -c -n tracking").split(",")
    if host.check_output("hostname") == CLIENT:
        assert lines == []
        assert (tracking[1], tracking[2]) == ("", "10")  # The client has no source but its own clock, at stratum 10.
    else:
        address = host.check_output(f"getent hosts {CLIENT}").split()[0]
        assert [line.split(",")[:3] for line in lines] == [["^", "*", address]]
        assert (tracking[1], tracking[2]) == (address, "11")


@pytest.mark.parametrize("server", SERVERS)
def test_the_client_serves_the_right_time(host: Any, server: str) -> None:
    node = host.get_host(f"ssh://{server}", ssh_config=host.backend.ssh_config)
    with node.sudo():
        result = node.run(f"chronyd -Q -t 20 'server {CLIENT} iburst' 'cmdport 0' 'pidfile /run/chronyd-test.pid'")
    found = re.search(r"System clock wrong by (-?[\d.]+) seconds", result.stderr + result.stdout)
    assert found and abs(float(found[1])) < 1, result


def test_only_the_client_serves_time(host: Any) -> None:
    assert bool(host.check_output("ss -Hlun 'sport = :123'")) == (host.check_output("hostname") == CLIENT)


def test_the_engine_waits_for_the_right_time(host: Any) -> None:
    unit = "bramble-scheduler" if host.check_output("hostname") == CLIENT else "bramble-worker"
    assert "time-sync.target" in host.check_output(f"systemctl show --value --property=After {unit}").split()
    assert "time-sync.target" in host.check_output("systemctl show --value --property=Before chrony").split()
    assert host.service("time-sync.target").is_running
