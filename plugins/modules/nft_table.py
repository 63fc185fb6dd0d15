#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: load a table of nftables, so that one that locks everybody out takes itself away."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nft_table
short_description: Load a table of nftables, so that a wrong one undoes itself
description:
  - Replaces one table of family inet, in one step, and touches no other. Whether it differs is told by nft itself, which shows
    the wanted table, loaded in an empty network namespace, and the one in force, both without counters.
  - What it replaces comes back after I(timeout) seconds (systemd-run(1)), unless the change is confirmed by a login that is newer
    than it. Nothing is written that a reboot would bring back; that is for a unit of the caller.
author: The Bramble team (!UNKNOWN)
options:
  name: {description: The table., type: str, required: true}
  rules: {description: "What stands between its braces, as nft(8) takes it. Names of ports as iifname and oifname.", type: str}
  state:
    description: There, gone at once, or as it is now to stay.
    type: str
    choices: [present, absent, confirmed]
    default: present
  timeout: {description: Seconds until an unconfirmed change undoes itself., type: int, default: 90}
attributes:
  check_mode: {support: full, description: "Says what it would change, and changes nothing."}
  diff_mode: {support: full, description: Shows the table before and after.}
"""

EXAMPLES = r"""
- name: Let in nobody but the client
  nft_table:
    name: bramble_lab
    rules: |
      chain input { type filter hook input priority filter; policy drop; ip saddr 192.168.1.100 accept; }
"""

RETURN = r"""
waits:
  description: Whether a change waits to be confirmed.
  returned: always
  type: bool
"""

import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule

# Forgotten at a reboot, and so is what it undoes.
UNDO = "/run/bramble-nft-{name}.undo"


class TableError(Exception):
    """What can not be done, for people."""


def replacing(name: str, table: str) -> str:
    """A script that puts a table, as nft shows it, in the place of the one of its name; empty for none."""
    return f"table inet {name}\ndelete table inet {name}\n{table}"


class Table:
    """A table of the node."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module, self.name = module, module.params["name"]
        self.undo, self.unit = UNDO.format(name=self.name), f"bramble-nft-{self.name}-undo"
        self._show = ["nft", "--stateless", "list", "table", "inet", self.name]

    def live(self) -> str:
        """The table in force; empty if there is none. Raises TableError without nft."""
        code, out, err = self.module.run_command(self._show, handle_exceptions=False)
        if code and "No such file" not in err:
            raise TableError(f"nft does not answer: {err.strip()}")
        return "" if code else out

    def wanted(self) -> str:
        """The table as nft would show it once it is loaded. Raises TableError where it is none."""
        load = ["unshare", "--net", "sh", "-c", f"nft --file - && {' '.join(self._show)}"]
        code, out, err = self.module.run_command(load, data=f"table inet {self.name} {{\n{self.module.params['rules']}\n}}\n")
        if code:
            raise TableError(f"nft refuses the table {self.name}. Nothing was changed. It says: {err.strip()}")
        return str(out)

    def load(self, script: str) -> None:
        """Have nft carry out a script, all of it or nothing. Raises TableError."""
        code, _, err = self.module.run_command(["nft", "--file", "-"], data=script)
        if code:
            raise TableError(f"nft did not load the table {self.name}, and nothing was changed. It says: {err.strip()}")

    def arm(self, before: str) -> None:
        """Have what there was come back by itself. Raises TableError, OSError."""
        with open(self.undo, "w", encoding="utf-8") as file:
            file.write(replacing(self.name, before))
        timer = ["systemd-run", "--quiet", "--collect", "--timer-property=AccuracySec=100ms", f"--unit={self.unit}"]
        timer += [f"--on-active={self.module.params['timeout']}", "sh", "-c", f"nft --file {self.undo} && rm {self.undo}"]
        code, _, err = self.module.run_command(timer)
        if code:
            os.unlink(self.undo)
            raise TableError(f"The table {self.name} was not loaded, as nothing could undo it: {err.strip()}")

    def disarm(self) -> None:
        """Let it stay. Raises OSError."""
        self.module.run_command(["systemctl", "stop", f"{self.unit}.timer"])
        os.unlink(self.undo)


def run(module: AnsibleModule) -> dict[str, Any]:
    """Do what is asked. Raises TableError, OSError."""
    table, state = Table(module), module.params["state"]
    waits = os.path.exists(table.undo)
    if state == "confirmed":
        if not waits:
            raise TableError(f"The table {table.name} is undone already: nobody had confirmed it in time.")
        table.disarm()
        return {"changed": True, "waits": False}
    before, after = table.live(), "" if state == "absent" else table.wanted()
    result = {"changed": before != after, "waits": waits, "diff": {"before": before, "after": after}}
    if module.check_mode or before == after:
        return result
    if state == "present" and not waits:
        table.arm(before)
    table.load(replacing(table.name, after))
    if state == "absent" and waits:
        table.disarm()
    return {**result, "waits": state == "present"}


def main() -> None:
    """Run, and turn what is wrong into a message."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "rules": {"type": "str"},
            "state": {"type": "str", "choices": ["present", "absent", "confirmed"], "default": "present"},
            "timeout": {"type": "int", "default": 90},
        },
        required_if=[("state", "present", ["rules"])],
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except (TableError, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
