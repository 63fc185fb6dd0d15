"""Collatz: the longest sequences below powers of ten (OEIS A284668 and A284669)."""

import pytest

from bramble import ResultError
from bramble.programs.collatz import Interval, longest
from bramble.programs.collatz.workload import check, collatz
from bramble.study.report import Screen
from bramble.study.runs import Request, perform


def test_known_starts() -> None:
    assert longest(Interval(1, 9)) == (19, 9)
    assert longest(Interval(1, 99)) == (118, 97)


def test_the_whole_program() -> None:
    answer, record = perform(collatz("999"), Request(on="local"), Screen("-"))
    assert answer == (178, 871)
    check(record)
    with pytest.raises(ResultError, match="not 179"):
        check(record | {"steps": 179})
