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
"""The speed of one core of a workstation."""

Charset = Annotated[str, typer.Option(help="digits, hex, lower, upper, lower-digits, letters, alnum, printable or chars:...")]
Length = Annotated[int, typer.Option(help="Number of characters of the strings.")]
Tables = Annotated[int, typer.Option(min=1, max=64, help="Number of tables: more tables find more strings.")]
Chain = Annotated[str, typer.Option(metavar="N", help="Links per chain: longer chains make smaller tables and slower lookups.")]
Starts = Annotated[str | None, typer.Option(metavar="N", help="Chains to start per table, if not the default.")]
Folder = Annotated[Path, typer.Option(metavar="FOLDER", help="The folder of the tables.")]


def plans(charset: str, length: int, tables: int, chain: str, starts: str | None) -> "list[Plan]":
    """Return the plans of the tables for these options. Raises UsageError."""
    from bramble.programs.rainbow import kernel, run

    number = optional_number("--starts", starts)
    return run.plans(kernel.parse_keys(charset, length), tables, whole_number("--chain", chain), number)


def rainbow_hash(text: Annotated[str, typer.Argument(metavar="TEXT")]) -> None:
    """Print the MD5 hash of a text."""
    from bramble.programs.rainbow import kernel

    print(kernel.digest(text))


def rainbow_plan(
    charset: Charset = "lower", length: Length = 6, tables: Tables = 4, chain: Chain = "1000", starts: Starts = None
) -> None:
    """Show what tables would find, and what they would cost."""
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
    """Build tables. Run it again to continue a build that was interrupted."""
    from bramble.programs.rainbow import run

    return run.build(plans(charset, length, tables, chain, starts), folder)


def rainbow_crack(
    digests: Annotated[list[str], typer.Argument(metavar="MD5...", help="Hashes of your own.")],
    folder: Folder = Path("rainbow"),
) -> "Program":
    """Find the strings of hashes by tables."""
    from bramble.programs.rainbow import run

    return run.crack(digests, folder)


def rainbow_brute(
    digest: Annotated[str, typer.Argument(metavar="MD5", help="A hash of your own.")],
    charset: Charset = "lower",
    length: Length = 6,
) -> "Program":
    """Find the string of a hash by trying all strings, to compare tables with."""
    from bramble.programs.rainbow import kernel, run

    return run.brute(digest, kernel.parse_keys(charset, length))


def comparison(seconds: float) -> "Program":
    """Finding a number by its MD5 hash by trying all numbers, which a rainbow table avoids."""
    from bramble.programs.rainbow import kernel

    length = max(5, int(math.log10(MD5_PER_SECOND * seconds)))
    return rainbow_brute(kernel.digest("9" * length), "digits", length)


WORKLOAD = Workload(
    programs=(rainbow_build, rainbow_crack, rainbow_brute),
    commands=(rainbow_hash, rainbow_plan),
    comparisons={"md5": comparison},
    group_help="MD5 hashes and rainbow tables, for hashes of your own.",
)
