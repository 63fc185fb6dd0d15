"""`bramble collatz`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from bramble.study.options import whole_number
from bramble.study.workload import Workload

if TYPE_CHECKING:
    from bramble.study.program import Program, Run


def check(record: dict[str, Any]) -> None:
    """Raise ResultError when the start does not take the recorded number of steps on this machine."""
    from bramble import ResultError
    from bramble.programs.collatz import steps

    if steps(record["start"]) != record["steps"]:
        raise ResultError(
            f"{record['start']} takes {steps(record['start'])} steps, not {record['steps']}, so a node computes wrongly; "
            "run `bramble health-check NODE` for each node"
        )


def collatz(
    upper: Annotated[str, typer.Option(metavar="N", help="The largest start.")] = "1e6",
) -> "Program":
    """Find the longest Collatz sequence."""
    # A command imports its kernels only when it is called, so that `bramble --help` stays fast on a small node.
    from bramble.programs.collatz import Interval, longest
    from bramble.study.program import Program

    last = whole_number("--upper", upper)
    size = -(-last // 64)
    jobs = [Interval(lower, min(lower + size - 1, last)) for lower in range(1, last + 1, size)]

    def compute(run: "Run") -> tuple[int, int]:
        steps_and_start: tuple[int, int] = max(run.map(longest, jobs), key=lambda found: (found[0], -found[1]))
        return steps_and_start

    return Program(
        "collatz",
        [longest],
        compute,
        describe=lambda found: {"steps": found[0], "start": found[1]},
        summarise=lambda found: f"{found[1]} takes {found[0]} steps, the most up to {last}",
        parameters={"upper": last},
        check=check,
    )


def comparison(seconds: float) -> "Program":
    """The longest Collatz sequence: plain Python, with jobs that are nearly equal."""
    return collatz(str(max(1000, round(100_000 * seconds))))


WORKLOAD = Workload(programs=(collatz,), comparisons={"collatz": comparison})
