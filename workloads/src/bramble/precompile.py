"""`python -m bramble.precompile`: import all that services and commands import, so that it is compiled when it is installed.

Those who run them cannot write beside the modules, and a small core takes its time to compile. It proves at once that all of
it works. This package and `dispy` are asked for their own modules, so that none has to be named anywhere.
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
"""What scheduler, workers and the command import late, beyond these packages."""


def modules() -> list[str]:
    """Return the names of all modules: of these packages, of services, and what workloads say that they import late."""
    own = [
        module.name
        for package in ("bramble", "dispy")
        for module in pkgutil.walk_packages(import_module(package).__path__, f"{package}.")
    ]
    return [*own, *LATE_IMPORTS, *(name for workload in registry.workloads() for name in workload.imports)]


def main() -> None:
    """Import them, and print their names, one a line."""
    for name in modules():
        import_module(name)
        print(name)


if __name__ == "__main__":
    main()
