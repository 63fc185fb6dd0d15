"""Factor a number: search intervals downward from its square root; the first divisor that is found stops the search."""

import math
from typing import Any

from bramble import ResultError, UsageError
from bramble.programs.factor.kernel import Interval, divisor
from bramble.programs.primality.kernel import count, is_prime
from bramble.study.program import Program, Run

INTERVAL_WIDTH, MAX_INTERVALS = 50_000_000, 512
"""Numbers in an interval (half of them are tried, in about a quarter of a second), and the largest number of intervals."""


def intervals(number: int, width: int | None) -> list[Interval]:
    """Return intervals of the odd numbers from 3 to the square root, the largest first: a key's factors are of similar size."""
    top = (math.isqrt(number) - 1) | 1
    size = width or max(INTERVAL_WIDTH, -(-top // MAX_INTERVALS))
    size += size % 2
    return [Interval(number, max(3, upper - size + 2), upper) for upper in range(top, 2, -size)]


def program(number: int, width: int | None) -> Program:
    """Return a program that finds the prime factors of a number. Raises UsageError if it is not from 2 to 2^64 - 1."""
    if not 2 <= number < 2**64:
        raise UsageError(f"the number must be from 2 to 2^64 - 1, but is {number}")

    def factors(run: Run, number: int) -> list[int]:
        if number % 2 == 0:
            return [2] + (factors(run, number // 2) if number > 2 else [])
        if is_prime(number):
            return [number]
        for outcome in run.outcomes(divisor, intervals(number, width), str(number)):
            if found := outcome.result:  # returning cancels the other jobs
                return sorted(factors(run, found) + factors(run, number // found))
        raise ResultError(
            f"no divisor of {number} was found, but it is not prime, so a node computes wrongly; "
            "run `bramble health-check NODE` for each node"
        )

    def compute(run: Run) -> list[int]:
        return factors(run, number)

    return Program(
        "factor",
        [divisor, count],
        compute,
        lambda found: {"factors": found},
        lambda found: f"{number} = {' x '.join(map(str, found))}" if len(found) > 1 else f"{number} is prime",
        parameters={"number": number},
        check=check,
    )


def check(record: dict[str, Any]) -> None:
    """Raise ResultError unless the factors are prime and their product is the number."""
    if math.prod(record["factors"]) != record["number"] or not all(map(is_prime, record["factors"])):
        raise ResultError(
            f"{record['factors']} are not the prime factors of {record['number']}, so a node computes wrongly; "
            "run `bramble health-check NODE` for each node"
        )
