"""Products modulo an odd 64-bit number without a division, in compiled code.

P. L. Montgomery, "Modular multiplication without trial division", Mathematics of Computation 44, 1985.
"""

import numpy as np

from bramble.arithmetic.jit import compiled, mulhi


@compiled("uint64(uint64)")
def inverse(n):  # type: ignore[no-untyped-def]
    """Return 1/n modulo 2^64, for odd n."""
    # Newton's iteration: 3n xor 2 is correct in 5 bits, and every step doubles the number of correct bits.
    estimate = (np.uint64(3) * n) ^ np.uint64(2)
    for _ in range(4):
        estimate *= np.uint64(2) - n * estimate
    return estimate


@compiled("uint64(uint64, uint64, uint64, uint64)")
def multiply(a, b, n, inverse):  # type: ignore[no-untyped-def]
    """Return a b / 2^64 mod n, for odd n, a and b below n, where `inverse` is 1/n modulo 2^64."""
    high, rest = mulhi(a, b), mulhi(a * b * inverse, n)
    return high - rest if high >= rest else high - rest + n
