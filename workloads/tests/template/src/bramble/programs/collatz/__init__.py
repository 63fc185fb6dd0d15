"""The lengths of Collatz sequences: n becomes n / 2 or 3n + 1, until it is 1."""

from typing import NamedTuple


class Interval(NamedTuple):
    """The starts from `lower` to `upper`, both included."""

    lower: int
    upper: int


def steps(start: int) -> int:
    """Return the number of steps from a start down to 1."""
    count = 0
    while start != 1:
        start = start // 2 if start % 2 == 0 else 3 * start + 1
        count += 1
    return count


def longest(interval: Interval) -> tuple[int, int]:
    """Return the largest number of steps in an interval, and the first start that takes them. This is the kernel of a job."""
    most, start = max((steps(start), -start) for start in range(interval.lower, interval.upper + 1))
    return most, -start
