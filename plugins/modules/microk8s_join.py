#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: make this machine a member of a MicroK8s cluster."""

from __future__ import annotations

DOCUMENTATION = r"""
module: microk8s_join
short_description: Join a MicroK8s cluster
description:
  - Runs C(microk8s join) on the machine that joins, and waits for its end. Whether it has to join is for the caller to know
    (M(bramble.cluster.microk8s_facts)).
  - Not M(ansible.builtin.command), which shows the token in its result, or with C(no_log) not even why a join failed.
author: The Bramble team (!UNKNOWN)
options:
  url:
    description: Address and token to join with, from M(bramble.cluster.microk8s_token).
    type: str
    required: true
  worker:
    description: Join without the control plane.
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
    """Join; return the result of the module. Raises BrambleError, without the token: no_log of the argument removes it."""
    url, worker = module.params["url"], module.params["worker"]
    if not module.check_mode:
        microk8s.call(module.run_command, "join", url, *(["--worker"] if worker else []))
    return {"changed": True}


def main() -> None:
    """Join the cluster."""
    run_module({"url": {"type": "str", "required": True, "no_log": True}, "worker": {"type": "bool", "default": False}}, run)


if __name__ == "__main__":
    main()
