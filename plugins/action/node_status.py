"""Runs the node_status module, and compares the node's clock with this machine's."""

from __future__ import annotations

import time
from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """The module began after our first look at the clock and ended before our second: in between lies the offset."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        before = time.time()
        result.update(self._execute_module(task_vars=task_vars))
        after = time.time()
        if "ended" in result:
            least, most = result["ended"] - after, result["began"] - before
            result["clock_offset"], result["clock_error"] = (least + most) / 2, (most - least) / 2
        return result
