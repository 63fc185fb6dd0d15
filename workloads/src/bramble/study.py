"""Run a program in one place, or the same program in several, and compare: equal answers, and how much faster.

A workload is a Program. What it computes it asks of `Run.map`, and it knows nothing of places:

    def compute(run):
        return sum(run.map(count_inside, chunks(points, size, seed)))

    record = study.perform(Program("pi", [count_inside], compute), request, screen)
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bramble import ResultError, UsageError, config, driver, report, share
from bramble.driver import Kernel, Outcome, Place

PLACES: tuple[Place, ...] = ("local", "workstation", "cluster")


@dataclass(frozen=True)
class Request:
    """Where to compute and where the result goes: the options that every workload has.

    `nodes`: one timed run on the first so many nodes of the cluster each. `compare`: run in all three places; without the
    cluster if `on` is another place. `job_timeout`: seconds after which a job on the cluster is ended, and so the run.
    `drip`: how many jobs the cluster has at most at a time.
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
    drip: int | None = None
    share: tuple[int, int] | None = None
    merge: Path | None = None

    @property
    def places(self) -> tuple[Place, ...]:
        if not self.compare:
            return (self.on,)
        return tuple(place for place in PLACES if place != "cluster" or self.on == "cluster")


class Run:
    """One timed run: what a program maps goes to one engine, or to some of its nodes."""

    def __init__(self, engine: driver.Engine, screen: report.Screen, name: str, nodes: Sequence[str] | None) -> None:
        self.engine, self.screen, self.name, self.nodes = engine, screen, name, nodes
        self.jobs: list[Outcome] = []
        """The jobs that ended, without their results."""
        self.begin = time.perf_counter()
        self.notes: dict[str, Any] = {}
        """What else the program has to say of this run, such as where its seconds went; for the record."""

    @property
    def seconds(self) -> float:
        """Since it began; of shares that were put together, what they took."""
        return self.engine.took or time.perf_counter() - self.begin

    @property
    def slots(self) -> int:
        """How many jobs run at once here."""
        return self.engine.slots(self.nodes)

    @property
    def memory(self) -> int:
        """Bytes that one job may take here."""
        return self.engine.memory(self.nodes)

    def outcomes(self, kernel: Kernel, arguments: Sequence[Any], label: str = "") -> Iterator[Outcome]:
        """Yield the outcomes as they come. Whoever has seen enough stops: what has not begun is cancelled then.

        Raises ResultError when a job raises or is lost.
        """
        label = f"{self.name} {label}".strip()
        with closing(self.screen.watch(self.engine.map(kernel, arguments, self.nodes), len(arguments), label)) as outcomes:
            for outcome in outcomes:
                if outcome.lost is not None:
                    raise ResultError(f"{label}: job {outcome.index} of {len(arguments)} was lost: {outcome.lost}")
                self.jobs.append(replace(outcome, result=None))
                yield outcome

    def map(self, kernel: Kernel, arguments: Sequence[Any], label: str = "") -> list[Any]:
        """The results, in the order of the arguments. Raises ResultError when a job raises or is lost."""
        found = {outcome.index: outcome.result for outcome in self.outcomes(kernel, arguments, label)}
        return [found[index] for index in range(len(arguments))]


@dataclass(frozen=True)
class Program:
    """A workload: its name, its kernels (imported by every worker before the clock starts) and what it does with them.

    `compute` gives the answer. All runs must give equal ones. `describe` makes of it what goes into the record (a dict
    goes there as it is), `tell` a line for people, `picture` draws it into a PNG file, and `save` writes what else belongs
    in the folder of the report.
    """

    name: str
    kernels: Sequence[Kernel]
    compute: Callable[[Run], Any]
    describe: Callable[[Any], dict[str, Any]] = dict
    tell: Callable[[Any], str] | None = None
    picture: Callable[[Any, Path], None] | None = None
    save: Callable[[Any, Path], None] | None = None
    parameters: dict[str, Any] = field(default_factory=dict)


def perform(program: Program, request: Request, screen: report.Screen) -> tuple[Any, dict[str, Any]]:
    """Time one run per place (and per entry of `request.nodes`); give the answer and the record (times in seconds).

    Raises ResultError when jobs were lost or two runs disagree.
    """
    runs: list[dict[str, Any]] = []
    answer: Any = None
    if "cluster" in request.places and not (request.share or request.merge):
        config.load()  # before anything takes its time
    for place in request.places:
        # What is for the cluster alone is no mistake when it is compared with other places.
        own = (request.job_timeout, request.drip) if place == "cluster" or not request.compare else ()
        with connect(place, request, screen, own) as engine:
            groups: list[tuple[str, ...] | None] = [None]
            if request.nodes and (place == "cluster" or not request.compare):
                groups = [driver.first(engine, count) for count in request.nodes]
            screen.say(f"{program.name} on {engine.label}, warming up")
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
                        "per_node": report.per_node(run.jobs),
                        "retried": report.retried(run.jobs),
                        **run.notes,
                    }
                )
                if len(runs) > 1 and found != answer:
                    raise ResultError(
                        f"the answers of {label(runs[0])} and {label(runs[-1])} differ: {short(answer)} and {short(found)}; "
                        "a node computes wrongly (memory? power supply?)"
                    )
                answer = found
    rate(runs)
    table(runs, screen)
    if program.tell:
        screen.say(program.tell(answer))
    record = {"workload": program.name, "on": request.on, **program.parameters, **program.describe(answer), "runs": runs}
    return answer, record


