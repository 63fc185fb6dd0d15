"""What playbooks/microk8s.yml decides: whether the nodes can have Kubernetes, who leads, and what a running cluster shows."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MIB = 2**20
MEMORY_WORDS = ["cgroup_enable=memory", "cgroup_memory=1"]
"""Kernel parameters that give containers memory limits on a Raspberry Pi, whose firmware switches them off."""


@dataclass(frozen=True)
class Addon:
    """An add-on of MicroK8s: the last release that has it, the architectures, and what there is instead."""

    last: tuple[int, int] | None = None
    architectures: tuple[str, ...] = ("amd64", "arm64")
    instead: str = ""


# canonical/microk8s-core-addons: addons.yaml and its history. What a release really has, the node says (module microk8s_addon).
ADDONS = {
    **dict.fromkeys(
        ("cert-manager", "community", "dns", "ha-cluster", "helm", "helm3", "host-access", "hostpath-storage"), Addon()
    ),
    **dict.fromkeys(("ingress", "metallb", "metrics-server", "observability", "rbac", "registry"), Addon()),
    "dashboard": Addon(last=(1, 35), instead="metrics-server and `kubectl top`, or a dashboard of your own"),
    **dict.fromkeys(("gpu", "nvidia"), Addon(architectures=("amd64",), instead="nothing: a Raspberry Pi has no such processor")),
}
OLD_NAMES = {"storage": "hostpath-storage", "prometheus": "observability"}


def minor(version: str) -> tuple[int, int]:
    """(1, 33) of 1.33/stable, v1.33.2 or 1.33. Raises ValueError."""
    found = re.match(r"v?(\d+)\.(\d+)(?!\d)", version)
    if not found:
        raise ValueError(f"{version!r} names no release such as 1.33.")
    return int(found[1]), int(found[2])


def step_problem(target: str, current: str) -> str:
    """Why a node must not go from one release to another at once; "" when it may: to the same, or to the next.

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


def addon_problems(addons: Iterable[str], channel: str, architecture: str) -> list[str]:
    """Which add-ons there are not, each with what to take instead.

    :param addons: as `microk8s enable` takes them: dns, metallb:ARGUMENTS; REPOSITORY/NAME is not looked at
    :param channel: the release, such as 1.36/stable
    :param architecture: in Debian's words
    """
    try:
        release = minor(channel)
    except ValueError as error:
        return [f"microk8s_channel: {error} Write it as 1.36/stable."]
    problems = []
    for name in (words.split(":")[0] for words in addons):
        if "/" in name:
            continue
        addon = ADDONS.get(name)
        if name in OLD_NAMES:
            problems.append(f"microk8s_addons: {name} is no more. Instead: {OLD_NAMES[name]}.")
        elif addon is None:
            guess = difflib.get_close_matches(name, ADDONS, n=1)
            hint = f"Did you mean {guess[0]}?" if guess else f"These exist: {', '.join(sorted(ADDONS))}."
            problems.append(f"microk8s_addons: there is no add-on {name!r}. {hint} One of another repository is REPOSITORY/NAME.")
        elif addon.last and release > addon.last:
            last = f"{addon.last[0]}.{addon.last[1]}"
            problems.append(f"microk8s_addons: {channel} has no {name} any more; {last} was the last. Instead: {addon.instead}.")
        elif architecture not in addon.architectures:
            problems.append(f"microk8s_addons: {name} is not made for {architecture}. Instead: {addon.instead}.")
    return problems


def snap_files(folder: str, dangerous: bool) -> dict[str, Any]:
    """The snaps in a folder, as `snap download` names them: NAME_REVISION.snap and NAME_REVISION.assert.

    :returns: files, a list of name, src, assertion, sha256 and version in the order of installation; problems, in sentences
    """
    files, problems = [], []
    needed = {path.name.split("_")[0] for path in Path(folder).glob("*_*.snap")} | {"snapd", "microk8s"}
    for name in sorted(needed, key=lambda name: (name == "microk8s", name != "snapd", name)):
        found = sorted(Path(folder).glob(f"{name}_*.snap"))
        if len(found) != 1:
            seen = "none" if not found else f"{len(found)}: {', '.join(path.name for path in found)}"
            problems.append(
                f"microk8s_snap_dir: there must be one file {name}_*.snap in {folder}; there is {seen}. "
                f"With internet: snap download {name} --target-directory={folder}"
            )
            continue
        try:
            meta = _snap_meta(found[0])
        except (OSError, ValueError) as error:
            problems.append(f"microk8s_snap_dir: {error}")
            continue
        assertion = found[0].with_suffix(".assert")
        if not assertion.is_file() and not dangerous:
            problems.append(f"microk8s_snap_dir: {assertion} is missing, so nobody vouches for {found[0].name}.")
        if name == "microk8s" and meta["base"] not in needed:
            problems.append(f"microk8s_snap_dir: {found[0].name} needs the snap {meta['base']}, which is not in {folder}.")
        with found[0].open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        signed = str(assertion) if assertion.is_file() else ""
        files.append({"name": name, "src": str(found[0]), "assertion": signed, "sha256": digest, "version": str(meta["version"])})
    return {"files": files, "problems": problems}


