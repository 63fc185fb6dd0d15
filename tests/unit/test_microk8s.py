"""MicroK8s: modules, filters and lookups. The real snapd and a real join are tested by the scenario molecule/microk8s."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bramble.cluster.plugins.filter.microk8s import microk8s_problems, step_problem
from ansible_collections.bramble.cluster.plugins.filter.microk8s_addons import addon_problems
from ansible_collections.bramble.cluster.plugins.filter.microk8s_checklist import (
    evaluate_checklist,
    expected_nodes,
    format_checklist,
)
from ansible_collections.bramble.cluster.plugins.filter.microk8s_members import leader, membership
from ansible_collections.bramble.cluster.plugins.lookup.microk8s_image_names import image_names
from ansible_collections.bramble.cluster.plugins.lookup.microk8s_snap_files import snap_files
from ansible_collections.bramble.cluster.plugins.module_utils.kubernetes import microk8s, snapd
from ansible_collections.bramble.cluster.plugins.modules import microk8s_facts, microk8s_leftovers
from hypothesis import given
from hypothesis import strategies as st

from tests.support import ROOT
from tests.support.local_play import run_locally
from tests.support.microk8s_snap import build

from .conftest import Run

WORKER_OUTPUT = "This MicroK8s deployment is acting as a node in a cluster.\nPlease use the master node.\n"
HOST = {
    "architecture": "aarch64",
    "distribution": "ubuntu",
    "hostname": "pi-1",
    "memory": 4 * 2**30,
    "disk": 20 * 2**30,
    "controllers": ["cpu", "memory"],
    "cmdline": ["quiet"],
    "vxlan": True,
    "clock_offset": 0.3,
    "default_route": True,
    "snapd": "2.63",
    "store": True,
}
WANTED = {
    "architectures": ["aarch64", "x86_64"],
    "distributions": ["Ubuntu"],
    "memory_control_plane": 1800,
    "memory_worker": 900,
    "disk": 8192,
    "clock": 30,
    "memory_cgroup": True,
    "gateway": "",
    "source": "store",
    "channel": "1.36/stable",
    "version": "1.36/stable",
}


def item(name: str, uid: str = "u", ready: str = "True", worker: bool = False) -> dict:
    """Return a node as `kubectl get nodes -o json` prints it."""
    kind = "worker" if worker else "controlplane"
    return {
        "metadata": {"name": name, "uid": uid, "labels": {f"node.kubernetes.io/microk8s-{kind}": f"microk8s-{kind}"}},
        "spec": {},
        "status": {
            "conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": ready}],
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "Hostname", "address": name}],
            "nodeInfo": {"kubeletVersion": "v1.36.1"},
        },
    }


def listed(*items: dict) -> str:
    return json.dumps({"kind": "List", "items": list(items)})


# Membership


def test_exact_names_identify_nodes() -> None:
    nodes = microk8s.parse_nodes(listed(item("pi-10"), item("pi-100")))
    assert membership("pi-1", {"role": "worker"}, nodes) == "missing"
    assert membership("pi-10", {"role": "worker"}, nodes) == "member"


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"role": "worker", "nodes": {}}, "member"),
        ({"role": "control-plane", "nodes": {"pi-1": {"uid": "cluster's"}}}, "member"),
        # A new card with MicroK8s, and one without.
        ({"role": "control-plane", "nodes": {"pi-1": {"uid": "its own"}}}, "stale"),
        ({"role": "", "nodes": {}}, "stale"),
    ],
)
def test_membership_of_a_node_whose_name_the_cluster_has(own: dict, expected: str) -> None:
    assert membership("pi-1", own, {"pi-1": {"uid": "cluster's"}}) == expected


def test_leader_is_the_first_node_of_the_largest_cluster() -> None:
    alone = {"role": "control-plane", "nodes": {"pi-1": {}}}
    both = {"role": "control-plane", "nodes": {"pi-2": {}, "pi-3": {}}}
    assert leader({"pi-1": alone, "pi-2": {**alone}, "pi-3": {"unreachable": True}}) == "pi-1"
    assert leader({"pi-1": alone, "pi-2": both, "pi-3": both}) == "pi-2"
    assert leader({"pi-1": {"role": "worker", "nodes": {}}, "pi-2": {"failed": True}}) == ""


def answering(monkeypatch: pytest.MonkeyPatch, folder: Path, **answers: tuple[int, str]) -> Path:
    """Install a `microk8s` that prints a given answer for each subcommand; return the log of its calls."""
    script, log = folder / "microk8s", folder / "log"
    cases = ""
    for word, (code, text) in answers.items():
        (folder / f"{word}.txt").write_text(text)
        cases += f"{word.replace('_', '-')}) cat {folder}/{word}.txt; exit {code};;\n"
    script.write_text(f'#!/bin/sh\necho "$@" >>{log}\ncase $1 in\n{cases}esac\n')
    script.chmod(0o755)
    log.touch()
    monkeypatch.setattr("ansible_collections.bramble.cluster.plugins.module_utils.kubernetes.microk8s.COMMAND", str(script))
    return log


@pytest.mark.parametrize("code", [0, 1])
def test_worker_is_recognised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_module: Run, code: int) -> None:
    """It prints neither YAML nor JSON, and its exit code differs between releases."""
    answering(monkeypatch, tmp_path, kubectl=(code, WORKER_OUTPUT))
    monkeypatch.setattr(snapd, "installed_snaps", lambda: {"microk8s": {}})
    done = run_module("microk8s_facts", {})
    assert (done["role"], done["nodes"], done["problem"]) == ("worker", {}, "")
    assert "This node is a worker" in run_module("microk8s_node", {"name": "pi-1", "state": "drained"})["msg"]


def test_unexpected_output_of_kubectl_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_module: Run) -> None:
    answering(monkeypatch, tmp_path, kubectl=(0, "microk8s is not running, try microk8s start\n"))
    monkeypatch.setattr(snapd, "installed_snaps", lambda: {"microk8s": {}})
    assert "try microk8s start" in run_module("microk8s_facts", {})["problem"]


@pytest.mark.parametrize(
    ("state", "changed", "command"),
    [
        ("drained", True, "kubectl drain pi-1 --ignore-daemonsets --delete-emptydir-data --force --timeout=9s"),
        ("schedulable", False, ""),
        ("absent", True, "remove-node pi-1 --force"),
    ],
)
def test_node_is_changed_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_module: Run, state: str, changed: bool, command: str
) -> None:
    log = answering(monkeypatch, tmp_path, kubectl=(0, listed(item("pi-10"), item("pi-1"))))
    wanted = {"name": "pi-1", "state": state, "timeout": 9}
    dry = run_module("microk8s_node", wanted, check=True, diff=True)
    assert dry["changed"] == changed and log.read_text().splitlines() == ["kubectl get nodes -o json"]
    log.write_text("")
    done = run_module("microk8s_node", wanted, diff=True)
    assert (done["changed"], done["diff"]) == (changed, dry["diff"])
    assert log.read_text().splitlines()[1:] == ([command] if command else [])


def test_missing_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_module: Run) -> None:
    answering(monkeypatch, tmp_path, kubectl=(0, listed(item("pi-10"), item("pi-2", ready="Unknown"))))
    assert not run_module("microk8s_node", {"name": "pi-1", "state": "absent"})["changed"]
    assert "no node pi-1" in run_module("microk8s_node", {"name": "pi-1", "state": "drained"})["msg"]
    assert (
        "pi-1 is not in the cluster after 0 s"
        in run_module("microk8s_node", {"name": "pi-1", "state": "ready", "timeout": 0})["msg"]
    )
    assert "pi-2 is not ready" in run_module("microk8s_node", {"name": "pi-2", "state": "ready", "timeout": 0})["msg"]


# Tokens


def test_token_is_created_for_the_address_of_the_cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_module: Run
) -> None:
    urls = ["172.17.0.1:25000/t/c", "10.0.0.11:25000/t/c", "10.0.0.1:25000/t/c"]
    log = answering(monkeypatch, tmp_path, add_node=(0, json.dumps({"token": "t/c", "urls": urls})))
    assert "url" not in run_module("microk8s_token", {"address": "10.0.0.1"}, check=True) and not log.read_text()
    assert run_module("microk8s_token", {"address": "10.0.0.1", "ttl": 60})["url"] == "10.0.0.1:25000/t/c"
    assert log.read_text() == "add-node --token-ttl 60 --format json\n"
    message = run_module("microk8s_token", {"address": "10.9.9.9"})["msg"]
    assert "10.0.0.11" in message and "/t/" not in message
    answering(monkeypatch, tmp_path, add_node=(0, "From the node you wish to join, run: microk8s join 10.0.0.1:25000/secret\n"))
    assert "secret" not in run_module("microk8s_token", {"address": "10.0.0.1"})["msg"]


def test_token_is_revoked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_module: Run) -> None:
    file = tmp_path / "cluster-tokens.txt"
    file.write_text("aaaa|1799999999\naaaab\nbbbb|1799999999\n")
    file.chmod(0o600)
    monkeypatch.setattr("ansible_collections.bramble.cluster.plugins.module_utils.kubernetes.microk8s.TOKENS_FILE", file)
    assert run_module("microk8s_token", {"url": "10.0.0.1:25000/aaaa/c"})["changed"]
    assert file.read_text() == "aaaab\nbbbb|1799999999\n" and file.stat().st_mode & 0o777 == 0o600
    assert not run_module("microk8s_token", {"url": "10.0.0.1:25000/aaaa/c"})["changed"]


def test_message_of_a_failed_join_does_not_have_the_token(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_module: Run
) -> None:
    url = "10.0.0.1:25000/0123456789abcdef/fedcba"
    answering(monkeypatch, tmp_path, join=(6, f"Connection failed with {url}. Invalid token (500).\n"))
    done = run_module("microk8s_join", {"url": url, "worker": True})
    assert done["failed"] and "Invalid token (500)" in done["msg"]
    assert "0123456789abcdef" not in json.dumps(done)


# Releases and add-ons


@pytest.mark.parametrize(
    ("current", "target", "words"),
    [
        ("v1.35.3", "1.35/stable", ""),
        ("v1.35.3", "1.36/stable", ""),
        ("v1.9.0", "1.10/stable", ""),
        ("v1.33.3", "1.36/stable", "First upgrade to 1.34, for example -e microk8s_channel=1.34/stable"),
        ("v1.36.0", "1.35/stable", "cannot be downgraded"),
        ("v1.36.0", "latest/stable", "'latest/stable' does not name a release"),
    ],
)
def test_no_release_is_skipped(current: str, target: str, words: str) -> None:
    problem = step_problem(target, current)
    assert words in problem and bool(problem) == bool(words)


@pytest.mark.parametrize(
    ("addon", "channel", "architecture", "words"),
    [
        ("dns", "1.36/stable", "arm64", ""),
        ("dns:192.168.1.1", "1.36/stable", "arm64", ""),
        ("dashboard", "1.35/stable", "arm64", ""),
        ("dashboard", "1.36/stable", "arm64", "1.35 was the last. Instead: metrics-server"),
        ("community/trivy", "1.36/stable", "arm64", ""),
        ("gpu", "1.36/stable", "arm64", "not made for arm64"),
        ("gpu", "1.36/stable", "amd64", ""),
        ("storage", "1.36/stable", "arm64", "Instead: hostpath-storage"),
        ("metric-server", "1.36/stable", "arm64", "Did you mean metrics-server?"),
        ("zzz", "1.36/stable", "arm64", "The add-ons are: cert-manager,"),
        ("dns", "latest", "arm64", "Write it as 1.36/stable"),
    ],
)
def test_unavailable_addons_are_named(addon: str, channel: str, architecture: str, words: str) -> None:
    problems = addon_problems([addon], channel, architecture)
    assert bool(problems) == bool(words) and words in "".join(problems)


def test_addon_is_enabled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_module: Run) -> None:
    status = "microk8s:\n  running: True\naddons:\n" + "".join(
        f"  - name: {name}\n    description: d\n    version: '1'\n    repository: core\n    status: {state}\n"
        for name, state in (("dns", "enabled"), ("metallb", "disabled"))
    )
    log = answering(monkeypatch, tmp_path, status=(0, status))
    assert not run_module("microk8s_addon", {"name": "dns:10.0.0.1"})["changed"]
    assert run_module("microk8s_addon", {"name": "metallb:10.0.0.2-10.0.0.9"}, check=True)["changed"]
    assert "enable" not in log.read_text()
    assert run_module("microk8s_addon", {"name": "metallb:10.0.0.2-10.0.0.9"})["changed"]
    assert log.read_text().splitlines()[-1] == "enable metallb:10.0.0.2-10.0.0.9"
    assert run_module("microk8s_addon", {"name": "dns", "state": "disabled"})["changed"]
    assert "Its add-ons are: dns, metallb" in run_module("microk8s_addon", {"name": "dashboard"})["msg"]


# Preflight


@pytest.mark.parametrize(
    ("facts", "wanted", "words"),
    [
        ({}, {}, ""),
        ({"architecture": "armv7l"}, {}, "flash a 64-bit image"),
        ({"distribution": "debian"}, {}, "Set cluster_image: ubuntu-24.04-server in inventory/"),
        ({"hostname": "Pi_1"}, {}, "'Pi_1'"),
        ({"memory": 2**30}, {}, "it has 1024 MiB of memory, and needs 1800"),
        ({"disk": 2**30}, {}, "1024 MiB left"),
        # The playbook itself enables the cgroup with a reboot, so this is a problem only after it has tried.
        ({"controllers": ["cpu"]}, {}, ""),
        ({"controllers": ["cpu"], "cmdline": ["cgroup_enable=memory"]}, {}, "no memory cgroup"),
        ({"controllers": ["cpu"], "cmdline": ["cgroup_enable=memory"]}, {"memory_cgroup": False}, ""),
        ({"vxlan": False}, {}, "linux-modules-extra-raspi"),
        ({"clock_offset": -4000.0}, {}, "-4000 s off"),
        ({"default_route": False}, {}, "set cluster_gateway"),
        ({"default_route": False}, {"gateway": "10.0.0.1"}, ""),
        ({"snapd": ""}, {}, "apt-get install snapd"),
        ({"store": False}, {}, "microk8s_source=file"),
        ({"store": None}, {"source": "file"}, ""),
    ],
)
def test_each_problem_of_a_node_is_named(facts: dict, wanted: dict, words: str) -> None:
    answers = {"pi-1": {"host": {**HOST, **facts}, "snaps": {}, "problem": ""}}
    problems = microk8s_problems(answers, ["pi-1"], {**WANTED, **wanted})
    assert bool(problems) == bool(words) and words in "".join(problems)
    assert all(problem.startswith("pi-1: ") for problem in problems)


def test_all_problems_of_all_nodes_are_named() -> None:
    small = {**HOST, "hostname": "pi-2", "memory": 2**30, "vxlan": False, "snapd": ""}
    old = {"microk8s": {"version": "v1.34.1"}}
    answers: dict[str, dict[str, Any]] = {
        "pi-1": {"host": {**HOST, "disk": 0, "architecture": "armv6l"}, "snaps": old, "problem": "it hangs."},
        "pi-2": {"host": small, "snaps": {}, "problem": ""},
        "pi-3": {"unreachable": True, "msg": "no route to host"},
    }
    problems = microk8s_problems(answers, ["pi-1"], WANTED)
    assert [problem.split(":")[0].split()[0] for problem in problems] == ["pi-1"] * 4 + ["pi-2"] * 2 + ["pi-3"]
    assert "skips a release" in problems[2] and "no route to host" in problems[-1]
    assert "has no active node" in microk8s_problems({}, [], WANTED)[0]


@pytest.mark.skipif(not shutil.which("mksquashfs"), reason="needs squashfs-tools")
def test_folder_of_snaps(tmp_path: Path) -> None:
    assert "one file snapd_*.snap" in snap_files(str(tmp_path), True)["problems"][0]
    build.build(tmp_path, "1.36.0")
    good = snap_files(str(tmp_path), True)
    assert good["problems"] == [] and [file["name"] for file in good["files"]] == ["snapd", "core22", "microk8s"]
    assert good["files"][2]["version"] == "v1.36.0-standin" and good["files"][2]["assertion"] == ""
    unsigned = snap_files(str(tmp_path), False)["problems"]
    assert len(unsigned) == 3 and "microk8s_0.assert is missing" in unsigned[2]
    (tmp_path / "microk8s_0.assert").touch()
    assert snap_files(str(tmp_path), True)["files"][2]["assertion"] == str(tmp_path / "microk8s_0.assert")
    (tmp_path / "core22_0.snap").unlink()
    assert "needs the snap core22" in snap_files(str(tmp_path), True)["problems"][0]
    (tmp_path / "core22_1.snap").write_text("not a snap")
    (tmp_path / "snapd_1.snap").touch()
    problems = snap_files(str(tmp_path), True)["problems"]
    assert "there are 2: snapd_0.snap, snapd_1.snap" in problems[0] and "core22_1.snap is not a snap" in problems[1]


def test_snap_without_assertion_is_refused(run_module: Run) -> None:
    done = run_module("snap_file", {"name": "microk8s", "src": "/x.snap", "sha256": "0"})
    assert "has no assertion" in done["msg"]


@pytest.mark.parametrize(
    ("manifest", "names"),
    [
        ({"manifest.json": [{"RepoTags": ["localhost/bramble:1", "a/b:2"]}, {"RepoTags": ["c:3"]}]}, None),
        ({"manifest.json": [{"RepoTags": None}]}, []),
        ({"index.json": {"manifests": [{"annotations": {"io.containerd.image.name": "docker.io/a/b:3"}}]}}, ["docker.io/a/b:3"]),
    ],
)  # fmt: skip
def test_image_names_are_those_of_containerd(tmp_path: Path, manifest: dict, names: list[str] | None) -> None:
    path = tmp_path / "images.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in manifest.items():
            data = json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    if names == []:
        with pytest.raises(ValueError, match="has no images with names"):
            image_names(str(path))
    else:
        expected = names or ["localhost/bramble:1", "docker.io/a/b:2", "docker.io/library/c:3"]
        assert image_names(str(path)) == expected


def test_images_are_imported_once(tmp_path: Path) -> None:
    """By the role's own tasks, with a `microk8s` that has one image of two."""
    tar, log = tmp_path / "images.tar", tmp_path / "log"
    program = tmp_path / "microk8s"
    program.write_text(f'#!/bin/sh\necho "$@" >>{log}\ncase $* in *list*) echo localhost/a:1; echo localhost/ab:1;; esac\n')
    program.chmod(0o755)

    def run(*names: str) -> list[str]:
        with tarfile.open(tar, "w") as file:
            data = json.dumps([{"RepoTags": names}]).encode()
            info = tarfile.TarInfo("manifest.json")
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        log.write_text("")
        given = {
            "__microk8s_image": str(tar),
            "__microk8s_command": str(program),
            "__microk8s_node_facts": {"snaps": {"microk8s": {}}},
        }
        done = run_locally(ROOT / "tests/unit/microk8s/image.yml", {**given, "ansible_become": False})
        assert done.returncode == 0, done.stdout + done.stderr
        return log.read_text().splitlines()

    sent = f"/var/tmp/{tar.name}"
    assert run("localhost/a:1") == ["ctr images list --quiet"]
    assert run("localhost/a:1", "localhost/b:1")[1:] == [f"ctr images import {sent}"]
    assert not Path(sent).exists()


