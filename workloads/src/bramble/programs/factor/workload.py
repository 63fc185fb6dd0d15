"""`bramble factor`."""

from typing import TYPE_CHECKING, Annotated

import typer

from bramble.study.options import optional_number, whole_number
from bramble.study.workload import Workload

if TYPE_CHECKING:
    from bramble.study.program import Program


def factor(
    number: Annotated[str, typer.Argument(metavar="NUMBER", help="Below 2^64.")],
    chunk: Annotated[str | None, typer.Option(metavar="N", help="Numbers per interval, if not the default.")] = None,
) -> "Program":
    """The prime factors of a number, downward from its square root; the first that is found stops the search."""
    from bramble.programs.factor import run

    return run.program(whole_number("NUMBER", number), optional_number("--chunk", chunk))


WORKLOAD = Workload(programs=(factor,))
