"""The workloads in a real Kubernetes on stand-ins: the answers are those of the base build. See `make test-kubernetes`.

Kubernetes 1.20.2 is the last one whose source Debian has whole. It knows no Jobs with an index: a StatefulSet is in their place.
Stand-ins have no controllers for memory, and the network's plug-in here enforces no NetworkPolicy: neither is tested.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import rehearsal
import yaml
from rehearsal import INVENTORY, ROOT, PlaybookFailed, play

from tests.e2e.conftest import booted, told

pytestmark = [
    pytest.mark.slow,
    pytest.mark.kubernetes,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(os.geteuid() != 0, reason="making cards needs root"),
]
HERE = Path(__file__).parent / "kubernetes"
STATE = ROOT / ".state/kubernetes"
CACHE = ROOT / ".cache/kubernetes"
SERVERS = ["pi-01", "pi-02"]
KUBECTL = "sudo /opt/kubernetes/usr/bin/kubectl --kubeconfig /etc/kubernetes/admin.conf"

playbook = partial(play, inventory=[*INVENTORY, HERE / "inventory"])
client = partial(told, STATE, "pi-client")


def kubectl(words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run kubectl on the node with the control plane."""
    command = rehearsal.ssh_words(STATE, "pi-client", f"{KUBECTL} {words}")
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=120)


def run(folder: Path, **variables: Any) -> dict[str, Any]:
    """playbooks/run.yml; the record that came back."""
    playbook("run", variables={"run_report_dir": str(folder), **variables})
    return json.loads((folder / f"{variables['workload']}.json").read_text())


