"""Check that the nodes can run Kubernetes, in the release that is requested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.bramble.cluster.plugins.module_utils.kubernetes.release import minor_version

MIB = 2**20
MEMORY_PARAMETERS = ["cgroup_enable=memory", "cgroup_memory=1"]
"""Kernel parameters that give containers memory limits on a Raspberry Pi, whose firmware disables them."""


def _release_name(release: tuple[int, int]) -> str:
    """Return the name of a release, such as 1.36."""
    return f"{release[0]}.{release[1]}"


def step_problem(target: str, current: str) -> str:
    """Return why a node cannot change from one release to another in one step; "" for the same release and for the next one.

    :param target: the wanted channel or version
    :param current: the installed version
    """
    try:
        current_release, target_release = minor_version(current), minor_version(target)
    except ValueError as error:
        return str(error)
    if target_release < current_release:
        installed, wanted = _release_name(current_release), _release_name(target_release)
        return (
            f"MicroK8s {installed} is installed and cannot be downgraded to {wanted}. "
            "Remove it first: ansible-playbook playbooks/microk8s.yml -e cluster_state=absent"
        )
    if target_release[0] != current_release[0] or target_release[1] - current_release[1] > 1:
        following = _release_name((current_release[0], current_release[1] + 1))
        return (
            f"The step from {_release_name(current_release)} to {_release_name(target_release)} skips a release, which "
            f"Kubernetes does not support. First upgrade to {following}, for example -e microk8s_channel={following}/stable"
        )
    return ""


def node_problems(host: str, facts: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return what a node lacks for Kubernetes: one sentence for each problem, with what to do.

    :param facts: `host` of the module microk8s_facts
    :param wanted: architectures, distributions, memory and disk (MiB), clock (seconds), memory_cgroup, gateway, source, channel
    """
    channel = wanted["channel"]
    checks = [
        (
            facts["architecture"] in wanted["architectures"],
            f"its processor is {facts['architecture']}, and MicroK8s is made for {', '.join(wanted['architectures'])}. "
            "On a Raspberry Pi, flash a 64-bit image.",
        ),
        (
            facts["distribution"] in [name.lower() for name in wanted["distributions"]],
            f"its distribution is {facts['distribution']}, and microk8s_distributions is {', '.join(wanted['distributions'])}. "
            "Set cluster_image: ubuntu-24.04-server in inventory/group_vars/all/cluster.yml, then: "
            "ansible-playbook playbooks/cards.yml -e card_confirm=true",
        ),
        (
            facts["hostname"] == host,
            f"its host name is {facts['hostname']!r}, and a node joins the cluster under its host name. Set it: "
            f"ansible-playbook playbooks/microk8s.yml --tags base --limit {host}",
        ),
        (
            facts["memory"] >= wanted["memory"] * MIB,
            f"it has {facts['memory'] // MIB} MiB of memory, and needs {wanted['memory']} in this group. Make it a worker, "
            "or add it to the group spare.",
        ),
        (
            facts["disk"] >= wanted["disk"] * MIB,
            f"/var has {facts['disk'] // MIB} MiB left, and MicroK8s needs {wanted['disk']}. "
            "Free some space, or flash a larger card.",
        ),
        (
            not wanted["memory_cgroup"] or "memory" in facts["controllers"] or MEMORY_PARAMETERS[0] not in facts["cmdline"],
            f"the kernel has no memory cgroup although it was started with {MEMORY_PARAMETERS[0]}. Remove a parameter after it "
            "in cmdline.txt that disables the cgroup, such as cgroup_disable=memory.",
        ),
        (
            facts["vxlan"],
            "the kernel cannot make a vxlan interface, which the pods' network needs. On Ubuntu 22.04: apt-get install "
            "linux-modules-extra-raspi. Newer releases have it.",
        ),
        (
            abs(facts["clock_offset"]) <= wanted["clock"],
            f"its clock is {facts['clock_offset']:+.0f} s off, and certificates would not be valid. Set it: "
            "ansible-playbook playbooks/microk8s.yml --tags time_sync",
        ),
        (
            facts["default_route"] or bool(wanted["gateway"]),
            "it has no default route, without which Kubernetes does not find its own address. The gateway need not exist: set "
            "cluster_gateway to the client's address (inventory/group_vars/all/cluster.yml).",
        ),
        (bool(facts["snapd"]), "it has no snapd, which Ubuntu's images have. On other images: apt-get install snapd"),
        (
            wanted["source"] != "store" or facts["store"],
            f"it does not find microk8s {channel} in the snap store. Check its internet connection and the channel (snap info "
            "microk8s). Without internet: microk8s_source=file, with the files in microk8s_snap_dir.",
        ),
    ]
    return [f"{host}: {sentence}" for passed, sentence in checks if not passed]


def microk8s_problems(
    answers: Mapping[str, Mapping[str, Any]], control_plane: Sequence[str], wanted: Mapping[str, Any]
) -> list[str]:
    """Return all problems of all nodes, one sentence each.

    :param answers: the results of the module microk8s_facts, by node, with `host`
    :param control_plane: the nodes of the control plane
    :param wanted: as for `node_problems`, with memory_control_plane and memory_worker (MiB) instead of memory, and version,
        that of the file, or the channel
    """
    problems = []
    if not control_plane:
        problems.append(
            "The group microk8s_control_plane has no active node (inventory/hosts.yml). Give it one node, or better three."
        )
    for host, answer in answers.items():
        is_control_plane = host in control_plane
        node_wanted = {**wanted, "memory": wanted["memory_control_plane" if is_control_plane else "memory_worker"]}
        if "host" not in answer:
            problems.append(
                f"{host} did not answer: {answer.get('msg', 'unreachable')}. Check it: ansible-playbook playbooks/status.yml"
            )
            continue
        problems += node_problems(host, answer["host"], node_wanted)
        snap = answer["snaps"].get("microk8s")
        if snap and (problem := step_problem(wanted["version"], snap["version"])):
            problems.append(f"{host}: {problem}")
        if snap and answer["problem"]:
            problems.append(
                f"{host}: MicroK8s is installed and does not answer: {answer['problem']} On the node: microk8s inspect"
            )
    return problems


class FilterModule:
    """The filter microk8s_problems."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"microk8s_problems": microk8s_problems}
