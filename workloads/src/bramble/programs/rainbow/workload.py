"""`bramble rainbow`: hash, plan, build, crack, brute."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bramble.study.options import optional_number, whole_number
from bramble.study.workload import Workload

if TYPE_CHECKING:
    from bramble.programs.rainbow.table import Plan
    from bramble.study.program import Program

MD5_PER_SECOND = 30e6
"""Hashes on one core of a workstation."""

Charset = Annotated[str, typer.Option(help="digits, hex, lower, upper, lower-digits, letters, alnum, printable or chars:...")]
Length = Annotated[int, typer.Option(help="Characters of the strings.")]
Tables = Annotated[int, typer.Option(min=1, max=64, help="How many tables; each finds more.")]
Chain = Annotated[str, typer.Option(metavar="N", help="Links of a chain: longer, smaller tables and slower lookups.")]
Starts = Annotated[str | None, typer.Option(metavar="N", help="Chains begun per table, if not the default.")]
Folder = Annotated[Path, typer.Option(metavar="FOLDER", help="Where the tables are.")]


def plans(charset: str, length: int, tables: int, chain: str, starts: str | None) -> "list[Plan]":
    """Return the tables that the options ask for. Raises UsageError."""
    from bramble.programs.rainbow import kernel, run

    number = optional_number("--starts", starts)
    return run.plans(kernel.parse_keys(charset, length), tables, whole_number("--chain", chain), number)


def rainbow_hash(text: Annotated[str, typer.Argument(metavar="TEXT")]) -> None:
    """The MD5 hash of a text."""
    from bramble.programs.rainbow import kernel

    print(kernel.digest(text))


def rainbow_plan(
    charset: Charset = "lower", length: Length = 6, tables: Tables = 4, chain: Chain = "1000", starts: Starts = None
) -> None:
    """What tables would find, and what they would cost."""
    from bramble.programs.rainbow import run

    print(run.describe_plan(run.predict(plans(charset, length, tables, chain, starts))))


def rainbow_build(
    charset: Charset = "lower",
    length: Length = 6,
    tables: Tables = 4,
    chain: Chain = "1000",
    starts: Starts = None,
    folder: Folder = Path("rainbow"),
) -> "Program":
    """Build tables; interrupted, it goes on where it was when it is run again."""
    from bramble.programs.rainbow import run

    return run.build(plans(charset, length, tables, chain, starts), folder)


def rainbow_crack(
    digests: Annotated[list[str], typer.Argument(metavar="MD5...", help="Hashes of your own.")],
    folder: Folder = Path("rainbow"),
) -> "Program":
    """Find the strings with some hashes, by tables."""
    from bramble.programs.rainbow import run

    return run.crack(digests, folder)


def rainbow_brute(
    digest: Annotated[str, typer.Argument(metavar="MD5", help="A hash of your own.")],
    charset: Charset = "lower",
    length: Length = 6,
) -> "Program":
    """Find the string with a hash by trying all: what tables are compared with."""
    from bramble.programs.rainbow import kernel, run

    return run.brute(digest, kernel.parse_keys(charset, length))


def comparison(seconds: float) -> "Program":
    """Finding a number by its MD5 hash by trying all: what a rainbow table saves."""
    from bramble.programs.rainbow import kernel

    length = max(5, int(math.log10(MD5_PER_SECOND * seconds)))
    return rainbow_brute(kernel.digest("9" * length), "digits", length)


WORKLOAD = Workload(
    programs=(rainbow_build, rainbow_crack, rainbow_brute),
    commands=(rainbow_hash, rainbow_plan),
    comparisons={"md5": comparison},
    group_help="MD5 and rainbow tables, for hashes of your own; a salt ends it.",
)
