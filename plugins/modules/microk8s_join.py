#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: make this node a member of a MicroK8s cluster."""

from __future__ import annotations

DOCUMENTATION = r"""
module: microk8s_join
short_description: Join a MicroK8s cluster
description:
  - Runs C(microk8s join) on the node that joins, and waits for its end. It always joins; M(bramble.cluster.microk8s_facts)
    returns whether the node is a member already.
  - Use it instead of M(ansible.builtin.command), whose result has the token, or with C(no_log) hides why a join failed.
author: The Bramble team (!UNKNOWN)
options:
  url:
    description: The address and the token to join with, from M(bramble.cluster.microk8s_token).
    type: str
    required: true
  worker:
    description: Join as a worker, without the control plane.
    type: bool
    default: false
attributes:
  check_mode: {support: full, description: "Shows that it would join, and does not."}
"""

EXAMPLES = r"""
- name: Join the cluster
  bramble.cluster.microk8s_join:
    url: "{{ __token.url }}"
    worker: true
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module
from ansible_collections.bramble.cluster.plugins.module_utils.kubernetes import microk8s


def run(module: AnsibleModule) -> dict[str, Any]:
    """Join the cluster; return the result of the module. Raises BrambleError, from whose text no_log removes the token."""
    url, worker = module.params["url"], module.params["worker"]
    if not module.check_mode:
        microk8s.run_microk8s(module.run_command, "join", url, *(["--worker"] if worker else []))
    return {"changed": True}


def main() -> None:
    """Run the module."""
    run_module({"url": {"type": "str", "required": True, "no_log": True}, "worker": {"type": "bool", "default": False}}, run)


if __name__ == "__main__":
    main()
