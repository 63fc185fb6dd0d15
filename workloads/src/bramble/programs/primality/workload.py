"""`bramble primality`."""

from typing import TYPE_CHECKING, Annotated

import typer

from bramble.study.options import optional_number, whole_number
from bramble.study.workload import Workload

if TYPE_CHECKING:
    from bramble.study.program import Program


def primality(
    lower: Annotated[str, typer.Option(metavar="N", help="The first number.")] = "1",
    upper: Annotated[str, typer.Option(metavar="N", help="The last number, below 2^64.")] = "1e7",
    method: Annotated[str, typer.Option(help="The test: naive (trial division), fermat or miller-rabin.")] = "miller-rabin",
    chunk: Annotated[str | None, typer.Option(metavar="N", help="Numbers per job, if not the default.")] = None,
) -> "Program":
    """Count the numbers of a range that pass one of three primality tests."""
    from bramble.programs.primality import run

    size = optional_number("--chunk", chunk)
    return run.program(method, whole_number("--lower", lower), whole_number("--upper", upper), size)


WORKLOAD = Workload(programs=(primality,))
