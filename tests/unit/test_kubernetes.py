"""The manifests of workloads/kubernetes: what Kubernetes would refuse, and what would not fit together, is found here."""

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
import kubernetes_validate
import pytest
import yaml

from tests.support import ROOT

VERSION = "1.36"  # of role microk8s: its channel
CHANNEL = ROOT / "roles/microk8s/defaults/main.yml"
LINE = "enigma --on cluster 'ABC DEF' \"G: #1\" --points 1e9 --report /report"
# What no schema of Kubernetes' own says: its OpenAPI description has strings, where only some are taken (API reference, v1.36).
WORDS = {
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
TYPES = {"seccompProfile": {"RuntimeDefault", "Localhost", "Unconfined"}, "strategy": {"Recreate", "RollingUpdate"}}


def wrong(manifest: dict[str, Any]) -> list[str]:
    """What Kubernetes would say against a manifest: an unknown field, a wrong type, a word that is none."""
    found = []
    try:
        kubernetes_validate.validate(manifest, VERSION, strict=True)
    except jsonschema.ValidationError as error:
        found.append(f"{'.'.join(map(str, error.path))}: {error.message}")

    def look(value: Any, path: str) -> Iterator[str]:
        if isinstance(value, dict):
            for key, child in value.items():
                given = child if isinstance(child, list) else [child]
                if key in WORDS and path.rpartition(".")[2] not in ("labels", "matchLabels"):
                    yield from (
                        f"{path}.{key}: {word}" for word in given if not isinstance(word, dict) and word not in WORDS[key]
                    )
                if key in TYPES and isinstance(child, dict) and child.get("type") not in TYPES[key]:
                    yield f"{path}.{key}.type: {child.get('type')}"
                yield from look(child, f"{path}.{key}")
        elif isinstance(value, list):
            for index, child in enumerate(value):
                yield from look(child, f"{path}[{index}]")

    return [*found, *look(manifest, manifest["kind"])]


def render(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Have Ansible render all manifests, as the role does, into a folder; by file."""
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
        "__kubernetes_workloads_dir": str(ROOT / "workloads/kubernetes"),
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


def everything(manifests: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [manifest for several in manifests.values() for manifest in several]


def pods(manifests: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The specification of the pods, by file and name."""
    return {
        f"{name} {manifest['metadata']['name']}": manifest["spec"]["template"]["spec"]
        for name, several in manifests.items()
        for manifest in several
        if "template" in manifest.get("spec", {})
    }


def one(manifests: dict[str, list[dict[str, Any]]], kind: str, name: str) -> dict[str, Any]:
    (found,) = (each for each in everything(manifests) if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


def test_kubernetes_takes_all_of_them(manifests: dict[str, list[dict[str, Any]]]) -> None:
    assert len(everything(manifests)) == 15
    assert [problem for manifest in everything(manifests) for problem in wrong(manifest)] == []


@pytest.mark.skipif(not CHANNEL.exists(), reason="this clone has no role microk8s")
def test_the_version_is_that_of_the_role() -> None:
    assert yaml.safe_load(CHANNEL.read_text())["microk8s_channel"].startswith(f"{VERSION}/")


@pytest.mark.parametrize(
    ("path", "value", "says"),
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
def test_what_is_wrong_is_found(manifests: dict[str, list[dict[str, Any]]], path: str, value: Any, says: str) -> None:
    (manifest,) = copy.deepcopy(manifests["shares"])
    *way, last = (int(step) if step.isdigit() else step for step in path.split("."))
    place: Any = manifest
    for step in way:
        place = place[step]
    place[last] = value
    assert any(says in problem for problem in wrong(manifest)), wrong(manifest)


def test_no_pod_may_more_than_it_must(manifests: dict[str, list[dict[str, Any]]]) -> None:
    found = pods(manifests)
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


def test_a_worker_takes_what_its_pod_may_have(manifests: dict[str, list[dict[str, Any]]]) -> None:
    spec = one(manifests, "Deployment", "bramble-worker")["spec"]
    (worker,) = spec["template"]["spec"]["containers"]
    given = dict(zip(worker["args"][1::2], worker["args"][2::2], strict=False))
    source = {variable["name"]: variable.get("valueFrom") for variable in worker["env"]}
    assert (given["--nthreads"], given["--memory-limit"], given["--name"]) == ("$(CPUS)", "$(MEMORY)", "$(NODE)")
    assert source["CPUS"]["resourceFieldRef"] == {"containerName": worker["name"], "resource": "requests.cpu", "divisor": "1"}
    assert source["MEMORY"]["resourceFieldRef"] == {"containerName": worker["name"], "resource": "limits.memory", "divisor": "1"}
    assert source["NODE"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}
    # Two on one node would have one name.
    assert spec["replicas"] == 3 and spec["strategy"] == {"type": "Recreate"}
    affinity = spec["template"]["spec"]["affinity"]
    (apart,) = affinity["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert apart["labelSelector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    (term,) = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchExpressions"][0]["values"] == ["pi-01", "pi-02", "pi-03"]


def test_ports_are_those_that_the_roles_have_and_the_rules_let_through(manifests: dict[str, list[dict[str, Any]]]) -> None:
    worker_role = yaml.safe_load((ROOT / "roles/worker/defaults/main.yml").read_text())
    shared = yaml.safe_load((ROOT / "inventory/group_vars/all/cluster.yml").read_text())
    scheduler = int(re.findall(r":(\d+)$", shared["cluster_scheduler"])[0])
    ports = {
        name: {
            port["name"]: port["containerPort"]
            for port in one(manifests, "Deployment", name)["spec"]["template"]["spec"]["containers"][0]["ports"]
        }
        for name in ("bramble-scheduler", "bramble-worker")
    }
    assert ports["bramble-scheduler"]["tls"] == scheduler
    assert (ports["bramble-worker"]["worker"], ports["bramble-worker"]["nanny"]) == (
        worker_role["worker_port"],
        worker_role["worker_nanny_port"],
    )
    (service,) = one(manifests, "Service", "bramble-scheduler")["spec"]["ports"]
    assert service["port"] == scheduler and service["targetPort"] == "tls"
    config = one(manifests, "ConfigMap", "bramble")["data"]["cluster.toml"]
    assert f"tls://bramble-scheduler:{scheduler}" in config
    arguments = [one(manifests, "Deployment", name)["spec"]["template"]["spec"]["containers"][0]["args"] for name in ports]
    assert arguments[1][0] == f"tls://bramble-scheduler:{scheduler}" and f"tls://$(POD_IP):{scheduler}" in arguments[0]
    assert str(worker_role["worker_port"]) in arguments[1] and str(worker_role["worker_nanny_port"]) in arguments[1]

    # Who may speak to whom: from, to, port. Both ends must allow it.
    rules: dict[str, set[tuple[str, str, int]]] = {"Ingress": set(), "Egress": set()}
    for policy in (each["spec"] for each in everything(manifests) if each["kind"] == "NetworkPolicy"):
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
    closed = one(manifests, "NetworkPolicy", "nobody")["spec"]
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def names(selector: dict[str, Any]) -> list[str]:
    """The pods that a selector chooses, by our label."""
    if "matchLabels" in selector:
        return [selector["matchLabels"]["app.kubernetes.io/name"]]
    return [name for expression in selector.get("matchExpressions", []) for name in expression["values"]]


def test_what_is_named_is_there(manifests: dict[str, list[dict[str, Any]]]) -> None:
    build = (ROOT / "images/kubernetes/build.py").read_text()
    assert 'NAME = "localhost/bramble"' in build
    secret = one(manifests, "Secret", "bramble-tls")
    there = {"secret": {"bramble-tls"}, "configMap": {"bramble", "run-20261123-031500"}}
    for name, pod in pods(manifests).items():
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
    for file in re.findall(r"/etc/bramble/tls/([\w.]+)", one(manifests, "ConfigMap", "bramble")["data"]["cluster.toml"]):
        assert file in secret["data"]
    for each in everything(manifests):
        assert each["kind"] == "Namespace" or each["metadata"]["namespace"] == "bramble"


def test_what_was_typed_arrives_as_it_was(manifests: dict[str, list[dict[str, Any]]]) -> None:
    assert one({"client": manifests["client"]}, "Job", "run-20261123-031500")["spec"]["template"]["spec"]["containers"][0][
        "args"
    ] == ["run", LINE]
    (share,) = manifests["shares"]
    assert share["spec"]["completions"] == share["spec"]["parallelism"] == 3
    assert share["spec"]["template"]["spec"]["containers"][0]["args"] == ["share", "3", f"{LINE} --on workstation"]


def test_without_an_index_pods_have_one_in_their_names(manifests: dict[str, list[dict[str, Any]]]) -> None:
    (indexed,), (ordinal,) = manifests["shares"], manifests["shares-before-1.24"]
    assert (indexed["kind"], ordinal["kind"]) == ("Job", "StatefulSet")
    assert "completionMode" not in ordinal["spec"] and ordinal["spec"]["replicas"] == 3
    assert indexed["spec"]["template"]["spec"]["containers"] == ordinal["spec"]["template"]["spec"]["containers"]
