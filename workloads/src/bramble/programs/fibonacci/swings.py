"""Swings of prices, the ratios of neighbouring swings, and the same of surrogates: the same days in random order."""

import hashlib
import math
from typing import NamedTuple

import numpy as np

from bramble.arithmetic.jit import compiled, mulhi

LEVELS = (0.236, 0.382, 0.5, 0.618, 0.786, 1.0, 1.272, 1.618, 2.618)
PLACEBO = tuple(math.sqrt(low * high) for low, high in zip(LEVELS, (*LEVELS[1:], 4.236), strict=True))
"""Levels that no trader uses: the geometric mean of two neighbouring levels."""
TOLERANCE = 0.03
"""A ratio is at a level when it differs by at most this share of the level. No ratio is at two levels."""
THRESHOLDS = (0.02, 0.03, 0.05, 0.08)
"""By what share a price must turn back for a new swing to begin."""
BLOCK = 20
"""The mean length of the blocks of the bootstrap, in days."""
BINS = np.geomspace(0.1, 10, 97)
"""Edges of the histogram of ratios."""

_ALL_LEVELS = sorted([*LEVELS, *PLACEBO])
IS_LEVEL = np.array([level in LEVELS for level in _ALL_LEVELS])
CENTRES = np.array(_ALL_LEVELS)
_EDGES = np.array([edge for level in _ALL_LEVELS for edge in (level * (1 - TOLERANCE), level * (1 + TOLERANCE))])


class Batch(NamedTuple):
    """Surrogates `begin` up to `end` of a series, given by the growth of its prices from day to day (float64 as bytes)."""

    growth: bytes
    seed: int
    begin: int
    end: int


class Counts(NamedTuple):
    """How many ratios are at each level, and how many there are.

    `hits` and `ratios` are uint16 as bytes, of shapes (thresholds, levels, series) and (thresholds, series). `histogram` is
    int64 as bytes, of shape (thresholds, bins): the ratios of all series together.
    """

    hits: bytes
    ratios: bytes
    histogram: bytes

    def shares(self) -> np.ndarray:
        """Return the share of ratios at each level, of shape (thresholds, levels, series)."""
        ratios = np.frombuffer(self.ratios, "<u2").reshape(len(THRESHOLDS), 1, -1)
        shares: np.ndarray = np.frombuffer(self.hits, "<u2").reshape(len(THRESHOLDS), len(CENTRES), -1) / np.maximum(ratios, 1)
        return shares


def count_ratios(prices: np.ndarray) -> Counts:
    """Return the counts of one series of prices."""
    hits, ratios, histogram = _empty_counts(1)
    _count_ratios(prices, np.array(THRESHOLDS), _EDGES, BINS, hits[0], ratios[0], histogram)
    return _pack(hits, ratios, histogram)


def count_surrogates(batch: Batch) -> Counts:
    """Return the counts of surrogates: the same days in another order, by the stationary bootstrap (Politis and Romano, 1994).

    Each surrogate has random numbers of its own, whichever batch it is in. The code uses no function that two processors
    could round differently.
    """
    growth = np.frombuffer(batch.growth).copy()  # the compiled code does not accept a read-only array
    hits, ratios, histogram = _empty_counts(batch.end - batch.begin)
    # A NumPy seed sequence per surrogate would take as long as the surrogate itself.
    key = np.frombuffer(hashlib.sha256(str(batch.seed).encode()).digest()[:8], "<u8")[0]
    _count_surrogates(growth, key, batch.begin, np.array(THRESHOLDS), _EDGES, BINS, hits, ratios, histogram)
    return _pack(hits, ratios, histogram)


