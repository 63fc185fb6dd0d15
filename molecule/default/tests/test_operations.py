"""What the people who run a cluster do with it: look around, reboot. When something is wrong, see tests/e2e/test_ops.py."""

from __future__ import annotations

import json

from tests.support.nodes import CLIENT, SERVERS, scenario

CLUSTER = scenario("default")
SUBNET = "10.77.131"


def test_discover_finds_each_node_at_its_address() -> None:
    CLUSTER.playbook("discover")
    findings = json.loads((CLUSTER.state / "reports/discover/discover.json").read_text())["findings"]
    assert {finding["name"]: (finding["verdict"], finding["address"]) for finding in findings} == {
        "pi-client": ("up", f"{SUBNET}.100"),
        "pi-01": ("up", f"{SUBNET}.101"),
        "pi-02": ("up", f"{SUBNET}.102"),
        "": ("this machine", f"{SUBNET}.1"),
    }


def test_status_shows_a_cluster_that_is_well() -> None:
    CLUSTER.playbook("status")
    nodes = json.loads((CLUSTER.state / "reports/status/status.json").read_text())["nodes"]
    assert nodes["pi-01"]["joined"] and nodes["pi-01"]["units"]["bramble-worker"]["active"] == "active"
    # The clock is this machine's own.
    assert abs(nodes["pi-01"]["clock_offset"]) <= nodes["pi-01"]["clock_error"]


def test_nodes_are_rebooted_one_by_one_and_compute_again() -> None:
    look = "cat /proc/sys/kernel/random/boot_id"
    boots = {node: CLUSTER.output(node, look) for node in SERVERS}
    CLUSTER.playbook("reboot", arguments="--limit worker")
    assert all(CLUSTER.output(node, look) != boot for node, boot in boots.items())
    assert json.loads(CLUSTER.output(CLIENT, "bramble nodes --json -"))["nodes"].keys() == set(SERVERS)
