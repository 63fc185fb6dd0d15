"""Fibonacci ratios: swings by hand, properties of the bootstrap, power and false alarms, and errors in files."""

import math
from collections import Counter
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bramble import UsageError
from bramble.programs.fibonacci import prices, run, swings
from bramble.study import report, runs
from bramble.study.record import write_record

LOCAL_REQUEST = runs.Request(on="local")


def test_swings_by_hand() -> None:
    values = np.array([100, 103, 110, 108, 112, 100, 101, 99, 107, 106, 130, 120.0])
    assert swings.pivots(values, 0.05).tolist() == [0, 4, 7, 10]
    # 112 - 100, 112 - 99, 130 - 99: ratios 13/12 and 31/13
    counts = swings.count_ratios(values)
    ratios = np.frombuffer(counts.ratios, "<u2")
    assert ratios[2] == 2 == np.frombuffer(counts.histogram, "<i8").reshape(4, -1)[2].sum()


@pytest.mark.parametrize("threshold", swings.THRESHOLDS)
def test_pivots_are_extremes_that_alternate(threshold: float) -> None:
    values = prices.random_walk(3000, 0.015, seed=8)
    turns = swings.pivots(values, threshold)
    assert len(turns) > 20 and (np.diff(turns) > 0).all()
    for before, turn, after in zip(turns, turns[1:], turns[2:], strict=False):
        part = values[before : after + 1]
        assert values[turn] in (part.max(), part.min())
        assert max(values[turn], values[after]) / min(values[turn], values[after]) >= 1 + threshold - 1e-12


@pytest.mark.parametrize(("factor", "hit"), [(0.969, 0), (0.971, 1), (1.029, 1), (1.031, 0)])
@pytest.mark.parametrize("level", [*swings.LEVELS, *swings.PLACEBO])
def test_a_ratio_within_three_percent_is_at_its_level(level: float, factor: float, hit: int) -> None:
    swing = 30 * level * factor
    values = np.array([200.0, 230, 230 - swing, 500])
    hits = np.frombuffer(swings.count_ratios(values).hits, "<u2").reshape(4, -1)[0]
    assert hits[np.flatnonzero(level == swings.CENTRES)[0]] == hit


def test_no_ratio_is_at_two_levels() -> None:
    assert (np.diff(swings._EDGES) > 0).all()
    assert swings.CENTRES[swings.IS_LEVEL].tolist() == list(swings.LEVELS)


def plain_surrogate(growth: list[float], seed: int, number: int) -> list[float]:
    """Return a surrogate, computed with Python's integers."""
    import hashlib

    mask = 2**64 - 1

    def mix(word: int) -> int:
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & mask
        word = (word ^ word >> 27) * 0x94D049BB133111EB & mask
        return word ^ word >> 31

    state = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8], "little")
    state = mix(mix(state + number * 0xD1342543DE82EF95 & mask))
    values, day = [1.0], 0
    for step in range(len(growth)):
        state = state + 0x9E3779B97F4A7C15 & mask
        day = (day + 1) % len(growth)
        if step == 0 or mix(state) < mask // swings.BLOCK:
            state = state + 0x9E3779B97F4A7C15 & mask
            day = mix(state) * len(growth) >> 64
        values.append(values[-1] * growth[day])
    return values


def test_surrogates_are_those_of_plain_integers_in_any_batch() -> None:
    growth = np.exp(np.random.default_rng(4).normal(0, 0.02, 700))
    whole = swings.count_surrogates(swings.Batch(growth.tobytes(), 5, 0, 9))
    parts = [swings.count_surrogates(swings.Batch(growth.tobytes(), 5, *span)) for span in ((0, 2), (2, 9))]
    each = [swings.count_ratios(np.array(plain_surrogate(growth.tolist(), 5, number))) for number in range(9)]
    for several in (parts, each):
        assert np.array_equal(whole.shares(), np.concatenate([one.shares() for one in several], -1))
        ratios = [np.frombuffer(one.ratios, "<u2").reshape(len(swings.THRESHOLDS), -1) for one in (whole, *several)]
        assert np.array_equal(ratios[0], np.hstack(ratios[1:]))
    assert np.array_equal(np.frombuffer(whole.histogram, "<i8"), sum(np.frombuffer(one.histogram, "<i8") for one in each))


def test_bootstrap_is_stationary() -> None:
    """All days are equally frequent, and blocks have a mean of twenty days: 19 times of 20 a day is followed by its successor."""
    days = 400
    growth = [1 + (index + 1) * 1e-6 for index in range(days)]
    number = {factor: index for index, factor in enumerate(growth)}
    drawn: Counter[int] = Counter()

    def nearest(ratio: float) -> float:
        return min(growth, key=lambda each: abs(each - ratio))

    follows = total = 0
    for series in range(30):
        values = plain_surrogate(growth, 1, series)
        order = [number[nearest(b / a)] for a, b in pairwise(values)][:200]
        drawn.update(order)
        follows += sum((a + 1) % days == b for a, b in pairwise(order))
        total += len(order) - 1
    assert abs(follows / total - 0.95) < 5 * math.sqrt(0.95 * 0.05 / total)
    assert len(drawn) > 0.98 * days


