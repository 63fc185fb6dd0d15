#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: gather what MicroK8s needs of a node, and the state of MicroK8s there."""

from __future__ import annotations

DOCUMENTATION = r"""
module: microk8s_facts
short_description: Gather what MicroK8s needs of a node, and the state of MicroK8s there
description:
  - Gathers, in one round trip, what a node offers to Kubernetes, its snaps, and its cluster as the node sees it. Changes nothing.
author: The Bramble team (!UNKNOWN)
options:
  clock:
    description: The time of the control machine, in seconds since 1970-01-01 UTC, to compare the node's clock with.
    type: float
  store_channel:
    description: Query the snap store whether it has MicroK8s in this channel, for example V(1.36/stable).
    type: str
  host:
    description: Gather what the node offers to Kubernetes.
    type: bool
    default: false
  details:
    description: Gather also what only a running cluster shows, such as the memory limits of containers.
    type: bool
    default: false
attributes:
  check_mode: {support: full, description: It only reads.}
"""

EXAMPLES = r"""
- name: Gather what the node offers to Kubernetes
  bramble.cluster.microk8s_facts:
    host: true
    clock: "{{ now().timestamp() }}"
  become: true
"""

RETURN = r"""
host:
  description: >-
    architecture, distribution, hostname, memory (bytes), disk (bytes free in /var), controllers (of the cgroup), cmdline (the
    kernel's parameters), vxlan (whether the kernel has it), clock_offset (seconds), default_route (whether there is one), snapd
    (its version, empty without it), store (whether the store has O(store_channel); null without that option).
  returned: with O(host)
  type: dict
snaps:
  description: "The snaps that are installed, by name: revision, version, channel, held, confinement, asserted."
  returned: always
  type: dict
role:
  description: control-plane or worker; empty without MicroK8s, and when MicroK8s does not answer.
  returned: always
  type: str
nodes:
  description: >-
    On a node with the control plane, the nodes of its cluster by name: uid, ready, schedulable, worker, version, addresses.
  returned: always
  type: dict
problem:
  description: Why the cluster could not be queried; empty when it could.
  returned: always
  type: str
details:
  description: >-
    links (network interfaces), apparmor (whether the kernel has enabled it) and memory (limits by container); on a control plane
    also status (what C(microk8s status --format yaml) prints) and pods (name, namespace, node, ready, limits).
  returned: with O(details)
  type: dict
"""

import contextlib
import json
import os
import platform
import re
import shutil
import socket
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module
from ansible_collections.bramble.cluster.plugins.module_utils.kubernetes import microk8s, snapd

ROOT = Path("/")