def _snap_meta(path: Path) -> dict[str, Any]:
    """snap.yaml of a snap. Raises OSError, ValueError."""
    try:
        said = subprocess.run(["unsquashfs", "-cat", path, "meta/snap.yaml"], capture_output=True, check=True).stdout
        meta = yaml.safe_load(said)
        return {"base": meta.get("base", "core"), "version": meta["version"]}
    except FileNotFoundError as error:
        raise OSError("this machine has no unsquashfs to look into snaps. apt-get install squashfs-tools") from error
    except (subprocess.CalledProcessError, yaml.YAMLError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a snap ({error}). Download it again.") from error


def node_problems(host: str, facts: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What a node lacks, one sentence each, with what to do.

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
    """All that stands in the way, for all nodes at once.

    :param answers: what the module microk8s_facts said on each node, with `host`
    :param control_plane: the nodes that are to have it
    :param wanted: as for `node_problems`, with memory_control_plane and memory_worker (MiB) in the place of memory, and version,
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


def leader(answers: Mapping[str, Mapping[str, Any]]) -> str:
    """The node with the control plane that speaks for the cluster: of the largest one, the first. "" when none answers.

    After the first node's card was written anew, that node is alone: it has to join the others, not the others it.
    """
    led = {host: answer["nodes"] for host, answer in answers.items() if answer.get("role") == "control-plane"}
    return max(led, key=lambda host: len(led[host]), default="")


def membership(name: str, own: Mapping[str, Any], nodes: Mapping[str, Mapping[str, Any]]) -> str:
    """What a node is in the cluster: `member`, `missing`, or `stale`: its name is there, but of another life.

    A card that was written anew, or a node that left and was not removed, has its name in the cluster and is not in it: each node
    of the control plane then sees a cluster with another record of itself. A worker sees none.

    :param own: what microk8s_facts said on the node
    :param nodes: the cluster's nodes, by name
    """
    if name not in nodes:
        return "missing"
    if own.get("role") == "worker":
        return "member"
    return "member" if own.get("nodes", {}).get(name, {}).get("uid") == nodes[name]["uid"] else "stale"


def image_names(path: str) -> list[str]:
    """The images in a tar file (`docker save`, or an OCI layout), in full as containerd has them. Raises ValueError, OSError."""
    with tarfile.open(path) as tar:
        members = {member.name.removeprefix("./"): member for member in tar if member.isfile() and member.name.count("/") < 2}

        def load(name: str) -> Any:
            file = tar.extractfile(members[name])
            assert file
            return json.load(file)

        if "manifest.json" in members:
            names = [tag for entry in load("manifest.json") for tag in entry.get("RepoTags") or []]
        elif "index.json" in members:
            notes = [entry.get("annotations", {}) for entry in load("index.json")["manifests"]]
            names = [note["io.containerd.image.name"] for note in notes if "io.containerd.image.name" in note]
        else:
            names = []
    if not names:
        raise ValueError(
            f"{path} has no images with names. Make it with `docker save NAME:TAG` or `microk8s images export-local`"
        )
    return [_full(name) for name in names]


def _full(name: str) -> str:
    """docker.io/library/x:1 of x:1."""
    first, slash, _ = name.partition("/")
    if not slash:
        return f"docker.io/library/{name}"
    return name if "." in first or ":" in first or first == "localhost" else f"docker.io/{name}"


class FilterModule:
    """Filters for playbooks/microk8s.yml."""

    def filters(self) -> dict[str, Any]:
        return {
            "microk8s_addon_problems": addon_problems,
            "microk8s_image_names": image_names,
            "microk8s_leader": leader,
            "microk8s_membership": membership,
            "microk8s_problems": microk8s_problems,
            "microk8s_snap_files": snap_files,
            "microk8s_step_problem": step_problem,
        }
