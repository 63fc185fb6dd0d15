"""`bramble caesar` and `bramble rsa`."""

from typing import Annotated

import typer

from bramble.study.options import Seed
from bramble.study.workload import Workload


def caesar(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The text to encipher or to decipher.")],
    key: Annotated[
        int | None, typer.Option(help="By how many letters to shift; negative: back. Without it, the key is guessed.")
    ] = None,
) -> None:
    """Encipher a text with Caesar's cipher; without a key, break it: show the most English of the 26 possible texts."""
    from bramble.programs.ciphers.teaching import guess_key, shift

    if key is not None:
        print(shift(text, key))
    else:
        guessed, plain = guess_key(text)
        print(f"{plain}\n(enciphered with key {guessed}, to judge by the frequency of the letters)")


def rsa(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The message to encipher.")] = "THIS IS WORKING",
    bits: Annotated[int, typer.Option(min=16, max=64, help="Size of the public key in bits.")] = 48,
    seed: Seed = 0,
) -> None:
    """Show how public keys work, with small numbers. Not secure: `bramble factor` breaks every key of this size."""
    from bramble.programs.ciphers.teaching import explain_rsa

    print("\n".join(explain_rsa(text, bits, seed)))


WORKLOAD = Workload(commands=(caesar, rsa))
