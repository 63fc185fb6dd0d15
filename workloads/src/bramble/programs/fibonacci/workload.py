"""`bramble fibonacci`."""

from typing import TYPE_CHECKING, Annotated

import typer

from bramble.study.options import Seed, whole_number
from bramble.study.workload import Workload

if TYPE_CHECKING:
    from bramble.study.program import Program


def fibonacci(
    prices: Annotated[str, typer.Option(metavar="NAME|FILE", help="AAPL, GOOG, IBM, MSFT, or a CSV file.")] = "IBM",
    surrogates: Annotated[str, typer.Option(metavar="N", help="How many random series to compare with.")] = "1e4",
    controls: Annotated[bool, typer.Option(help="Also test a random walk and a series with a planted effect.")] = True,
    seed: Seed = 0,
) -> "Program":
    """Test whether Fibonacci ratios are more frequent in price swings than by chance."""
    from bramble.programs.fibonacci import run

    return run.fibonacci(prices, whole_number("--surrogates", surrogates), seed, controls)


def comparison(seconds: float) -> "Program":
    """Whether Fibonacci ratios are more frequent in a stock's swings than in series of the same days in random order."""
    from bramble.programs.fibonacci import run

    return run.fibonacci("IBM", min(10**6, max(200, round(1500 * seconds))), seed=0, controls=False)


WORKLOAD = Workload(programs=(fibonacci,), comparisons={"fibonacci": comparison})
