"""The playbooks discover, status and reboot on a cluster without problems. tests/e2e/test_ops.py has those with problems."""

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
        "": ("control machine", f"{SUBNET}.1"),
    }


def test_status_reports_no_problem() -> None:
    CLUSTER.playbook("status")
    nodes = json.loads((CLUSTER.state / "reports/status/status.json").read_text())["nodes"]
    assert nodes["pi-01"]["joined"] and nodes["pi-01"]["units"]["bramble-worker"]["active"] == "active"
    # The node's clock is the control machine's.
    assert abs(nodes["pi-01"]["clock_offset"]) <= nodes["pi-01"]["clock_error"]


def test_reboot_restarts_the_nodes_and_they_compute_again() -> None:
    read_boot_id = "cat /proc/sys/kernel/random/boot_id"
    boots = {node: CLUSTER.output(node, read_boot_id) for node in SERVERS}
    CLUSTER.playbook("reboot", arguments="--limit worker")
    assert all(CLUSTER.output(node, read_boot_id) != boot for node, boot in boots.items())
    assert json.loads(CLUSTER.output(CLIENT, "bramble nodes --json -"))["nodes"].keys() == set(SERVERS)