def p_of(values: np.ndarray, number: int, seed: int = 0) -> dict:  # type: ignore[type-arg]
    growth = (values[1:] / values[:-1]).tobytes()
    return run.compare_with_chance(swings.count_ratios(values), [swings.count_surrogates(swings.Batch(growth, seed, 0, number))])


def test_a_planted_effect_is_found() -> None:
    found = [p_of(prices.planted_prices(2500, 0.4, seed), 300) for seed in range(8)]
    assert sum(each["p"] <= 0.05 for each in found) >= 7
    assert sum(each["placebo_p"] <= 0.05 for each in found) <= 2
    assert "more frequent than by chance" in run.verdict("planted", found[0])


def test_a_planted_series_without_effect_is_not_found() -> None:
    """Without planted levels, the shape of the series alone must not be found."""
    found = [p_of(prices.planted_prices(2500, 0.0, seed), 200)["p"] for seed in range(20)]
    assert sum(p <= 0.05 for p in found) <= 5


def test_false_alarms_are_as_frequent_as_predicted() -> None:
    """About 10 of 100 random walks have p <= 0.1, and more than 21 only in one of 2000 such tests. The mean of p is about 0.5."""
    found = np.array([p_of(prices.random_walk(1500, 0.012, seed), 199, seed)["p"] for seed in range(100)])
    assert 1 <= (found <= 0.1).sum() <= 21
    assert 0.35 < found.mean() < 0.65


def test_the_whole_program(tmp_path: Path) -> None:
    request = runs.Request(on="local", report=tmp_path)
    program = run.fibonacci("AAPL", 500, 0)
    answer, record = runs.perform(program, request, report.Screen("-"))
    write_record(program, request, answer, record)
    assert record["days"] == 3270 and record["from"] == "2000-03-01"
    assert record["results"]["planted"]["p"] < 0.02 < record["results"]["random walk"]["p"]
    assert (tmp_path / "fibonacci.png").stat().st_size > 50_000
    assert answer == runs.perform(program, request, report.Screen("-"))[0]


def test_the_verdict_without_an_effect() -> None:
    nothing = {"p": 0.84, "placebo_p": 0.5, "least_single_p": 0.054, "best": {"level": 0.618, "threshold": 0.02, "z": 1.9}}
    assert run.verdict("x", nothing).startswith("x: no effect.") and "84.0%" in run.verdict("x", nothing)
    assert "not Fibonacci" in run.verdict("x", nothing | {"p": 0.01, "placebo_p": 0.02})


def table(folder: Path, change: tuple[int, str] | None = None, header: str = "Date,Open,High,Low,Close,Adj Close,Volume") -> Path:
    day, lines = date(2020, 1, 1), [header]
    for index in range(300):
        lines.append(f"{day + timedelta(index)},1,1,1,{100 + index % 7},{50 + index % 7},9")
    if change:
        lines[change[0]] = change[1]
    (folder / "prices.csv").write_text("\n".join(lines) + "\n")
    return folder / "prices.csv"


def test_a_file_of_the_user(tmp_path: Path) -> None:
    series = prices.load_series(str(table(tmp_path)))
    assert series.prices[:3].tolist() == [50, 51, 52]  # the adjusted ones
    assert prices.load_series(str(table(tmp_path, header="Date,Open,High,Low,Close,Other,Volume"))).prices[0] == 100


@pytest.mark.parametrize(
    ("row", "line", "words"),
    [
        (9, "2020-01-09,1,1,1,1,null,9", ["row 10", "'null'", "2020-01-09"]),
        (9, "2020-01-09,1,1,1,1,,9", ["row 10", "''"]),
        (9, "2020-01-09,1,1", ["row 10", "None"]),
        (9, "2020-01-09,1,1,1,1,-3,9", ["row 10", "'-3'", "above 0"]),
        (9, "2020-01-09,1,1,1,1,nan,9", ["row 10", "'nan'"]),
        (9, "2020-01-08,1,1,1,1,1,9", ["row 10", "2020-01-08 comes after 2020-01-08"]),
        (9, "2019-01-08,1,1,1,1,1,9", ["row 10", "2019-01-08 comes after 2020-01-08"]),
        (9, "2020-02-30,1,1,1,1,1,9", ["row 10", "'2020-02-30' is not a date"]),
        (300, "2021-01-08,1,1,1,1,1,9", ["row 301", "no price between 2020-10-25 and 2021-01-08"]),
        (0, "Day,Price", ["row 1", "Date and Close", "Day, Price"]),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, row: int, line: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        prices.load_series(str(table(tmp_path, (row, line))))
    assert all(word in str(caught.value) for word in [*words, "prices.csv"]), caught.value


def test_wrong_requests(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="AAPL, GOOG"):
        run.fibonacci("nobody", 100, 0)
    with pytest.raises(UsageError, match="from 99 to"):
        run.fibonacci("IBM", 10, 0)
    (tmp_path / "few.csv").write_text("Date,Close\n2020-01-01,1\n")
    with pytest.raises(UsageError, match="has 1 prices"):
        run.fibonacci(str(tmp_path / "few.csv"), 100, 0)
    (tmp_path / "binary.csv").write_bytes(b"\xff\x00\xfe")
    with pytest.raises(UsageError, match="cannot be read"):
        run.fibonacci(str(tmp_path / "binary.csv"), 100, 0)