def _empty_counts(series: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return zeros for the counts of a number of series: hits, ratios and the histogram."""
    kinds = len(THRESHOLDS)
    return (
        np.zeros((series, kinds, len(CENTRES)), np.uint16),
        np.zeros((series, kinds), np.uint16),
        np.zeros((kinds, len(BINS) - 1), np.int64),
    )


def _pack(hits: np.ndarray, ratios: np.ndarray, histogram: np.ndarray) -> Counts:
    """Return the counts of series as bytes, with the same byte order on all nodes."""
    by_level = np.moveaxis(hits, 0, -1)
    return Counts(by_level.astype("<u2").tobytes(), ratios.T.astype("<u2").tobytes(), histogram.astype("<i8").tobytes())


def pivots(prices: np.ndarray, threshold: float) -> np.ndarray:
    """Return the days (indices) on which a swing ended and the next began; the last swing has no end yet."""
    found = np.empty(len(prices), np.int64)
    return found[: _write_pivots(prices, threshold, found)]


@compiled("int64(float64[::1], float64, int64[::1])")
def _write_pivots(prices, threshold, found):  # type: ignore[no-untyped-def]
    """Write the pivots and return how many there are: extremes from which the price turned back by the threshold."""
    number, direction = 0, 0
    high = low = 0
    for day in range(1, len(prices)):
        price = prices[day]
        if direction >= 0 and price > prices[high]:
            high = day
        if direction <= 0 and price < prices[low]:
            low = day
        if direction >= 0 and price <= prices[high] * (1 - threshold):
            found[number] = high
            number, direction, low = number + 1, -1, day
        elif direction <= 0 and price >= prices[low] * (1 + threshold):
            found[number] = low
            number, direction, high = number + 1, 1, day
    return number


@compiled("int64(float64[::1], float64)")
def _edges_up_to(edges, value):  # type: ignore[no-untyped-def]
    """Return how many edges are not above a value. numpy.searchsorted takes ten times as long to compile."""
    low, high = 0, len(edges)
    while low < high:
        middle = (low + high) >> 1
        if edges[middle] <= value:
            low = middle + 1
        else:
            high = middle
    return low


@compiled("void(float64[::1], float64[::1], float64[::1], float64[::1], uint16[:,::1], uint16[::1], int64[:,::1])")
def _count_ratios(prices, thresholds, edges, bins, hits, ratios, histogram):  # type: ignore[no-untyped-def]
    """Count the ratios of neighbouring swings: at each level, in total, and in the bins of the histogram."""
    found = np.empty(len(prices), np.int64)
    for kind in range(len(thresholds)):
        number = _write_pivots(prices, thresholds[kind], found)
        for at in range(number - 2):
            before = abs(prices[found[at + 1]] - prices[found[at]])
            ratio = abs(prices[found[at + 2]] - prices[found[at + 1]]) / before
            ratios[kind] += 1
            place = _edges_up_to(edges, ratio)
            if place & 1:
                hits[kind, place >> 1] += 1
            place = _edges_up_to(bins, ratio)
            if 0 < place < len(bins):
                histogram[kind, place - 1] += 1


@compiled("uint64(uint64)")
def _mix(word):  # type: ignore[no-untyped-def]
    """Return the mixed bits of a word, by splitmix64."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


@compiled(
    "void(float64[::1], uint64, int64, float64[::1], float64[::1], float64[::1], uint16[:,:,::1], uint16[:,::1], int64[:,::1])",
)
def _count_surrogates(growth, key, begin, thresholds, edges, bins, hits, ratios, histogram):  # type: ignore[no-untyped-def]
    """Count the ratios of surrogates of `growth`: add them to hits, ratios and histogram."""
    days = len(growth)
    prices = np.empty(days + 1)
    jump = np.uint64(0xFFFFFFFFFFFFFFFF) // np.uint64(BLOCK)
    for series in range(len(hits)):
        # splitmix64 (Steele, Lea and Flood, 2014); each surrogate starts with its own state.
        state = key + np.uint64(begin + series) * np.uint64(0xD1342543DE82EF95)
        for _ in range(2):
            state = _mix(state)
        prices[0] = 1.0
        day: int | np.int64 = 0
        for step in range(days):
            state += np.uint64(0x9E3779B97F4A7C15)
            day += 1
            if step == 0 or _mix(state) < jump:
                state += np.uint64(0x9E3779B97F4A7C15)
                day = np.int64(mulhi(_mix(state), np.uint64(days)))
            elif day == days:
                day = 0
            prices[step + 1] = prices[step] * growth[day]
        _count_ratios(prices, thresholds, edges, bins, hits[series], ratios[series], histogram)
