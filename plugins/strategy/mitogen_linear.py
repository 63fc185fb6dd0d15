"""The strategy of Mitogen, which is faster and off by default.

To use it: `ANSIBLE_STRATEGY=mitogen_linear ansible-playbook ...`, or `strategy = mitogen_linear` in ansible.cfg. Nodes keep one
Python process for all tasks, instead of starting one for each task (https://mitogen.networkgenomics.com/ansible_detailed.html).
ansible-core 2.19 warns that strategy plugins of others are deprecated.
"""

from __future__ import annotations

import os
from typing import Any

from ansible_mitogen import transport_config
from ansible_mitogen.plugins.strategy.mitogen_linear import StrategyModule

__all__ = ["StrategyModule"]

_split = transport_config.parse_python_path


def parse_python_path(path: str, *arguments: Any, **options: Any) -> list[str]:
    """Return the words of an interpreter. Mitogen splits a path at its blanks, but the path of a clone may have some."""
    return [path] if path and os.path.isfile(path) else _split(path, *arguments, **options)


transport_config.parse_python_path = parse_python_path  # type: ignore[assignment]
