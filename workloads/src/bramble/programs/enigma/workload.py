"""`bramble enigma`."""

from typing import TYPE_CHECKING, Annotated

import typer

from bramble.study.workload import Workload

if TYPE_CHECKING:
    from bramble.study.program import Program


def enigma(
    cipher: Annotated[str, typer.Argument(metavar="CIPHER", help="The enciphered message.")],
    crib: Annotated[str, typer.Argument(metavar="CRIB", help="A piece of the plain text that is known.")],
    at: Annotated[int, typer.Option(min=0, help="How many letters of the message come before that piece.")] = 0,
    rings: Annotated[str, typer.Option(metavar="N N N", help="The rings from left to right, or `all` to try all.")] = "1 1 1",
    plugs: Annotated[str, typer.Option(metavar="PAIRS", help="The plugs, such as 'AV BS CG'.")] = "",
    reflector: Annotated[str, typer.Option(help="The reflector: A, B or C.")] = "B",
) -> "Program":
    """Find the setting of an Enigma from a known piece of text, by trying all 60 rotor orders with all start positions."""
    from bramble.programs.enigma import run

    return run.program(cipher, crib, at, rings, plugs, reflector)


WORKLOAD = Workload(programs=(enigma,))
