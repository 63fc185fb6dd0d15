"""`bramble factor`."""

from typing import TYPE_CHECKING, Annotated

import typer

from bramble.study.options import optional_number, whole_number
from bramble.study.workload import Workload

if TYPE_CHECKING:
    from bramble.study.program import Program


def factor(
    number: Annotated[str, typer.Argument(metavar="NUMBER", help="The number to factor, below 2^64.")],
    chunk: Annotated[str | None, typer.Option(metavar="N", help="Numbers per job, if not the default.")] = None,
) -> "Program":
    """Find the prime factors of a number, searching downward from its square root until a divisor is found."""
    from bramble.programs.factor import run

    return run.program(whole_number("NUMBER", number), optional_number("--chunk", chunk))


WORKLOAD = Workload(programs=(factor,))
