"""Run the sleeping jobs and say where they ran, how long they took and how much faster that was than one by one."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bramble import ResultError
from bramble.engine.outcome import Outcome
from bramble.programs.compute.kernel import durations, sleep_and_report_host, shortest_makespan
from bramble.study import report
from bramble.study.program import Program, Run


@dataclass(frozen=True)
class SleepResults:
    """What became of the jobs of one run. Runs agree when they had the same jobs: who does them, and when, is up to the place.

    `slept`: seconds by job. `seconds`: the whole run; `best_seconds`: `shortest_makespan`, for the jobs that ran at once here.
    """

    slept: tuple[float, ...]
    outcomes: list[Outcome] = field(compare=False)
    seconds: float = field(compare=False)
    best_seconds: float = field(compare=False)

    @property
    def lost(self) -> list[int]:
        return sorted(outcome.index for outcome in self.outcomes if outcome.lost is not None)

    @property
    def job_seconds(self) -> float:
        return sum(outcome.seconds for outcome in self.outcomes)


def program(jobs: int, scale: float, seed: int) -> Program:
    """`jobs` naps of 5 to 20 seconds times `scale`. A lost one does not end the run: the record names it, and so does `check`."""
    # The longest first (R. L. Graham, 1969): a long one that begins last would have all others wait for it.
    slept = sorted(durations(jobs, scale, seed), reverse=True)

    def row(outcome: Outcome) -> str:
        if outcome.lost is not None:
            return f"{outcome.index:>4}  lost: {outcome.lost}"
        return f"{outcome.index:>4}  {outcome.node:<16}{outcome.result:<20}{slept[outcome.index]:>9.2f}{outcome.finished_after:>18.2f}"

    def compute(run: Run) -> SleepResults:
        run.screen.print_line(f"{'job':>4}  {'node':<16}{'host':<20}{'slept s':>9}{'finished after s':>18}")
        outcomes = run.screen.collect_outcomes(run.engine.map(sleep_and_report_host, slept, run.nodes), jobs, run.name, row)
        run.jobs += [outcome for outcome in outcomes if outcome.lost is None]
        return SleepResults(tuple(slept), outcomes, run.seconds, shortest_makespan(slept, run.slots))

    parameters = {"jobs": jobs, "scale": scale, "seed": seed}
    return Program("compute", [sleep_and_report_host], compute, describe, summarise, draw_picture, parameters=parameters, check=check)


def describe(results: SleepResults) -> dict[str, Any]:
    """The last run, for the record (times in seconds)."""
    done = [outcome for outcome in results.outcomes if outcome.lost is None]
    return {
        "lost": len(results.lost),
        "lost_jobs": results.lost,
        "per_node": report.jobs_per_node(results.outcomes),
        "retried": report.retries_per_node(results.outcomes),
        "seconds": results.seconds,
        "seconds_at_best": results.best_seconds,
        "job_seconds": results.job_seconds,
        "speedup": report.speedup(results.job_seconds, results.seconds),
        "results": [
            {
                "job": outcome.index,
                "node": outcome.node,
                "host": outcome.result,
                "slept": results.slept[outcome.index],
                "seconds": outcome.seconds,
                "finished": outcome.finished_after,
            }
            for outcome in done
        ],
    }


def summarise(results: SleepResults) -> str:
    """The last run, in two lines."""
    speedup = report.speedup(results.job_seconds, results.seconds)
    counts = ", ".join(f"{node} {count}" for node, count in report.jobs_per_node(results.outcomes).items())
    return (
        f"wall {results.seconds:.2f} s (at best {results.best_seconds:.2f} s), all jobs {results.job_seconds:.2f} s, speed-up {speedup:.2f} "
        f"over one by one\njobs per node: {counts}; lost {len(results.lost)}"
    )


def draw_picture(results: SleepResults, path: Path) -> None:
    """Draw who slept when: a row for each job that ran at once."""
    lanes: list[tuple[str, float]] = []  # of each row the node, and when its last job ended
    figure = report.figure(7.2, 4.2)
    axes = figure.subplots()
    nodes = sorted({outcome.node for outcome in results.outcomes if outcome.lost is None})
    for outcome in sorted(results.outcomes, key=lambda each: (each.node, each.finished_after)):
        if outcome.lost is not None:
            continue
        begin = max(0.0, outcome.finished_after - outcome.seconds)
        # That a job has ended is known a little later.
        free = (index for index, (node, end) in enumerate(lanes) if node == outcome.node and end <= begin + 0.1)
        lane = next(free, len(lanes))
        lanes[lane : lane + 1] = [(outcome.node, outcome.finished_after)]
        axes.barh(lane, outcome.seconds, left=begin, color=f"C{nodes.index(outcome.node) % 10}", edgecolor="white")
        if len(results.slept) <= 64:
            axes.annotate(str(outcome.index), (begin + outcome.seconds / 2, lane), ha="center", va="center", color="white")
    axes.axvline(results.best_seconds, ls="--", color="0.5", label=f"at best: {results.best_seconds:.1f} s")
    axes.set_yticks(range(len(lanes)), [node for node, _ in lanes])
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.set_title(f"{len(results.slept)} jobs, {results.job_seconds:.1f} s of sleep in {results.seconds:.1f} s")
    axes.legend(frameon=False)
    figure.savefig(path)


def check(record: dict[str, Any]) -> None:
    """Raise ResultError, naming them, when jobs were lost."""
    if record["lost"]:
        raise ResultError(f"{record['lost']} of {record['jobs']} jobs were lost: {record['lost_jobs']}")
