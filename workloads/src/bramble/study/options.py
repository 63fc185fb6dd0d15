"""Options that commands share, and parsers of their values."""

from decimal import Decimal
from pathlib import Path
from typing import Annotated

import typer

from bramble import UsageError
from bramble.engine.base import Place

On = Annotated[Place, typer.Option(help="Where to compute: one core, every core of this machine, or the cluster.")]
Seed = Annotated[int, typer.Option(min=0, help="Random seed. The same seed gives the same result in every place.")]
Json = Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON (-: standard output).")]
Report = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write the result and its pictures to this folder.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the nodes of the cluster.")]
RequireAll = Annotated[bool, typer.Option("--require-all", help="Fail if a node is missing, instead of continuing without it.")]
Compare = Annotated[
    bool,
    typer.Option("--compare", help="Run on one core, on all cores of this machine and (--on cluster) on the cluster."),
]
Nodes = Annotated[
    str | None, typer.Option(metavar="N,N,...", help="Run once per number, on the first N nodes, and compare the times.")
]
JobTimeout = Annotated[
    float | None, typer.Option(min=0.1, help="Seconds after which a job on the cluster is stopped and named as lost.")
]
MaxInFlight = Annotated[int | None, typer.Option(min=1, metavar="N", help="Keep at most N jobs on the cluster at a time.")]
Share = Annotated[str | None, typer.Option(metavar="I/N", help="Run only every N-th job, starting with the I-th: see --merge.")]
Merge = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Compute nothing: merge the shares in this folder.")]

COMMON_OPTIONS: dict[str, tuple[object, object]] = {
    "on": (On, "cluster"),
    "compare": (Compare, False),
    "nodes": (Nodes, None),
    "json": (Json, None),
    "report": (Report, None),
    "timeout": (Timeout, 30.0),
    "require_all": (RequireAll, False),
    "job_timeout": (JobTimeout, None),
    "max_in_flight": (MaxInFlight, None),
    "share": (Share, None),
    "merge": (Merge, None),
}
"""The options of every command that computes: type and default by name, as in `bramble.study.runs.Request`."""


def whole_number(option: str, text: str, least: int = 1) -> int:
    """Return a whole number from text such as 1000000000, 1_000_000_000 or 1e9. Raises UsageError."""
    try:
        number = Decimal(text)
        if number != int(number) or number < least:
            raise ValueError
    except (ArithmeticError, ValueError):
        raise UsageError(f"{option}: {text!r} is not a whole number of at least {least}, such as 1_000_000_000 or 1e9") from None
    return int(number)


def optional_number(option: str, text: str | None) -> int | None:
    """Return the whole number of an option that may be missing, else None. Raises UsageError."""
    return None if text is None else whole_number(option, text)


def parse_share(text: str) -> tuple[int, int]:
    """Return the number of a share and of how many it is one, from text such as 2/8. Raises UsageError."""
    index, slash, count = text.partition("/")
    if not slash:
        raise UsageError(f"--share {text} must be the number of the share and how many there are, such as 2/8")
    numbers = (whole_number("--share", index), whole_number("--share", count))
    if numbers[0] > numbers[1]:
        raise UsageError(f"--share {text}: there are only {numbers[1]} shares")
    return numbers
