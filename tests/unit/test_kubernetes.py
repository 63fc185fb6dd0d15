"""The manifests of roles/kubernetes_workloads are valid, and agree with each other and with the roles."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ansible_collections.bramble.cluster.plugins.filter.kubernetes_workloads import containerd_aliases, has_indexed_jobs
from kubernetes_validate.utils import validate

from tests.support import ROOT

VERSION = "1.36"  # the channel of the role microk8s
CHANNEL_FILE = ROOT / "roles/microk8s/defaults/main.yml"
LINE = "enigma --on cluster 'ABC DEF' \"G: #1\" --points 1e9 --report /report"
# The values that Kubernetes accepts for fields whose type in its OpenAPI schema is only a string (API reference, v1.36).
ALLOWED_VALUES = {
    "completionMode": {"NonIndexed", "Indexed"},
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "operator": {"In", "NotIn", "Exists", "DoesNotExist"},
    "podManagementPolicy": {"OrderedReady", "Parallel"},
    "protocol": {"TCP", "UDP", "SCTP"},
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "policyTypes": {"Ingress", "Egress"},
    "medium": {"", "Memory"},
    "drop": {"ALL"},
}
ALLOWED_TYPES = {"seccompProfile": {"RuntimeDefault", "Localhost", "Unconfined"}, "strategy": {"Recreate", "RollingUpdate"}}


def find_problems(manifest: dict[str, Any]) -> list[str]:
    """Return what Kubernetes would refuse in a manifest: unknown fields, wrong types and wrong values."""
    found = []
    try:
        validate(manifest, VERSION, strict=True)
    except jsonschema.ValidationError as error:
        found.append(f"{'.'.join(map(str, error.path))}: {error.message}")

    def check_values(value: Any, path: str) -> Iterator[str]:
        if isinstance(value, dict):
            for key, child in value.items():
                given = child if isinstance(child, list) else [child]
                if key in ALLOWED_VALUES and path.rpartition(".")[2] not in ("labels", "matchLabels"):
                    yield from (
                        f"{path}.{key}: {word}"
                        for word in given
                        if not isinstance(word, dict) and word not in ALLOWED_VALUES[key]
                    )
                if key in ALLOWED_TYPES and isinstance(child, dict) and child.get("type") not in ALLOWED_TYPES[key]:
                    yield f"{path}.{key}.type: {child.get('type')}"
                yield from check_values(child, f"{path}.{key}")
        elif isinstance(value, list):
            for index, child in enumerate(value):
                yield from check_values(child, f"{path}[{index}]")

    return [*found, *check_values(manifest, manifest["kind"])]


def render(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return all manifests by file, rendered by Ansible into a folder as the role does it."""
    (folder / "pki/nodes").mkdir(parents=True)
    for name in ("ca.pem", "nodes/kubernetes.pem", "nodes/kubernetes.key"):
        (folder / "pki" / name).write_text(f"{name}\n")
    given = {
        "folder": str(folder),
        "certificate_dir": f"{folder}/pki",
        "kubernetes_workloads_hosts": ["pi-02", "pi-01", "pi-03"],
        "kubernetes_workloads_run": "run-20261123-031500",
        "kubernetes_workloads_line": LINE,
        "__kubernetes_workloads_line": LINE,
        "templates": str(ROOT / "roles/kubernetes_workloads/templates"),
        "__kubernetes_workloads_image": "localhost/bramble:0123456789ab",
        "__kubernetes_workloads_address": "10.152.183.10",
    }
    command: list[str | Path] = [Path(sys.executable).with_name("ansible-playbook"), ROOT / "tests/unit/kubernetes/render.yml"]
    command += ["-i", ROOT / "inventory/hosts.yml", "-i", ROOT / "inventory/active.yml", "-e", json.dumps(given)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.stem: list(yaml.safe_load_all(path.read_text())) for path in folder.glob("*.yml")}


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """All manifests, by file."""
    return render(tmp_path_factory.mktemp("manifests"))


def all_manifests(manifests: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the manifests of all files."""
    return [manifest for several in manifests.values() for manifest in several]


def pod_specs(manifests: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return the specifications of the pods, by file and name."""
    return {
        f"{name} {manifest['metadata']['name']}": manifest["spec"]["template"]["spec"]
        for name, several in manifests.items()
        for manifest in several
        if "template" in manifest.get("spec", {})
    }


def find_manifest(manifests: dict[str, list[dict[str, Any]]], kind: str, name: str) -> dict[str, Any]:
    (found,) = (each for each in all_manifests(manifests) if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


def test_kubernetes_accepts_all_manifests(manifests: dict[str, list[dict[str, Any]]]) -> None:
    assert len(all_manifests(manifests)) == 15
    assert [problem for manifest in all_manifests(manifests) for problem in find_problems(manifest)] == []


@pytest.mark.skipif(not CHANNEL_FILE.exists(), reason="this clone has no role microk8s")
def test_version_is_that_of_the_role_microk8s() -> None:
    assert yaml.safe_load(CHANNEL_FILE.read_text())["microk8s_channel"].startswith(f"{VERSION}/")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("spec.completionModes", "Indexed", "completionModes"),
        ("spec.completions", "8", "integer"),
        ("spec.completionMode", "Indexd", "Indexd"),
        ("spec.template.spec.restartPolicy", "Sometimes", "Sometimes"),
        ("spec.template.spec.securityContext.runAsNonRoot", "yes", "boolean"),
        ("spec.template.spec.securityContext.seccompProfile.type", "Default", "Default"),
        ("spec.template.spec.containers.0.securityContext.readonlyRootFilesystem", True, "readonlyRootFilesystem"),
        ("spec.template.spec.containers.0.resources.limits", ["2Gi"], "limits"),
    ],
)
def test_problems_of_manifests_are_found(manifests: dict[str, list[dict[str, Any]]], path: str, value: Any, message: str) -> None:
    (manifest,) = copy.deepcopy(manifests["shares"])
    *way, last = (int(step) if step.isdigit() else step for step in path.split("."))
    place: Any = manifest
    for step in way:
        place = place[step]
    place[last] = value
    assert any(message in problem for problem in find_problems(manifest)), find_problems(manifest)


