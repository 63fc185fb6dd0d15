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
    """Where to compute and where to write the result: the options of every workload.

    `nodes`: one timed run for each number, on that many of the cluster's first nodes. `compare`: run in all three places,
    or without the cluster if `on` is another place. `job_timeout`: seconds after which a job on the cluster is stopped and
    lost, and with it the run. `max_in_flight`: the largest number of jobs on the cluster at a time.
    `report`: a folder for the record and its pictures. `json`: a file for the record, or `-` for standard output.
    `share`: compute only share i of n. `merge`: compute nothing, merge the shares in this folder (bramble.study.share).
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
        """Return the places to run in, in the order of the runs."""
        if not self.compare:
            return (self.on,)
        return tuple(place for place in PLACES if place != "cluster" or self.on == "cluster")


def perform(program: Program, request: Request, screen: Screen) -> tuple[Any, dict[str, Any]]:
    """Time one run per place (and per entry of `request.nodes`); return the answer and the record (times in seconds).

    Raises ResultError when a job raised an exception, jobs were lost, or two runs have different answers.
    """
    runs: list[dict[str, Any]] = []
    answer: Any = None
    if "cluster" in request.places and not (request.share or request.merge):
        config.load()  # a configuration error is reported before the runs on other places take time
    for place in request.places:
        # With --compare, the options of the cluster alone do not apply to the other places.
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
                run_answer = program.compute(run)
                seconds = run.seconds
                runs.append(
                    {
                        "on": place if request.merge is None else "shares",
                        "nodes": len(engine.nodes if group is None else group),
                        "slots": run.jobs_at_once,
                        "seconds": seconds,
                        "jobs": len(run.jobs),
                        "job_seconds": sum(job.seconds for job in run.jobs),
                        "per_node": report.jobs_per_node(run.jobs),
                        "retried": report.retries_per_node(run.jobs),
                        **run.notes,
                    }
                )
                if len(runs) > 1 and run_answer != answer:
                    raise ResultError(
                        f"the answers of {run_label(runs[0])} and {run_label(runs[-1])} differ: "
                        f"{shorten(answer)} and {shorten(run_answer)}; "
                        "a node computes wrongly: run `bramble health-check NODE` for each node, and check its memory and power "
                        "supply"
                    )
                answer = run_answer
    add_speedups(runs)
    print_table(runs, screen)
    if program.summarise:
        screen.print_line(program.summarise(answer))
    record = {"workload": program.name, "on": request.on, **program.parameters, **program.describe(answer), "runs": runs}
    return answer, record


def connect(place: Place, request: Request, screen: Screen, cluster_options: Sequence[Any]) -> Engine:
    """Return the engine for a place; `cluster_options` are for the cluster alone. Raises UsageError and ClusterError."""
    if (request.share or request.merge) and (request.compare or request.nodes or (request.share and request.merge)):
        raise UsageError("--share and --merge cannot be combined with each other, with --compare or with --nodes")
    if request.merge:
        return share.MergedShares(request.merge)
    if request.share:
        return share.connect(place, request.share)
    return places.connect(place, request.timeout, request.require_all, screen.print_line, *cluster_options)


def add_speedups(runs: list[dict[str, Any]]) -> None:
    """Add to each run its speed-up over the first run, its efficiency and its Karp-Flatt metric.

    They are relative to the number of nodes when all runs are in the same place, else to the number of jobs at once,
    since a node and a workstation are different machines.
    """
    unit = "nodes" if len({run["on"] for run in runs}) == 1 else "slots"
    for run in runs:
        ratio = run[unit] / runs[0][unit]
        run["speedup"] = report.speedup(runs[0]["seconds"], run["seconds"])
        run["efficiency"] = report.efficiency(run["speedup"], ratio)
        run["karp_flatt"] = report.karp_flatt(run["speedup"], ratio)


def run_label(run: dict[str, Any]) -> str:
    """Return where a run was, in a few words."""
    return f"{run['nodes']} node{'s' * (run['nodes'] > 1)}" if run["on"] == "cluster" else str(run["on"])


def shorten(answer: Any) -> str:
    """Return an answer as text of about 80 characters at most."""
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
