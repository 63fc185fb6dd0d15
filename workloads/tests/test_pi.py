"""The digits of pi: known ones, those of other programs, and those of one method against another."""

import math
import random
from fractions import Fraction
from pathlib import Path

import flint
import pytest

from bramble import ResultError
from bramble.programs.pi import bbp, chudnovsky, run
from bramble.study import report, runs
from bramble.study.record import write_record

LOCAL_REQUEST = runs.Request(on="local")


def digits(number: int, base: int = 10) -> str:
    parts = [chudnovsky.sum_terms(each) for each in chudnovsky.ranges(math.ceil(number * math.log10(base)))]
    while len(parts) > 2:
        parts = [chudnovsky.merge_parts(pair) for pair in zip(parts[::2], parts[1::2], strict=True)]
    return chudnovsky.fraction_digits(parts, number, base)


@pytest.fixture(scope="module")
def hexadecimal() -> str:
    return digits(100_020, 16).upper()


def test_a_million_digits(tmp_path: Path) -> None:
    request = runs.Request(on="local", report=tmp_path)
    program = run.chudnovsky(10**6)
    answer, record = runs.perform(program, request, report.Screen("-"))
    run.check(record)
    assert answer[-10:] == record["tail"] == "5779458151"
    with flint.ctx.workprec(3_400_000):
        assert flint.arb.pi().str(10**6 + 50, radius=False).startswith(f"3.{answer}")
    assert {"map_seconds", "serial_seconds"} <= record["runs"][0].keys()
    write_record(program, request, answer, record)
    assert (tmp_path / "pi.txt").read_text().replace("\n", "") == f"3.{answer}"
    assert (tmp_path / "pi.png").stat().st_size > 10_000


@pytest.mark.slow
def test_ten_million_digits() -> None:
    assert digits(10**7).endswith("5348955897")


@pytest.mark.parametrize("number", [1, 2, 7, 14, 15, 100, 761, 768, 1001, 20_000])
def test_any_number_of_digits(number: int) -> None:
    """The digits 762 to 767 are six nines in a row."""
    with flint.ctx.workprec(70_000):
        assert digits(number) == flint.arb.pi().str(20_010, radius=False)[2 : 2 + number]


def test_wrong_last_digits_are_reported() -> None:
    with pytest.raises(ResultError, match="must be 5779458151"):
        run.check({"method": "chudnovsky", "digits": 10**6, "tail": "0123456789"})


def digits_at(formula: str, position: int, count: int) -> str:
    scale = 4 * (position - 1)
    return bbp.digits(sum(map(bbp.sum_fractions, bbp.chunks(formula, scale))) + bbp.tail(formula, scale), count)


def test_position_one_is_the_first_after_the_point() -> None:
    """pi = 3.243F6A8885A308D313..."""
    assert runs.perform(run.bbp(1, 14), LOCAL_REQUEST, report.Screen("-"))[0] == "243F6A8885A308"
    assert runs.perform(run.bbp(2, 1), LOCAL_REQUEST, report.Screen("-"))[0] == "4"


@pytest.mark.parametrize("formula", bbp.FORMULAS)
@pytest.mark.parametrize("position", [1, 2, 3, 4, 5, 16, 17, 99, 1000, 99_999, 100_003])
def test_digits_by_position_are_chudnovskys(formula: str, position: int, hexadecimal: str) -> None:
    assert digits_at(formula, position, 16) == hexadecimal[position - 1 : position + 15]


@pytest.mark.parametrize("formula", bbp.FORMULAS)
def test_digits_at_a_million(formula: str) -> None:
    """Bailey, Borwein and Plouffe's own table."""
    assert digits_at(formula, 10**6, 14) == "26C65E52CB4593"


@pytest.mark.slow
def test_digits_at_a_hundred_million() -> None:
    assert digits_at("bellard", 10**8, 14) == "ECB840E21926EC"


@pytest.mark.parametrize("near", [2**29, 2**32, 2**40, run.MAX_POSITION * 2 // 5, run.MAX_POSITION])
@pytest.mark.parametrize("series", [*bbp.FORMULAS["bbp"], *bbp.FORMULAS["bellard"]])
def test_products_beyond_64_bits(series: bbp.Series, near: int) -> None:
    """Terms far out, against Python's own integers: denominators beyond 2^32, so products beyond 2^64."""
    begin = near + random.Random(near).randrange(1000)
    scale = series.step * (begin + 40)
    total = Fraction(0)
    for k in range(begin, begin + 30):
        m = series.a * k + series.b
        sign = -series.sign if series.alternates and k % 2 else series.sign
        total += sign * Fraction(pow(2, scale + series.shift - series.step * k, m), m)
    exact = int(total % 1 * 2**128)
    # The exponents above are small; these are the largest.
    assert (bbp.sum_fractions(bbp.Chunk(series, scale, begin, begin + 30)) - exact + 64) % 2**128 < 128
    far = 4 * run.MAX_POSITION
    m, power = series.a * begin + series.b, far + series.shift - series.step * begin
    if power >= 0:
        exact = (pow(2, power, m) << 128) // m * (-series.sign if series.alternates and begin % 2 else series.sign)
        assert (bbp.sum_fractions(bbp.Chunk(series, far, begin, begin + 1)) - exact) % 2**128 in (0, 2**128 - 1, 1)


def test_formulas_that_differ_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bbp.FORMULAS, "bellard", bbp.FORMULAS["bellard"][1:])
    with pytest.raises(ResultError, match="two formulas give different digits"):
        runs.perform(run.bbp(100, 8), LOCAL_REQUEST, report.Screen("-"))