def answer(record: dict[str, Any]) -> dict[str, Any]:
    """What of a record does not depend on where it was computed."""
    return {name: value for name, value in record.items() if name not in ("runs", "versions", "on")}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the nodes run, as archives: Kubernetes and what is below it, and the image of a pod's first process."""
    folder = tmp_path_factory.mktemp("programs")
    made = {
        name: Path(subprocess.run([HERE / name, CACHE], stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])
        for name in ("build", "runtime")
    }
    with tarfile.open(folder / "programs.tar", "w") as tar:
        tar.add(made["runtime"] / "usr", "usr")
        for program in made["build"].iterdir():
            tar.add(program, f"usr/bin/{program.name}")

    sys.path.insert(0, str(ROOT))
    from images.kubernetes import build

    tree = folder / "tree"
    tree.mkdir()
    (tree / "busybox").write_bytes((made["runtime"] / "usr/bin/busybox").read_bytes())
    (tree / "busybox").chmod(0o755)
    config = build.settings(build.native_architecture(), [build.layer(tree, ["busybox"], folder / "layer")])
    config["config"] = {"Entrypoint": ["/busybox", "sleep", "2147483647"]}
    build.archive(folder, folder / "pause.tar", "localhost/pause:1", config, [folder / "layer"])
    return {"programs": str(folder / "programs.tar"), "pause": str(folder / "pause.tar")}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The answers of the base build, on the stand-ins that are rebuilt afterwards: workload -> record."""
    folder = tmp_path_factory.mktemp("base")
    with booted(playbook, STATE, SERVERS):
        found = {
            "pi": run(folder, workload="pi", workload_args="--points 2e8"),
            "primes": run(folder, workload="primes", workload_args="0 1e8 --gaps"),
        }
        playbook("site", variables={"cluster_state": "absent"})
        yield found


@pytest.fixture(scope="module")
def kubernetes(base: dict[str, Any], programs: dict[str, str]) -> None:
    """Kubernetes on three nodes, all ready."""
    playbook("../tests/slow/kubernetes/up", variables={**programs, "token": secrets.token_hex(16)})
    for _ in range(120):
        done = kubectl("get nodes --no-headers")
        if len(re.findall(r" Ready .* v1\.20\.2$", done.stdout, re.MULTILINE)) == 3:
            return
        time.sleep(2)
    raise AssertionError(f"{done.stdout}{done.stderr}\n{client('sudo journalctl -u kube-kubelet -n 40 --no-pager')}")


@pytest.fixture(scope="module")
def workloads(kubernetes: None) -> None:
    """The workloads in it."""
    playbook("kubernetes_workloads")


@pytest.mark.usefixtures("workloads")
def test_a_second_run_changes_nothing() -> None:
    assert playbook("kubernetes_workloads").changes() == []
    assert playbook("kubernetes_workloads", arguments="--check --diff").changes() == []


@pytest.mark.usefixtures("workloads")
def test_every_node_that_computes_has_a_worker() -> None:
    pods = json.loads(kubectl("--namespace bramble get pods --output json").stdout)["items"]
    where = {pod["spec"]["nodeName"] for pod in pods if pod["metadata"]["labels"]["app.kubernetes.io/name"] == "bramble-worker"}
    assert where == set(SERVERS)
    nodes = kubectl("--namespace bramble exec deployment/bramble-scheduler -- bramble nodes").stdout
    assert re.findall(r"^(pi-\d+)  (\d+) jobs at once", nodes, re.MULTILINE) == [("pi-01", "1"), ("pi-02", "1")]


@pytest.mark.usefixtures("workloads")
@pytest.mark.parametrize("split", [False, True], ids=["engine", "shares"])
@pytest.mark.parametrize(("workload", "words"), [("pi", "--points 2e8"), ("primes", "0 1e8 --gaps")])
def test_the_answer_is_that_of_the_base_build(
    base: dict[str, Any], tmp_path: Path, workload: str, words: str, split: bool
) -> None:
    record = run(tmp_path, workload=workload, workload_args=words, run_split=split)
    assert answer(record) == answer(base[workload])
    (timed,) = record["runs"]
    assert timed["on"] == ("shares" if split else "cluster")
    assert sum(timed["per_node"].values()) == timed["jobs"] == base[workload]["runs"][0]["jobs"]
    # Shares have the names of their pods.
    assert split or set(timed["per_node"]) == set(SERVERS)
    assert (tmp_path / f"{workload}.png").read_bytes().startswith(b"\x89PNG")
    assert "run-" not in kubectl("--namespace bramble get job,statefulset,configmap --no-headers").stdout


@pytest.mark.usefixtures("workloads")
def test_a_run_without_a_result(tmp_path: Path) -> None:
    with pytest.raises(PlaybookFailed, match="bramble quantum ended with 2"):
        run(tmp_path, workload="quantum", workload_args="shor --number 17")


@pytest.mark.usefixtures("workloads")
def test_who_is_not_of_the_cluster_gets_nowhere() -> None:
    address = kubectl("--namespace bramble get service bramble-scheduler --output jsonpath={.spec.clusterIP}").stdout
    client("sudo cp /etc/kubernetes/ca.crt /tmp/other.pem")
    secret = json.loads(kubectl("--namespace bramble get secret bramble-tls --output json").stdout)["data"]
    client(f"echo {secret['ca.crt']} | base64 -d > /tmp/ca.pem")
    for authority, good in (("ca", True), ("other", False)):
        options = f"-CAfile /tmp/{authority}.pem -verify_hostname bramble-scheduler.bramble.svc -verify_return_error -brief"
        said = client(f"openssl s_client -connect {address}:8786 {options} </dev/null 2>&1; true")
        assert ("Verification: OK" in said) == good, said
    # It wants a certificate, too.
    assert "alert" in client(f"(sleep 1; echo) | openssl s_client -connect {address}:8786 -CAfile /tmp/ca.pem -quiet 2>&1; true")


@pytest.mark.usefixtures("workloads")
def test_what_this_kubernetes_does_not_know(tmp_path: Path) -> None:
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
def test_and_back() -> None:
    absent = {"kubernetes_workloads_state": "absent"}
    assert len(playbook("kubernetes_workloads", variables=absent).changes()) == 4
    assert playbook("kubernetes_workloads", variables=absent).changes() == []
    assert "bramble" not in kubectl("get namespaces").stdout
    for node in ("pi-client", *SERVERS):
        assert "bramble" not in told(STATE, node, "sudo /opt/kubernetes/usr/bin/ctr --namespace k8s.io images list --quiet")
