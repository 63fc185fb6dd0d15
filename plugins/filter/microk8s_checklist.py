"""What only real Raspberry Pis with MicroK8s from its publisher can show: `playbooks/microk8s.yml --tags verify`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

OK, NOT_HERE, FAILED = "OK", "NOT HERE", "FAILED"
Row = tuple[str, str, str]
"""Where, verdict, why."""
Answers = Mapping[str, Mapping[str, Any]]
VOTERS = 3


def _bool(good: bool, why: str) -> tuple[str, str]:
    return (OK, "") if good else (FAILED, why)


def _unless(absent: str, good: bool, why: str) -> tuple[str, str]:
    return (NOT_HERE, absent) if absent else _bool(good, why)


def _node_rows(host: str, answer: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[tuple[str, str, tuple[str, str]]]:
    """The checks of one node: (check, node, (verdict, why))."""
    snap, facts, found = answer["snaps"]["microk8s"], answer["host"], answer["details"]
    local = "" if snap["asserted"] else f"revision {snap['revision']} comes from a file that nobody has signed"
    by_file = "it was installed from a file" if wanted["source"] == "file" else ""
    standin = "a stand-in of MicroK8s has no Calico" if "standin" in snap["version"] else ""
    yield (
        "snap from the store, channel pinned",
        host,
        _unless(by_file, snap["channel"] == wanted["channel"], f"it follows {snap['channel']!r}, not {wanted['channel']!r}"),
    )
    yield "snap signed by its publisher", host, _unless(local if wanted["dangerous"] else "", not local, local)
    yield "refresh held", host, _bool(snap["held"], "snapd may refresh it when it likes: run playbooks/microk8s.yml")
    off = "" if found["apparmor"] else "the kernel has no AppArmor"
    yield "AppArmor confines snaps", host, _unless(off, True, "")
    other = "" if facts["architecture"] == "aarch64" else f"its processor is {facts['architecture']}"
    yield "arm64", host, _unless(other, True, "")
    no_cgroup = "" if wanted["memory_cgroup"] else "a stand-in has the controllers of its host"
    yield (
        "kernel can limit memory",
        host,
        _unless(no_cgroup, "memory" in facts["controllers"], "no memory in cgroup.controllers: run playbooks/microk8s.yml"),
    )
    yield "pods' network (vxlan.calico)", host, _unless(standin, "vxlan.calico" in found["links"], "there is no such interface")


def _memory_row(answers: Answers, pods: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Whether the kernel gives containers the limits that their pods ask for."""
    wrong, seen = [], 0
    for pod in pods:
        limits = answers.get(pod["node"], {}).get("details", {}).get("memory")
        for container, limit in pod["limits"].items():
            if limits is None or not pod["ready"]:
                continue
            seen += 1
            if limits.get(container) != limit:
                wrong.append(
                    f"{pod['namespace']}/{pod['name']} on {pod['node']}: {limits.get(container, 'none')} in the place of {limit}"
                )
    if not seen:
        return NOT_HERE, "no pod that runs has a memory limit; the add-on dns brings one"
    return _bool(not wrong, "; ".join(wrong))


def _cluster_rows(
    answers: Answers, leader: str, expected: Mapping[str, bool], wanted: Mapping[str, Any]
) -> Iterator[tuple[str, str, tuple[str, str]]]:
    """The checks of the cluster as the leader sees it; expected: whether each node is a worker."""
    nodes, found = answers[leader]["nodes"], answers[leader]["details"]
    standin = "standin" in answers[leader]["snaps"]["microk8s"]["version"]
    missing = [host for host in expected if not nodes.get(host, {}).get("ready")]
    yield "all nodes ready", leader, _bool(not missing, f"{', '.join(missing)}: not in the cluster, or not ready")
    strange = sorted(set(nodes) - set(expected))
    yield "no nodes but the inventory's", leader, _bool(not strange, f"{', '.join(strange)}: microk8s remove-node NAME --force")
    status = yaml.safe_load(found["status"])
    voters = [node for node in status.get("high-availability", {}).get("nodes", []) if node["role"] == "datastore-master"]
    few = "" if list(expected.values()).count(False) >= VOTERS else f"the control plane has fewer than {VOTERS} nodes"
    why = f"it has {len(voters)} of {VOTERS}: microk8s status"
    yield "dqlite voters", leader, _unless("a stand-in of MicroK8s has no dqlite" if standin else few, len(voters) == VOTERS, why)
    enabled = {addon["name"] for addon in status["addons"] if addon["status"] == "enabled"}
    off = [name for words in wanted["addons"] if (name := words.split(":")[0].split("/")[-1]) not in enabled]
    no_addons = "add-ons of a stand-in do nothing" if standin else ""
    yield "add-ons enabled", leader, _unless(no_addons, not off, f"{', '.join(off)}: run playbooks/microk8s.yml")
    idle = [
        f"{pod['namespace']}/{pod['name']}" for pod in found["pods"] if pod["namespace"] == "kube-system" and not pod["ready"]
    ]
    no_pods = "a stand-in of MicroK8s has no pods of the system" if standin else ""
    yield "system pods ready", leader, _unless(no_pods, not idle and bool(found["pods"]), ", ".join(idle) or "there are none")
    no_limits = (NOT_HERE, "a stand-in of MicroK8s limits no memory")
    yield "memory limits enforced", leader, no_limits if standin else _memory_row(answers, found["pods"])


def checklist(answers: Answers, leader: str, expected: Mapping[str, bool], wanted: Mapping[str, Any]) -> list[dict[str, str]]:
    """The checklist: check, node, verdict (OK, NOT HERE, FAILED) and why.

    :param answers: what the module microk8s_facts said on each node, with `host` and `details`
    :param leader: who speaks for the cluster, or ""
    :param expected: the nodes there should be, and whether each is a worker
    :param wanted: source, channel, dangerous, memory_cgroup, addons
    """
    rows: list[tuple[str, str, tuple[str, str]]] = []
    for host in expected:
        answer = answers.get(host, {})
        if "details" in answer:
            rows += _node_rows(host, answer, wanted)
        else:
            why = answer.get("problem") or answer.get("msg") or "it has no MicroK8s: run playbooks/microk8s.yml"
            rows.append(("MicroK8s answers", host, (FAILED, why)))
    if "details" in answers.get(leader, {}):
        rows += _cluster_rows(answers, leader, expected, wanted)
    else:
        rows.append(("the cluster answers", "", (FAILED, "no node with the control plane does")))
    return [{"check": check, "node": node, "verdict": verdict, "why": why} for check, node, (verdict, why) in rows]


def lines(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The same for people, a line per check and verdict, with the nodes that have it."""
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        grouped.setdefault((row["verdict"], row["check"], row["why"]), []).append(row["node"])
    return [
        f"{verdict:<8}  {check}{f' ({why})' if why else ''}: {', '.join(filter(None, nodes)) or '-'}"
        for (verdict, check, why), nodes in grouped.items()
    ]


def expected(control_plane: Sequence[str], workers: Sequence[str]) -> dict[str, bool]:
    """Return the nodes that the cluster must have, and whether each is a worker."""
    return {**dict.fromkeys(control_plane, False), **dict.fromkeys(workers, True)}


class FilterModule:
    """Filters for the checklist of playbooks/microk8s.yml."""

    def filters(self) -> dict[str, Any]:
        """Name -> function."""
        return {"microk8s_checklist": checklist, "microk8s_checklist_lines": lines, "microk8s_expected": expected}
