"""Pi's digits: the Chudnovsky series by binary splitting (D. and G. Chudnovsky, 1988; Haible and Papanikolaou, 1998).

    1 / pi = 12 sum (-1)^k (6k)! (13591409 + 545140134 k) / ((3k)! (k!)^3 640320^(3k + 3/2))

A range [a, b) of terms becomes three integers P, Q, T; two neighbours merge into one. In the end
pi = 426880 sqrt(10005) Q / T.
"""

import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import gmpy2
from gmpy2 import mpfr, mpz

A, B, C3_24 = 13591409, 545140134, 640320**3 // 24
DIGITS_PER_TERM = math.log10(C3_24 / 72)  # 14.18
GUARD_DIGITS = 10
"""Digits that are computed beyond the requested ones."""
GUARD_BITS = 64
DIGITS_AT_ONCE = 2000
"""Digits that are converted to text at once."""
LEAF = 8
"""Terms that are summed one by one: for smaller ranges, Python's calls cost more than the arithmetic."""
RANGES = 64
"""The largest number of ranges of terms, a power of two: two for every thread of eight nodes with four threads."""


class Range(NamedTuple):
    """The terms from `begin` up to `end`. The last range of all needs no P."""

    begin: int
    end: int
    last: bool


class Part(NamedTuple):
    """P, Q and T of a range as bytes of gmpy2.to_binary, which can be pickled. The P of the last part of all is not used."""

    p: bytes
    q: bytes
    t: bytes


def ranges(digits: int) -> list[Range]:
    """Return the terms that this number of digits needs, cut into ranges of equal size."""
    terms = int((digits + GUARD_DIGITS) / DIGITS_PER_TERM) + 2
    count = min(RANGES, 1 << (terms // 1000).bit_length())
    cuts = [terms * index // count for index in range(count + 1)]
    return [Range(begin, end, end == terms) for begin, end in pairwise(cuts)]


def sum_terms(terms: Range) -> Part:
    """Return P, Q and T of a range."""
    with gmpy2.context(allow_release_gil=True):
        return _pack(*_split(*terms))


def merge_parts(parts: tuple[Part, Part]) -> Part:
    """Return two neighbouring parts, given in order, merged into one."""
    with gmpy2.context(allow_release_gil=True):
        left, right = map(_unpack, parts)
        return _pack(*_join(left, right))


def _split(begin: int, end: int, last: bool) -> tuple[mpz, mpz, mpz]:
    """Return P, Q and T of a range by binary splitting."""
    if end - begin > LEAF:
        middle = (begin + end) // 2
        return _join(_split(begin, middle, False), _split(middle, end, last))
    p, q, t = 1, 1, 0
    for k in range(begin, end):
        if k == 0:
            t = A
            continue
        p *= (6 * k - 5) * (2 * k - 1) * (6 * k - 1)
        factor = C3_24 * k**3
        q *= factor
        t = t * factor + (A + B * k) * (-p if k % 2 else p)
    return mpz(p), mpz(q), mpz(t)


def _join(left: tuple[mpz, mpz, mpz], right: tuple[mpz, mpz, mpz]) -> tuple[mpz, mpz, mpz]:
    """Return P, Q and T of two neighbouring ranges together."""
    return left[0] * right[0], left[1] * right[1], right[1] * left[2] + left[0] * right[2]


def _pack(*numbers: mpz) -> Part:
    """Return numbers in a form that can be sent."""
    return Part(*map(gmpy2.to_binary, numbers))


def _unpack(part: Part) -> tuple[mpz, mpz, mpz]:
    """Return the numbers of a part."""
    return tuple(map(gmpy2.from_binary, part))


def fraction_digits(parts: list[Part], digits: int, base: int = 10) -> str:
    """Return the first `digits` digits of pi after the point, truncated, from the one or two parts that have all terms.

    This is the serial end of the computation: the last merge, a square root, a division and the change of base. The last
    merge is rounded, since P, Q and T have three times the length of the digits by now and P T is small against Q T.
    """
    bits = math.ceil((digits + GUARD_DIGITS) * math.log2(base)) + 4
    with gmpy2.context(precision=bits):
        if len(parts) == 1:
            _, q, t = map(mpfr, _unpack(parts[0]))
        else:
            (p1, q1, t1), (_, q2, t2) = map(_unpack, parts)
            with gmpy2.context(precision=bits // 2 + 64):  # p1 / q1 is below 10^-(digits / 2)
                small = mpfr(p1) * mpfr(t2)
            q, t = mpfr(q1) * mpfr(q2), mpfr(q2) * mpfr(t1) + small
        pi = gmpy2.sqrt(mpfr(10005)) * (426880 * q) / t
        scaled = mpz(gmpy2.floor(gmpy2.mul_2exp(pi - 3, bits)))
    text: list[str] = []
    _append_digits(scaled, bits, digits, base, cache(lambda number: mpz(base) ** number), text)
    return "".join(text)


def _append_digits(fraction: mpz, bits: int, digits: int, base: int, power: Callable[[int], mpz], text: list[str]) -> None:
    """Append the digits of fraction / 2^bits to a text: the first half from its upper bits, the second from the remainder.

    This takes a fifth less time than mpz.digits, which divides. What is truncated affects the last digit only with a
    probability of 2^-GUARD_BITS.
    """
    if digits <= DIGITS_AT_ONCE:
        text.append((fraction * power(digits) >> bits).digits(base).zfill(digits))
        return
    half = digits // 2
    rest = gmpy2.f_mod_2exp(fraction * power(half), bits)
    for part, number in ((fraction, half), (rest, digits - half)):
        enough = min(bits, math.ceil(number * math.log2(base)) + GUARD_BITS)
        _append_digits(part >> bits - enough, enough, number, base, power, text)
