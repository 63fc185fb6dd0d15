"""The program that counts and lists primes, and the comparison of its count with primecount's."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from bramble import ResultError, UsageError
from bramble.atomic import replaced
from bramble.engine import memory
from bramble.programs.primes import KNOWN, sieve
from bramble.programs.primes.kernel import Found, find_primes, intervals, merge_found
from bramble.study import report
from bramble.study.program import Program, Run

PRIMECOUNT_REACH = 10**15
"""The largest end for which primecount takes only a few seconds."""
BYTES_PER_PRIME = 3
"""Memory on this machine for a prime of a list until it is written."""


def primes(begin: int, end: int, twins: bool = False, gaps: bool = False, listed: bool = False) -> Program:
    """Return a program that finds the primes begin <= p < end; its answer is the merged result and that of each interval.

    Raises UsageError when the interval is empty, its end too large, or a list of its primes does not fit into memory.
    """
    if end <= begin:
        raise UsageError(f"there are no numbers from {begin} up to {end}: the second must be larger than the first")
    if end > sieve.max_end():
        advice = "" if sieve.library() else "; install libprimesieve (Debian package libprimesieve-dev) for larger numbers"
        raise UsageError(f"{end} is too large: this machine can sieve numbers up to {sieve.max_end()}{advice}")
    if listed:
        expected = 1.26 * (end - begin) / np.log(max(end, 3))
        memory.require(int(expected) * BYTES_PER_PRIME, f"a list of about {expected:.1e} primes")
    jobs = intervals(begin, end, twins, gaps, listed)

    def compute(run: Run) -> tuple[Found, list[Found]]:
        parts = run.map(find_primes, jobs)
        return merge_found(parts), parts

    def describe(answer: tuple[Found, list[Found]]) -> dict[str, Any]:
        whole, _ = answer
        fields: dict[str, Any] = {"count": whole.primes, "primecount": primecount(begin, end)}
        if twins:
            fields["twins"] = whole.twins
        if gaps:
            fields["gaps"] = {str(size): {"count": count, "first": first} for size, (count, first) in whole.gaps.items()}
        return fields

    def summarise(answer: tuple[Found, list[Found]]) -> str:
        whole, _ = answer
        lines = [f"{whole.primes:,} primes from {begin:,} up to {end:,}"]
        if twins:
            lines.append(f"{whole.twins:,} pairs of twins")
        if gaps and whole.gaps:
            size = max(whole.gaps)
            lines.append(f"the largest gap is {size}, first after {whole.gaps[size][1]:,}")
        return "; ".join(lines)

    def draw_picture(answer: tuple[Found, list[Found]], path: Path) -> None:
        whole, parts = answer
        figure = report.figure(6.4, 3.6 + 2.4 * bool(whole.gaps))
        axes = figure.subplots(2 if whole.gaps else 1, squeeze=False)[:, 0]
        x = np.array([(job.begin + job.end) / 2 for job in jobs])
        density = [part.primes / (job.end - job.begin) for job, part in zip(jobs, parts, strict=True)]
        axes[0].plot(x, density, ".", color="#b5123e", label="counted, by interval")
        axes[0].plot(x, 1 / np.log(np.maximum(x, 2)), color="#2a6f97", label="1 / ln x")
        axes[0].set(xlabel="x", ylabel="primes per number", ylim=(0, None))
        axes[0].set_title(f"{whole.primes:,} primes from {begin:,} up to {end:,}", fontsize=10)
        axes[0].legend(frameon=False)
        if whole.gaps:
            sizes = list(whole.gaps)
            axes[1].bar(sizes, [whole.gaps[size][0] for size in sizes], width=1.6, color="#2a6f97")
            axes[1].set(yscale="log", xlabel="distance to the next prime", ylabel="number of occurrences")
        figure.savefig(path)

    parameters = {"begin": begin, "end": end, "intervals": len(jobs), "library": bool(sieve.library())}
    return Program("primes", [find_primes], compute, describe, summarise, draw_picture, parameters=parameters, check=check)


def write_primes(parts: list[Found], path: Path) -> None:
    """Write the listed primes of all intervals, one per line. Raises UsageError if they cannot be written."""
    try:
        with replaced(path) as file:
            for part in parts:
                if part.first:
                    steps = np.frombuffer(part.steps, "<u2").astype(np.uint64)
                    found = np.cumsum(np.concatenate([np.array([part.first], np.uint64), steps]))
                    file.write(("\n".join(map(str, found.tolist())) + "\n").encode())
    except OSError as error:
        raise UsageError(f"the primes cannot be written to {path}: {error.strerror}; choose another --list FILE") from None


def primecount(begin: int, end: int) -> int | None:
    """Return the number of primes by primecount, whose method needs hardly any prime; None if it is not installed or too slow."""
    program = shutil.which("primecount")
    if program is None or end > PRIMECOUNT_REACH:
        return None
    low, high = (
        int(subprocess.run([program, str(below - 1)], capture_output=True, check=True, text=True).stdout) if below > 2 else 0
        for below in (begin, end)
    )
    return high - low


def check(record: dict[str, Any]) -> None:
    """Raise ResultError when the count differs from the known one or from primecount's."""
    known = {"table": KNOWN.get(record["end"]) if record["begin"] <= 2 else None, "primecount": record["primecount"]}
    for source, count in known.items():
        if count not in (None, record["count"]):
            raise ResultError(
                f"{record['count']} primes were counted, but there are {count} ({source}), so a node computes wrongly; "
                "run `bramble health-check NODE` for each node, and check its memory"
            )
