"""Primes: known counts, two sieves against each other and against trial division, and primecount."""

import math
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bramble import ResultError, UsageError
from bramble.programs.primes import KNOWN, kernel, run, sieve
from bramble.study import report, runs

LIBRARY = sieve.library()


@pytest.fixture(params=["library", "own"])
def both(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with libprimesieve and without it."""
    if request.param == "own":
        monkeypatch.setattr(sieve, "library", lambda: None)
    else:
        assert LIBRARY, "libprimesieve is not installed: apt-get install libprimesieve-dev"
    return str(request.param)


def perform(begin: int, end: int, **options: bool) -> tuple[tuple[kernel.Found, list[kernel.Found]], dict]:  # type: ignore[type-arg]
    answer, record = runs.perform(run.primes(begin, end, **options), runs.Request(on="local"), report.Screen("-"))
    run.check(record)
    return answer, record


def is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize("begin", range(8))
def test_the_first_numbers(begin: int) -> None:
    for end in range(begin + 1, 40):
        some = [n for n in range(begin, end) if is_prime(n)]
        assert sieve.primes(begin, end).tolist() == some
        assert sieve.count(begin, end) == len(some)
        assert sieve.twins(begin, end) == sum(n + 2 in some for n in some)


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize("exponent", [6, 7, 8])
def test_known_numbers(exponent: int) -> None:
    assert perform(0, 10**exponent)[1]["count"] == KNOWN[10**exponent]


def test_a_milliard() -> None:
    assert perform(0, 10**9)[1]["count"] == 50847534
    assert perform(10**12, 10**12 + 10**9)[1]["count"] == 36190991


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [10, 11])
def test_larger_known_numbers(exponent: int) -> None:
    assert perform(0, 10**exponent)[1]["count"] == KNOWN[10**exponent]


@pytest.mark.usefixtures("both")
def test_twins_and_gaps_of_ten_million(tmp_path: Path) -> None:
    """OEIS A007508 and A005250: the first gap of 154 is after 4652353."""
    answer, record = perform(0, 10**7, twins=True, gaps=True, listed=True)
    assert record["twins"] == 58980
    assert max(map(int, record["gaps"])) == 154 and record["gaps"]["154"] == {"count": 1, "first": 4652353}
    assert record["gaps"]["1"] == {"count": 1, "first": 2} and record["gaps"]["2"] == {"count": 58980, "first": 3}
    assert sum(gap["count"] for gap in record["gaps"].values()) == 664578
    run.write_primes(answer[1], tmp_path / "primes")
    primes = np.loadtxt(tmp_path / "primes", np.int64)
    assert len(primes) == 664579 and primes[-1] == 9999991 and np.array_equal(primes, sieve.primes(0, 10**7))


@settings(max_examples=30, deadline=None)
@given(begin=st.integers(0, 10**14), width=st.integers(1, 3 * 10**6))
def test_two_sieves_agree(begin: int, width: int) -> None:
    end = begin + width
    with pytest.MonkeyPatch.context() as patch:
        library = sieve.count(begin, end), sieve.twins(begin, end), sieve.primes(begin, end)
        patch.setattr(sieve, "library", lambda: None)
        own = sieve.count(begin, end), sieve.twins(begin, end), sieve.primes(begin, end)
    assert library[:2] == own[:2] and np.array_equal(library[2], own[2])


@given(begin=st.integers(0, 2**63), width=st.integers(1, 2**63), twins=st.booleans(), gaps=st.booleans())
def test_intervals_cover_every_number_once(begin: int, width: int, twins: bool, gaps: bool) -> None:
    end = begin + min(width, 10**11)
    jobs = kernel.intervals(begin, end, twins, gaps)
    assert (jobs[0].begin, jobs[-1].end) == (begin, end)
    assert all(one.end == two.begin and one.begin < one.end for one, two in pairwise(jobs))
    assert all(job.twins == (min(job.end + 2, end) if twins else 0) for job in jobs)


def test_intervals_cost_the_same() -> None:
    """Intervals of larger numbers are narrower, by the exponent of 1/12."""
    widths = [job.end - job.begin for job in kernel.intervals(0, 10**12)]
    assert len(widths) >= 256 and widths[0] > 1.3 * widths[-1]
    assert widths == sorted(widths, reverse=True)


def test_cuts_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A twin or a gap across a cut is counted once."""
    whole = kernel.find_primes(kernel.Interval(0, 10**6, 10**6, gaps=True))
    cuts = [0, 1, 2, 3, 4, 5, 6, 7, 100, 101, 102, 104, 1000, 1326, 1329, 1362, 500_000, 10**6]  # 1327 to 1361 is a gap
    jobs = [kernel.Interval(a, b, min(b + 2, 10**6), gaps=True) for a, b in pairwise(cuts)]
    parts = kernel.merge_found([kernel.find_primes(job) for job in jobs])
    assert parts == whole._replace(gaps=dict(sorted(whole.gaps.items())))


def test_a_picture(tmp_path: Path) -> None:
    program = run.primes(10**6, 3 * 10**6, gaps=True)
    answer, _ = runs.perform(program, runs.Request(on="local"), report.Screen("-"))
    assert program.draw_picture
    program.draw_picture(answer, tmp_path / "primes.png")
    assert (tmp_path / "primes.png").stat().st_size > 10_000


@pytest.mark.skipif(not shutil.which("primecount"), reason="needs primecount (Debian package primecount-bin)")
def test_primecount_counts_the_same() -> None:
    for begin, end in [(0, 10), (2, 3), (3, 4), (10**13, 10**13 + 10**7)]:
        assert run.primecount(begin, end) == perform(begin, end)[1]["count"]


@pytest.mark.parametrize("wrong", [{"count": 78497}, {"primecount": 3}])
def test_a_wrong_count_is_reported(wrong: dict[str, int]) -> None:
    record = {"begin": 0, "end": 10**6, "count": 78498, "primecount": None} | wrong
    with pytest.raises(ResultError, match="primes were counted, "):
        run.check(record)


def test_wrong_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no numbers from 10 up to 10"):
        run.primes(10, 10)
    with pytest.raises(UsageError, match="too large"):
        run.primes(0, 2**64)
    with pytest.raises(UsageError, match="GB of memory"):
        run.primes(0, 10**15, listed=True)
    monkeypatch.setattr(sieve, "library", lambda: None)
    with pytest.raises(UsageError, match="libprimesieve-dev"):
        run.primes(0, 10**17)