# Removal

RULES = """# Generated by iptables-save
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:KUBE-FORWARD - [0:0]
:cali-FORWARD - [0:0]
:MINE - [0:0]
-A FORWARD -m comment --comment "cali:wUHhoiAYhphO9Mso" -j cali-FORWARD
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A INPUT -p tcp -m tcp --dport 22 -j MINE
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
COMMIT
"""


def test_only_rules_of_kubernetes_are_removed() -> None:
    kept = microk8s_leftovers.without_kubernetes(RULES)
    assert "KUBE" not in kept and "cali" not in kept
    for line in ("*filter", ":FORWARD DROP [0:0]", ":MINE - [0:0]", "-A INPUT -p tcp -m tcp --dport 22 -j MINE", "COMMIT"):
        assert f"{line}\n" in kept
    assert microk8s_leftovers.without_kubernetes(kept) == kept


@given(st.lists(st.sampled_from(RULES.splitlines(keepends=True))))
def test_kept_rules_keep_their_order(rules: list[str]) -> None:
    kept = microk8s_leftovers.without_kubernetes("".join(rules)).splitlines(keepends=True)
    assert [line for line in rules if line in kept] == kept


@pytest.mark.parametrize(
    ("name", "is_removed"),
    [
        *((name, True) for name in ("cali0123456789a", "vxlan.calico", "cni0", "flannel.1")),
        *((name, False) for name in ("eth0", "calico-vpn", "vxlan0")),
    ],
)
def test_removed_interfaces(name: str, is_removed: bool) -> None:
    assert bool(microk8s_leftovers.KUBERNETES_LINK.fullmatch(name)) == is_removed


