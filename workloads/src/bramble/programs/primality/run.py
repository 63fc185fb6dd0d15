"""Count the primes of a range number by number, to compare the tests and to show the effect of the size of jobs."""

from typing import Any

from bramble import ResultError, UsageError
from bramble.programs.primality.kernel import METHODS, Chunk, count
from bramble.programs.primes import KNOWN
from bramble.study.program import Program, Run

JOBS = 256
"""The default number of jobs: eight for each of 32 cores, so that no core waits long for the last job."""


def program(method: str, lower: int, upper: int, chunk: int | None) -> Program:
    """Return a program that counts the numbers from `lower` to `upper` that pass a test. Raises UsageError."""
    if method not in METHODS:
        raise UsageError(f"--method {method} is unknown; choose from {', '.join(METHODS)}")
    if not lower <= upper < 2**64:
        raise UsageError(f"--lower must be at most --upper, and --upper below 2^64; they are {lower} and {upper}")
    size = chunk or max(1, -(-(upper - lower + 1) // JOBS))
    chunks = [Chunk(method, begin, min(begin + size - 1, upper)) for begin in range(lower, upper + 1, size)]

    def compute(run: Run) -> int:
        return sum(run.map(count, chunks))

    parameters = {"method": method, "lower": lower, "upper": upper, "chunks": len(chunks)}
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
    """Raise ResultError when the count differs from a known number of primes. Fermat's test may also pass other numbers."""
    known = KNOWN.get(record["upper"]) if record["lower"] <= 2 else None
    passed = record["passed"]
    if known is not None and (passed < known or (passed > known and record["method"] != "fermat")):
        raise ResultError(
            f"{passed} numbers pass, but there are {known} primes up to {record['upper']}, so a node computes wrongly; "
            "run `bramble health-check NODE` for each node"
        )
