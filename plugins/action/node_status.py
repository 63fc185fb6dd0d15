"""Run the module node_status, and compare the node's clock with the control machine's."""

from __future__ import annotations

import time
from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """The action node_status.

    The module starts after `before` and ends before `after`, both times of the control machine. This bounds the difference of the
    clocks: it is at least `ended` - `after` and at most `began` - `before`.
    """

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the result of the module with clock_offset and clock_error added."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        before = time.time()
        result.update(self._execute_module(task_vars=task_vars))
        after = time.time()
        if "ended" in result:
            lowest, highest = result["ended"] - after, result["began"] - before
            result["clock_offset"], result["clock_error"] = (lowest + highest) / 2, (highest - lowest) / 2
        return result