def test_innermost_mounts_are_removed_first() -> None:
    places = ("/var/lib/kubelet/pods/a", "/var/lib/kubelet/pods/a/b", "/var/lib/kubeletx")
    table = "".join(f"tmpfs {place} tmpfs rw 0 0\n" for place in places)
    assert microk8s_leftovers.kubernetes_mounts(table) == ["/var/lib/kubelet/pods/a/b", "/var/lib/kubelet/pods/a"]


# The checklist

STATUS = """microk8s:
  running: True
high-availability:
  enabled: True
  nodes:
    - address: 10.0.0.1:19001
      role: datastore-master
    - address: 10.0.0.2:19001
      role: datastore-master
    - address: 10.0.0.3:19001
      role: datastore-master
addons:
  - name: dns
    description: CoreDNS
    version: 1.9.0
    repository: core
    status: enabled
"""
NAMES = ["pi-1", "pi-2", "pi-3", "pi-4"]
CHECKED = {"source": "store", "channel": "1.36/stable", "dangerous": False, "memory_cgroup": True, "addons": ["dns:10.0.0.1"]}
CONTAINER = 64 * "a"


def healthy_answers() -> dict[str, dict]:
    """Return the results of microk8s_facts on four healthy Pis."""
    snap = {
        "revision": "7731",
        "version": "v1.36.1",
        "channel": "1.36/stable",
        "held": True,
        "confinement": "classic",
        "asserted": True,
    }
    nodes = {name: {"ready": True} for name in NAMES}
    coredns = {"name": "coredns", "namespace": "kube-system", "node": "pi-4", "ready": True, "limits": {CONTAINER: 178257920}}
    return {
        name: {
            "snaps": {"microk8s": dict(snap)},
            "host": {**HOST, "hostname": name},
            "nodes": nodes if name != "pi-4" else {},
            "details": {
                "links": ["eth0", "vxlan.calico"],
                "apparmor": True,
                "memory": {CONTAINER: 178257920} if name == "pi-4" else {},
                "status": STATUS if name != "pi-4" else "",
                "pods": [coredns] if name != "pi-4" else [],
            },
        }
        for name in NAMES
    }


