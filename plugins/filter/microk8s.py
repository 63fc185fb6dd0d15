"""Whether the nodes can have Kubernetes, and the release that is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.bramble.cluster.plugins.module_utils.kubernetes.release import minor

MIB = 2**20
MEMORY_WORDS = ["cgroup_enable=memory", "cgroup_memory=1"]
"""Kernel parameters that give containers memory limits on a Raspberry Pi, whose firmware disables them."""


def step_problem(target: str, current: str) -> str:
    """Return why a node must not go from one release to another in one step; "" when it may: to the same, or to the next.

    :param target: a channel or a version
    :param current: a version
    """
    try:
        now, then = minor(current), minor(target)
    except ValueError as error:
        return str(error)
    if then < now:
        return f"It has {now[0]}.{now[1]}, and Kubernetes does not go back to {then[0]}.{then[1]}."
    if then[0] != now[0] or then[1] - now[1] > 1:
        return (
            f"From {now[0]}.{now[1]} to {then[0]}.{then[1]} skips a release, which Kubernetes does not support. "
            f"First go to {now[0]}.{now[1] + 1}, for example -e microk8s_channel={now[0]}.{now[1] + 1}/stable"
        )
    return ""


def node_problems(host: str, facts: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return what a node lacks, one sentence each, with what to do.

    :param facts: `host` of the module microk8s_facts
    :param wanted: architectures, distributions, memory and disk (MiB), clock (seconds), memory_cgroup, gateway, source, channel
    """
    channel = wanted["channel"]
    checks = [
        (
            facts["architecture"] in wanted["architectures"],
            f"its processor is {facts['architecture']}, and MicroK8s is made for {', '.join(wanted['architectures'])}. "
            "On a Raspberry Pi: flash a 64-bit image.",
        ),
        (
            facts["distribution"] in [name.lower() for name in wanted["distributions"]],
            f"it has {facts['distribution']}, and microk8s_distributions is {', '.join(wanted['distributions'])}. Reflash it: "
            "ansible-playbook playbooks/cards.yml -e cluster_image=ubuntu-24.04-server -e card_confirm=true",
        ),
        (
            facts["hostname"] == host,
            f"its host name is {facts['hostname']!r}, and a node is in the cluster under its host name. "
            f"ansible-playbook playbooks/microk8s.yml --tags base --limit {host}",
        ),
        (
            facts["memory"] >= wanted["memory"] * MIB,
            f"it has {facts['memory'] // MIB} MiB of memory, and needs {wanted['memory']} in this group. Make it a worker, "
            "or leave it out (group spare).",
        ),
        (
            facts["disk"] >= wanted["disk"] * MIB,
            f"/var has {facts['disk'] // MIB} MiB left, and MicroK8s needs {wanted['disk']}. Make room, or take a larger card.",
        ),
        (
            not wanted["memory_cgroup"] or "memory" in facts["controllers"] or MEMORY_WORDS[0] not in facts["cmdline"],
            f"the kernel has no memory cgroup although it was started with {MEMORY_WORDS[0]}. Is something behind it in "
            "cmdline.txt, such as cgroup_disable=memory?",
        ),
        (
            facts["vxlan"],
            "the kernel can make no vxlan interface, which the pods' network is made of. Ubuntu 22.04: apt-get install "
            "linux-modules-extra-raspi; newer ones have it.",
        ),
        (
            abs(facts["clock_offset"]) <= wanted["clock"],
            f"its clock is {facts['clock_offset']:+.0f} s off, and certificates would not be valid. "
            "ansible-playbook playbooks/microk8s.yml --tags time_sync",
        ),
        (
            facts["default_route"] or bool(wanted["gateway"]),
            "it has no default route, without which Kubernetes does not find its own address. It need not lead anywhere: set "
            "cluster_gateway to the client's address (inventory/group_vars/all/cluster.yml).",
        ),
        (bool(facts["snapd"]), "it has no snapd. Ubuntu's images do; elsewhere: apt-get install snapd"),
        (
            wanted["source"] != "store" or facts["store"],
            f"it does not see microk8s {channel} in the snap store. Is there a way to the internet, and such a channel "
            "(snap info microk8s)? Without internet: microk8s_source=file, with the files in microk8s_snap_dir.",
        ),
    ]
    return [f"{host}: {sentence}" for good, sentence in checks if not good]


def microk8s_problems(
    answers: Mapping[str, Mapping[str, Any]], control_plane: Sequence[str], wanted: Mapping[str, Any]
) -> list[str]:
    """Return every problem of all nodes, one sentence each.

    :param answers: the results of the module microk8s_facts, by node, with `host`
    :param control_plane: the nodes of the control plane
    :param wanted: as for `node_problems`, with memory_control_plane and memory_worker (MiB) instead of memory, and version,
        that of the file, or the channel
    """
    problems = []
    if not control_plane:
        problems.append("Group microk8s_control_plane has no node in use (inventory/hosts.yml). It needs one, or better three.")
    for host, answer in answers.items():
        leads = host in control_plane
        own = {**wanted, "memory": wanted["memory_control_plane" if leads else "memory_worker"]}
        if "host" not in answer:
            problems.append(f"{host}: it did not answer: {answer.get('msg', 'unreachable')}")
            continue
        problems += node_problems(host, answer["host"], own)
        snap = answer["snaps"].get("microk8s")
        if snap and (problem := step_problem(wanted["version"], snap["version"])):
            problems.append(f"{host}: {problem}")
        if snap and answer["problem"]:
            problems.append(f"{host}: MicroK8s is there and does not answer: {answer['problem']} On it: microk8s inspect")
    return problems


class FilterModule:
    """The filter microk8s_problems."""

    def filters(self) -> dict[str, Any]:
        """Name -> function."""
        return {"microk8s_problems": microk8s_problems}
