"""`bramble primes`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bramble.study.options import whole_number
from bramble.study.workload import Workload

if TYPE_CHECKING:
    from bramble.study.program import Program


def primes(
    begin: Annotated[str, typer.Argument(metavar="A", help="The first number.")],
    end: Annotated[str, typer.Argument(metavar="B", help="The end; B itself is not included.")],
    listing: Annotated[
        Path | None, typer.Option("--list", metavar="FILE", help="Write the primes to this file, one per line.")
    ] = None,
    twins: Annotated[bool, typer.Option("--twins", help="Count the pairs p, p + 2.")] = False,
    gaps: Annotated[bool, typer.Option("--gaps", help="Count how often each distance between neighbours occurs.")] = False,
) -> "Program":
    """Count the primes from A up to B."""
    from bramble.programs.primes import run

    program = run.primes(whole_number("A", begin, 0), whole_number("B", end, 0), twins, gaps, listing is not None)
    return program if listing is None else replace(program, finish=lambda answer: run.write_primes(answer[1], listing))


def comparison(seconds: float) -> "Program":
    """The number of primes in an interval: jobs of equal cost, with a sieve in the cache of each core."""
    from bramble.programs.primes import run

    return run.primes(0, max(10**6, round(2e9 * seconds)))


WORKLOAD = Workload(programs=(primes,), comparisons={"primes": comparison}, has_negative_arguments=True)
