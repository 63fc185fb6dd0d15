"""Run the sleeping jobs and say where they ran, how long they took and how much faster that was than one by one."""

import time
from typing import Any

from bramble import ResultError, driver, report
from bramble.compute.kernel import durations, nap, shortest_makespan


def run(engine: driver.Engine, screen: report.Screen, jobs: int, scale: float, seed: int, nodes: int | None) -> dict[str, Any]:
    """Map `nap` over the durations; return the JSON record (times in seconds). `nodes` takes only the first so many."""
    chosen = None if nodes is None else driver.first(engine, nodes)
    # The longest first (R. L. Graham, 1969): a long one that begins last would have all others wait for it.
    slept = sorted(durations(jobs, scale, seed), reverse=True)
    screen.say(f"{jobs} jobs on {engine.label}, warming up")
    engine.warm_up(nap)
    screen.say(f"{'job':>4}  {'node':<16}{'host':<20}{'slept s':>9}{'finished after s':>18}")

    begin = time.perf_counter()
    results: list[dict[str, Any]] = []

    def row(outcome: driver.Outcome) -> str:
        if outcome.lost is not None:
            return f"{outcome.index:>4}  lost: {outcome.lost}"
        results.append(
            {
                "job": outcome.index,
                "node": outcome.node,
                "host": outcome.result,
                "slept": slept[outcome.index],
                "seconds": outcome.seconds,
                "finished": outcome.after,
            }
        )
        where = f"{outcome.index:>4}  {outcome.node:<16}{outcome.result:<20}"
        return f"{where}{slept[outcome.index]:>9.2f}{outcome.after:>18.2f}"

    outcomes = screen.follow(engine.map(nap, slept, chosen), jobs, "compute", row)
    seconds = time.perf_counter() - begin
    job_seconds = sum(outcome.seconds for outcome in outcomes)
    lost = sorted(outcome.index for outcome in outcomes if outcome.lost is not None)
    speedup = report.speedup(job_seconds, seconds)
    per_node = report.per_node(outcomes)
    best = shortest_makespan(slept, engine.slots(chosen))
    screen.say(f"\nwall {seconds:.2f} s (at best {best:.2f} s), all jobs {job_seconds:.2f} s, speed-up {speedup:.2f}")
    screen.say(f"jobs per node: {', '.join(f'{node} {count}' for node, count in per_node.items())}; lost {len(lost)}")
    return {
        "workload": "compute",
        "jobs": jobs,
        "scale": scale,
        "seed": seed,
        "lost": len(lost),
        "lost_jobs": lost,
        "per_node": per_node,
        "retried": report.retried(outcomes),
        "seconds": seconds,
        "seconds_at_best": best,
        "job_seconds": job_seconds,
        "speedup": speedup,
        "results": results,
    }


def check(record: dict[str, Any]) -> None:
    """Raise ResultError, naming them, when jobs were lost."""
    if record["lost"]:
        raise ResultError(f"{record['lost']} of {record['jobs']} jobs were lost: {record['lost_jobs']}")
