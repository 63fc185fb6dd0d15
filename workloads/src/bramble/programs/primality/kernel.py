"""Three tests of primality for numbers below 2^64, and how many numbers of a range pass one.

The powers are taken with Montgomery's multiplication: 64 x 64 bits have 128, and a processor's remainder of those is not to
be had here.
"""

from typing import NamedTuple

import numpy as np
from numba import uint64

from bramble.arithmetic.jit import compiled
from bramble.arithmetic.montgomery import inverse, multiply

METHODS = ("naive", "fermat", "miller-rabin")
WITNESSES = np.array([2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37], np.uint64)
"""With these, Miller and Rabin's test errs nowhere below 3.18e23 (J. Sorenson and J. Webster, "Strong pseudoprimes to twelve
prime bases", Mathematics of Computation 86, 2017)."""
FERMAT = 4
"""How many of them Fermat's test tries: more do not help against Carmichael's numbers."""


class Chunk(NamedTuple):
    """The numbers from `lower` to `upper`, both included, and how to test them."""

    method: str
    lower: int
    upper: int


_ONE = np.uint64(1)


@compiled("boolean(uint64, int64)")
def passes(n, method):  # type: ignore[no-untyped-def]  # noqa: PLR0911, PLR0912  one test after the other
    """Whether n passes: method 0 trial division, 1 Fermat, 2 Miller and Rabin."""
    if n < 4 or n % 2 == 0:
        return n in (2, 3)
    if method == 0:
        divisor = uint64(3)
        while divisor <= n // divisor:
            if n % divisor == 0:
                return False
            divisor += uint64(2)
        return True
    inverse_n = inverse(n)
    one = (uint64(0) - n) % n  # 2^64, which stands for 1
    odd, twos = n - _ONE, 0
    while method == 2 and odd % 2 == 0:
        odd >>= _ONE
        twos += 1
    for index in range(FERMAT if method == 1 else len(WITNESSES)):
        if n % WITNESSES[index] == 0:
            return n == WITNESSES[index]
        base = uint64(0)
        for _ in range(WITNESSES[index]):  # base = witness x one, mod n
            base = base - (n - one) if base >= n - one else base + one
        power, rest = one, odd
        while rest:
            if rest & _ONE:
                power = multiply(power, base, n, inverse_n)
            base = multiply(base, base, n, inverse_n)
            rest >>= _ONE
        if power in (one, n - one) and (method == 2 or power == one):
            continue
        if method == 1:
            return False
        for _ in range(twos - 1):
            power = multiply(power, power, n, inverse_n)
            if power == n - one:
                break
        else:
            return False
    return True


@compiled("int64(uint64, uint64, int64)")
def _count(lower, upper, method):  # type: ignore[no-untyped-def]
    found = 0
    n = lower
    while True:
        found += passes(n, method)
        if n == upper:
            return found
        n += _ONE


def count(chunk: Chunk) -> int:
    """How many numbers of a chunk pass its test."""
    return int(_count(np.uint64(chunk.lower), np.uint64(chunk.upper), METHODS.index(chunk.method)))


def is_prime(number: int) -> bool:
    """Whether a number below 2^64 is prime."""
    return bool(passes(np.uint64(number), 2))
