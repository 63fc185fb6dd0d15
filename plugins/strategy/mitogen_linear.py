"""The strategy of Mitogen, which is faster and off by default.

To use it: `ANSIBLE_STRATEGY=mitogen_linear ansible-playbook ...`, or `strategy = mitogen_linear` in ansible.cfg. Nodes keep one
Python process for all tasks, instead of starting one for each task (https://mitogen.networkgenomics.com/ansible_detailed.html).
ansible-core 2.19 warns that strategy plugins of others are deprecated.
"""

from __future__ import annotations

from ansible_mitogen.plugins.strategy.mitogen_linear import StrategyModule

__all__ = ["StrategyModule"]
