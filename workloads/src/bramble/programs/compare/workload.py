"""`bramble compare`."""

from pathlib import Path
from typing import Annotated

import typer

from bramble.study.options import Json, On, RequireAll, Timeout
from bramble.study.workload import Workload


def compare(
    only: Annotated[
        list[str] | None, typer.Argument(metavar="[WORKLOAD]...", help="The workloads to run; all by default.")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="About how long all runs take together.")] = 10.0,
    on: On = "cluster",
    report: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write compare.html and all results to this folder.")
    ] = None,
    json: Json = None,
    timeout: Timeout = 30.0,
    require_all: RequireAll = False,
) -> None:
    """Run all workloads on one core, on all cores of this machine and (--on cluster) on the cluster; write one HTML report."""
    from bramble.programs.compare import run
    from bramble.study.report import Screen, default_folder
    from bramble.study.runs import Request

    folder = report or default_folder("compare")
    request = Request(on, True, None, folder, json, timeout, require_all)
    screen = Screen(json)
    record = run.run_all(minutes, only or [], request, screen)
    run.write_report(record, request)
    screen.print_line(f"the report is in {folder / 'compare.html'}")
    run.check(record)


WORKLOAD = Workload(commands=(compare,), imports=("jinja2",))
