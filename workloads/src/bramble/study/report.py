"""The output of a run: metrics, lines and a progress bar on the screen, and JSON files."""

import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bramble import UsageError, __version__
from bramble.atomic import replaced
from bramble.engine.outcome import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.progress import Progress


def speedup(base_seconds: float, seconds: float) -> float:
    """Return how many times faster a run is than the base run: T(base) / T."""
    return base_seconds / seconds


def efficiency(speedup: float, ratio: float) -> float:
    """Return the speed-up divided by `ratio`, the number of nodes (or of jobs at once) relative to the base run's."""
    return speedup / ratio


def karp_flatt(speedup: float, ratio: float) -> float | None:
    """Return the serial fraction that explains a measured speed-up, (1/S - 1/p) / (1 - 1/p); None for p = 1.

    A. H. Karp and H. P. Flatt, "Measuring parallel processor performance", Communications of the ACM 33(5), 1990.
    """
    return None if ratio == 1 else (1 / speedup - 1 / ratio) / (1 - 1 / ratio)


def versions() -> dict[str, str]:
    """Return the versions of this Python and of the packages that results and timings depend on."""
    packages = {name: metadata.version(name) for name in ("distributed", "numba", "numpy")}
    return {"bramble": __version__, "python": platform.python_version(), **packages}


def jobs_per_node(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Return the number of finished jobs of each node, sorted by name."""
    return dict(sorted(Counter(outcome.node for outcome in outcomes if outcome.lost is None).items()))


def retries_per_node(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Return how many jobs were resubmitted from each node, sorted by name."""
    return dict(sorted(Counter(node for outcome in outcomes for node in outcome.retried).items()))


def write_json(record: dict[str, Any], target: str) -> None:
    """Write a record to a file, completely or not at all, or to standard output (`-`). Raises UsageError if that fails."""
    text = json.dumps(record, indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
        return
    path = Path(target)
    try:
        with replaced(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise UsageError(f"the result cannot be written to {target}: {error.strerror}; choose another --json FILE") from None


def default_folder(name: str) -> Path:
    """Return the folder of a report without --report: reports/TIME-NAME."""
    return Path("reports", f"{time.strftime('%Y-%m-%dT%H%M%S')}-{name}")


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """Yield the folder of a report, created if necessary. Raises UsageError if it or a file in it cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield path
    except OSError as error:
        raise UsageError(f"the report cannot be written to {path}: {error.strerror}; choose another --report FOLDER") from None


def figure(width: float, height: float) -> "Figure":
    """Return an empty picture of this size in inches. matplotlib is imported only where something is drawn."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


Row = Callable[[Outcome], str]
"""A function that formats an outcome as a line of text."""


class Screen:
    """The lines that a user sees: on standard output, or on standard error when `--json -` uses standard output."""

    def __init__(self, json_target: str | None) -> None:
        self.stream = sys.stderr if json_target == "-" else sys.stdout
        self.bar: Progress | None = None

    def print_line(self, line: str = "") -> None:
        """Print a line, above the progress bar if there is one."""
        if self.bar:
            self.bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=self.stream, flush=True)

    def collect_outcomes(self, outcomes: Iterator[Outcome], total: int, label: str, row: Row | None = None) -> list[Outcome]:
        """Return the outcomes of a run as a list, with the progress on the screen: see `show_progress`."""
        return list(self.show_progress(outcomes, total, label, row))

    def show_progress(
        self, outcomes: Iterator[Outcome], total: int, label: str, row: Row | None = None
    ) -> Generator[Outcome, None, None]:
        """Yield the outcomes of a run unchanged, with the progress on the screen.

        On a terminal this is a progress bar with the jobs done, retried and lost per node; elsewhere at most one line per
        second and one at the end. With `row`, every outcome is a line instead.
        """
        begin = last = time.monotonic()
        done, retried, lost = Counter[str](), Counter[str](), Counter[str]()

        def state() -> str:
            words = []
            for node in sorted({*done, *retried, *lost} - {""}):
                problem_counts = [
                    f"{count[node]} {word}" for count, word in ((retried, "retried"), (lost, "lost")) if count[node]
                ]
                words.append(f"{node} {done[node]}" + (f" ({', '.join(problem_counts)})" if problem_counts else ""))
            return "  ".join([*words, *([f"lost {lost.total()}"] if lost else [])])

        with self._bar(label, total):
            for count, outcome in enumerate(outcomes, 1):
                (done if outcome.lost is None else lost)[outcome.node] += 1
                retried.update(outcome.retried)
                now = time.monotonic()
                if self.bar:
                    self.bar.update(self.bar.task_ids[0], advance=1, state=state())
                if row:
                    self.print_line(row(outcome))
                elif not self.bar and (now - last >= 1 or count == total):
                    last = now
                    self.print_line(f"{label}: {count}/{total} after {now - begin:.1f} s  {state()}")
                yield outcome

    @contextmanager
    def _bar(self, label: str, total: int) -> Iterator[None]:
        """Show a progress bar with one task, if the lines go to a terminal."""
        if not self.stream.isatty():
            yield
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[state]}"))
        with Progress(*columns, console=Console(file=self.stream), refresh_per_second=4) as bar:
            bar.add_task(label, total=total, state="")
            self.bar = bar
            try:
                yield
            finally:
                self.bar = None
