"""The cluster is rebuilt as MicroK8s and back, on stand-ins, with the real snapd, snaps from files, and a join over the network.

The snap is an imitation (tests/support/microk8s_snap), which runs no pods. The tests depend on each other and run in their order,
after converge.yml.
"""

from __future__ import annotations

import json
import subprocess

from tests.support.microk8s_snap import build
from tests.support.nodes import failures, scenario
from tests.support.rehearsal import Play

CLUSTER = scenario("microk8s")
STATE = CLUSTER.state
SNAPS = STATE / "snaps"
SERVERS = ["pi-01", "pi-02"]
NODES = ["pi-01", "pi-02", "pi-client"]
UNMANAGED = "/etc/NetworkManager/conf.d/90-bramble-microk8s.conf"
TOKENS = "/var/snap/microk8s/current/credentials/cluster-tokens.txt"

playbook, output = CLUSTER.playbook, CLUSTER.output


def changed_tasks(run: Play) -> list[str]:
    """Return the names of the tasks that changed something, in their order, without role and node."""
    return [change.split(": ", 1)[1].split(" : ")[-1] for change in run.changes()]


def nodes() -> dict[str, dict]:
    """Return the cluster's nodes by name, as kubectl on the client shows them with the client's own key."""
    return {item["metadata"]["name"]: item for item in json.loads(output("pi-client", "kubectl get nodes -o json"))["items"]}


def ready_nodes() -> list[str]:
    return sorted(name for name, item in nodes().items() if item["status"]["conditions"][0]["status"] == "True")


def test_the_nodes_are_a_cluster() -> None:
    assert ready_nodes() == NODES
    kinds = {name: sorted(item["metadata"]["labels"])[-1].rpartition("-")[2] for name, item in nodes().items()}
    assert kinds == {"pi-01": "controlplane", "pi-02": "controlplane", "pi-client": "worker"}
    for node in NODES:
        assert "held" in output(node, "snap list microk8s")
        assert "cgroup_enable=memory cgroup_memory=1" in output(node, "cat /proc/cmdline")
        assert json.loads(output(node, "cat /etc/ansible/facts.d/bramble.fact")) == {"profile": "microk8s"}
        # The launch configuration was installed before the snap, which reads it only once.
        assert "10.77.135.101" in output(node, "sudo cat /var/snap/microk8s/current/var/standin/launch.yaml")
    assert "interface-name:cali*" in output("pi-client", f"cat {UNMANAGED}")
    assert output("pi-client", "stat -c %a:%U ~/.kube/config") == "600:pi"
    assert "IMITATION" in output("pi-01", "sudo /snap/bin/microk8s status")


def test_no_token_is_left() -> None:
    for node in SERVERS:
        # The file exists only where a token was created.
        assert output(node, f"sudo cat {TOKENS} 2>/dev/null || true") == ""


def test_a_second_run_changes_nothing() -> None:
    """A worker has no status in YAML, and does not list nodes, but this is no change."""
    assert "acting as a node in a cluster" in output("pi-client", "sudo /snap/bin/microk8s status --format yaml || true")
    assert playbook("microk8s", arguments="--tags microk8s").changes() == []


def test_a_worker_that_was_removed_joins_again_and_a_failed_join_leaves_no_token() -> None:
    before = nodes()["pi-client"]["metadata"]["uid"]
    output("pi-01", "sudo /snap/bin/microk8s remove-node pi-client --force")
    output("pi-client", "sudo ip route add unreachable 10.77.135.101/32")
    run = playbook("microk8s", arguments="--tags microk8s --limit pi-client", check=False)
    assert set(run.failed) == {"pi-client"} and "Connecting to cluster failed" in failures(run)
    assert output("pi-01", f"sudo cat {TOKENS}") == ""
    assert ":25000/" not in json.dumps(run.events), "Ansible's output has a token"
    output("pi-client", "sudo ip route delete unreachable 10.77.135.101/32")
    playbook("microk8s", arguments="--tags microk8s --limit pi-client")
    assert ready_nodes() == NODES and nodes()["pi-client"]["metadata"]["uid"] != before


def test_the_first_node_dies_and_gets_a_new_card() -> None:
    """The node joins the cluster of the other nodes, and does not form a cluster of its own."""
    before = nodes()["pi-01"]["metadata"]["uid"]
    subprocess.run(["docker", "kill", "molecule-microk8s-pi-01"], check=True, capture_output=True)
    (STATE / "cards/pi-01.img").unlink()
    playbook("swap", variables={"node": "pi-01"})
    assert ready_nodes() == NODES and nodes()["pi-01"]["metadata"]["uid"] != before


def test_an_upgrade_is_done_node_by_node_and_skips_no_release() -> None:
    build.build(SNAPS, "1.38.0")
    run = playbook("microk8s", check=False)
    assert "First upgrade to 1.37" in failures(run) and run.changes() == []
    build.build(SNAPS, "1.37.0")
    run = playbook("microk8s", arguments="--tags microk8s")
    steps = ["Drain the node", "Install the snap", "Uncordon the node"]
    assert [task for task in changed_tasks(run) if task in steps] == steps * len(NODES)
    assert {item["status"]["nodeInfo"]["kubeletVersion"] for item in nodes().values()} == {"v1.37.0-standin"}
    assert ready_nodes() == NODES and not any(item["spec"].get("unschedulable") for item in nodes().values())
    assert "held" in output("pi-01", "snap list microk8s")


def test_the_checklist_reports_what_a_stand_in_does_not_have() -> None:
    run = playbook("microk8s", arguments="--tags verify")
    assert run.changes() == []
    checks = json.loads((STATE / "reports/microk8s/verify.json").read_text())["checks"]
    verdicts = {(check["check"], check["node"]): check["verdict"] for check in checks}
    assert "FAILED" not in verdicts.values()
    assert all(verdicts["refresh held", node] == "OK" for node in NODES)
    assert verdicts["all nodes ready", "pi-01"] == "OK" and verdicts["dqlite voters", "pi-01"] == "NOT HERE"


def test_the_removal_leaves_nothing_and_the_engine_is_installed_again() -> None:
    assert "Remove the profile first" in failures(playbook("site", check=False))
    playbook("microk8s", variables={"cluster_state": "absent"})
    places = f"{UNMANAGED} /etc/cni /etc/microk8s.yaml /var/snap/microk8s /snap/bin/microk8s /usr/local/bin/kubectl ~/.kube"
    for node in NODES:
        assert output(node, f"sudo ls -d {places} 2>/dev/null || true") == ""
        assert "calico" not in output(node, "ls /sys/class/net")
        assert "microk8s" not in output(node, "snap list; systemctl list-units --all --no-legend 'snap.*'")
        assert "cgroup" not in output(node, "cat /boot/firmware/cmdline.txt")
        assert json.loads(output(node, "cat /etc/ansible/facts.d/bramble.fact")) == {"profile": "base"}
    playbook("site")
    for node in SERVERS:
        output("pi-client", f"bramble health-check {node}")
