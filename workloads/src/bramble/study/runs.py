"""Time a program in one place or in several, and compare the runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bramble import ResultError, UsageError
from bramble.engine import config, places
from bramble.engine.base import Engine, Place
from bramble.study import report, share
from bramble.study.program import Program, Run
from bramble.study.report import Screen

PLACES: tuple[Place, ...] = ("local", "workstation", "cluster")


@dataclass(frozen=True)
class Request:
    """Where to compute and where the result goes: the options that every workload has.

    `nodes`: one timed run on the first so many nodes of the cluster each. `compare`: run in all three places; without the
    cluster if `on` is another place. `job_timeout`: seconds after which a job on the cluster is ended, and so the run.
    `max_in_flight`: how many jobs the cluster has at most at a time.
    `report`: a folder for the record and its pictures. `json`: a file for the record, or `-`.
    `share`: do only share i of n. `merge`: compute nothing, put together the shares in this folder (bramble.share).
    """

    on: Place = "cluster"
    compare: bool = False
    nodes: tuple[int, ...] | None = None
    report: Path | None = None
    json: str | None = None
    timeout: float = 30.0
    require_all: bool = False
    job_timeout: float | None = None
    max_in_flight: int | None = None
    share: tuple[int, int] | None = None
    merge: Path | None = None

    @property
    def places(self) -> tuple[Place, ...]:
        if not self.compare:
            return (self.on,)
        return tuple(place for place in PLACES if place != "cluster" or self.on == "cluster")


def perform(program: Program, request: Request, screen: Screen) -> tuple[Any, dict[str, Any]]:
    """Time one run per place (and per entry of `request.nodes`); give the answer and the record (times in seconds).

    Raises ResultError when jobs were lost or two runs disagree.
    """
    runs: list[dict[str, Any]] = []
    answer: Any = None
    if "cluster" in request.places and not (request.share or request.merge):
        config.load()  # before anything takes its time
    for place in request.places:
        # What is for the cluster alone is no mistake when it is compared with other places.
        cluster_options = (request.job_timeout, request.max_in_flight) if place == "cluster" or not request.compare else ()
        with connect(place, request, screen, cluster_options) as engine:
            groups: list[tuple[str, ...] | None] = [None]
            if request.nodes and (place == "cluster" or not request.compare):
                groups = [places.first_nodes(engine, count) for count in request.nodes]
            screen.print_line(f"{program.name} on {engine.label}, warming up")
            for kernel in program.kernels:
                engine.warm_up(kernel)
            for group in groups:
                run = Run(engine, screen, f"{program.name} on {place}" + (f", {len(group)} nodes" if group else ""), group)
                found = program.compute(run)
                seconds = run.seconds
                runs.append(
                    {
                        "on": place if request.merge is None else "shares",
                        "nodes": len(engine.nodes if group is None else group),
                        "slots": run.slots,
                        "seconds": seconds,
                        "jobs": len(run.jobs),
                        "job_seconds": sum(job.seconds for job in run.jobs),
                        "per_node": report.jobs_per_node(run.jobs),
                        "retried": report.retries_per_node(run.jobs),
                        **run.notes,
                    }
                )
                if len(runs) > 1 and found != answer:
                    raise ResultError(
                        f"the answers of {run_label(runs[0])} and {run_label(runs[-1])} differ: "
                        f"{shorten(answer)} and {shorten(found)}; "
                        "a node computes wrongly (memory? power supply?)"
                    )
                answer = found
    add_speedups(runs)
    print_table(runs, screen)
    if program.summarise:
        screen.print_line(program.summarise(answer))
    record = {"workload": program.name, "on": request.on, **program.parameters, **program.describe(answer), "runs": runs}
    return answer, record


def connect(place: Place, request: Request, screen: Screen, cluster_options: Sequence[Any]) -> Engine:
    """The engine for a place; `cluster_options` is what only the cluster is told. Raises UsageError and ClusterError."""
    if (request.share or request.merge) and (request.compare or request.nodes or (request.share and request.merge)):
        raise UsageError("--share and --merge go with none of --compare, --nodes and each other")
    if request.merge:
        return share.MergedShares(request.merge)
    if request.share:
        return share.connect(place, request.share)
    return places.connect(place, request.timeout, request.require_all, screen.print_line, *cluster_options)


def add_speedups(runs: list[dict[str, Any]]) -> None:
    """Add to each run its speed-up over the first, and how well it uses what it has more of.

    That is nodes, between runs on the cluster; else jobs at once, since a node and a workstation are not the same thing.
    """
    unit = "nodes" if len({run["on"] for run in runs}) == 1 else "slots"
    for run in runs:
        ratio = run[unit] / runs[0][unit]
        run["speedup"] = report.speedup(runs[0]["seconds"], run["seconds"])
        run["efficiency"] = report.efficiency(run["speedup"], ratio)
        run["karp_flatt"] = report.karp_flatt(run["speedup"], ratio)


def run_label(run: dict[str, Any]) -> str:
    """Where a run was, in a few words."""
    return f"{run['nodes']} node{'s' * (run['nodes'] > 1)}" if run["on"] == "cluster" else str(run["on"])


def shorten(answer: Any) -> str:
    text = repr(answer)
    return text if len(text) <= 80 else f"{text[:80]}..."


def print_table(runs: Sequence[dict[str, Any]], screen: Screen) -> None:
    """Print the runs side by side."""
    screen.print_line(f"\n{'where':<12}{'jobs at once':>13}{'seconds':>10}{'speed-up':>10}{'efficiency':>12}{'Karp-Flatt':>12}")
    for run in runs:
        serial = "-" if run["karp_flatt"] is None else f"{run['karp_flatt']:.4f}"
        screen.print_line(
            f"{run_label(run):<12}{run['slots']:>13}{run['seconds']:>10.2f}{run['speedup']:>10.2f}{run['efficiency']:>12.3f}{serial:>12}"
        )
