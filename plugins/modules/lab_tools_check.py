#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: check that a node can have a set of security tools."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_tools_check
short_description: Check that a node can have a set of security tools
description:
  - Reads the distribution of a node, its apt sources and the keys that apt trusts. Fails when the set is not for that
    distribution, when a source belongs to another distribution, and when the archive's key is not that of its publisher.
  - Changes nothing.
options:
  set:
    description: The set, as in C(lab_tools_set).
    type: str
    required: true
  groups:
    description: The groups of tools to install.
    type: list
    elements: str
    required: true
  known:
    description: All groups of tools.
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
- name: Check that this node can have the tools
  lab_tools_check:
    set: debian
    groups: [scanning]
    known: [scanning, web]
"""

RETURN = r"""
distribution:
  description: The distribution of the node, ID in os-release.
  returned: success
  type: str
"""

import platform
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.lab.tool_sets import choice_problems, node_problems, read_release


def main() -> None:
    """Run the module."""
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
    module.exit_json(changed=False, distribution=read_release(root).id)


if __name__ == "__main__":
    main()
