"""What `bramble compare` runs. A new workload is a function here: its docstring says in the report what it is."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from bramble.study import Program


class Entry(NamedTuple):
    """A program, and what raises ResultError when its record is not right."""

    program: Program
    check: Callable[[dict[str, Any]], None] | None = None


def compute(seconds: float) -> Entry:
    """Sixteen jobs that only sleep: what handing out jobs costs, and how evenly they are dealt."""
    from bramble.compute import run

    return Entry(run.program(16, seconds / 200, seed=0), run.check)


def pi(seconds: float) -> Entry:
    """Pi from random points: jobs that need nothing of each other, the best case for more nodes."""
    from bramble.pi import run

    return Entry(run.montecarlo(max(10**6, round(POINTS_PER_SECOND * seconds)), None, seed=0), run.check)


def primes(seconds: float) -> Entry:
    """How many primes there are in an interval: jobs of equal cost, a sieve in the cache of each core."""
    from bramble.primes import run

    return Entry(run.primes(0, max(10**6, round(2e9 * seconds))))


def fibonacci(seconds: float) -> Entry:
    """Whether Fibonacci's ratios are more frequent in a stock's swings than in shuffled ones: chance, asked many times."""
    from bramble.fibonacci import run

    return Entry(run.fibonacci("IBM", min(10**6, max(200, round(1500 * seconds))), seed=0, controls=False))


def md5(seconds: float) -> Entry:
    """Finding a number by its MD5 hash by trying all: what a rainbow table saves."""
    from bramble.rainbow import kernel, run

    length = max(5, int(math.log10(MD5_PER_SECOND * seconds)))
    return Entry(run.brute(run.digest("9" * length), kernel.keys("digits", length)), run.check)


def bell(seconds: float) -> Entry:
    """Entangled pairs of qubits, simulated in Q#: they agree more often than anything arranged beforehand could."""
    from bramble.quantum import run

    return Entry(run.program("bell", {"shots": max(2_000, round(15_000 * seconds))}, seed=0), run.check)


def grover(seconds: float) -> Entry:
    """Grover's search for one number among 64, simulated in Q#: found with 6 questions instead of 32."""
    from bramble.quantum import run

    return Entry(run.program("grover", {"shots": max(200, round(250 * seconds))}, seed=0), run.check)


POINTS_PER_SECOND, MD5_PER_SECOND = 400e6, 30e6
"""Points of pi, and hashes, on a core of a workstation: the second that the sizes above are in."""

ENTRIES: dict[str, Callable[[float], Entry]] = {
    entry.__name__: entry for entry in (compute, pi, primes, fibonacci, md5, bell, grover)
}
"""By name: for a number of seconds on one core of a workstation, about."""
