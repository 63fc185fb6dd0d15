"""Products modulo an odd number of 64 bits, without a division, in compiled code.

P. L. Montgomery, "Modular multiplication without trial division", Mathematics of Computation 44, 1985.
"""

import numpy as np

from bramble.arithmetic.jit import compiled, mulhi


@compiled("uint64(uint64)")
def inverse(n):  # type: ignore[no-untyped-def]
    """1/n modulo 2^64, for odd n."""
    # Newton: 3n xor 2 is right in 5 bits, and every step doubles them.
    found = (np.uint64(3) * n) ^ np.uint64(2)
    for _ in range(4):
        found *= np.uint64(2) - n * found
    return found


@compiled("uint64(uint64, uint64, uint64, uint64)")
def multiply(a, b, n, inverse):  # type: ignore[no-untyped-def]
    """a b / 2^64 mod n, for odd n, a and b below n, and `inverse` 1/n modulo 2^64."""
    high, rest = mulhi(a, b), mulhi(a * b * inverse, n)
    return high - rest if high >= rest else high - rest + n