def connect(place: Place, request: Request, screen: report.Screen, own: Sequence[Any]) -> driver.Engine:
    """The engine for a place; `own` is what only the cluster is told. Raises UsageError and ClusterError."""
    if (request.share or request.merge) and (request.compare or request.nodes or (request.share and request.merge)):
        raise UsageError("--share and --merge go with none of --compare, --nodes and each other")
    if request.merge:
        return share.Merged(request.merge)
    if request.share:
        return share.connect(place, request.share)
    return driver.connect(place, request.timeout, request.require_all, screen.say, *own)


def rate(runs: list[dict[str, Any]]) -> None:
    """Add to each run its speed-up over the first, and how well it uses what it has more of.

    That is nodes, between runs on the cluster; else jobs at once, since a node and a workstation are not the same thing.
    """
    unit = "nodes" if len({run["on"] for run in runs}) == 1 else "slots"
    for run in runs:
        ratio = run[unit] / runs[0][unit]
        run["speedup"] = report.speedup(runs[0]["seconds"], run["seconds"])
        run["efficiency"] = report.efficiency(run["speedup"], ratio)
        run["karp_flatt"] = report.karp_flatt(run["speedup"], ratio)


def label(run: dict[str, Any]) -> str:
    """Where a run was, in a few words."""
    return f"{run['nodes']} node{'s' * (run['nodes'] > 1)}" if run["on"] == "cluster" else str(run["on"])


def short(answer: Any) -> str:
    text = repr(answer)
    return text if len(text) <= 80 else f"{text[:80]}..."


def table(runs: Sequence[dict[str, Any]], screen: report.Screen) -> None:
    """Print the runs side by side."""
    screen.say(f"\n{'where':<12}{'jobs at once':>13}{'seconds':>10}{'speed-up':>10}{'efficiency':>12}{'Karp-Flatt':>12}")
    for run in runs:
        serial = "-" if run["karp_flatt"] is None else f"{run['karp_flatt']:.4f}"
        screen.say(
            f"{label(run):<12}{run['slots']:>13}{run['seconds']:>10.2f}{run['speedup']:>10.2f}{run['efficiency']:>12.3f}{serial:>12}"
        )


def keep(program: Program, request: Request, answer: Any, record: dict[str, Any]) -> None:
    """Write the record, and into a report folder the pictures too. Raises UsageError if they cannot be written."""
    record = record | {"versions": report.versions()}
    if request.json is not None:
        report.write_json(record, request.json)
    if request.report is None:
        return
    with report.folder(request.report) as folder:
        report.write_json(record, str(folder / f"{program.name}.json"))
        if program.picture:
            program.picture(answer, folder / f"{program.name}.png")
        if program.save:
            program.save(answer, folder)
        if len(record["runs"]) > 1:
            draw_runs(record, folder / f"{program.name}-speedup.png")


def keep_share(program: Program, request: Request, record: dict[str, Any]) -> None:
    """Write what a share found. Raises UsageError if it cannot be written."""
    record = {"workload": program.name, **record}
    if request.json is not None:
        report.write_json(record, request.json)
    if request.report is not None:
        with report.folder(request.report) as folder:
            report.write_json(record, str(folder / f"{program.name}-share-{record['share']}-of-{record['of']}.json"))


def draw_runs(record: dict[str, Any], path: Path) -> None:
    """Draw the speed-up of the runs: over the number of nodes, or a bar for each place."""
    runs = record["runs"]
    figure = report.figure(6.4, 4.2)
    axes = figure.subplots()
    speedups = [run["speedup"] for run in runs]
    if len({run["on"] for run in runs}) == 1:
        counts = [run["nodes"] for run in runs]
        ideal = [1, counts[-1] / counts[0]]
        axes.plot([counts[0], counts[-1]], ideal, "--", color="0.65", label="ideal")
        axes.plot(counts, speedups, "o-", color="#b5123e", label="measured")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_xlabel("nodes")
        axes.legend(frameon=False)
    else:
        names = [f"{label(run)}\n{run['slots']} at once\n{run['seconds']:.3g} s" for run in runs]
        axes.bar(names, speedups, color=["#2a6f97" if run["on"] != "cluster" else "#b5123e" for run in runs])
        for index, speedup in enumerate(speedups):
            axes.annotate(f"{speedup:.2f}×", (index, speedup), (0, 3), textcoords="offset points", ha="center")
    axes.set_ylim(0, 1.1 * max(speedups))
    axes.set_ylabel(f"speed-up over {label(runs[0])}")
    axes.set_title(record["workload"])
    axes.grid(alpha=0.25, axis="y")
    figure.savefig(path)
