#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: a token with which one node joins."""

from __future__ import annotations

DOCUMENTATION = r"""
module: microk8s_token
short_description: Create a token with which a node joins, or revoke one
description:
  - Runs on a node with the control plane. A token is a key to the cluster, so tasks with this module have C(no_log).
  - Until it expires, a token lets in whoever has it, however often. So it is revoked when the node has joined, and when it could
    not.
author: The Bramble team (!UNKNOWN)
options:
  address:
    description: The address at which the joining node reaches this one, to create a token.
    type: str
  ttl:
    description: How many seconds a token is valid that is not revoked.
    type: int
    default: 600
  url:
    description: The URL that was returned, to revoke its token.
    type: str
attributes:
  check_mode: {support: full, description: "Shows that it would create or revoke a token, and does not."}
"""

EXAMPLES = r"""
- name: Mint a token
  microk8s_token:
    address: 192.168.1.101
  register: __token
  no_log: true
"""

RETURN = r"""
url:
  description: What C(microk8s join) takes, with the token in it.
  returned: when one was created
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.text_file import read_text, write_text
from ansible_collections.bramble.cluster.plugins.module_utils.kubernetes import microk8s


def main() -> None:
    """Create or revoke."""
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
            before = read_text(microk8s.TOKENS)
            after = microk8s.without_token(before, wanted["url"].split("/")[1])
            if before != after and not module.check_mode:
                write_text(microk8s.TOKENS, after)
            module.exit_json(changed=before != after)
        if module.check_mode:
            module.exit_json(changed=True)
        words = ["add-node", "--token-ttl", str(wanted["ttl"]), "--format", "json"]
        url = microk8s.join_url(microk8s.call(module.run_command, *words), wanted["address"])
        module.exit_json(changed=True, url=url)
    except (BrambleError, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
