#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: make a node easy on its card, and safe against power cuts."""

from __future__ import annotations

DOCUMENTATION = r"""
module: card_care
short_description: File systems that are easy on a card and checked at boot
description:
  - Edits C(/etc/fstab), in which nothing else changes. The root file system gets C(noatime), at once by a remount; each file
    system that fsck knows gets a pass number, so that it is checked at boot.
  - Switches off the swap that is on, and comments out what would switch it on again. Swap of a machine that this node only shares
    a kernel with is left alone.
  - Fails where the root file system is full.
author: The Bramble team (!UNKNOWN)
options:
  swap:
    description: Whether there may be swap. What this module has commented out is then put in again, for the next boot.
    type: bool
    default: false
attributes:
  check_mode: {support: full, description: "Says what it would change, and changes nothing."}
  diff_mode: {support: full, description: Shows the lines that change.}
"""

EXAMPLES = r"""
- name: Spare the card
  card_care:
    swap: false
"""

RETURN = r"""
remounted:
  description: Whether the root file system was, or would be, mounted anew.
  returned: always
  type: bool
swap_off:
  description: The swap that was, or would be, switched off.
  returned: always
  type: list
  elements: str
"""

import os
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.boot import fstab
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module
from ansible_collections.bramble.cluster.plugins.module_utils.core.text_file import read, write

FSTAB = Path("/etc/fstab")
LEAST_FREE = 4 << 20  # with less, services do not even start, and say anything but why


def mounted_noatime(mounts: str) -> bool:
    """Whether / does not note when a file was read, from /proc/self/mounts; of mounts over each other the last counts."""
    entries = [line.split() for line in mounts.splitlines()]
    return "noatime" in [entry[3] for entry in entries if entry[1] == "/"][-1].split(",")


def swap_on(swaps: str) -> list[str]:
    """The files and devices that are swap, from /proc/swaps; in a stand-in these may be the machine's, and not be there."""
    return [path for line in swaps.splitlines()[1:] if os.path.exists(path := line.split()[0])]


def run(module: AnsibleModule) -> dict[str, Any]:
    """Edit and apply. Raises OSError."""
    root = os.statvfs("/")
    free = root.f_bavail * root.f_frsize  # of what is free, ext4 keeps a part back
    if free < LEAST_FREE:
        raise BrambleError(
            f"No space left on /: {free:,} bytes are free. Nothing was changed. See what takes it (du -xh / | sort -h), "
            "remove what is not needed, then run the same again."
        )
    before = read(FSTAB)
    after = fstab.edit_fstab(before, module.params["swap"])
    if not fstab.has_root_entry(after):
        module.warn(f"{FSTAB} has no entry for /: it is mounted as the kernel's command line says.")
    remount = not mounted_noatime(Path("/proc/self/mounts").read_text(encoding="utf-8"))
    swaps = [] if module.params["swap"] else swap_on(Path("/proc/swaps").read_text(encoding="utf-8"))
    if not module.check_mode:
        if after != before:
            write(FSTAB, after)
        for command in (*([["mount", "-o", "remount,noatime", "/"]] if remount else []), *(["swapoff", path] for path in swaps)):
            module.run_command(command, check_rc=True)
    changed = after != before or remount or bool(swaps)
    diff = [{"before_header": str(FSTAB), "after_header": str(FSTAB), "before": before, "after": after}]
    if remount or swaps:
        live = {"before_header": "mounted", "after_header": "mounted", "before": "", "after": ""}
        live["before"] = "".join([*(["/ without noatime\n"] if remount else []), *(f"swap {path}\n" for path in swaps)])
        live["after"] = "/ with noatime\n" if remount else ""
        diff.append(live)
    return dict(changed=changed, remounted=remount, swap_off=swaps, diff=diff)


def main() -> None:
    """Run the module."""
    run_module({"swap": {"type": "bool", "default": False}}, run)


if __name__ == "__main__":
    main()
