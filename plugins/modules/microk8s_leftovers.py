#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: remove what Kubernetes leaves behind on a node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: microk8s_leftovers
short_description: Remove what Kubernetes leaves behind on a node
description:
  - Removes the network interfaces, firewall rules, files and mounts of a MicroK8s that is no longer installed. Other firewall
    rules stay.
author: The Bramble team (!UNKNOWN)
attributes:
  check_mode: {support: full, description: Shows what it would remove.}
  diff_mode: {support: full, description: Lists what is removed.}
options: {}
"""

EXAMPLES = r"""
- name: Remove what Kubernetes has left behind
  bramble.cluster.microk8s_leftovers:
"""

RETURN = r"""
removed:
  description: What was removed, or in a dry run would be.
  returned: always
  type: list
  elements: str
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module

ROOT = Path("/")
# The interfaces of Calico, flannel and the bridge plugin. tunl0 is not among them, because the kernel makes it.
KUBERNETES_LINK = re.compile(r"(cali[0-9a-z.]*|vxlan\.calico|flannel[.\-][0-9a-z.\-]+|cni\d+|kube-ipvs\d+|nodelocaldns)")
KUBERNETES_RULE = re.compile(r"\b(KUBE-|cali-|cali[0-9a-f]{11}|CNI-|FLANNEL-|flannel)")
KUBERNETES_FILES = (
    *("etc/cni", "etc/microk8s.yaml", "opt/cni", "var/lib/cni", "var/lib/calico", "var/lib/kubelet", "var/log/calico"),
    *("var/log/containers", "var/log/pods", "run/calico", "run/flannel", "var/snap/microk8s", "root/snap/microk8s"),
    # The cache of kubectl.
    "root/.kube/cache",
    # The record of an interrupted upgrade (roles/microk8s).
    "var/lib/bramble/microk8s-upgrading",
)
SAVE_PROGRAMS = [f"{family}{kind}-save" for family in ("iptables", "ip6tables") for kind in ("", "-legacy", "-nft")]


def without_kubernetes(rules: str) -> str:
    """Return the output of iptables-save without the chains and rules of Kubernetes and its networks."""
    return "".join(line for line in rules.splitlines(keepends=True) if line[:1] in "#*C" or not KUBERNETES_RULE.search(line))


def kubernetes_mounts(table: str) -> list[str]:
    """Return the mount points below the folders to remove, the innermost first.

    :param table: the text of /proc/mounts
    """
    mount_points = [line.split()[1].replace("\\040", " ") for line in table.splitlines()]
    folders = tuple(f"/{name}/" for name in KUBERNETES_FILES)
    return sorted((mount_point for mount_point in mount_points if mount_point.startswith(folders)), reverse=True)


def run(module: AnsibleModule) -> dict[str, Any]:
    """Remove what is left; return the result of the module. Raises OSError."""
    links = sorted(name for name in os.listdir(ROOT / "sys/class/net") if KUBERNETES_LINK.fullmatch(name))
    mounts = kubernetes_mounts((ROOT / "proc/mounts").read_text())
    files = [path for name in KUBERNETES_FILES if os.path.lexists(path := ROOT / name)]
    rules = {}
    for save_program in filter(module.get_bin_path, SAVE_PROGRAMS):
        before = module.run_command([save_program])[1]
        after = without_kubernetes(before)
        if before != after:
            rules[save_program] = after
    removed = [
        *(f"interface {name}" for name in links),
        *(f"rules of {save_program.removesuffix('-save')}" for save_program in rules),
        *(f"mount {mount_point}" for mount_point in mounts),
        *map(str, files),
    ]
    if not module.check_mode:
        for save_program, after in rules.items():
            module.run_command([save_program.replace("-save", "-restore")], data=after, check_rc=True)
        for name in links:
            module.run_command(["ip", "link", "delete", name], check_rc=True)
        for mount_point in mounts:
            module.run_command(["umount", mount_point], check_rc=True)
        for path in files:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    diff = {"before": "".join(f"{line}\n" for line in removed), "after": ""}
    return {"changed": bool(removed), "removed": removed, "diff": diff if removed else {}}


def main() -> None:
    """Run the module."""
    run_module({}, run)


if __name__ == "__main__":
    main()
