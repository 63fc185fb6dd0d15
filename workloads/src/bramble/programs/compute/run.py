"""Run jobs that sleep, and report where they ran, how long they took and how much faster that was than one by one."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bramble import ResultError
from bramble.engine.outcome import Outcome
from bramble.programs.compute.kernel import durations, shortest_makespan, sleep_and_report_host
from bramble.study import report
from bramble.study.program import Program, Run


@dataclass(frozen=True)
class SleepResults:
    """The outcomes of the jobs of one run. Two runs are equal if they had the same jobs, wherever and whenever these ran.

    `slept`: seconds of each job. `seconds`: of the whole run. `best_seconds`: the `shortest_makespan` for this run.
    """

    slept: tuple[float, ...]
    outcomes: list[Outcome] = field(compare=False)
    seconds: float = field(compare=False)
    best_seconds: float = field(compare=False)

    @property
    def lost(self) -> list[int]:
        """Return the sorted numbers of the jobs that were lost."""
        return sorted(outcome.index for outcome in self.outcomes if outcome.lost is not None)

    @property
    def job_seconds(self) -> float:
        """Return the seconds of all jobs together."""
        return sum(outcome.seconds for outcome in self.outcomes)


def program(jobs: int, scale: float, seed: int) -> Program:
    """Return a program with jobs that sleep 5 to 20 seconds times `scale`.

    A lost job does not end the run: the record and the error of `check` name it.
    """
    # The longest jobs come first (R. L. Graham, 1969): at the end, everything would wait for a long job that started last.
    slept = sorted(durations(jobs, scale, seed), reverse=True)

    def row(outcome: Outcome) -> str:
        if outcome.lost is not None:
            return f"{outcome.index:>4}  lost: {outcome.lost}"
        place = f"{outcome.index:>4}  {outcome.node:<16}{outcome.result:<20}"
        return f"{place}{slept[outcome.index]:>9.2f}{outcome.finished_after:>18.2f}"

    def compute(run: Run) -> SleepResults:
        run.screen.print_line(f"{'job':>4}  {'node':<16}{'host':<20}{'slept s':>9}{'finished after s':>18}")
        outcomes = run.screen.collect_outcomes(run.engine.map(sleep_and_report_host, slept, run.nodes), jobs, run.name, row)
        run.jobs += [outcome for outcome in outcomes if outcome.lost is None]
        return SleepResults(tuple(slept), outcomes, run.seconds, shortest_makespan(slept, run.jobs_at_once))

    parameters = {"jobs": jobs, "scale": scale, "seed": seed}
    return Program(
        "compute", [sleep_and_report_host], compute, describe, summarise, draw_picture, parameters=parameters, check=check
    )


def describe(results: SleepResults) -> dict[str, Any]:
    """Return the fields of the last run for the record (times in seconds)."""
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
    """Return a summary of the last run, in two lines."""
    speedup = report.speedup(results.job_seconds, results.seconds)
    counts = ", ".join(f"{node} {count}" for node, count in report.jobs_per_node(results.outcomes).items())
    return (
        f"wall {results.seconds:.2f} s (at best {results.best_seconds:.2f} s), all jobs {results.job_seconds:.2f} s, "
        f"speed-up {speedup:.2f} over one by one\njobs per node: {counts}; lost {len(results.lost)}"
    )


def draw_picture(results: SleepResults, path: Path) -> None:
    """Draw when each job ran: a row for each job that runs at once."""
    lanes: list[tuple[str, float]] = []  # the node of each row, and when its last job ended
    figure = report.figure(7.2, 4.2)
    axes = figure.subplots()
    nodes = sorted({outcome.node for outcome in results.outcomes if outcome.lost is None})
    for outcome in sorted(results.outcomes, key=lambda each: (each.node, each.finished_after)):
        if outcome.lost is not None:
            continue
        begin = max(0.0, outcome.finished_after - outcome.seconds)
        # The end of a job is noticed up to 0.1 s late.
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
    """Raise ResultError with the numbers of the jobs that were lost."""
    if record["lost"]:
        raise ResultError(
            f"{record['lost']} of {record['jobs']} jobs were lost: {record['lost_jobs']}; the lines above have the reasons"
        )
