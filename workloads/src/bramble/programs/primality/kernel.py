"""Three primality tests for numbers below 2^64, and the count of the numbers in a range that pass one.

The powers use Montgomery's multiplication, because compiled code here has no remainder of a 128-bit product.
"""

from typing import NamedTuple

import numpy as np
from numba import uint64

from bramble.arithmetic.jit import compiled
from bramble.arithmetic.montgomery import inverse, multiply

METHODS = ("naive", "fermat", "miller-rabin")
WITNESSES = np.array([2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37], np.uint64)
"""With these, the test of Miller and Rabin is correct below 3.18e23 (J. Sorenson and J. Webster, "Strong pseudoprimes to twelve
prime bases", Mathematics of Computation 86, 2017)."""
FERMAT_WITNESSES = 4
"""How many of the witnesses Fermat's test uses: more do not help against Carmichael numbers."""


class Chunk(NamedTuple):
    """The numbers from `lower` to `upper`, both included, and how to test them."""

    method: str
    lower: int
    upper: int


_ONE = np.uint64(1)


@compiled("boolean(uint64, int64)")
def passes(n, method):  # type: ignore[no-untyped-def]  # noqa: PLR0911, PLR0912  one test after the other
    """Return whether n passes a test: method 0 is trial division, 1 Fermat, 2 Miller and Rabin."""
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
    one = (uint64(0) - n) % n  # 2^64 mod n, which is 1 in Montgomery's form
    odd, twos = n - _ONE, 0
    while method == 2 and odd % 2 == 0:
        odd >>= _ONE
        twos += 1
    for index in range(FERMAT_WITNESSES if method == 1 else len(WITNESSES)):
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
    """Return how many numbers from `lower` to `upper` pass a test."""
    found = 0
    n = lower
    while True:
        found += passes(n, method)
        if n == upper:
            return found
        n += _ONE


def count(chunk: Chunk) -> int:
    """Return how many numbers of a chunk pass its test."""
    return int(_count(np.uint64(chunk.lower), np.uint64(chunk.upper), METHODS.index(chunk.method)))


def is_prime(number: int) -> bool:
    """Return whether a number below 2^64 is prime."""
    return bool(passes(np.uint64(number), 2))