def evaluate(answers: dict[str, dict], **wanted: object) -> dict[tuple[str, str], str]:
    rows = evaluate_checklist(answers, "pi-1", {name: name == "pi-4" for name in NAMES}, {**CHECKED, **wanted})
    return {(row["check"], row["node"]): row["verdict"] for row in rows}


def test_checklist_of_four_healthy_pis() -> None:
    verdicts = evaluate(healthy_answers())
    assert set(verdicts.values()) == {"OK"} and len(verdicts) == 7 * 4 + 6


@pytest.mark.parametrize(
    ("where", "value", "check"),
    [
        (("pi-2", "snaps", "microk8s", "channel"), "latest/stable", ("snap from the store, channel pinned", "pi-2")),
        (("pi-2", "snaps", "microk8s", "asserted"), False, ("snap signed by its publisher", "pi-2")),
        (("pi-2", "snaps", "microk8s", "held"), False, ("refresh held", "pi-2")),
        (("pi-2", "host", "controllers"), ["cpu"], ("kernel can limit memory", "pi-2")),
        (("pi-4", "details", "links"), ["eth0"], ("pods' network (vxlan.calico)", "pi-4")),
        (("pi-4", "details", "memory"), {CONTAINER: 2**40}, ("memory limits enforced", "pi-1")),
        (("pi-1", "nodes", "pi-4", "ready"), False, ("all nodes ready", "pi-1")),
        (("pi-1", "nodes", "pi-40"), {"ready": True}, ("no nodes but the inventory's", "pi-1")),
        (("pi-1", "details", "status"), STATUS.replace("master", "standby", 1), ("dqlite voters", "pi-1")),
        (("pi-1", "details", "status"), STATUS.replace("enabled\n", "disabled\n"), ("add-ons enabled", "pi-1")),
        (("pi-1", "details", "pods"), [], ("system pods ready", "pi-1")),
    ],
)  # fmt: skip
def test_each_check_can_fail(where: tuple[str, ...], value: object, check: tuple[str, str]) -> None:
    answers = healthy_answers()
    entry = answers
    for key in where[:-1]:
        entry = entry[key]
    entry[where[-1]] = value  # type: ignore[assignment]
    verdicts = evaluate(answers)
    assert verdicts[check] == "FAILED"
    assert {name for name, verdict in verdicts.items() if verdict == "FAILED"} == {check}


