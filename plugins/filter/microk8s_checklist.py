"""The checklist of `playbooks/microk8s.yml --tags verify`: what only Raspberry Pis with the published MicroK8s can prove."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

OK, NOT_HERE, FAILED = "OK", "NOT HERE", "FAILED"
Verdict = tuple[str, str]
"""OK, NOT HERE or FAILED, and why."""
Row = tuple[str, str, Verdict]
"""The check, the node, and the verdict."""
Answers = Mapping[str, Mapping[str, Any]]
DQLITE_VOTERS = 3


def _verdict(not_applicable: str, has_passed: bool, failure: str) -> Verdict:
    """Return the verdict of a check.

    :param not_applicable: why the check does not apply here; empty if it does
    :param failure: why the check failed
    """
    if not_applicable:
        return NOT_HERE, not_applicable
    return (OK, "") if has_passed else (FAILED, failure)


def _node_rows(host: str, answer: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the checks of one node."""
    snap, facts, found = answer["snaps"]["microk8s"], answer["host"], answer["details"]
    unsigned = "" if snap["asserted"] else f"revision {snap['revision']} comes from an unsigned file"
    from_file = "it was installed from a file" if wanted["source"] == "file" else ""
    no_calico = "an imitation of MicroK8s has no Calico" if "standin" in snap["version"] else ""
    yield (
        "snap from the store, channel pinned",
        host,
        _verdict(from_file, snap["channel"] == wanted["channel"], f"it follows {snap['channel']!r}, not {wanted['channel']!r}"),
    )
    yield "snap signed by its publisher", host, _verdict(unsigned if wanted["dangerous"] else "", not unsigned, unsigned)
    yield "refresh held", host, _verdict("", snap["held"], "snapd may refresh it at any time: run playbooks/microk8s.yml")
    no_apparmor = "" if found["apparmor"] else "the kernel has no AppArmor"
    yield "AppArmor confines snaps", host, _verdict(no_apparmor, True, "")
    not_arm64 = "" if facts["architecture"] == "aarch64" else f"its processor is {facts['architecture']}"
    yield "arm64", host, _verdict(not_arm64, True, "")
    no_cgroup = "" if wanted["memory_cgroup"] else "a stand-in has the controllers of the control machine"
    yield (
        "kernel can limit memory",
        host,
        _verdict(no_cgroup, "memory" in facts["controllers"], "no memory in cgroup.controllers: run playbooks/microk8s.yml"),
    )
    yield (
        "pods' network (vxlan.calico)",
        host,
        _verdict(no_calico, "vxlan.calico" in found["links"], "there is no such interface"),
    )


def _memory_verdict(answers: Answers, pods: Sequence[Mapping[str, Any]]) -> Verdict:
    """Return whether the kernel enforces the memory limits that the pods set for their containers."""
    unlimited_containers, checked = [], 0
    for pod in pods:
        limits = answers.get(pod["node"], {}).get("details", {}).get("memory")
        for container, limit in pod["limits"].items():
            if limits is None or not pod["ready"]:
                continue
            checked += 1
            if limits.get(container) != limit:
                unlimited_containers.append(
                    f"{pod['namespace']}/{pod['name']} on {pod['node']}: {limits.get(container, 'none')} instead of {limit} bytes"
                )
    if not checked:
        return NOT_HERE, "no running pod has a memory limit; the add-on dns starts one that has"
    return _verdict("", not unlimited_containers, "; ".join(unlimited_containers))


def _cluster_rows(answers: Answers, leader: str, expected: Mapping[str, bool], wanted: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the checks of the cluster as the leader sees it.

    :param expected: the nodes of the inventory, and whether each is a worker
    """
    nodes, found = answers[leader]["nodes"], answers[leader]["details"]
    is_standin = "standin" in answers[leader]["snaps"]["microk8s"]["version"]
    missing = [host for host in expected if not nodes.get(host, {}).get("ready")]
    yield "all nodes ready", leader, _verdict("", not missing, f"{', '.join(missing)}: not in the cluster, or not ready")
    unexpected = sorted(set(nodes) - set(expected))
    yield (
        "no nodes but the inventory's",
        leader,
        _verdict("", not unexpected, f"{', '.join(unexpected)}: microk8s remove-node NAME --force"),
    )
    status = yaml.safe_load(found["status"])
    voters = [node for node in status.get("high-availability", {}).get("nodes", []) if node["role"] == "datastore-master"]
    few_nodes = (
        "" if list(expected.values()).count(False) >= DQLITE_VOTERS else f"the control plane has fewer than {DQLITE_VOTERS} nodes"
    )
    why = f"the cluster has {len(voters)} of {DQLITE_VOTERS} voters: microk8s status"
    yield (
        "dqlite voters",
        leader,
        _verdict("an imitation of MicroK8s has no dqlite" if is_standin else few_nodes, len(voters) == DQLITE_VOTERS, why),
    )
    enabled = {addon["name"] for addon in status["addons"] if addon["status"] == "enabled"}
    disabled = [name for words in wanted["addons"] if (name := words.split(":")[0].split("/")[-1]) not in enabled]
    no_addons = "the add-ons of an imitation do nothing" if is_standin else ""
    yield (
        "add-ons enabled",
        leader,
        _verdict(no_addons, not disabled, f"{', '.join(disabled)}: run playbooks/microk8s.yml"),
    )
    pods_not_ready = [
        f"{pod['namespace']}/{pod['name']}" for pod in found["pods"] if pod["namespace"] == "kube-system" and not pod["ready"]
    ]
    no_pods = "an imitation of MicroK8s has no system pods" if is_standin else ""
    yield (
        "system pods ready",
        leader,
        _verdict(no_pods, not pods_not_ready and bool(found["pods"]), ", ".join(pods_not_ready) or "there are no system pods"),
    )
    no_limits = (NOT_HERE, "an imitation of MicroK8s limits no memory")
    yield "memory limits enforced", leader, no_limits if is_standin else _memory_verdict(answers, found["pods"])


def evaluate_checklist(
    answers: Answers, leader: str, expected: Mapping[str, bool], wanted: Mapping[str, Any]
) -> list[dict[str, str]]:
    """Return the checklist: check, node, verdict (OK, NOT HERE, FAILED) and why.

    :param answers: the results of the module microk8s_facts, by node, with `host` and `details`
    :param leader: the node whose view of the cluster counts (microk8s_leader), or ""
    :param expected: the nodes of the inventory, and whether each is a worker
    :param wanted: source, channel, dangerous, memory_cgroup, addons
    """
    rows: list[Row] = []
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
        rows.append(("the cluster answers", "", (FAILED, "no node of the control plane answers")))
    return [{"check": check, "node": node, "verdict": verdict, "why": why} for check, node, (verdict, why) in rows]


def format_checklist(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the lines of the checklist: one for each check and verdict, with the nodes that have this verdict."""
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        grouped.setdefault((row["verdict"], row["check"], row["why"]), []).append(row["node"])
    return [
        f"{verdict:<8}  {check}{f' ({why})' if why else ''}: {', '.join(filter(None, nodes)) or '-'}"
        for (verdict, check, why), nodes in grouped.items()
    ]


def expected_nodes(control_plane: Sequence[str], workers: Sequence[str]) -> dict[str, bool]:
    """Return the nodes that the cluster must have, and whether each is a worker."""
    return {**dict.fromkeys(control_plane, False), **dict.fromkeys(workers, True)}


class FilterModule:
    """Filters for the checklist of playbooks/microk8s.yml."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "microk8s_checklist": evaluate_checklist,
            "microk8s_checklist_lines": format_checklist,
            "microk8s_expected": expected_nodes,
        }
