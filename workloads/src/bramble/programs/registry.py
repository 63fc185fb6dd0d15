"""Find the workloads: every folder beside this file has one."""

import pkgutil
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from bramble import programs
from bramble.study.workload import Workload

if TYPE_CHECKING:
    from bramble.study.program import Program


def workloads() -> list[Workload]:
    """Return what the folders of `bramble.programs` register, by their names. Nothing heavy is imported for it."""
    names = sorted(module.name for module in pkgutil.iter_modules(programs.__path__) if module.ispkg)
    found: list[Workload] = [import_module(f"{programs.__name__}.{name}.workload").WORKLOAD for name in names]
    return found


def comparisons() -> dict[str, Callable[[float], "Program"]]:
    """Return what `bramble compare` runs, by name."""
    return {name: make for workload in workloads() for name, make in workload.comparisons.items()}
