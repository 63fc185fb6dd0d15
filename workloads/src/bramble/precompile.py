"""`python -m bramble.precompile`: import all modules of services and commands, so that Python compiles them at installation.

The users who run them cannot write compiled modules, and compiling is slow on a small core. The imports also show that the
installation works. The modules of this package and of `dispy` are found by walking the packages.
"""

import pkgutil
from importlib import import_module

from bramble.programs import registry

LATE_IMPORTS = (
    "dask.__main__",
    "distributed.cli.dask_scheduler",
    "distributed.cli.dask_worker",
    "distributed.http.scheduler.info",
    "distributed.shuffle",
    "rich.progress",
    "rich.table",
)
"""Modules of other packages that the scheduler, the workers and the command import only when they need them."""


def modules() -> list[str]:
    """Return the names of all modules: of both packages, LATE_IMPORTS, and the `imports` of the workloads."""
    own_modules = [
        module.name
        for package in ("bramble", "dispy")
        for module in pkgutil.walk_packages(import_module(package).__path__, f"{package}.")
    ]
    return [*own_modules, *LATE_IMPORTS, *(name for workload in registry.workloads() for name in workload.imports)]


def main() -> None:
    """Import the modules and print their names, one per line."""
    for name in modules():
        import_module(name)
        print(name)


if __name__ == "__main__":
    main()
