#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: load a table of nftables, with a rollback unless the change is confirmed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nft_table
short_description: Load a table of nftables, with a rollback unless the change is confirmed
description:
  - Replaces one table of the family inet in one step, and no other table. To compare, nft prints the wanted table, which is
    loaded in an empty network namespace, and the loaded table, both without counters.
  - A rollback timer (systemd-run(1)) restores the previous table after O(timeout) seconds, unless a new login confirms the
    change. Nothing is written for the next boot; the caller needs a unit that loads the table.
author: The Bramble team (!UNKNOWN)
options:
  name: {description: The name of the table., type: str, required: true}
  rules:
    description: The text between the braces of the table, as nft(8) takes it. Match ports with iifname and oifname.
    type: str
  state:
    description: V(present) loads the table, V(absent) removes it, V(confirmed) cancels the pending rollback.
    type: str
    choices: [present, absent, confirmed]
    default: present
  timeout: {description: Seconds until an unconfirmed change is rolled back., type: int, default: 90}
attributes:
  check_mode: {support: full, description: "Reports what it would change, and changes nothing."}
  diff_mode: {support: full, description: Shows the table before and after.}
"""

EXAMPLES = r"""
- name: Accept packets only from the client
  bramble.cluster.nft_table:
    name: bramble_lab
    rules: |
      chain input { type filter hook input priority filter; policy drop; ip saddr 192.168.1.100 accept; }
"""

RETURN = r"""
pending:
  description: Whether a change waits to be confirmed.
  returned: always
  type: bool
"""

import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module

# A reboot removes the table, so it must remove this file, too: hence /run.
ROLLBACK_FILE = "/run/bramble-nft-{name}.rollback"


SPEC: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "rules": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent", "confirmed"], "default": "present"},
    "timeout": {"type": "int", "default": 90},
}


def replacement_script(name: str, table: str) -> str:
    """Return a script of nft that replaces a table.

    :param table: the new table as nft prints it; empty to remove the table
    """
    return f"table inet {name}\ndelete table inet {name}\n{table}"


class Table:
    """A table of nftables on the node."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module, self.name = module, module.params["name"]
        self.rollback_file, self.rollback_unit = ROLLBACK_FILE.format(name=self.name), f"bramble-nft-{self.name}-rollback"
        self._list_command = ["nft", "--stateless", "list", "table", "inet", self.name]

    def loaded_rules(self) -> str:
        """Return the loaded table as nft prints it; empty if there is none. Raises BrambleError without nft."""
        code, out, err = self.module.run_command(self._list_command, handle_exceptions=False)
        if code and "No such file" not in err:
            raise BrambleError(f"nft cannot list the table {self.name}: {err.strip()} Check that nftables is installed.")
        return "" if code else out

    def wanted_rules(self) -> str:
        """Return the wanted table as nft prints it. Raises BrambleError when nft refuses it."""
        command = ["unshare", "--net", "sh", "-c", f"nft --file - && {' '.join(self._list_command)}"]
        code, out, err = self.module.run_command(command, data=f"table inet {self.name} {{\n{self.module.params['rules']}\n}}\n")
        if code:
            raise BrambleError(
                f"nft refuses the table {self.name}. Nothing was changed. Check the variables isolated_lab_* in the inventory. "
                f"The message of nft: {err.strip()}"
            )
        return str(out)

    def run_script(self, script: str) -> None:
        """Run a script of nft, which applies all of it or nothing. Raises BrambleError."""
        code, _, err = self.module.run_command(["nft", "--file", "-"], data=script)
        if code:
            raise BrambleError(
                f"nft did not load the table {self.name}, and nothing was changed. The message of nft: {err.strip()}"
            )

    def start_rollback(self, before: str) -> None:
        """Start the rollback timer.

        Raises BrambleError, OSError.

        :param before: the table to restore, as nft prints it; empty for none
        """
        with open(self.rollback_file, "w", encoding="utf-8") as file:
            file.write(replacement_script(self.name, before))
        timer = ["systemd-run", "--quiet", "--collect", "--timer-property=AccuracySec=100ms", f"--unit={self.rollback_unit}"]
        timer += [
            f"--on-active={self.module.params['timeout']}",
            "sh",
            "-c",
            f"nft --file {self.rollback_file} && rm {self.rollback_file}",
        ]
        code, _, err = self.module.run_command(timer)
        if code:
            os.unlink(self.rollback_file)
            raise BrambleError(f"The table {self.name} was not loaded, because the rollback timer did not start: {err.strip()}")

    def stop_rollback(self) -> None:
        """Stop the rollback timer. Raises OSError."""
        self.module.run_command(["systemctl", "stop", f"{self.rollback_unit}.timer"])
        os.unlink(self.rollback_file)


def run(module: AnsibleModule) -> dict[str, Any]:
    """Load, remove or confirm the table; return the result of the module. Raises BrambleError, OSError."""
    table, state = Table(module), module.params["state"]
    pending = os.path.exists(table.rollback_file)
    if state == "confirmed":
        if not pending:
            raise BrambleError(
                f"The table {table.name} was rolled back, because the change was not confirmed in time. Run the same "
                "playbook again."
            )
        table.stop_rollback()
        return {"changed": True, "pending": False}
    before, after = table.loaded_rules(), "" if state == "absent" else table.wanted_rules()
    result = {"changed": before != after, "pending": pending, "diff": {"before": before, "after": after}}
    if module.check_mode or before == after:
        return result
    if state == "present" and not pending:
        table.start_rollback(before)
    table.run_script(replacement_script(table.name, after))
    if state == "absent" and pending:
        table.stop_rollback()
    return {**result, "pending": state == "present"}


def main() -> None:
    """Run the module."""
    run_module(SPEC, run, required_if=[("state", "present", ["rules"])])


if __name__ == "__main__":
    main()
