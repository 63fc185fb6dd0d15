"""clock_set sets only a clock that is wrong. Every test is a dry run, because the clock of this machine must not change."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

Run = Callable[..., dict[str, Any]]


def test_correct_clock_is_not_set(run_module: Run) -> None:
    result = run_module("clock_set", {"epoch": time.time() - 2})
    assert not result["changed"] and -60 < result["offset"] < 0


@pytest.mark.parametrize("years", [-56, 3])
def test_wrong_clock_would_be_set(run_module: Run, years: int) -> None:
    """The time of the control machine counts, whether the clock is behind or ahead."""
    right = 1_700_000_000.0
    result = run_module("clock_set", {"epoch": right}, check=True)
    assert result["changed"] and result["diff"]["after"] == "2023-11-14 22:13:20 UTC\n"
    assert abs(result["offset"] - (right - time.time())) < 60
    assert run_module("clock_set", {"epoch": time.time() + years * 31_557_600}, check=True)["offset"] * years > 0
    assert not run_module("clock_set", {"epoch": right, "tolerance": 1e12}, check=True)["changed"]
