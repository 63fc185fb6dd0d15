"""Run all workloads in all places within a given time, and write the report."""

import base64
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bramble import ResultError, UsageError
from bramble.engine import places
from bramble.engine.base import Place
from bramble.programs.compare.kernel import describe
from bramble.programs.pi.montecarlo import CHUNK, POINTS_PER_SECOND, Chunk, count_inside
from bramble.programs.registry import comparisons
from bramble.study import report
from bramble.study.program import Program
from bramble.study.record import write_record
from bramble.study.report import Screen
from bramble.study.runs import Request, perform, run_label

PROBE_JOBS = 4
"""Jobs that measure the speed of a place, for each job that runs there at once."""
TIME_SHARE = 0.8
"""The part of the remaining time that the next workloads are sized for: starting takes time, and not all are as fast as pi."""
MIN_SECONDS = 0.2
"""The smallest size of a workload, in seconds on one core."""


def run_all(minutes: float, only: Sequence[str], request: Request, screen: Screen) -> dict[str, Any]:
    """Run the workloads one after the other, each with a folder inside the report's; return the record (times in seconds).

    A workload without a valid result does not stop the others. Raises UsageError for an unknown workload, and ClusterError.
    """
    assert request.report
    known = comparisons()
    if unknown := sorted(set(only) - known.keys()):
        raise UsageError(f"there is no workload {unknown[0]!r} to compare; choose from {', '.join(known)}")
    chosen = {name: make_program for name, make_program in known.items() if not only or name in only}
    begin = time.monotonic()
    probed = [probe_place(place, request, screen) for place in request.places]
    cost = sum(place["cost"] for place in probed)
    workloads = []
    for index, (name, make_program) in enumerate(chosen.items()):
        left = minutes * 60 - (time.monotonic() - begin)
        seconds = max(MIN_SECONDS, TIME_SHARE * left / (len(chosen) - index) / cost)
        screen.print_line(f"\n=== {name} ({index + 1} of {len(chosen)}; {left:.0f} s left)")
        folder = request.report / name
        fields = run_workload(name, partial(make_program, seconds), request, folder, screen)
        workloads.append({"name": name, "what": make_program.__doc__} | fields)
    return {
        "workload": "compare",
        "on": request.on,
        "minutes": minutes,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "seconds": time.monotonic() - begin,
        "places": probed,
        "workloads": workloads,
    }


def probe_place(place: Place, request: Request, screen: Screen) -> dict[str, Any]:
    """Return a place's description, and its `cost`: the seconds that it takes for one second of a workstation's core."""
    with places.connect(place, request.timeout, request.require_all, screen.print_line) as engine:
        for kernel in (count_inside, describe):
            engine.warm_up(kernel)
        nodes = []
        for node in engine.nodes:
            (outcome,) = engine.map(describe, [None], [node])
            if outcome.lost:
                raise ResultError(f"{node} did not return its description: {outcome.lost}")
            nodes.append({"name": node, "jobs_at_once": engine.jobs_at_once([node]), **outcome.result})
        chunks = [Chunk(0, index, CHUNK) for index in range(PROBE_JOBS * engine.jobs_at_once())]
        begin = time.perf_counter()
        list(engine.map(count_inside, chunks))
        cost = (time.perf_counter() - begin) / (len(chunks) * CHUNK / POINTS_PER_SECOND)
        return {"on": place, "label": engine.label, "slots": engine.jobs_at_once(), "cost": cost, "nodes": nodes}


def run_workload(
    name: str, make_program: Callable[[], Program], request: Request, folder: Path, screen: Screen
) -> dict[str, Any]:
    """Run one workload in all places; return its record, its summary (`said`), its pictures (PNG files) and its `error`."""
    summary: str | None = None
    record: dict[str, Any] = {}
    error = None
    try:
        program = make_program()
        workload_request = replace(request, report=folder, json=None)
        answer, record = perform(program, workload_request, screen)
        summary = program.summarise(answer) if program.summarise else None
        write_record(program, workload_request, answer, record)
        if program.check:
            program.check(record)
    except ResultError as failure:
        error = str(failure)
        screen.print_line(f"{name}: {error}")
    # The report has bars of its own for the speed-ups.
    pictures = [str(path) for path in sorted(folder.glob("*.png")) if "speedup" not in path.name]
    return {"record": record, "said": summary, "error": error, "pictures": pictures}


def check(record: dict[str, Any]) -> None:
    """Raise ResultError with the names of the workloads that have no valid result."""
    if failed := [workload["name"] for workload in record["workloads"] if workload["error"]]:
        raise ResultError(
            f"{len(failed)} of {len(record['workloads'])} workloads have no valid result: {', '.join(failed)}; "
            "the report has the reasons"
        )


def write_report(record: dict[str, Any], request: Request) -> None:
    """Write compare.html and compare.json to the report's folder. Raises UsageError if they cannot be written."""
    assert request.report
    record = record | {"versions": report.versions()}
    with report.folder(request.report) as folder:
        report.write_json(record, str(folder / "compare.json"))
        (folder / "compare.html").write_text(render_page(record), encoding="utf-8")
    if request.json is not None:
        report.write_json(record, request.json)


def render_page(record: dict[str, Any]) -> str:
    """Return the report as one HTML page that contains its pictures."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("bramble.programs.compare", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"embed": embed_picture, "gib": lambda count: f"{count / 2**30:.1f} GiB", "pretty": format_parameter}
    fastest = max((run["speedup"] for workload in record["workloads"] for run in workload["record"].get("runs", [])), default=1.0)
    return environment.get_template("report.html").render(record, fastest=fastest, label=run_label)


def embed_picture(path: str) -> str:
    """Return a PNG file as a data: URI."""
    return "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode()


def format_parameter(value: Any) -> str:
    """Return a parameter as text; whole numbers have thousands separators."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value)
