"""`bramble caesar` and `bramble rsa`."""

from typing import Annotated

import typer

from bramble.study.options import Seed
from bramble.study.workload import Workload


def caesar(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to encipher or to read.")],
    key: Annotated[int | None, typer.Option(help="How far each letter moves on; negative: back. Without it: guess.")] = None,
) -> None:
    """Caesar's cipher, and how little it keeps: without a key, the most English of the 26 texts is shown."""
    from bramble.programs.ciphers.teaching import guess_key, shift

    if key is not None:
        print(shift(text, key))
    else:
        found, plain = guess_key(text)
        print(f"{plain}\n(it was enciphered with key {found}, by the frequency of its letters)")


def rsa(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="A message.")] = "THIS IS WORKING",
    bits: Annotated[int, typer.Option(min=16, max=64, help="Size of the public key.")] = 48,
    seed: Seed = 0,
) -> None:
    """How public keys work, in numbers small enough to look at. Not secure: `bramble factor` breaks every such key."""
    from bramble.programs.ciphers.teaching import explain_rsa

    print("\n".join(explain_rsa(text, bits, seed)))


WORKLOAD = Workload(commands=(caesar, rsa))
