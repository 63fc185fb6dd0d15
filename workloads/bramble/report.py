"""What a run says: metrics, lines and a progress bar for people, JSON for programs."""

import json
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from bramble import UsageError, __version__
from bramble.driver import Outcome


def speedup(base_seconds: float, seconds: float) -> float:
    """How many times faster than the base: T(base) / T."""
    return base_seconds / seconds


def efficiency(speedup: float, ratio: float) -> float:
    """Speed-up per unit of machine; `ratio` is the number of nodes relative to the base run's."""
    return speedup / ratio


def karp_flatt(speedup: float, ratio: float) -> float | None:
    """The serial fraction that explains a measured speed-up: (1/S - 1/p) / (1 - 1/p); None for p = 1: it has no value.

    A. H. Karp and H. P. Flatt, "Measuring parallel processor performance", Communications of the ACM 33(5), 1990.
    """
    return None if ratio == 1 else (1 / speedup - 1 / ratio) / (1 - 1 / ratio)


def versions() -> dict[str, str]:
    """Versions of the caller's Python and of the packages that decide results and timings."""
    found = {name: metadata.version(name) for name in ("distributed", "numpy")}
    return {"bramble": __version__, "python": platform.python_version(), **found}


def per_node(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Finished jobs by node, sorted by name."""
    return dict(sorted(Counter(outcome.node for outcome in outcomes if outcome.lost is None).items()))


def write_json(record: dict[str, Any], target: str) -> None:
    """Write a record to a file, whole or not at all, or to standard output (`-`). Raises UsageError if it cannot."""
    text = json.dumps(record, indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
        return
    path = Path(target)
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as draft:
            try:
                draft.write(text)
                draft.flush()
                os.fsync(draft.fileno())
                os.fchmod(draft.fileno(), 0o644)
                os.replace(draft.name, path)
            except BaseException:
                os.unlink(draft.name)
                raise
    except OSError as error:
        raise UsageError(f"the result cannot be written to {target}: {error.strerror}") from None


class Screen:
    """Lines for people: on standard output, or on standard error when that is taken by `--json -`."""

    def __init__(self, json_target: str | None) -> None:
        self.stream = sys.stderr if json_target == "-" else sys.stdout

    def say(self, line: str = "") -> None:
        print(line, file=self.stream, flush=True)

    def follow(self, outcomes: Iterator[Outcome], total: int, label: str, row: Any = None) -> list[Outcome]:
        """Collect the outcomes of a run, showing them as they come.

        On a terminal: a progress bar with the jobs done per node and lost. Elsewhere: at most one line per second and
        one at the end. `row(outcome)`, if given, makes a line of its own for every outcome, instead of the plain lines.
        """
        begin = time.monotonic()
        seen: list[Outcome] = []

        def state() -> str:
            nodes = "  ".join(f"{node} {jobs}" for node, jobs in per_node(seen).items())
            lost = sum(outcome.lost is not None for outcome in seen)
            return f"{nodes}  lost {lost}" if lost else nodes

        if self.stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (
                TextColumn(label),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[state]}"),
            )
            with Progress(*columns, console=Console(file=self.stream), refresh_per_second=4) as bar:
                task = bar.add_task(label, total=total, state="")
                for outcome in outcomes:
                    seen.append(outcome)
                    bar.update(task, advance=1, state=state())
                    if row:
                        bar.console.print(row(outcome), markup=False, highlight=False)
            return seen

        last = begin
        for outcome in outcomes:
            seen.append(outcome)
            now = time.monotonic()
            if row:
                self.say(row(outcome))
            elif now - last >= 1 or len(seen) == total:
                last = now
                self.say(f"{label}: {len(seen)}/{total} after {now - begin:.1f} s  {state()}")
        return seen
