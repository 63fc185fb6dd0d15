"""swap.yml: a node with a new card is the same node, and nothing else has changed. The tests run in their order."""

from __future__ import annotations

import json

from tests.support.nodes import CLIENT, SERVERS, scenario

CLUSTER = scenario("swap")
STATE = CLUSTER.state


def computing_nodes() -> set[str]:
    """Return the names of the nodes that accept jobs."""
    return set(json.loads(CLUSTER.output(CLIENT, "bramble nodes --json -"))["nodes"])


def host_key(node: str) -> str:
    return (STATE / f"host_keys/{node}.pub").read_text()


def test_the_node_with_the_new_card_has_its_old_identity() -> None:
    assert host_key("pi-02") == (STATE / "host_key_before.pub").read_text()
    CLUSTER.output("pi-02", "test -f /etc/systemd/journald.conf.d/bramble.conf")
    assert json.loads((STATE / "cards.json").read_text())["pi-02"]["verdict"] == "verified"
    assert not (STATE / "swap/pi-02.json").exists()
    assert computing_nodes() == set(SERVERS)
    assert CLUSTER.playbook("site").changes() == []


def test_the_report_has_the_time_of_each_step() -> None:
    seconds = json.loads((STATE / "reports/swap/pi-02.json").read_text())["seconds"]
    assert {"write the card", "boot", "set up", "health check", "Ansible's part"} <= set(seconds)


def test_after_a_swap_with_a_new_key_the_old_card_has_no_valid_key() -> None:
    """The node is still alive when its card is replaced."""
    key = host_key("pi-01")
    authority = CLUSTER.output("pi-02", "sudo cat /etc/bramble/tls/ca.pem")
    written = json.loads((STATE / "cards.json").read_text())["pi-01"]["time"]
    CLUSTER.playbook("swap", variables={"node": "pi-01", "swap_new_key": True})
    assert host_key("pi-01") != key
    assert key.split()[1] not in (STATE / "ssh/known_hosts").read_text()
    assert CLUSTER.output("pi-02", "sudo cat /etc/bramble/tls/ca.pem") != authority
    assert json.loads((STATE / "cards.json").read_text())["pi-01"]["time"] != written
    assert not (STATE / "swap/pi-01.json").exists()
    assert computing_nodes() == set(SERVERS)
