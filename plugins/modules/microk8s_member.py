#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: this machine in its cluster, or out of it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: microk8s_member
short_description: Have a machine join a MicroK8s cluster, or leave it
description:
  - Runs on the machine itself. Whether it has to join or leave is for who calls it to know, from the nodes that the cluster has
    (M(bramble.cluster.microk8s_facts)); this does it and waits for the end.
author: The Bramble team (!UNKNOWN)
options:
  url:
    description: Address and token to join with, from M(bramble.cluster.microk8s_token). Without it the machine leaves.
    type: str
  worker:
    description: Join without the control plane.
    type: bool
    default: false
attributes:
  check_mode: {support: full, description: "Says that it would, and does not."}
"""

EXAMPLES = r"""
- name: Join
  microk8s_member:
    url: "{{ __token.url }}"
    worker: true
  no_log: true

- name: Leave
  microk8s_member:
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.kubernetes import microk8s


def main() -> None:
    """Join or leave."""
    module = AnsibleModule(
        argument_spec={"url": {"type": "str", "no_log": True}, "worker": {"type": "bool", "default": False}},
        supports_check_mode=True,
    )
    url, worker = module.params["url"], module.params["worker"]
    if not module.check_mode:
        words = ["join", url, *(["--worker"] if worker else [])] if url else ["leave"]
        try:
            microk8s.call(module.run_command, *words)
        except BrambleError as error:
            # The token is taken out of what is said: no_log of the argument.
            module.fail_json(msg=str(error))
    module.exit_json(changed=True)


if __name__ == "__main__":
    main()
