"""Hexadecimal digits of pi at a position, without the digits before it (Bailey, Borwein and Plouffe 1997; Bellard 1997).

Both formulas are sums of (-1)^k 2^(c - s k) / (a k + b) with odd denominators m. The fraction of 2^e / m needs only
2^e modulo m. With R = 2^64 and X = 2^e R mod m, which is what Montgomery's multiplication computes (P. L. Montgomery,
1985), the first 64 bits of that fraction are X (-1/m) modulo R: no division, exact for any m below 2^63.
"""

from fractions import Fraction
from typing import NamedTuple

import numpy as np

from bramble.arithmetic.jit import compiled
from bramble.arithmetic.montgomery import inverse, multiply

TERMS = 1_000_000
"""Terms of a chunk: about a third of a second. Chunks are smaller or larger to keep their number within the next two limits."""
MIN_CHUNKS, MAX_CHUNKS = 64, 512
BITS = 128
"""Bits of the sum. Terms are truncated to them: the error of a million million terms together is below 2^-87."""


class Series(NamedTuple):
    """A series: the sum over k of sign (-1)^(k alternates) 2^(shift - step k) / (a k + b)."""

    sign: int
    alternates: bool
    shift: int
    step: int
    a: int
    b: int


FORMULAS = {
    # 4/(8k+1) - 2/(8k+4) - 1/(8k+5) - 1/(8k+6), over 16^k
    "bbp": [
        Series(1, False, 2, 4, 8, 1),
        Series(-1, False, -1, 4, 2, 1),
        Series(-1, False, 0, 4, 8, 5),
        Series(-1, False, -1, 4, 4, 3),
    ],
    # -2^5/(4k+1) - 1/(4k+3) + 2^8/(10k+1) - 2^6/(10k+3) - 2^2/(10k+5) - 2^2/(10k+7) + 1/(10k+9), over 2^6 (-1024)^k
    "bellard": [
        Series(-1, True, -1, 10, 4, 1),
        Series(-1, True, -6, 10, 4, 3),
        Series(1, True, 2, 10, 10, 1),
        Series(-1, True, 0, 10, 10, 3),
        Series(-1, True, -4, 10, 10, 5),
        Series(-1, True, -4, 10, 10, 7),
        Series(1, True, -6, 10, 10, 9),
    ],
}


class Chunk(NamedTuple):
    """The terms from `begin` up to `end` of a series, times 2^scale: none has a negative power of two."""

    series: Series
    scale: int
    begin: int
    end: int


def chunks(formula: str, scale: int) -> list[Chunk]:
    """Return chunks of all terms whose power of two is not negative, for all series of a formula."""
    terms = {series: max(0, (scale + series.shift) // series.step + 1) for series in FORMULAS[formula]}
    total = sum(terms.values())
    size = max(1, min(TERMS, total // MIN_CHUNKS), total // MAX_CHUNKS)
    return [Chunk(series, scale, begin, min(begin + size, end)) for series, end in terms.items() for begin in range(0, end, size)]


def sum_fractions(chunk: Chunk) -> int:
    """Return the sum of a chunk's terms modulo 1, in units of 2^-BITS."""
    series = chunk.series
    high, low = _sum(series.alternates, series.step, series.a, series.b, chunk.scale + series.shift, chunk.begin, chunk.end)
    return series.sign * (int(high) << 64 | int(low)) % (1 << BITS)


def tail(formula: str, scale: int) -> int:
    """Return the sum of the few terms with negative powers of two, in units of 2^-BITS."""
    total = Fraction(0)
    for series in FORMULAS[formula]:
        k = max(0, (scale + series.shift) // series.step + 1)
        while (power := scale + series.shift - series.step * k) > -BITS - 8:
            sign = -series.sign if series.alternates and k % 2 else series.sign
            total += Fraction(sign, (series.a * k + series.b) << -power)
            k += 1
    return int(total * (1 << BITS))


def digits(total: int, count: int) -> str:
    """Return the first `count` hexadecimal digits of a sum's fractional part; the sum is in units of 2^-BITS."""
    return f"{total % (1 << BITS) >> BITS - 4 * count:0{count}X}"


@compiled("uint64(uint64, uint64)")
def _twice(x, m):  # type: ignore[no-untyped-def]
    """Return 2x mod m, for x below m."""
    x <<= np.uint64(1)
    return x - m if x >= m else x


@compiled("UniTuple(uint64, 2)(boolean, int64, int64, int64, int64, int64, int64)")
def _sum(alternates, step, a, b, top, begin, end):  # type: ignore[no-untyped-def]
    """Return the sum of 2^(top - step k) / (a k + b) modulo 1, alternating or not, as its first and its second 64 bits."""
    one = np.uint64(1)
    high = low = np.uint64(0)
    highest = one << np.uint64(62)
    for k in range(begin, end):
        m = np.uint64(a * k + b)
        inverse_m = inverse(m)
        unit = (np.uint64(0) - m) % m  # 2^64 mod m
        radix = _twice(unit, m)
        for _ in range(6):
            radix = multiply(radix, radix, m, inverse_m)
        # From the highest bit of the exponent on: square, and double where the bit is one.
        exponent = np.uint64(top - step * k)
        while highest > exponent:
            highest >>= one
        x, bit = unit, highest
        while bit:
            x = multiply(x, x, m, inverse_m)
            if exponent & bit:
                x = _twice(x, m)
            bit >>= one
        first = -x * inverse_m
        second = -multiply(x, radix, m, inverse_m) * inverse_m
        if alternates and k & 1:
            high -= first
            high -= np.uint64(low < second)
            low -= second
        else:
            low += second
            high += first
            high += np.uint64(low < second)
    return high, low
