"""The cluster is rebuilt as a real Kubernetes with the workloads, and back, on stand-ins. See `make test-kubernetes`.

The real snapd installs an imitation of MicroK8s (tests/support/microk8s_snap) that contains Kubernetes, from files, as in the
scenario molecule/microk8s. Then the workloads are installed, whose results must be those of the profile base. The tests depend on
each other and run in their order.

Kubernetes 1.20.2 is the last release whose complete source is in Debian. It does not support indexed Jobs, so a StatefulSet
replaces them. Memory limits and NetworkPolicies are not tested, because stand-ins have no memory controller and the network
plug-in enforces no policies. dqlite, Calico and add-ons are in the real MicroK8s only, so the control plane is on one node.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.bramble.cluster.images.host import native_architecture
from ansible_collections.bramble.cluster.images.kubernetes import build

from tests.e2e.conftest import node_output, running_cluster
from tests.support import ROOT, rehearsal
from tests.support.microk8s_snap import build as snaps
from tests.support.rehearsal import INVENTORY, PlaybookFailed, play

pytestmark = [
    pytest.mark.slow,
    pytest.mark.kubernetes,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(os.geteuid() != 0, reason="making cards needs root"),
]
FOLDER = Path(__file__).parent / "kubernetes"
STATE = ROOT / ".state/kubernetes"
CACHE = ROOT / ".cache/kubernetes"
SERVERS = ["pi-04", "pi-05"]
NODES = ["pi-04", "pi-05", "pi-client"]
LIST_PROCESSES = r"for file in /proc/[0-9]*/cmdline; do tr '\0' ' ' < $file; echo; done 2>/dev/null"
# Files that stay after the removal: snapd and its snaps, empty folders, and files that the reboot for the memory limits creates.
REMAINING = {
    *("/snap/core22/x1", "/snap/snapd/x1", "/var/snap/core22", "/var/snap/snapd", "/root/snap", "/root/.kube", "/run/netns"),
    *("/etc/resolv.conf", "/run/chrony-dhcp", "/run/reboot-required", "/var/log/wtmp.db"),
}
MICROK8S = "sudo /snap/bin/microk8s"

# spare.yml makes the first three servers spare.
playbook = partial(
    play, inventory=[INVENTORY[0], FOLDER / "spare.yml", INVENTORY[1], FOLDER / "inventory"], environment={"NODES": "5"}
)
client_output = partial(node_output, STATE, "pi-client")


def kubectl(words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run kubectl on the node with the control plane."""
    command = rehearsal.ssh_command(STATE, "pi-client", f"{MICROK8S} kubectl {words}")
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=120)


def nodes() -> dict[str, dict[str, Any]]:
    """Return the cluster's nodes by name, as kubectl on the client shows them with the client's own key."""
    return {item["metadata"]["name"]: item for item in json.loads(client_output("kubectl get nodes --output json"))["items"]}


def ready_nodes() -> list[str]:
    """Return the names of the nodes that are ready, and whose kubelet is the one that was built here."""
    return sorted(
        name
        for name, item in nodes().items()
        if {"Ready": "True"}.items() <= {each["type"]: each["status"] for each in item["status"]["conditions"]}.items()
        and item["status"]["nodeInfo"]["kubeletVersion"] == "v1.20.2"
    )


def node_state(node: str) -> set[str]:
    """Return what Kubernetes could leave behind on a node: interfaces, mounts, firewall rules, files."""
    places = "/dev /etc /opt /root /root/.kube /run /run/netns /usr/local/bin /var/lib /var/log /var/snap"
    commands = [
        "ls /sys/class/net",
        "cut -d ' ' -f 2 /proc/mounts",
        *(f"sudo {family}tables-save | sed -n '/^:[^ ]* - /p; /^-A/p'" for family in ("ip", "ip6")),
        f"sudo find {places} -mindepth 1 -maxdepth 1 2>/dev/null || true",
    ]
    return set(node_output(STATE, node, "; ".join(commands)).splitlines())


def run_workload(folder: Path, **variables: Any) -> dict[str, Any]:
    """Run playbooks/run.yml; return the record that it has fetched."""
    playbook("run", variables={"run_report_dir": str(folder), **variables})
    return json.loads((folder / f"{variables['workload']}.json").read_text())


