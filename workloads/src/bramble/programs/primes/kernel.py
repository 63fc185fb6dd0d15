"""The intervals of numbers, which are cut to equal cost, and what a job finds in one."""

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from bramble.programs.primes import sieve

GROWTH = 1 / 12
"""Larger numbers need more primes to sieve by: the measured cost of a number grows by 1.6 from 1e9 to 1e12, by 3.2 to 1e15."""
NUMBERS_PER_JOB = 3e9
"""Numbers near 1e9 in one job: about 0.6 s."""
MIN_JOBS, MAX_JOBS = 64, 2048
LISTED_NUMBERS_PER_JOB = 10**8
"""Numbers in a job that lists its primes: it needs at most 50 MB of memory."""


class Interval(NamedTuple):
    """The numbers begin <= n < end. `gaps` and `listed` request the gaps and a list of the primes, besides their number.

    `twins`, unless 0, requests the number of pairs below it. It is two beyond `end` where another interval follows, so
    that a pair across the cut belongs to the first interval.
    """

    begin: int
    end: int
    twins: int = 0
    gaps: bool = False
    listed: bool = False


class Found(NamedTuple):
    """What was found in an interval: the number of primes and of twins, the first and the last prime (0 without any).

    `gaps`: by distance between neighbours, how often it occurs and after which prime first. `steps`: the distances in order,
    as uint16, so that a prime of a list takes two bytes (the largest distance below 2^64 is 1550).
    """

    primes: int
    twins: int = 0
    first: int = 0
    last: int = 0
    gaps: dict[int, tuple[int, int]] = {}  # noqa: RUF012 a NamedTuple is not changed
    steps: bytes = b""


def intervals(begin: int, end: int, twins: bool = False, gaps: bool = False, listed: bool = False) -> list[Interval]:
    """Return intervals of equal cost, enough of them to keep a cluster busy, but none shorter than a sieve is efficient for."""
    power = 1 + GROWTH
    low, high = float(begin) ** power, float(end) ** power
    jobs = (high - low) / (power * 1e9**GROWTH) / NUMBERS_PER_JOB * (4 if gaps or listed else 1)
    at_most = (end - begin) // max(10**6, math.isqrt(end) // 4)
    number = max(1, min(max(MIN_JOBS, math.ceil(jobs)), MAX_JOBS, at_most))
    if gaps or listed:
        number = max(number, -(-(end - begin) // LISTED_NUMBERS_PER_JOB))
    cuts = [round((low + (high - low) * index / number) ** (1 / power)) for index in range(1, number)]
    cuts = sorted({begin, end, *(cut for cut in cuts if begin < cut < end)})
    return [Interval(low, high, min(high + 2, end) * twins, gaps, listed) for low, high in pairwise(cuts)]


def find_primes(interval: Interval) -> Found:
    """Return what an interval contains."""
    begin, end = interval.begin, interval.end
    pairs = sieve.twins(begin, interval.twins)
    if not (interval.gaps or interval.listed):
        return Found(sieve.count(begin, end), pairs)
    primes = sieve.primes(begin, end)
    if not len(primes):
        return Found(0, pairs)
    steps = np.diff(primes).astype(np.int64)
    gaps = {}
    if interval.gaps:
        counts = np.bincount(steps)
        at = np.zeros_like(counts)
        at[steps[::-1]] = np.arange(len(steps))[::-1]  # reversed, so that the first place of each distance is written last
        gaps = {int(size): (int(counts[size]), int(primes[at[size]])) for size in np.flatnonzero(counts)}
    listed = steps.astype("<u2").tobytes() if interval.listed else b""
    return Found(len(primes), pairs, int(primes[0]), int(primes[-1]), gaps, listed)


def merge_found(parts: list[Found]) -> Found:
    """Return the results of neighbouring intervals, given in order, merged into one; `steps` are not merged."""
    gaps: dict[int, tuple[int, int]] = {}
    last = 0
    for part in parts:
        if not part.first:
            continue
        across = {part.first - last: (1, last)} if last else {}
        for found in (across, part.gaps):
            for size, (number, at) in found.items():
                before, where = gaps.get(size, (0, at))
                gaps[size] = (before + number, min(where, at))
        last = part.last
    first = next((part.first for part in parts if part.first), 0)
    return Found(sum(part.primes for part in parts), sum(part.twins for part in parts), first, last, dict(sorted(gaps.items())))
