"""Run the Monte Carlo chunks, once per number of nodes: pi, how good it is, how much faster more nodes are."""

import time
from collections.abc import Sequence
from typing import Any

from bramble import ResultError, UsageError, driver, report
from bramble.pi.montecarlo import MOST_POINTS, chunks, count_inside, default_chunk, estimate

SIGMAS = 4
"""A right program is further off than this once in 16000 seeds."""


def run(
    engine: driver.Engine, screen: report.Screen, points: int, chunk: int | None, seed: int, nodes: Sequence[int] | None
) -> dict[str, Any]:
    """One timed run per entry of `nodes` (or one, on everything); return the JSON record (times in seconds).

    Raises ResultError when chunks were lost or two runs disagree.
    """
    if points > MOST_POINTS:
        raise UsageError(f"--points can be at most {MOST_POINTS:.0e}: beyond, the rounding of float32 shows")
    groups = [None] if nodes is None else [driver.first(engine, count) for count in nodes]
    work = chunks(points, chunk or default_chunk(points), seed)
    screen.say(f"{points} points in {len(work)} chunks on {engine.label}, warming up")
    engine.warm_up(count_inside)

    runs: list[dict[str, Any]] = []
    totals: list[int] = []
    for group in groups:
        count = len(engine.nodes if group is None else group)
        begin = time.perf_counter()
        outcomes = screen.follow(engine.map(count_inside, work, group), len(work), f"pi on {count}")
        seconds = time.perf_counter() - begin
        if lost := sorted(outcome.index for outcome in outcomes if outcome.lost is not None):
            raise ResultError(f"{len(lost)} of {len(work)} chunks were lost, so there is no result: {lost}")
        totals.append(sum(outcome.result for outcome in outcomes))
        ratio = count / runs[0]["nodes"] if runs else 1.0
        speedup = report.speedup(runs[0]["seconds"], seconds) if runs else 1.0
        runs.append(
            {
                "nodes": count,
                "seconds": seconds,
                "points_per_second": points / seconds,
                "speedup": speedup,
                "efficiency": report.efficiency(speedup, ratio),
                "karp_flatt": report.karp_flatt(speedup, ratio),
                "per_node": report.per_node(outcomes),
            }
        )
    if len(set(totals)) > 1:
        raise ResultError(f"the runs counted different points: {totals}; a node computes wrongly (memory? power supply?)")

    screen.say(f"\n{'nodes':>5}{'seconds':>10}{'points/s':>12}{'speed-up':>10}{'efficiency':>12}{'Karp-Flatt':>12}")
    for entry in runs:
        serial = "-" if entry["karp_flatt"] is None else f"{entry['karp_flatt']:.4f}"
        screen.say(
            f"{entry['nodes']:>5}{entry['seconds']:>10.2f}{entry['points_per_second']:>12.3g}{entry['speedup']:>10.2f}"
            f"{entry['efficiency']:>12.3f}{serial:>12}"
        )
    pi, error, sigma = estimate(totals[0], points)
    screen.say(f"pi = {pi:.10f}, off by {error:+.2e}, which is {abs(error) / sigma:.2f} sigma (sigma {sigma:.2e})")
    return {
        "workload": "pi",
        "method": "montecarlo",
        "points": points,
        "chunks": len(work),
        "seed": seed,
        "inside": totals[0],
        "pi": pi,
        "error": error,
        "sigma": sigma,
        "runs": runs,
    }


def check(record: dict[str, Any]) -> None:
    """Raise ResultError when the estimate is further from pi than chance allows."""
    if abs(record["error"]) >= SIGMAS * record["sigma"]:
        raise ResultError(
            f"pi = {record['pi']} is {abs(record['error']) / record['sigma']:.1f} sigma off (limit {SIGMAS}); "
            "try another --seed: if that fails too, a node computes wrongly"
        )
