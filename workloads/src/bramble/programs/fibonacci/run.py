"""The program that tests a price series for Fibonacci ratios against surrogates, which the cluster computes."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from bramble import UsageError
from bramble.engine import memory
from bramble.programs.fibonacci import prices
from bramble.programs.fibonacci.swings import (
    BINS,
    CENTRES,
    IS_LEVEL,
    LEVELS,
    PLACEBO,
    THRESHOLDS,
    Batch,
    Counts,
    count_ratios,
    count_surrogates,
    pivots,
)
from bramble.study import report
from bramble.study.program import Program, Run

ALPHA = 0.05
MIN_SURROGATES, MAX_SURROGATES = 99, 10**6
"""The number of surrogates: with fewer than 99 no p-value below 0.01 is possible."""
BATCH, BATCHES = 2000, 64
"""Surrogates of a job (half a second for twenty years of prices), and the smallest number of jobs."""
BYTES_PER_SURROGATE = 1000
"""Memory on this machine: the counts, 72 shares as float64, and temporary arrays."""


def fibonacci(source: str, number: int, seed: int, controls: bool = True) -> Program:
    """Return a program that tests whether ratios at Fibonacci levels are more frequent than by chance.

    Raises UsageError when the prices cannot be used.
    """
    if not MIN_SURROGATES <= number <= MAX_SURROGATES:
        raise UsageError(f"--surrogates must be from {MIN_SURROGATES} to {MAX_SURROGATES}, but is {number}")
    memory.require(number * BYTES_PER_SURROGATE, f"--surrogates {number}")
    series = prices.load_series(source)
    days = len(series.prices)
    tested = {series.name: series.prices}
    if controls:
        spread = float(np.std(np.log(series.growth)))
        tested |= {"random walk": prices.random_walk(days, spread, seed), "planted": prices.planted_prices(days, 0.5, seed)}

    # Outside of `compute`, since the first call of compiled code loads it, which takes noticeable time on a Raspberry Pi.
    observed = {name: count_ratios(values) for name, values in tested.items()}

    def compute(run: Run) -> dict[str, Any]:
        return {name: analyse_series(run, name, values, observed[name], number, seed) for name, values in tested.items()}

    def summarise(answer: dict[str, Any]) -> str:
        return "\n".join(verdict(name, found) for name, found in answer.items())

    def describe(answer: dict[str, Any]) -> dict[str, Any]:
        return {"results": answer}

    def draw_picture(answer: dict[str, Any], path: Path) -> None:
        draw(series, answer[series.name], path)

    parameters = {
        "source": series.name,
        "from": str(series.days[0]),
        "to": str(series.days[-1]),
        "days": days,
        "sha256": hashlib.sha256(series.prices.tobytes()).hexdigest(),
        "surrogates": number,
        "seed": seed,
        "thresholds": THRESHOLDS,
    }
    return Program("fibonacci", [count_surrogates], compute, describe, summarise, draw_picture, parameters=parameters)


def analyse_series(run: Run, name: str, values: np.ndarray, observed: Counts, number: int, seed: int) -> dict[str, Any]:
    """Return the comparison of the shares of ratios at levels with those of surrogates.

    `p` is the p-value of the largest standardised share of all levels and thresholds (max-statistic, P. H. Westfall and
    S. S. Young, 1993): how often chance yields one as large at any level. `placebo_p` is the same for the placebo levels.
    """
    growth = (values[1:] / values[:-1]).tobytes()
    size = min(BATCH, -(-number // BATCHES))
    batches = [Batch(growth, seed, begin, min(begin + size, number)) for begin in range(0, number, size)]
    parts: list[Counts] = run.map(count_surrogates, batches, name)
    return compare_with_chance(observed, parts)


def compare_with_chance(observed: Counts, parts: list[Counts]) -> dict[str, Any]:
    """Return the fields of `analyse_series` from the counts."""
    seen = observed.shares()[..., 0]
    # One part at a time fits into a processor's cache. On a small client this serial step limits the speed-up.
    null = [part.shares() for part in parts]
    number = sum(shares.shape[-1] for shares in null)
    mean = sum(shares.sum(-1) for shares in null) / number
    spread = np.sqrt(sum(((shares - mean[..., None]) ** 2).sum(-1) for shares in null) / number)
    scale = np.where(spread > 0, spread, np.inf)  # ignores levels that no surrogate meets
    z = (seen - mean) / scale
    single = (1 + sum(np.count_nonzero(shares >= seen[..., None], -1) for shares in null)) / (1 + number)

    def family(chosen: np.ndarray) -> tuple[float, float]:
        """Return the p-value of the largest z of the chosen levels, and the z whose p-value is ALPHA."""
        centre, width = mean[:, chosen, None], scale[:, chosen, None]
        largest = np.concatenate([((shares[:, chosen] - centre) / width).max((0, 1)) for shares in null])
        return float((1 + (largest >= z[:, chosen].max()).sum()) / (1 + number)), float(np.quantile(largest, 1 - ALPHA))

    p, limit = family(IS_LEVEL)
    placebo_p, placebo_limit = family(~IS_LEVEL)
    kind, level = np.unravel_index(np.where(IS_LEVEL, z, -np.inf).argmax(), z.shape)
    bins = len(BINS) - 1
    return {
        "p": p,
        "placebo_p": placebo_p,
        "least_single_p": float(single[:, IS_LEVEL].min()),
        "z_limit": limit,
        "placebo_z_limit": placebo_limit,
        "best": {"level": float(CENTRES[level]), "threshold": THRESHOLDS[kind], "z": float(z[kind, level])},
        "ratios": np.frombuffer(observed.ratios, "<u2").tolist(),
        "levels": CENTRES.tolist(),
        "is_level": IS_LEVEL.tolist(),
        "shares": seen.tolist(),
        "null_shares": mean.tolist(),
        "z": z.tolist(),
        "single_p": single.tolist(),
        "histogram": np.frombuffer(observed.histogram, "<i8").reshape(-1, bins).tolist(),
        "null_histogram": sum(np.frombuffer(part.histogram, "<i8").reshape(-1, bins) for part in parts).tolist(),  # type: ignore[union-attr]
    }


def verdict(name: str, found: dict[str, Any]) -> str:
    """Return the conclusion in one line."""
    best = found["best"]
    level = f"level {best['level']:g} among swings of {best['threshold']:.0%} (z = {best['z']:.2f})"
    if found["p"] > ALPHA:
        return (
            f"{name}: no effect. The most frequent is {level}, and {found['p']:.1%} of surrogates have one that is as frequent "
            f"(tested alone, a single level would have had p = {found['least_single_p']:.3f})"
        )
    if found["placebo_p"] <= ALPHA:
        return (
            f"{name}: not Fibonacci. Ratios at levels are more frequent than by chance (p = {found['p']:.3g}), but so are those "
            f"at placebo levels (p = {found['placebo_p']:.3g})"
        )
    return f"{name}: {level} is more frequent than by chance, p = {found['p']:.3g} (placebo levels: {found['placebo_p']:.2g})"


def draw(series: prices.Series, found: dict[str, Any], path: Path) -> None:
    """Draw the prices with their swings and the levels of the largest swing, and the ratios and all levels against chance."""
    red, blue = "#b5123e", "#2a6f97"
    figure = report.figure(8, 9)
    top, middle, bottom = figure.subplots(3, height_ratios=[1.3, 1, 1])
    threshold = THRESHOLDS[-1]
    turns = pivots(series.prices, threshold)
    top.plot(series.days, series.prices, color="0.6", linewidth=0.6)
    top.plot(
        [series.days[turn] for turn in turns], series.prices[turns], color=red, linewidth=0.9, label=f"swings of {threshold:.0%}"
    )
    if len(turns) > 1:
        largest = np.abs(np.diff(series.prices[turns])).argmax()
        start, end = series.prices[turns[largest : largest + 2]]
        for level in LEVELS[:6]:
            top.axhline(end + (start - end) * level, color=blue, linewidth=0.4)
            top.annotate(
                f"{level:g}", (1, end + (start - end) * level), xycoords=("axes fraction", "data"), fontsize=5, color=blue
            )
    top.set(yscale="log", ylabel="price")
    top.set_title(verdict(series.name, found).replace(". ", ".\n", 1).replace(" (tested", "\n(tested"), fontsize=8)
    top.legend(frameon=False, fontsize=7)

    observed, null = (np.sum(found[key], 0) for key in ("histogram", "null_histogram"))
    middle.stairs(observed / max(1, observed.sum()), BINS, fill=True, color="0.8", label="prices")
    middle.stairs(null / max(1, null.sum()), BINS, color=blue, label="surrogates")
    for level in LEVELS:
        middle.axvline(level, color=red, linewidth=0.5)
    for level in PLACEBO:
        middle.axvline(level, color="0.5", linewidth=0.5, linestyle=":")
    middle.set(xscale="log", xlabel="swing / the swing before, all thresholds", ylabel="share")
    middle.set_xticks(LEVELS, [f"{level:g}" for level in LEVELS], fontsize=6)
    middle.minorticks_off()
    middle.legend(frameon=False, fontsize=7)

    z = np.array(found["z"])
    for kind, (threshold, marker) in enumerate(zip(THRESHOLDS, "osD^", strict=True)):
        for chosen, colour in ((IS_LEVEL, red), (~IS_LEVEL, "0.5")):
            bottom.plot(CENTRES[chosen], z[kind][chosen], marker, color=colour, markersize=4)
        bottom.plot([], [], marker, color="k", markersize=4, label=f"{threshold:.0%}")
    bottom.axhline(found["z_limit"], color=red, linewidth=0.8, linestyle="--", label=f"{1 - ALPHA:.0%} of surrogates are below")
    bottom.set(xscale="log", xlabel="level (grey: placebo)", ylabel="more frequent than by chance,\nin standard deviations")
    bottom.set_xticks(LEVELS, [f"{level:g}" for level in LEVELS], fontsize=6)
    bottom.minorticks_off()
    bottom.legend(frameon=False, fontsize=7, ncols=5)
    figure.savefig(path)
