"""`bramble fibonacci`."""

from typing import TYPE_CHECKING, Annotated

import typer

from bramble.study.options import Seed, whole_number
from bramble.study.workload import Workload

if TYPE_CHECKING:
    from bramble.study.program import Program


def fibonacci(
    prices: Annotated[str, typer.Option(metavar="NAME|FILE", help="AAPL, GOOG, IBM, MSFT, or a CSV file.")] = "IBM",
    surrogates: Annotated[str, typer.Option(metavar="N", help="How many times chance is asked.")] = "1e4",
    controls: Annotated[bool, typer.Option(help="Test a random walk and a planted effect as well.")] = True,
    seed: Seed = 0,
) -> "Program":
    """Are Fibonacci ratios more frequent in price swings than chance has them?"""
    from bramble.programs.fibonacci import run

    return run.fibonacci(prices, whole_number("--surrogates", surrogates), seed, controls)


def comparison(seconds: float) -> "Program":
    """Whether Fibonacci's ratios are more frequent in a stock's swings than in shuffled ones: chance, asked many times."""
    from bramble.programs.fibonacci import run

    return run.fibonacci("IBM", min(10**6, max(200, round(1500 * seconds))), seed=0, controls=False)


WORKLOAD = Workload(programs=(fibonacci,), comparisons={"fibonacci": comparison})
