"""`bramble pi`."""

from typing import TYPE_CHECKING, Annotated

import typer

from bramble import UsageError
from bramble.study.options import Seed, optional_number, whole_number
from bramble.study.workload import Workload

if TYPE_CHECKING:
    from bramble.study.program import Program


def pi(
    method: Annotated[
        str, typer.Option(help="montecarlo, chudnovsky (decimal digits) or bbp (hexadecimal digits).")
    ] = "montecarlo",
    points: Annotated[str, typer.Option(metavar="N", help="montecarlo: how many points.")] = "1e10",
    chunk: Annotated[str | None, typer.Option(metavar="N", help="montecarlo: points per job, if not the default.")] = None,
    digits: Annotated[str, typer.Option(metavar="N", help="chudnovsky: how many digits after the point.")] = "1e6",
    position: Annotated[
        str, typer.Option(metavar="N", help="bbp: position of the first digit; 1 is the first after the point.")
    ] = "1e6",
    count: Annotated[int, typer.Option(min=1, max=16, help="bbp: how many digits.")] = 14,
    seed: Seed = 0,
) -> "Program":
    """Compute pi: an estimate from random points, all digits, or a few digits at a distant position."""
    from bramble.programs.pi import run

    match method:
        case "montecarlo":
            return run.montecarlo(whole_number("--points", points), optional_number("--chunk", chunk), seed)
        case "chudnovsky":
            return run.chudnovsky(whole_number("--digits", digits))
        case "bbp":
            return run.bbp(whole_number("--position", position), count)
    raise UsageError(f"--method {method} is unknown; choose montecarlo, chudnovsky or bbp")


def comparison(seconds: float) -> "Program":
    """Pi from random points: independent jobs, which is the best case for more nodes."""
    from bramble.programs.pi import montecarlo, run

    return run.montecarlo(max(10**6, round(montecarlo.POINTS_PER_SECOND * seconds)), None, seed=0)


WORKLOAD = Workload(programs=(pi,), comparisons={"pi": comparison})