def read_text(path: str) -> str:
    """Return the text of a small file; "" when it does not exist."""
    try:
        return (ROOT / path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def distribution() -> str:
    """Return the ID of os-release(5)."""
    return platform.freedesktop_os_release()["ID"]


def host_facts(module: AnsibleModule) -> dict[str, Any]:
    """Return what the node offers to Kubernetes: see RETURN."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", read_text("proc/meminfo"), re.MULTILINE)
    route = module.run_command(["ip", "route", "show", "default"])[1]
    # In a network namespace that ends with the command: the kernel loads the module vxlan as it will for the pods' network.
    vxlan = module.run_command(["unshare", "--net", "ip", "link", "add", "v", "type", "vxlan", "id", "1", "dstport", "4789"])[0]
    clock, channel = module.params["clock"], module.params["store_channel"]
    store = None
    if channel:
        code, out, _ = module.run_command(["snap", "info", "--unicode=never", "microk8s"])
        store = code == 0 and f"\n  {channel}:" in out
    try:
        version = snapd.get_resource("/v2/system-info")["version"]
    except BrambleError:
        version = ""
    return {
        "architecture": platform.machine(),
        "distribution": distribution(),
        "hostname": socket.gethostname(),
        "memory": int(found[1]) * 1024 if found else 0,
        "disk": shutil.disk_usage(ROOT / "var").free,
        "controllers": read_text("sys/fs/cgroup/cgroup.controllers").split(),
        "cmdline": read_text("proc/cmdline").split(),
        "vxlan": vxlan == 0,
        "clock_offset": 0.0 if clock is None else time.time() - clock,
        "default_route": bool(route.strip()),
        "snapd": version,
        "store": store,
    }


def memory_limits() -> dict[str, int]:
    """Return the memory limit of each container in bytes, by the container's id: cgroup v2, with either driver of the kubelet."""
    limits = {}
    for path in (ROOT / "sys/fs/cgroup").glob("kubepods*/**/memory.max"):
        name = re.search(r"[0-9a-f]{64}", path.parent.name)
        value = path.read_text().strip()
        if name and value != "max":
            limits[name[0]] = int(value)
    return limits


def parse_quantity(written: str) -> int:
    """Return the bytes of a Kubernetes quantity, such as 170Mi. Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]i|[kMGT])?", written)
    if not found:
        raise ValueError(f"{written!r} is not a quantity of Kubernetes, such as 170Mi")
    unit = found[2] or ""
    base = 1024 if unit.endswith("i") else 1000
    return int(float(found[1]) * base ** " KMGT".index(unit[:1].upper() or " "))


def pod_facts(item: dict[str, Any]) -> dict[str, Any]:
    """Return what the checklist needs of a pod: name, namespace, node, ready, and the memory limits (bytes) by container id."""
    status = item.get("status", {})
    containers = item["spec"]["containers"]
    limits = {container["name"]: container.get("resources", {}).get("limits", {}).get("memory") for container in containers}
    ids = {entry["name"]: entry.get("containerID", "").rpartition("/")[2] for entry in status.get("containerStatuses", [])}
    return {
        "name": item["metadata"]["name"],
        "namespace": item["metadata"]["namespace"],
        "node": item["spec"].get("nodeName", ""),
        "ready": microk8s.is_ready(status),
        "limits": {ids[name]: parse_quantity(limit) for name, limit in limits.items() if limit and ids.get(name)},
    }


def cluster_details(module: AnsibleModule, role: str) -> dict[str, Any]:
    """Return what only a running cluster shows: see RETURN. Raises BrambleError."""
    found: dict[str, Any] = {
        "links": sorted(os.listdir(ROOT / "sys/class/net")),
        "apparmor": read_text("sys/module/apparmor/parameters/enabled").strip() == "Y",
        "memory": memory_limits(),
        "status": "",
        "pods": [],
    }
    if role == "control-plane":
        found["status"] = microk8s.run_microk8s(module.run_command, "status", "--format", "yaml")
        pod_list = json.loads(microk8s.run_microk8s(module.run_command, "kubectl", "get", "pods", "-A", "-o", "json"))
        found["pods"] = [pod_facts(item) for item in pod_list["items"]]
    return found


SPEC: dict[str, Any] = {
    "clock": {"type": "float"},
    "store_channel": {"type": "str"},
    "host": {"type": "bool", "default": False},
    "details": {"type": "bool", "default": False},
}


def run(module: AnsibleModule) -> dict[str, Any]:
    """Return the result of the module; what MicroK8s fails with is in `problem`."""
    result: dict[str, Any] = {"snaps": {}, "role": "", "nodes": {}, "problem": ""}
    if module.params["host"]:
        result["host"] = host_facts(module)
    with contextlib.suppress(BrambleError):
        result["snaps"] = snapd.installed_snaps()
    if "microk8s" in result["snaps"]:
        try:
            result.update(microk8s.query_cluster(module.run_command))
            if module.params["details"]:
                result["details"] = cluster_details(module, result["role"])
        except BrambleError as error:
            result["problem"] = str(error)
    return result


def main() -> None:
    """Run the module."""
    run_module(SPEC, run)


if __name__ == "__main__":
    main()
