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
    """One timed run of a program on one engine, or on some of its nodes."""

    def __init__(self, engine: Engine, screen: Screen, name: str, nodes: Sequence[str] | None) -> None:
        self.engine, self.screen, self.name, self.nodes = engine, screen, name, nodes
        self.jobs: list[Outcome] = []
        """The outcomes of the jobs that ended, without their results."""
        self.begin = time.perf_counter()
        self.notes: dict[str, Any] = {}
        """Further fields of this run for the record, such as how the program spent its time."""

    @property
    def seconds(self) -> float:
        """Return the seconds since the run began; for merged shares, the seconds that the slowest took."""
        return self.engine.recorded_seconds or time.perf_counter() - self.begin

    @property
    def jobs_at_once(self) -> int:
        """Return how many jobs run at once."""
        return self.engine.jobs_at_once(self.nodes)

    @property
    def memory(self) -> int:
        """Return how many bytes of memory one job may use."""
        return self.engine.memory(self.nodes)

    def outcomes(self, kernel: Kernel, arguments: Sequence[Any], label: str = "") -> Iterator[Outcome]:
        """Yield the outcomes as the jobs end. A caller that stops early cancels the jobs that have not started.

        Raises ResultError when a job raises an exception or is lost.
        """
        label = f"{self.name} {label}".strip()
        with closing(
            self.screen.show_progress(self.engine.map(kernel, arguments, self.nodes), len(arguments), label)
        ) as outcomes:
            for outcome in outcomes:
                if outcome.lost is not None:
                    raise ResultError(f"{label}: job {outcome.index} of {len(arguments)} was lost: {outcome.lost}")
                self.jobs.append(replace(outcome, result=None))
                yield outcome

    def map(self, kernel: Kernel, arguments: Sequence[Any], label: str = "") -> list[Any]:
        """Return the results in the order of the arguments. Raises ResultError when a job raises an exception or is lost."""
        results = {outcome.index: outcome.result for outcome in self.outcomes(kernel, arguments, label)}
        return [results[index] for index in range(len(arguments))]


@dataclass(frozen=True)
class Program:
    """A workload's program: its name, its kernels (every worker imports them before the timing starts) and its steps.

    `compute` returns the answer, which must be the same for all runs. `describe` returns the answer's fields for the
    record (by default a copy of the answer, which must then be a dict), and `summarise` text for the screen.
    `draw_picture` draws the answer into a PNG file, and `write_files` writes further files into the folder of the report.
    `check` raises ResultError when the record is wrong; `finish` gets the answer after a successful check.
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
