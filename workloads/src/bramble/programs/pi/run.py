"""The programs that compute pi, one for each method, and the checks of their results."""

import hashlib
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bramble import ResultError, UsageError
from bramble.engine import memory
from bramble.programs.pi import montecarlo as mc
from bramble.study import report
from bramble.study.program import Program, Run

SIGMAS = 4
"""The largest accepted error in standard deviations. A correct program exceeds it once in 16000 seeds."""

KNOWN_TAILS = {10**6: "5779458151", 10**7: "5348955897"}
"""The last ten digits, by the number of digits after the point."""
BYTES_PER_DIGIT = 16
"""Memory on this machine at the end of the computation; measured 14 with ten million digits."""
DIGITS_PER_LINE = 100
"""Digits per line of pi.txt."""

MAX_POSITION = 10**12
"""The largest position, for which eight Raspberry Pis of four cores need about a month."""


def montecarlo(points: int, chunk: int | None, seed: int) -> Program:
    """Return a program that estimates pi from random points. Raises UsageError when there are too many points."""
    if points > mc.MAX_POINTS:
        raise UsageError(f"--points can be at most {mc.MAX_POINTS:.0e}, since 64 bits cannot hold a larger count")
    chunks = mc.chunks(points, chunk or mc.default_chunk(points), seed)

    def compute(run: Run) -> int:
        return sum(run.map(mc.count_inside, chunks))

    def describe(inside: int) -> dict[str, Any]:
        pi, error, sigma = mc.estimate(inside, points)
        return {"inside": inside, "pi": pi, "error": error, "sigma": sigma}

    def summarise(inside: int) -> str:
        pi, error, sigma = mc.estimate(inside, points)
        return f"pi = {pi:.10f}, error {error:+.2e}, which is {abs(error) / sigma:.2f} sigma (sigma {sigma:.2e})"

    def draw_picture(inside: int, path: Path) -> None:
        from matplotlib.patches import Circle

        pi, _, sigma = mc.estimate(inside, points)
        x, y = mc.points(seed, 0, min(250, -(-points // mc.LANES)))
        figure = report.figure(5, 5.3)
        axes = figure.subplots()
        hit = x * x + y * y < 1
        axes.scatter(x[hit], y[hit], s=3, color="#b5123e")
        axes.scatter(x[~hit], y[~hit], s=3, color="#2a6f97")
        axes.add_patch(Circle((0, 0), 1, fill=False))
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.set_title(
            f"pi = {pi:.8f} ± {sigma:.0e}\nfrom {points:,} points, of which the first {len(x):,} are shown", fontsize=10
        )
        figure.savefig(path)

    parameters = {"method": "montecarlo", "points": points, "chunks": len(chunks), "seed": seed}
    return Program("pi", [mc.count_inside], compute, describe, summarise, draw_picture, parameters=parameters, check=check)


def chudnovsky(digits: int) -> Program:
    """Return a program that computes the digits of pi. Raises UsageError when they do not fit into this machine's memory."""
    memory.require(BYTES_PER_DIGIT * digits, f"--digits {digits:.2e}")
    from bramble.programs.pi import chudnovsky as series

    ranges = series.ranges(digits)

    def compute(run: Run) -> str:
        begin = time.perf_counter()
        parts = run.map(series.sum_terms, ranges, "terms")
        while len(parts) > 2:
            parts = run.map(series.merge_parts, list(zip(parts[::2], parts[1::2], strict=True)), "merge")
        map_end = time.perf_counter()
        # The rest is serial.
        found = series.fraction_digits(parts, digits)
        run.notes |= {"map_seconds": map_end - begin, "serial_seconds": time.perf_counter() - map_end}
        return found

    def describe(found: str) -> dict[str, Any]:
        return {"tail": found[-10:], "sha256": hashlib.sha256(f"3.{found}".encode()).hexdigest()}

    def summarise(found: str) -> str:
        return f"pi = 3.{found[:20]}..., and the last ten of {digits:,} digits after the point are {found[-10:]}"

    def write_files(found: str, folder: Path) -> None:
        lines = [found[begin : begin + DIGITS_PER_LINE] for begin in range(0, digits, DIGITS_PER_LINE)]
        (folder / "pi.txt").write_text("3.\n" + "\n".join(lines) + "\n", encoding="ascii")

    def draw_picture(found: str, path: Path) -> None:
        counts = Counter(found)
        sigma = (digits * 0.1 * 0.9) ** 0.5
        figure = report.figure(6.4, 4)
        axes = figure.subplots()
        axes.bar(list("0123456789"), [(counts[digit] - digits / 10) / sigma for digit in "0123456789"], color="#2a6f97")
        axes.axhspan(-2, 2, color="0.9", zorder=0)
        axes.set(xlabel="digit", ylabel="frequency above one tenth, in sigmas")
        axes.set_title(f"{digits:,} digits of pi: as frequent as random digits?", fontsize=10)
        figure.savefig(path)

    parameters = {"method": "chudnovsky", "digits": digits, "ranges": len(ranges)}
    return Program("pi", [series.sum_terms], compute, describe, summarise, draw_picture, write_files, parameters, check)


def bbp(position: int, count: int) -> Program:
    """Return a program that computes hexadecimal digits from a position on (1 is the first after the point), by two formulas.

    Raises UsageError when the position is too large.
    """
    if position > MAX_POSITION:
        raise UsageError(f"--position can be at most {MAX_POSITION:.0e}, which takes eight Raspberry Pis about a month")
    from bramble.programs.pi import bbp as formulas

    scale = 4 * (position - 1)

    def compute(run: Run) -> str:
        found = {}
        for name in formulas.FORMULAS:
            total = sum(run.map(formulas.sum_fractions, formulas.chunks(name, scale), name)) + formulas.tail(name, scale)
            found[name] = formulas.digits(total, count)
        if found["bbp"] != found["bellard"]:
            raise ResultError(
                f"two formulas give different digits, {found}, so a node computes wrongly: run `bramble health-check NODE` for "
                "each node, and check its memory and power supply"
            )
        return found["bbp"]

    def summarise(found: str) -> str:
        return f"the hexadecimal digits of pi from position {position:,} on: {found} (two formulas agree)"

    def draw_picture(found: str, path: Path) -> None:
        from matplotlib import colormaps

        figure = report.figure(0.5 * count + 1, 1.6)
        axes = figure.subplots()
        axes.imshow([[int(digit, 16) for digit in found]], cmap=colormaps["viridis"], vmin=0, vmax=15)
        for index, digit in enumerate(found):
            axes.annotate(digit, (index, 0), ha="center", va="center", color="white" if int(digit, 16) < 11 else "black")
        axes.set_yticks([])
        axes.set_xticks([0, count - 1] if count > 1 else [0])
        axes.set_xticklabels([f"{position:,}", f"{position + count - 1:,}"][: min(count, 2)], fontsize=7)
        axes.set_title("pi, hexadecimal", fontsize=9)
        figure.savefig(path)

    parameters = {"method": "bbp", "position": position, "count": count, "formulas": list(formulas.FORMULAS)}
    return Program(
        "pi",
        [formulas.sum_fractions],
        compute,
        lambda found: {"hex": found},
        summarise,
        draw_picture,
        parameters=parameters,
        check=check,
    )


def check(record: dict[str, Any]) -> None:
    """Raise ResultError when the estimate differs from pi by more than chance allows, or the digits from the known ones."""
    if record["method"] == "montecarlo":
        off = abs(record["error"]) / record["sigma"]
        if off >= SIGMAS:
            raise ResultError(
                f"pi = {record['pi']} is {off:.1f} sigma off (limit {SIGMAS}); try another --seed, and if that fails too, "
                "a node computes wrongly: run `bramble health-check NODE` for each node"
            )
    elif record["method"] == "chudnovsky" and (known := KNOWN_TAILS.get(record["digits"])) not in (None, record["tail"]):
        raise ResultError(
            f"the last digits are {record['tail']}, but must be {known}, so a node computes wrongly: "
            "run `bramble health-check NODE` for each node, and check its memory and power supply"
        )
