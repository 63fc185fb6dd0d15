#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Refuse a set of security tools that a node can not have."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_tools_check
short_description: Refuse a set of security tools that a node can not have
description:
  - Reads what distribution a node has, what its apt gets packages from and which keys it trusts. Fails when the set is not for
    that distribution, when a foreign repository is mixed in, or when the archive's key is not the one that its publisher has.
  - Changes nothing.
options:
  set:
    description: The set, as in C(lab_tools_set).
    type: str
    required: true
  groups:
    description: The groups of tools that are wanted.
    type: list
    elements: str
    required: true
  known:
    description: The groups that there are.
    type: list
    elements: str
    required: true
  root:
    description: The node's root file system.
    type: path
    default: /
author: The Bramble team (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Refuse what this node can not have
  lab_tools_check:
    set: debian
    groups: [scanning]
    known: [scanning, web]
"""

RETURN = r"""
distribution:
  description: What the node has, os-release's ID.
  returned: success
  type: str
"""

import platform
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.lab.tool_sets import choice_problems, node_problems, release


def main() -> None:
    strings = {"type": "list", "elements": "str", "required": True}
    module = AnsibleModule(
        argument_spec={
            "set": {"type": "str", "required": True},
            "groups": strings,
            "known": strings,
            "root": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    wanted, root = module.params["set"], Path(module.params["root"])
    problems = choice_problems(wanted, module.params["groups"], module.params["known"])
    problems = problems or node_problems(wanted, root, platform.machine())
    if problems:
        module.fail_json(msg=" ".join(f"{problem[:1].upper()}{problem[1:]}." for problem in [*problems, "nothing was changed"]))
    module.exit_json(changed=False, distribution=release(root).id)


if __name__ == "__main__":
    main()
