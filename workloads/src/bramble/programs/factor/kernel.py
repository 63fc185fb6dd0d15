"""Search an interval for a divisor."""

from typing import NamedTuple

import numpy as np
from numba import uint64

from bramble.arithmetic.jit import compiled


class Interval(NamedTuple):
    """The candidates for a divisor of `number`: the odd numbers from `upper` down to `lower`, both odd and included."""

    number: int
    lower: int
    upper: int


@compiled("uint64(uint64, uint64, uint64)")
def _divisor(number, lower, upper):  # type: ignore[no-untyped-def]
    """Return the largest divisor from `lower` to `upper` of the same parity as `upper`, or 0."""
    candidate = upper
    while candidate >= lower:
        if number % candidate == 0:
            return candidate
        candidate -= uint64(2)
    return uint64(0)


def divisor(interval: Interval) -> int:
    """Return the largest divisor in the interval, or 0."""
    return int(_divisor(*(np.uint64(number) for number in interval)))
