#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: what Kubernetes leaves behind when it is removed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: microk8s_leftovers
short_description: Remove what Kubernetes leaves behind on a node
description:
  - Removes network interfaces, firewall rules, files and mounts of a MicroK8s that is not installed any more. Other rules stay.
author: The Bramble team (!UNKNOWN)
attributes:
  check_mode: {support: full, description: Says what it would remove.}
  diff_mode: {support: full, description: Lists what is removed.}
options: {}
"""

EXAMPLES = r"""
- name: Clean up
  microk8s_leftovers:
"""

RETURN = r"""
removed:
  description: What was, or would be, removed.
  returned: always
  type: list
  elements: str
"""

import os
import re
import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.command import run

ROOT = Path("/")
# Calico, flannel, the bridge plugin; tunl0 is the kernel's own.
LINK = re.compile(r"(cali[0-9a-z.]*|vxlan\.calico|flannel[.\-][0-9a-z.\-]+|cni\d+|kube-ipvs\d+|nodelocaldns)")
OURS = re.compile(r"\b(KUBE-|cali-|cali[0-9a-f]{11}|CNI-|FLANNEL-|flannel)")
FILES = (
    *("etc/cni", "etc/microk8s.yaml", "opt/cni", "var/lib/cni", "var/lib/calico", "var/lib/kubelet", "var/log/calico"),
    *("var/log/containers", "var/log/pods", "run/calico", "run/flannel", "var/snap/microk8s", "root/snap/microk8s"),
    # What kubectl remembers of the API server.
    "root/.kube/cache",
    # What an upgrade that was interrupted has noted.
    "var/lib/bramble/microk8s-upgrading",
)
SAVERS = [f"{family}{kind}-save" for family in ("iptables", "ip6tables") for kind in ("", "-legacy", "-nft")]


def without_kubernetes(rules: str) -> str:
    """What iptables-save prints, without the chains and rules of Kubernetes and its networks."""
    return "".join(line for line in rules.splitlines(keepends=True) if line[:1] in "#*C" or not OURS.search(line))


def kubernetes_mounts(table: str) -> list[str]:
    """Mount points below the folders that go, the innermost first; the table is /proc/mounts."""
    places = [line.split()[1].replace("\\040", " ") for line in table.splitlines()]
    folders = tuple(f"/{name}/" for name in FILES)
    return sorted((place for place in places if place.startswith(folders)), reverse=True)


def main() -> None:
    """Look, then remove."""
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    links = sorted(name for name in os.listdir(ROOT / "sys/class/net") if LINK.fullmatch(name))
    mounts = kubernetes_mounts((ROOT / "proc/mounts").read_text())
    files = [path for name in FILES if os.path.lexists(path := ROOT / name)]
    rules = {}
    for saver in filter(module.get_bin_path, SAVERS):
        before = module.run_command([saver])[1]
        after = without_kubernetes(before)
        if before != after:
            rules[saver] = after
    removed = [
        *(f"interface {name}" for name in links),
        *(f"rules of {saver.removesuffix('-save')}" for saver in rules),
        *(f"mount {place}" for place in mounts),
        *map(str, files),
    ]
    if not module.check_mode:
        for saver, after in rules.items():
            run(module, saver.replace("-save", "-restore"), data=after)
        for name in links:
            run(module, "ip", "link", "delete", name)
        for place in mounts:
            run(module, "umount", place)
        for path in files:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    diff = {"before": "".join(f"{line}\n" for line in removed), "after": ""}
    module.exit_json(changed=bool(removed), removed=removed, diff=diff if removed else {})


if __name__ == "__main__":
    main()
