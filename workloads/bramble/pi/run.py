"""Pi as a program: the chunks, what comes of them, how good it is."""

from typing import Any

from bramble import ResultError, UsageError
from bramble.pi.montecarlo import MOST_POINTS, chunks, count_inside, default_chunk, estimate
from bramble.study import Program, Run

SIGMAS = 4
"""A right program is further off than this once in 16000 seeds."""


def montecarlo(points: int, chunk: int | None, seed: int) -> Program:
    """Pi from random points. Raises UsageError when they are too many."""
    if points > MOST_POINTS:
        raise UsageError(f"--points can be at most {MOST_POINTS:.0e}: beyond, the rounding of float32 shows")
    work = chunks(points, chunk or default_chunk(points), seed)

    def compute(run: Run) -> int:
        return sum(run.map(count_inside, work))

    def describe(inside: int) -> dict[str, Any]:
        pi, error, sigma = estimate(inside, points)
        return {"inside": inside, "pi": pi, "error": error, "sigma": sigma}

    def tell(inside: int) -> str:
        pi, error, sigma = estimate(inside, points)
        return f"pi = {pi:.10f}, off by {error:+.2e}, which is {abs(error) / sigma:.2f} sigma (sigma {sigma:.2e})"

    parameters = {"method": "montecarlo", "points": points, "chunks": len(work), "seed": seed}
    return Program("pi", [count_inside], compute, describe, tell, parameters=parameters)


def check(record: dict[str, Any]) -> None:
    """Raise ResultError when the estimate is further from pi than chance allows."""
    off = abs(record["error"]) / record["sigma"]
    if off >= SIGMAS:
        raise ResultError(
            f"pi = {record['pi']} is {off:.1f} sigma off (limit {SIGMAS}); "
            "try another --seed: if that fails too, a node computes wrongly"
        )
