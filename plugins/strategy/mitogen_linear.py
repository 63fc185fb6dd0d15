"""Opt-in, for speed: `ANSIBLE_STRATEGY=mitogen_linear ansible-playbook ...`, or `strategy = mitogen_linear` in ansible.cfg.

Nodes keep one Python process for all tasks, instead of starting one for each (https://mitogen.networkgenomics.com/ansible_detailed.html).
ansible-core 2.19 warns that strategy plugins of others are deprecated. This file says where Mitogen's is.
"""

from __future__ import annotations

from ansible_mitogen.plugins.strategy.mitogen_linear import StrategyModule

__all__ = ["StrategyModule"]
