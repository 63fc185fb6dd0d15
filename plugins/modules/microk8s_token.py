#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: create or revoke a token to join a MicroK8s cluster with."""

from __future__ import annotations

DOCUMENTATION = r"""
module: microk8s_token
short_description: Create or revoke a token to join a MicroK8s cluster with
description:
  - Runs on a node with the control plane. A token is a key to the cluster, so tasks with this module have C(no_log).
  - Until it expires, everybody who has a token can join with it, several times. So revoke it when the node has joined, and when
    it has failed to join.
author: The Bramble team (!UNKNOWN)
options:
  address:
    description: The address of this node for the joining node. With it a token is created.
    type: str
  ttl:
    description: How long a token is valid unless it is revoked, in seconds.
    type: int
    default: 600
  url:
    description: The URL that this module has returned. With it the token in the URL is revoked.
    type: str
attributes:
  check_mode: {support: full, description: "Shows that it would create or revoke a token, and does not."}
"""

EXAMPLES = r"""
- name: Create a token
  microk8s_token:
    address: 192.168.1.101
  register: __token
  no_log: true
"""

RETURN = r"""
url:
  description: The URL for C(microk8s join), which has the token in it.
  returned: when a token was created
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.text_file import read_text, write_text
from ansible_collections.bramble.cluster.plugins.module_utils.kubernetes import microk8s


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "address": {"type": "str"},
            "ttl": {"type": "int", "default": 600, "no_log": False},
            "url": {"type": "str", "no_log": True},
        },
        mutually_exclusive=[["address", "url"]],
        required_one_of=[["address", "url"]],
        supports_check_mode=True,
    )
    wanted = module.params
    try:
        if wanted["url"]:
            before = read_text(microk8s.TOKENS_FILE)
            after = microk8s.remove_token(before, wanted["url"].split("/")[1])
            if before != after and not module.check_mode:
                write_text(microk8s.TOKENS_FILE, after)
            module.exit_json(changed=before != after)
        if module.check_mode:
            module.exit_json(changed=True)
        words = ["add-node", "--token-ttl", str(wanted["ttl"]), "--format", "json"]
        url = microk8s.find_join_url(microk8s.run_microk8s(module.run_command, *words), wanted["address"])
        module.exit_json(changed=True, url=url)
    except (BrambleError, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
