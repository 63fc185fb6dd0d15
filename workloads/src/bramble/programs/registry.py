"""Find the workloads: every folder beside this file is one."""

import pkgutil
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from bramble import programs
from bramble.study.workload import Workload

if TYPE_CHECKING:
    from bramble.study.program import Program


def workloads() -> list[Workload]:
    """Return the WORKLOAD of each folder of `bramble.programs`, sorted by name. This imports no large package."""
    names = sorted(module.name for module in pkgutil.iter_modules(programs.__path__) if module.ispkg)
    registered: list[Workload] = [import_module(f"{programs.__name__}.{name}.workload").WORKLOAD for name in names]
    return registered


def comparisons() -> dict[str, Callable[[float], "Program"]]:
    """Return the functions that make the programs of `bramble compare`, by name."""
    return {name: make for workload in workloads() for name, make in workload.comparisons.items()}
