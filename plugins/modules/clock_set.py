#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Set a clock that is wrong."""

from __future__ import annotations

DOCUMENTATION = r"""
module: clock_set
short_description: Set a clock that is wrong
description:
  - Compares this machine's clock with the time that the control machine sends along, and sets it when it is further off than a
    message may take. For a node without a clock battery that nobody else tells the time.
options:
  epoch:
    description: The right time, in seconds since 1970-01-01 UTC.
    type: float
    required: true
  tolerance:
    description: How many seconds the clock may be off.
    type: float
    default: 5
author: The Bramble team (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Set the clock from the control machine's
  clock_set:
    epoch: "{{ now().timestamp() }}"
"""

RETURN = r"""
offset:
  description: How many seconds the clock was behind; negative when it was ahead.
  returned: always
  type: float
"""

import time
from datetime import UTC, datetime
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module


def words(epoch: float) -> str:
    """A time for people."""
    return f"{datetime.fromtimestamp(epoch, UTC):%Y-%m-%d %H:%M:%S} UTC\n"


def run(module: AnsibleModule) -> dict[str, Any]:
    """Set the clock where it is wrong. Raises BrambleError."""
    now, epoch = time.time(), module.params["epoch"]
    offset = epoch - now
    changed = abs(offset) > module.params["tolerance"]
    if changed and not module.check_mode:
        try:
            time.clock_settime(time.CLOCK_REALTIME, epoch)
        except OSError as error:
            raise BrambleError(
                f"The clock is {abs(offset):.0f} s {'behind' if offset > 0 else 'ahead'}, and can not be set: "
                f"{error.strerror}. A container's clock is its host's: there, set time_sync_set_clock to false.",
                offset=offset,
            ) from None
    diff = {"before": words(now), "after": words(epoch)} if changed else {}
    return {"changed": changed, "offset": offset, "diff": diff}


def main() -> None:
    """Run the module."""
    run_module({"epoch": {"type": "float", "required": True}, "tolerance": {"type": "float", "default": 5.0}}, run)


if __name__ == "__main__":
    main()