def answer_of(record: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a record that does not depend on where it was computed."""
    return {name: value for name, value in record.items() if name not in ("runs", "versions", "on")}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the files of the snap: the programs of Kubernetes and of its runtime, and the image of a pod's first process."""
    folder = tmp_path_factory.mktemp("programs")
    made = {
        name: Path(subprocess.run([FOLDER / name, CACHE], stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])
        for name in ("build", "runtime")
    }

    tree = folder / "tree"
    tree.mkdir()
    (tree / "busybox").write_bytes((made["runtime"] / "usr/bin/busybox").read_bytes())
    (tree / "busybox").chmod(0o755)
    config = build.image_config(native_architecture(), [build.write_layer(tree, ["busybox"], folder / "layer")])
    config["config"] = {"Entrypoint": ["/busybox", "sleep", "2147483647"]}
    build.write_archive(folder, folder / "pause.tar", "localhost/pause:1", config, [folder / "layer"])
    built = {"kubectl" if path.name == "kubectl" else f"usr/bin/{path.name}": path for path in made["build"].iterdir()}
    return {"usr": made["runtime"] / "usr", **built, "pause.tar": folder / "pause.tar"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Run workloads in the profile base, on the stand-ins that are rebuilt later; yield their records by the workload's name."""
    folder = tmp_path_factory.mktemp("base")
    with running_cluster(playbook, STATE, SERVERS):
        found = {
            "pi": run_workload(folder, workload="pi", workload_args="--points 2e8"),
            "primes": run_workload(folder, workload="primes", workload_args="0 1e8 --gaps"),
        }
        yield found


@pytest.fixture(scope="module")
def before(base: dict[str, Any]) -> dict[str, set[str]]:
    """Return the state of each node before the rebuild: see `node_state`."""
    return {node: node_state(node) for node in NODES}


@pytest.fixture(scope="module")
def kubernetes(before: dict[str, set[str]], programs: dict[str, Path]) -> None:
    """Install Kubernetes on three nodes."""
    snaps.build(STATE / "snaps", "1.20.2", programs)
    playbook("microk8s")


@pytest.fixture(scope="module")
def workloads(kubernetes: None) -> None:
    """Install the workloads in Kubernetes."""
    playbook("kubernetes_workloads")


@pytest.mark.usefixtures("kubernetes")
def test_the_nodes_become_a_cluster() -> None:
    assert ready_nodes() == NODES
    kinds = {name: "node.kubernetes.io/microk8s-worker" in item["metadata"]["labels"] for name, item in nodes().items()}
    assert kinds == {"pi-04": True, "pi-05": True, "pi-client": False}
    for node in NODES:
        assert "held" in node_output(STATE, node, "snap list microk8s")
    assert "IMITATION" in client_output(f"{MICROK8S} status")


@pytest.mark.usefixtures("kubernetes")
def test_a_second_run_of_the_rebuild_changes_nothing() -> None:
    assert playbook("microk8s").changes() == []


@pytest.mark.usefixtures("kubernetes")
def test_a_worker_that_was_removed_joins_again() -> None:
    before = nodes()["pi-05"]["metadata"]["uid"]
    client_output(f"{MICROK8S} remove-node pi-05 --force")
    assert "pi-05" not in nodes()
    playbook("microk8s", arguments="--tags microk8s --limit pi-05")
    assert ready_nodes() == NODES and nodes()["pi-05"]["metadata"]["uid"] != before


@pytest.mark.usefixtures("workloads")
def test_a_second_run_changes_nothing() -> None:
    assert playbook("kubernetes_workloads").changes() == []
    assert playbook("kubernetes_workloads", arguments="--check --diff").changes() == []


@pytest.mark.usefixtures("workloads")
def test_every_server_has_a_worker() -> None:
    pods = json.loads(kubectl("--namespace bramble get pods --output json").stdout)["items"]
    worker_nodes = {
        pod["spec"]["nodeName"] for pod in pods if pod["metadata"]["labels"]["app.kubernetes.io/name"] == "bramble-worker"
    }
    assert worker_nodes == set(SERVERS)
    nodes = kubectl("--namespace bramble exec deployment/bramble-scheduler -- bramble nodes").stdout
    assert re.findall(r"^(pi-\d+)  (\d+) jobs at once", nodes, re.MULTILINE) == [("pi-04", "1"), ("pi-05", "1")]


@pytest.mark.usefixtures("workloads")
@pytest.mark.parametrize("split", [False, True], ids=["engine", "shares"])
@pytest.mark.parametrize(("workload", "words"), [("pi", "--points 2e8"), ("primes", "0 1e8 --gaps")])
def test_the_result_is_that_of_the_profile_base(
    base: dict[str, Any], tmp_path: Path, workload: str, words: str, split: bool
) -> None:
    record = run_workload(tmp_path, workload=workload, workload_args=words, run_split=split)
    assert answer_of(record) == answer_of(base[workload])
    (timed,) = record["runs"]
    assert timed["on"] == ("shares" if split else "cluster")
    assert sum(timed["per_node"].values()) == timed["jobs"] == base[workload]["runs"][0]["jobs"]
    # A share is named after its pod, not after the node.
    assert split or set(timed["per_node"]) == set(SERVERS)
    assert (tmp_path / f"{workload}.png").read_bytes().startswith(b"\x89PNG")
    assert "run-" not in kubectl("--namespace bramble get job,statefulset,configmap --no-headers").stdout


@pytest.mark.usefixtures("workloads")
def test_a_run_without_a_result_fails(tmp_path: Path) -> None:
    with pytest.raises(PlaybookFailed, match="bramble quantum ended with 2"):
        run_workload(tmp_path, workload="quantum", workload_args="shor --number 17")


@pytest.mark.usefixtures("workloads")
def test_a_client_without_a_certificate_is_refused() -> None:
    address = kubectl("--namespace bramble get service bramble-scheduler --output jsonpath={.spec.clusterIP}").stdout
    client_output("sudo cp /var/snap/microk8s/current/kubernetes/ca.crt /tmp/other.pem")
    secret = json.loads(kubectl("--namespace bramble get secret bramble-tls --output json").stdout)["data"]
    client_output(f"echo {secret['ca.crt']} | base64 -d > /tmp/ca.pem")
    for authority, is_valid in (("ca", True), ("other", False)):
        options = f"-CAfile /tmp/{authority}.pem -verify_hostname bramble-scheduler.bramble.svc -verify_return_error -brief"
        session = client_output(f"openssl s_client -connect {address}:8786 {options} </dev/null 2>&1; true")
        assert ("Verification: OK" in session) == is_valid, session
    # The scheduler also requires a certificate of the client.
    assert "alert" in client_output(
        f"(sleep 1; echo) | openssl s_client -connect {address}:8786 -CAfile /tmp/ca.pem -quiet 2>&1; true"
    )


@pytest.mark.usefixtures("workloads")
def test_this_kubernetes_accepts_all_manifests_but_indexed_jobs(tmp_path: Path) -> None:
    from tests.unit.test_kubernetes import render

    files = render(tmp_path)
    for name in sorted(set(files) - {"shares"}):
        done = kubectl("apply --dry-run=server --filename -", yaml.safe_dump_all(files[name]))
        assert done.returncode == 0, f"{name}: {done.stderr}"
    refused = kubectl("apply --dry-run=server --filename -", yaml.safe_dump_all(files["shares"]))
    assert refused.returncode != 0 and 'unknown field "completionMode"' in refused.stderr
    for manifest in files["shares"]:
        del manifest["spec"]["completionMode"]
    assert kubectl("apply --dry-run=server --filename -", yaml.safe_dump_all(files["shares"])).returncode == 0


@pytest.mark.usefixtures("workloads")
def test_the_workloads_can_be_removed() -> None:
    absent = {"cluster_state": "absent"}
    assert len(playbook("kubernetes_workloads", variables=absent).changes()) == 4
    assert playbook("kubernetes_workloads", variables=absent).changes() == []
    assert "bramble" not in kubectl("get namespaces").stdout
    for node in NODES:
        assert "bramble" not in node_output(STATE, node, f"{MICROK8S} ctr images list --quiet")


def test_the_removal_leaves_nothing(before: dict[str, set[str]], kubernetes: None) -> None:
    # The workloads need not be removed before MicroK8s.
    playbook("kubernetes_workloads")
    playbook("microk8s", variables={"cluster_state": "absent"})
    for node in NODES:
        assert node_state(node) - before[node] - REMAINING == set()
        processes = node_output(STATE, node, LIST_PROCESSES)
        assert re.findall(r".*(?:kube|etcd|containerd|busybox|distributed|microk8s).*", processes) == []
