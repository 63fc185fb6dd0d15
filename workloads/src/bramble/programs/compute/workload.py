"""`bramble compute`."""

from typing import TYPE_CHECKING, Annotated

import typer

from bramble.study.options import Seed
from bramble.study.workload import Workload

if TYPE_CHECKING:
    from bramble.study.program import Program


def compute(
    jobs: Annotated[int, typer.Option(min=1, help="How many jobs.")] = 16,
    scale: Annotated[float, typer.Option(min=0, help="Factor for the 5 to 20 seconds that a job sleeps.")] = 1.0,
    seed: Seed = 0,
) -> "Program":
    """Run sixteen jobs that sleep: shows which nodes work, and how much faster they are together."""
    from bramble.programs.compute import run

    return run.program(jobs, scale, seed)


def comparison(seconds: float) -> "Program":
    """Sixteen jobs that only sleep: shows what distributing jobs costs, and how evenly they are distributed."""
    return compute(scale=seconds / 200)


WORKLOAD = Workload(programs=(compute,), comparisons={"compute": comparison})
