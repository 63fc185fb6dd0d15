#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: leave a node one wired port, and nothing else that could carry a packet elsewhere."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_links
short_description: Take down all ports but one, or block the radios
description:
  - Sets every network interface down but the loopback and those in I(keep), whatever made it; or blocks every radio (rfkill).
  - What it took down is noted, so that C(state=absent) brings just that up again.
author: The Bramble team (!UNKNOWN)
options:
  kind: {description: Ports or radios., type: str, choices: [links, radios], required: true}
  state: {description: "Down, or up again as they were.", type: str, choices: [present, absent], default: present}
  keep: {description: The interfaces that stay up., type: list, elements: str, default: []}
attributes:
  check_mode: {support: full, description: "Says what it would change, and changes nothing."}
  diff_mode: {support: none, description: Nothing to show.}
"""

EXAMPLES = r"""
- name: Leave the node its wired port
  lab_links:
    kind: links
    keep: [eth0]
"""

RETURN = r"""
found:
  description: What was up and is not to be, a port with its hardware address and driver; or what is up again.
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

SYS = Path("/sys/class")
NOTES = Path("/var/lib/bramble-isolation")
IFF_UP = 0x1


def read(path: Path) -> str:
    """A line of sysfs; empty where there is none."""
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def up(keep: list[str]) -> dict[str, str]:
    """The interfaces that are up but should not be: name -> what it is, for people."""
    found = {}
    for link in sorted((SYS / "net").iterdir()) if (SYS / "net").is_dir() else ():
        if link.name in ("lo", *keep) or not link.is_dir() or not int(read(link / "flags") or "0", 16) & IFF_UP:
            continue
        driver = link / "device/driver"
        what = os.path.basename(os.readlink(driver)) if driver.is_symlink() else "software"
        found[link.name] = f"{link.name} ({read(link / 'address') or 'no hardware address'}, {what})"
    return found


def unblocked() -> dict[str, str]:
    """The radios that may send: their number in sysfs -> what it is."""
    radios = sorted((SYS / "rfkill").iterdir()) if (SYS / "rfkill").is_dir() else ()
    return {entry.name: f"{read(entry / 'type')} {read(entry / 'name')}" for entry in radios if read(entry / "soft") == "0"}


def switch(module: AnsibleModule, name: str, on: bool) -> None:
    """Switch a port or a radio on or off; one that is gone is neither. Raises OSError."""
    if module.params["kind"] == "radios":
        if (SYS / "rfkill" / name).exists():
            (SYS / "rfkill" / name / "soft").write_text("0" if on else "1", encoding="ascii")
    elif (SYS / "net" / name).exists():
        module.run_command(["ip", "link", "set", "dev", name, "up" if on else "down"], check_rc=True)


def run(module: AnsibleModule) -> dict[str, Any]:
    """Do what is asked. Raises OSError, ValueError."""
    kind, off = module.params["kind"], module.params["state"] == "present"
    note = NOTES / f"{kind}.json"
    noted: list[str] = json.loads(note.read_text(encoding="utf-8")) if note.exists() else []
    found = {name: name for name in noted}
    if off:
        found = unblocked() if kind == "radios" else up(module.params["keep"])
    result = {"changed": bool(found), "found": list(found.values())}
    if module.check_mode or not found:
        return result
    if off:
        NOTES.mkdir(mode=0o755, exist_ok=True)
        # First, so that they come up again whatever happens in between.
        note.write_text(json.dumps(sorted({*noted, *found})) + "\n", encoding="utf-8")
    for name in found:
        switch(module, name, not off)
    if not off:
        note.unlink()
        with contextlib.suppress(OSError):  # the other kind's note is still in it
            NOTES.rmdir()
    return result


def main() -> None:
    """Run, and turn what is wrong into a message."""
    module = AnsibleModule(
        argument_spec={
            "kind": {"type": "str", "choices": ["links", "radios"], "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "keep": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except (OSError, ValueError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
