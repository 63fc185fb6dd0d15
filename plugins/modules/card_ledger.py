#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: record values in the ledger of the cards."""

from __future__ import annotations

DOCUMENTATION = r"""
module: card_ledger
short_description: Record values in the ledger of the cards
description:
  - The ledger is a JSON file with one object per node. M(bramble.cluster.card_write) records the result of each card in it; this
    module adds other values, such as the CID of the card, which a USB reader does not report.
  - Empty values are not added.
author: The Bramble team (!UNKNOWN)
options:
  path:
    description: >-
      The file of the ledger. It is created if it is missing. The path is taken literally, without expansion of C(~) and C($).
    type: str
    required: true
  nodes:
    description: The values to add, as objects of values by name, by node.
    type: dict
    required: true
  fresh:
    description: Replace the entries of these nodes instead of adding to them.
    type: bool
    default: false
attributes:
  check_mode: {support: full, description: "Returns whether the ledger would change, and changes nothing."}
  diff_mode: {support: full, description: Shows the entries that change.}
"""

EXAMPLES = r"""
- name: Record the numbers of the card and the Pi
  bramble.cluster.card_ledger:
    path: .state/octapi/cards.json
    nodes:
      pi-01: {cid: 03534453443332478000000000000000, mac: "dc:a6:32:00:00:01"}
"""

RETURN = r"""
table:
  description: The entries of these nodes as a table for the user, one line each.
  returned: always
  type: str
"""

import json
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.card.ledger import Entries, Ledger, merge_entry, table
from ansible_collections.bramble.cluster.plugins.module_utils.card.paths import check_paths
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module


def run(module: AnsibleModule) -> dict[str, Any]:
    """Record the values, and return the entries. Raises BrambleError, OSError."""
    check_paths(module.params, "path")
    ledger, fresh = Ledger(module.params["path"]), module.params["fresh"]
    before = ledger.read()
    known: Entries = {}
    for node, values in module.params["nodes"].items():
        if not isinstance(values, dict):
            raise BrambleError(f"The values of {node} are not an object of values by name. Nothing was recorded.")
        known[node] = {name: value for name, value in values.items() if value not in ("", None)}
    after = {node: merge_entry(before.get(node, {}), values, fresh) for node, values in known.items()}
    changed = [node for node in after if after[node] != before.get(node, {})]
    if not module.check_mode:
        for node in changed:
            ledger.record(node, known[node], fresh)
    outcome = {"changed": bool(changed), "table": table(after)}
    if module._diff:
        sides = ({node: entries.get(node) for node in changed} for entries in (before, after))
        old, new = (json.dumps(side, indent=2) + "\n" for side in sides)
        outcome["diff"] = {"before_header": ledger.path, "after_header": ledger.path, "before": old, "after": new}
    return outcome


def main() -> None:
    """Run the module."""
    spec = {
        "path": {"type": "str", "required": True},
        "nodes": {"type": "dict", "required": True},
        "fresh": {"type": "bool", "default": False},
    }
    run_module(spec, run)


if __name__ == "__main__":
    main()