def test_pods_have_no_privileges(manifests: dict[str, list[dict[str, Any]]]) -> None:
    found = pod_specs(manifests)
    assert len(found) == 6
    for name, pod in found.items():
        assert pod["automountServiceAccountToken"] is False, name
        context = pod["securityContext"]
        assert context["runAsNonRoot"] and context["runAsUser"] > 1000 and context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert all(not {"hostPath", "persistentVolumeClaim"} & volume.keys() for volume in pod["volumes"])
        for container in pod["containers"]:
            own = container["securityContext"]
            assert own == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
            assert container["resources"]["limits"]["memory"], name


def test_worker_uses_the_limits_of_its_pod(manifests: dict[str, list[dict[str, Any]]]) -> None:
    spec = find_manifest(manifests, "Deployment", "bramble-worker")["spec"]
    (worker,) = spec["template"]["spec"]["containers"]
    given = dict(zip(worker["args"][1::2], worker["args"][2::2], strict=False))
    source = {variable["name"]: variable.get("valueFrom") for variable in worker["env"]}
    assert (given["--nthreads"], given["--memory-limit"], given["--name"]) == ("$(CPUS)", "$(MEMORY)", "$(NODE)")
    assert source["CPUS"]["resourceFieldRef"] == {"containerName": worker["name"], "resource": "requests.cpu", "divisor": "1"}
    assert source["MEMORY"]["resourceFieldRef"] == {"containerName": worker["name"], "resource": "limits.memory", "divisor": "1"}
    assert source["NODE"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}
    # Two workers on one node would have the same name.
    assert spec["replicas"] == 3 and spec["strategy"] == {"type": "Recreate"}
    affinity = spec["template"]["spec"]["affinity"]
    (apart,) = affinity["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert apart["labelSelector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    (term,) = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchExpressions"][0]["values"] == ["pi-01", "pi-02", "pi-03"]


def test_ports_agree_with_the_roles_and_the_network_policies(manifests: dict[str, list[dict[str, Any]]]) -> None:
    worker_role = yaml.safe_load((ROOT / "roles/worker/defaults/main.yml").read_text())
    shared = yaml.safe_load((ROOT / "inventory/group_vars/all/cluster.yml").read_text())
    scheduler = int(re.findall(r":(\d+)$", shared["cluster_scheduler"])[0])
    ports = {
        name: {
            port["name"]: port["containerPort"]
            for port in find_manifest(manifests, "Deployment", name)["spec"]["template"]["spec"]["containers"][0]["ports"]
        }
        for name in ("bramble-scheduler", "bramble-worker")
    }
    assert ports["bramble-scheduler"]["tls"] == scheduler
    assert (ports["bramble-worker"]["worker"], ports["bramble-worker"]["nanny"]) == (
        worker_role["worker_port"],
        worker_role["worker_nanny_port"],
    )
    (service,) = find_manifest(manifests, "Service", "bramble-scheduler")["spec"]["ports"]
    assert service["port"] == scheduler and service["targetPort"] == "tls"
    config = find_manifest(manifests, "ConfigMap", "bramble")["data"]["cluster.toml"]
    assert f"tls://bramble-scheduler:{scheduler}" in config
    arguments = [
        find_manifest(manifests, "Deployment", name)["spec"]["template"]["spec"]["containers"][0]["args"] for name in ports
    ]
    assert arguments[1][0] == f"tls://bramble-scheduler:{scheduler}" and f"tls://$(POD_IP):{scheduler}" in arguments[0]
    assert str(worker_role["worker_port"]) in arguments[1] and str(worker_role["worker_nanny_port"]) in arguments[1]

    # The allowed connections: from, to, port. The policies of both ends must allow them.
    rules: dict[str, set[tuple[str, str, int]]] = {"Ingress": set(), "Egress": set()}
    for policy in (each["spec"] for each in all_manifests(manifests) if each["kind"] == "NetworkPolicy"):
        chosen = names(policy["podSelector"])
        for way, peers in (("Ingress", "from"), ("Egress", "to")):
            for rule in policy.get(way.lower(), []):
                others = [name for peer in rule[peers] for name in names(peer["podSelector"])]
                numbers = [port["port"] for port in rule["ports"]]
                pairs = [(other, own) if way == "Ingress" else (own, other) for other in others for own in chosen]
                rules[way] |= {(*pair, number) for pair in pairs for number in numbers}
    tls = {("bramble-worker", "bramble-scheduler", scheduler), ("bramble-client", "bramble-scheduler", scheduler)}
    work = {
        (name, "bramble-worker", worker_role[port])
        for name in ("bramble-scheduler", "bramble-worker")
        for port in ("worker_port", "worker_nanny_port")
    }
    assert rules["Ingress"] == rules["Egress"] == tls | work
    closed = find_manifest(manifests, "NetworkPolicy", "nobody")["spec"]
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def names(selector: dict[str, Any]) -> list[str]:
    """Return the names of the pods that a selector selects, by the label app.kubernetes.io/name."""
    if "matchLabels" in selector:
        return [selector["matchLabels"]["app.kubernetes.io/name"]]
    return [name for expression in selector.get("matchExpressions", []) for name in expression["values"]]


def test_references_of_manifests_exist(manifests: dict[str, list[dict[str, Any]]]) -> None:
    build = (ROOT / "images/kubernetes/build.py").read_text()
    assert 'NAME = "localhost/bramble"' in build
    secret = find_manifest(manifests, "Secret", "bramble-tls")
    there = {"secret": {"bramble-tls"}, "configMap": {"bramble", "run-20261123-031500"}}
    for name, pod in pod_specs(manifests).items():
        (container,) = pod["containers"]
        assert container["image"] == "localhost/bramble:0123456789ab" and container["imagePullPolicy"] == "Never"
        assert pod["securityContext"]["runAsUser"] == int(re.findall(r"^USER = (\d+)$", build, re.MULTILINE)[0])
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}, name
        for mount in container["volumeMounts"]:
            assert f'"{mount["mountPath"].removeprefix("/")}"' in build, (
                f"{mount['mountPath']} is not in the image, whose root is read-only"
            )
        for volume in pod["volumes"]:
            for kind, key in (("secret", "secretName"), ("configMap", "name")):
                assert volume.get(kind, {key: next(iter(there[kind]))})[key] in there[kind]
        for file in re.findall(r"/etc/bramble/tls/([\w.]+)", json.dumps(container)):
            assert file in secret["data"]
    for file in re.findall(
        r"/etc/bramble/tls/([\w.]+)", find_manifest(manifests, "ConfigMap", "bramble")["data"]["cluster.toml"]
    ):
        assert file in secret["data"]
    for each in all_manifests(manifests):
        assert each["kind"] == "Namespace" or each["metadata"]["namespace"] == "bramble"


