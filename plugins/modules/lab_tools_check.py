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
  bramble.cluster.lab_tools_check:
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
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import as_sentence, run_module
from ansible_collections.bramble.cluster.plugins.module_utils.lab.tool_sets import choice_problems, node_problems, read_release

STRINGS = {"type": "list", "elements": "str", "required": True}
SPEC: dict[str, Any] = {
    "set": {"type": "str", "required": True},
    "groups": STRINGS,
    "known": STRINGS,
    "root": {"type": "path", "default": "/"},
}


def run(module: AnsibleModule) -> dict[str, Any]:
    """Check the set and the node; return the result of the module. Raises BrambleError."""
    wanted, root = module.params["set"], Path(module.params["root"])
    problems = choice_problems(wanted, module.params["groups"], module.params["known"])
    problems = problems or node_problems(wanted, root, platform.machine())
    if problems:
        raise BrambleError(" ".join(map(as_sentence, [*problems, "nothing was changed"])))
    return {"distribution": read_release(root).id}


def main() -> None:
    """Run the module."""
    run_module(SPEC, run)


if __name__ == "__main__":
    main()
