"""Count the primes of a range, number by number: to compare the tests, and to see what the size of a job does."""

from typing import Any

from bramble import ResultError, UsageError
from bramble.programs.primality.kernel import METHODS, Chunk, count
from bramble.programs.primes import KNOWN
from bramble.study.program import Program, Run

JOBS = 256
"""Jobs of a default chunk: eight for each of 32 cores, so that none waits long for the last."""


def program(method: str, lower: int, upper: int, chunk: int | None) -> Program:
    """The primes from `lower` to `upper`. Raises UsageError."""
    if method not in METHODS:
        raise UsageError(f"--method {method} is not known; there are {', '.join(METHODS)}")
    if not lower <= upper < 2**64:
        raise UsageError(f"the range must go upward and end below 2^64, and goes from {lower} to {upper}")
    size = chunk or max(1, -(-(upper - lower + 1) // JOBS))
    work = [Chunk(method, begin, min(begin + size - 1, upper)) for begin in range(lower, upper + 1, size)]

    def compute(run: Run) -> int:
        return sum(run.map(count, work))

    parameters = {"method": method, "lower": lower, "upper": upper, "chunks": len(work)}
    return Program(
        "primality",
        [count],
        compute,
        lambda passed: {"passed": passed},
        lambda passed: f"{passed} numbers from {lower} to {upper} pass the {method} test",
        parameters=parameters,
        check=check,
    )


def check(record: dict[str, Any]) -> None:
    """Raise ResultError when the number of primes is known and is another. Fermat's test may pass more: liars pass it."""
    known = KNOWN.get(record["upper"]) if record["lower"] <= 2 else None
    passed = record["passed"]
    if known is not None and (passed < known or (passed > known and record["method"] != "fermat")):
        raise ResultError(f"{passed} numbers pass, and there are {known} primes up to {record['upper']}: a node computes wrongly")