def test_arguments_of_the_user_arrive_unchanged(manifests: dict[str, list[dict[str, Any]]]) -> None:
    assert find_manifest({"client": manifests["client"]}, "Job", "run-20261123-031500")["spec"]["template"]["spec"]["containers"][
        0
    ]["args"] == ["run", LINE]
    (share,) = manifests["shares"]
    assert share["spec"]["completions"] == share["spec"]["parallelism"] == 3
    assert share["spec"]["template"]["spec"]["containers"][0]["args"] == ["share", "3", f"{LINE} --on workstation"]


def test_without_indexed_jobs_a_stateful_set_is_used(manifests: dict[str, list[dict[str, Any]]]) -> None:
    (indexed,), (ordinal,) = manifests["shares"], manifests["shares-before-1.24"]
    assert (indexed["kind"], ordinal["kind"]) == ("Job", "StatefulSet")
    assert "completionMode" not in ordinal["spec"] and ordinal["spec"]["replicas"] == 3
    assert indexed["spec"]["template"]["spec"]["containers"] == ordinal["spec"]["template"]["spec"]["containers"]


@pytest.mark.parametrize(
    ("major", "minor", "has"), [("1", "20", False), ("1", "23+", False), ("1", "24+", True), ("1", "36", True)]
)
def test_releases_with_indexed_jobs(major: str, minor: str, has: bool) -> None:
    assert has_indexed_jobs({"clientVersion": {}, "serverVersion": {"major": major, "minor": minor}}) == has


def test_all_names_of_an_image_are_found() -> None:
    lines = [
        "REF TYPE DIGEST SIZE PLATFORMS LABELS",
        "localhost/bramble:01 application/vnd.oci sha256:aa 200 MiB linux/arm64 -",
        "localhost/bramble@sha256:aa application/vnd.oci sha256:aa 200 MiB linux/arm64 -",
        "sha256:cc application/vnd.oci sha256:aa 200 MiB linux/arm64 -",
        "localhost/pause:1 application/vnd.oci sha256:bb 1 MiB linux/arm64 -",
    ]
    names = ["localhost/bramble:01", "localhost/bramble@sha256:aa", "sha256:cc"]
    assert containerd_aliases(lines, "localhost/bramble:") == names
    assert containerd_aliases(lines, "localhost/other:") == []
