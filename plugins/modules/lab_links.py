#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: disable all network interfaces of a node except one, or its radios."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_links
short_description: Disable all network interfaces except some, or the radios
description:
  - Sets every network interface of any kind down, except the loopback and those in O(keep); or blocks every radio (rfkill).
  - Records what it has disabled, so that O(state=absent) enables exactly that again.
author: The Bramble team (!UNKNOWN)
options:
  kind: {description: Whether to change network interfaces or radios., type: str, choices: [links, radios], required: true}
  state:
    description: V(present) disables them. V(absent) enables those that this module has disabled.
    type: str
    choices: [present, absent]
    default: present
  keep: {description: The interfaces that stay up., type: list, elements: str, default: []}
attributes:
  check_mode: {support: full, description: "Reports what it would change, and changes nothing."}
  diff_mode: {support: none, description: There is no text to compare.}
"""

EXAMPLES = r"""
- name: Disable all network interfaces except the wired port
  bramble.cluster.lab_links:
    kind: links
    keep: [eth0]
"""

RETURN = r"""
found:
  description: What was disabled, or in a dry run would be, network interfaces with hardware address and driver; or enabled again.
  returned: always
  type: list
  elements: str
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module

SYS = Path("/sys/class")
RECORDS_FOLDER = Path("/var/lib/bramble-isolation")
IFF_UP = 0x1


SPEC: dict[str, Any] = {
    "kind": {"type": "str", "choices": ["links", "radios"], "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "keep": {"type": "list", "elements": "str", "default": []},
}


def read_line(path: Path) -> str:
    """Return the text of a file of sysfs; empty if it does not exist."""
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def find_active_links(keep: list[str]) -> dict[str, str]:
    """Return the interfaces that are up, except the loopback and those to keep: name -> description."""
    found = {}
    for link in sorted((SYS / "net").iterdir()) if (SYS / "net").is_dir() else ():
        if link.name in ("lo", *keep) or not link.is_dir() or not int(read_line(link / "flags") or "0", 16) & IFF_UP:
            continue
        driver = link / "device/driver"
        driver_name = os.path.basename(os.readlink(driver)) if driver.is_symlink() else "software"
        found[link.name] = f"{link.name} ({read_line(link / 'address') or 'no hardware address'}, {driver_name})"
    return found


def find_unblocked_radios() -> dict[str, str]:
    """Return the radios that are not blocked: name in sysfs -> description."""
    radios = sorted((SYS / "rfkill").iterdir()) if (SYS / "rfkill").is_dir() else ()
    return {
        entry.name: f"{read_line(entry / 'type')} {read_line(entry / 'name')}"
        for entry in radios
        if read_line(entry / "soft") == "0"
    }


def set_enabled(module: AnsibleModule, name: str, enabled: bool) -> None:
    """Enable or disable an interface or a radio, unless it no longer exists. Raises OSError."""
    if module.params["kind"] == "radios":
        if (SYS / "rfkill" / name).exists():
            (SYS / "rfkill" / name / "soft").write_text("0" if enabled else "1", encoding="ascii")
    elif (SYS / "net" / name).exists():
        module.run_command(["ip", "link", "set", "dev", name, "up" if enabled else "down"], check_rc=True)


def run(module: AnsibleModule) -> dict[str, Any]:
    """Disable or enable; return the result of the module. Raises OSError, ValueError."""
    kind, disable = module.params["kind"], module.params["state"] == "present"
    record = RECORDS_FOLDER / f"{kind}.json"
    recorded: list[str] = json.loads(record.read_text(encoding="utf-8")) if record.exists() else []
    found = {name: name for name in recorded}
    if disable:
        found = find_unblocked_radios() if kind == "radios" else find_active_links(module.params["keep"])
    result = {"changed": bool(found), "found": list(found.values())}
    if module.check_mode or not found:
        return result
    if disable:
        RECORDS_FOLDER.mkdir(mode=0o755, exist_ok=True)
        # The record comes first, so that an interrupted run can be reverted.
        record.write_text(json.dumps(sorted({*recorded, *found})) + "\n", encoding="utf-8")
    for name in found:
        set_enabled(module, name, not disable)
    if not disable:
        record.unlink()
        with contextlib.suppress(OSError):  # not empty: it has the record of the other kind
            RECORDS_FOLDER.rmdir()
    return result


def main() -> None:
    """Run the module."""
    run_module(SPEC, run, errors=(OSError, ValueError))


if __name__ == "__main__":
    main()
