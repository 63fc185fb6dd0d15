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
  bramble.cluster.microk8s_token:
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

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module
from ansible_collections.bramble.cluster.plugins.module_utils.core.text_file import read_text, write_text
from ansible_collections.bramble.cluster.plugins.module_utils.kubernetes import microk8s

SPEC: dict[str, Any] = {
    "address": {"type": "str"},
    "ttl": {"type": "int", "default": 600, "no_log": False},
    "url": {"type": "str", "no_log": True},
}


def run(module: AnsibleModule) -> dict[str, Any]:
    """Create or revoke a token; return the result of the module. Raises BrambleError, OSError."""
    wanted = module.params
    if wanted["url"]:
        before = read_text(microk8s.TOKENS_FILE)
        after = microk8s.remove_token(before, wanted["url"].split("/")[1])
        if before != after and not module.check_mode:
            write_text(microk8s.TOKENS_FILE, after)
        return {"changed": before != after}
    if module.check_mode:
        return {"changed": True}
    words = ["add-node", "--token-ttl", str(wanted["ttl"]), "--format", "json"]
    return {"changed": True, "url": microk8s.find_join_url(microk8s.run_microk8s(module.run_command, *words), wanted["address"])}


def main() -> None:
    """Run the module."""
    either = [["address", "url"]]
    run_module(SPEC, run, mutually_exclusive=either, required_one_of=either)


if __name__ == "__main__":
    main()
