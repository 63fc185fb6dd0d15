"""The primes of an interval: their number, a list of them, twins and gaps."""

KNOWN = {
    10**power: count
    for power, count in enumerate([
        0, 4, 25, 168, 1229, 9592, 78498, 664579, 5761455, 50847534, 455052511,
        4118054813, 37607912018, 346065536839, 3204941750802,
    ])
}  # fmt: skip
"""The number of primes below 1, 10, 100... (OEIS A006880)."""
