#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: reduce writes to the card of a node, and check its file systems at boot."""

from __future__ import annotations

DOCUMENTATION = r"""
module: card_care
short_description: Reduce writes to a card, and check its file systems at boot
description:
  - Edits C(/etc/fstab) and keeps its other lines. The root file system gets the option C(noatime), which a remount applies at
    once. Each file system that fsck supports gets a pass number, so that it is checked at boot.
  - Switches off active swap, and comments out its entries. Swap of a machine that only shares its kernel with the node, as with a
    stand-in, is not changed.
  - Fails if the root file system is full.
author: The Bramble team (!UNKNOWN)
options:
  swap:
    description: Whether swap is allowed. If so, entries that this module commented out are restored, for the next boot.
    type: bool
    default: false
attributes:
  check_mode: {support: full, description: "Returns what would change, and changes nothing."}
  diff_mode: {support: full, description: Shows the lines that change.}
"""

EXAMPLES = r"""
- name: Reduce writes to the card
  bramble.cluster.card_care:
    swap: false
"""

RETURN = r"""
remounted:
  description: Whether the root file system was remounted (in check mode, would be).
  returned: always
  type: bool
swap_off:
  description: The swap files and devices that were switched off (in check mode, would be).
  returned: always
  type: list
  elements: str
"""

import os
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.boot import fstab
from ansible_collections.bramble.cluster.plugins.module_utils.card.sysfs import active_swaps
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module
from ansible_collections.bramble.cluster.plugins.module_utils.core.text_file import read_text, write_text

FSTAB = Path("/etc/fstab")
MIN_FREE_BYTES = 4 << 20  # with less free space, services fail to start, with misleading messages


def is_mounted_noatime(mounts: str) -> bool:
    """Return whether / is mounted with noatime, from /proc/self/mounts. If there are several mounts on /, the last one counts."""
    entries = [line.split() for line in mounts.splitlines()]
    return "noatime" in [entry[3] for entry in entries if entry[1] == "/"][-1].split(",")


def active_swap(swaps: str) -> list[str]:
    """Return the active swap files and devices from /proc/swaps.

    In a stand-in, this file lists the swap of the control machine, whose paths do not exist there and are left out.
    """
    return [path for path in active_swaps(swaps) if os.path.exists(path)]


def run(module: AnsibleModule) -> dict[str, Any]:
    """Edit fstab, and apply the changes at once. Raises BrambleError, OSError."""
    root = os.statvfs("/")
    free = root.f_bavail * root.f_frsize  # without the blocks that ext4 reserves for root
    if free < MIN_FREE_BYTES:
        raise BrambleError(
            f"No space left on /: {free:,} bytes are free. Nothing was changed. "
            "Find large files (du -xh / | sort -h), remove what is not needed, then run the same command again."
        )
    before = read_text(FSTAB)
    after = fstab.edit_fstab(before, module.params["swap"])
    if not fstab.has_root_entry(after):
        module.warn(f"{FSTAB} has no entry for /, so / is mounted with the options of the kernel's command line.")
    remount = not is_mounted_noatime(Path("/proc/self/mounts").read_text(encoding="utf-8"))
    swaps = [] if module.params["swap"] else active_swap(Path("/proc/swaps").read_text(encoding="utf-8"))
    if not module.check_mode:
        if after != before:
            write_text(FSTAB, after)
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