def test_impossible_checks_are_not_called_ok() -> None:
    answers = healthy_answers()
    for answer in answers.values():
        answer["snaps"]["microk8s"].update(revision="x1", version="v1.36.0-standin", channel="", asserted=False)
        answer["host"]["architecture"] = "x86_64"
        answer["details"].update(apparmor=False, pods=[])
    verdicts = evaluate(answers, source="file", dangerous=True, memory_cgroup=False)
    assert {check for (check, _), verdict in verdicts.items() if verdict == "OK"} == {
        "refresh held", "all nodes ready", "no nodes but the inventory's"
    }  # fmt: skip
    assert "FAILED" not in verdicts.values()


def test_node_that_does_not_answer_fails() -> None:
    answers = healthy_answers()
    answers["pi-3"] = {"unreachable": True, "msg": "no route"}
    assert evaluate(answers)["MicroK8s answers", "pi-3"] == "FAILED"
    rows = evaluate_checklist({}, "", {"pi-1": False}, CHECKED)
    assert [row["verdict"] for row in rows] == ["FAILED", "FAILED"]
    assert format_checklist(rows)[0] == "FAILED    MicroK8s answers (it has no MicroK8s: run playbooks/microk8s.yml): pi-1"


def test_checklist_expects_every_node_once() -> None:
    assert expected_nodes(["pi-1"], ["pi-2", "pi-3"]) == {"pi-1": False, "pi-2": True, "pi-3": True}


@pytest.mark.parametrize(
    ("text", "number"),
    [("170Mi", 178257920), ("1Gi", 2**30), ("128974848", 128974848), ("129M", 129000000), ("1.5Gi", 3 * 2**29)],
)
def test_quantities(text: str, number: int) -> None:
    assert microk8s_facts.parse_quantity(text) == number
