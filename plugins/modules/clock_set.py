#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: set the clock of a node if it is wrong."""

from __future__ import annotations

DOCUMENTATION = r"""
module: clock_set
short_description: Set the clock of a node if it is wrong
description:
  - Compares the clock of a node with the time of the control machine, and sets it when the difference is greater than
    O(tolerance). For nodes without a clock battery and without a time server.
options:
  epoch:
    description: The correct time, in seconds since 1970-01-01 UTC.
    type: float
    required: true
  tolerance:
    description: The greatest difference that is accepted, in seconds. A task takes some time to reach the node.
    type: float
    default: 5
author: The Bramble team (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Set the clock to the control machine's time
  bramble.cluster.clock_set:
    epoch: "{{ now().timestamp() }}"
"""

RETURN = r"""
offset:
  description: The seconds by which the clock was behind; negative when it was ahead.
  returned: always
  type: float
"""

import time
from datetime import UTC, datetime
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module


def format_time(epoch: float) -> str:
    """Return a time as a line of text."""
    return f"{datetime.fromtimestamp(epoch, UTC):%Y-%m-%d %H:%M:%S} UTC\n"


def run(module: AnsibleModule) -> dict[str, Any]:
    """Set the clock if it is wrong; return the result of the module. Raises BrambleError."""
    now, epoch = time.time(), module.params["epoch"]
    offset = epoch - now
    changed = abs(offset) > module.params["tolerance"]
    if changed and not module.check_mode:
        try:
            time.clock_settime(time.CLOCK_REALTIME, epoch)
        except OSError as error:
            raise BrambleError(
                f"The clock is {abs(offset):.0f} s {'behind' if offset > 0 else 'ahead'}, and cannot be set: "
                f"{error.strerror}. In a container, which has the clock of its host, set time_sync_set_clock to false.",
                offset=offset,
            ) from None
    diff = {"before": format_time(now), "after": format_time(epoch)} if changed else {}
    return {"changed": changed, "offset": offset, "diff": diff}


def main() -> None:
    """Run the module."""
    run_module({"epoch": {"type": "float", "required": True}, "tolerance": {"type": "float", "default": 5.0}}, run)


if __name__ == "__main__":
    main()
