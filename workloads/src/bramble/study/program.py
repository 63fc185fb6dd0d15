"""A workload's program, and one timed run of it."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bramble import ResultError
from bramble.engine.base import Engine
from bramble.engine.outcome import Kernel, Outcome
from bramble.study.report import Screen


class Run:
    """One timed run: what a program maps goes to one engine, or to some of its nodes."""

    def __init__(self, engine: Engine, screen: Screen, name: str, nodes: Sequence[str] | None) -> None:
        self.engine, self.screen, self.name, self.nodes = engine, screen, name, nodes
        self.jobs: list[Outcome] = []
        """The jobs that ended, without their results."""
        self.begin = time.perf_counter()
        self.notes: dict[str, Any] = {}
        """What else the program has to say of this run, such as where its seconds went; for the record."""

    @property
    def seconds(self) -> float:
        """Since it began; of shares that were put together, what they took."""
        return self.engine.recorded_seconds or time.perf_counter() - self.begin

    @property
    def slots(self) -> int:
        """How many jobs run at once here."""
        return self.engine.slots(self.nodes)

    @property
    def memory(self) -> int:
        """Bytes that one job may take here."""
        return self.engine.memory(self.nodes)

    def outcomes(self, kernel: Kernel, arguments: Sequence[Any], label: str = "") -> Iterator[Outcome]:
        """Yield the outcomes as they come. Whoever has seen enough stops: what has not begun is cancelled then.

        Raises ResultError when a job raises or is lost.
        """
        label = f"{self.name} {label}".strip()
        with closing(self.screen.show_progress(self.engine.map(kernel, arguments, self.nodes), len(arguments), label)) as outcomes:
            for outcome in outcomes:
                if outcome.lost is not None:
                    raise ResultError(f"{label}: job {outcome.index} of {len(arguments)} was lost: {outcome.lost}")
                self.jobs.append(replace(outcome, result=None))
                yield outcome

    def map(self, kernel: Kernel, arguments: Sequence[Any], label: str = "") -> list[Any]:
        """The results, in the order of the arguments. Raises ResultError when a job raises or is lost."""
        found = {outcome.index: outcome.result for outcome in self.outcomes(kernel, arguments, label)}
        return [found[index] for index in range(len(arguments))]


@dataclass(frozen=True)
class Program:
    """A workload: its name, its kernels (imported by every worker before the clock starts) and what it does with them.

    `compute` gives the answer. All runs must give equal ones. `describe` makes of it what goes into the record (a dict
    goes there as it is), `tell` a line for people, `picture` draws it into a PNG file, and `save` writes what else belongs
    in the folder of the report. `check` raises ResultError when the record is not right; `finish` gets the answer after that.
    """

    name: str
    kernels: Sequence[Kernel]
    compute: Callable[[Run], Any]
    describe: Callable[[Any], dict[str, Any]] = dict
    summarise: Callable[[Any], str] | None = None
    draw_picture: Callable[[Any, Path], None] | None = None
    write_files: Callable[[Any, Path], None] | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    check: Callable[[dict[str, Any]], None] | None = None
    finish: Callable[[Any], None] | None = None
