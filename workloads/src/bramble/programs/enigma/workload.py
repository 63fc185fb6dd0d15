"""`bramble enigma`."""

from typing import TYPE_CHECKING, Annotated

import typer

from bramble.study.workload import Workload

if TYPE_CHECKING:
    from bramble.study.program import Program


def enigma(
    cipher: Annotated[str, typer.Argument(metavar="CIPHER", help="The message.")],
    crib: Annotated[str, typer.Argument(metavar="CRIB", help="A piece of its text.")],
    at: Annotated[int, typer.Option(min=0, help="How many letters are before that piece.")] = 0,
    rings: Annotated[str, typer.Option(metavar="N N N", help="The rings, left to right; `all`: try all.")] = "1 1 1",
    plugs: Annotated[str, typer.Option(metavar="PAIRS", help="The plugs, such as 'AV BS CG'.")] = "",
    reflector: Annotated[str, typer.Option(help="A, B or C.")] = "B",
) -> "Program":
    """Find how an Enigma was set: all 60 rotor orders and all starts, against a piece of text that is known."""
    from bramble.programs.enigma import run

    return run.program(cipher, crib, at, rings, plugs, reflector)


WORKLOAD = Workload(programs=(enigma,))
