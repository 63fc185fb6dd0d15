"""The kernel, its chunks and the statistics of the Monte Carlo estimate of pi."""

import math
from typing import NamedTuple

import numpy as np

from bramble.arithmetic.jit import compiled

LANES = 16
"""Generators side by side, so that a vector unit advances several at once. Another number would give other points."""
POINTS_PER_SECOND = 400e6
"""The speed of one core of a workstation."""
CHUNK = 256_000_000
"""Points of a default chunk: 0.2 seconds on a core of a PC, or 4 seconds on one of four threads that share a fifth of a core."""
THREADS, MAX_CHUNKS = 32, 512
"""The threads of eight nodes with four each; the default number of chunks is a multiple of THREADS, at most MAX_CHUNKS."""
MIN_CHUNK = 1 << 15
"""The smallest number of points of a default chunk."""

MAX_POINTS = 10**18
"""The largest number of points for which 64 bits hold the count of a chunk."""


class Chunk(NamedTuple):
    """A number of points of one of the independent random streams of `seed`."""

    seed: int
    stream: int
    points: int


def chunks(points: int, chunk: int, seed: int) -> list[Chunk]:
    """Return `points` cut into chunks of `chunk` points and a rest. The index of a chunk determines its random stream."""
    return [Chunk(seed, index, min(chunk, points - begin)) for index, begin in enumerate(range(0, points, chunk))]


def default_chunk(points: int) -> int:
    """Return the points per chunk: near CHUNK, with the same number of chunks for every thread and at most MAX_CHUNKS."""
    rounds = min(max(1, round(points / CHUNK / THREADS)), MAX_CHUNKS // THREADS)
    return max(MIN_CHUNK, -(-points // (rounds * THREADS)))


def lanes(seed: int, stream: int) -> np.ndarray:
    """Return the states of a stream's generators: uint64, of shape (2, LANES)."""
    sequence = np.random.SeedSequence(seed, spawn_key=(stream,))  # = .spawn(n)[stream]
    return sequence.generate_state(2 * LANES, np.uint64).reshape(2, LANES)


def count_inside(chunk: Chunk) -> int:
    """Return how many of a chunk's points lie inside the circle x^2 + y^2 < 1.

    The generators are xoroshiro128+ (D. Blackman and S. Vigna, 2018). All arithmetic uses integers, so the count is the
    same on every processor: x = (2i + 1) / 2^31 is the middle of a cell of a grid whose error is less than 1e-11, and a
    point is inside if the sum of the two squares is below 2^62.
    """
    return int(_inside(lanes(chunk.seed, chunk.stream), *divmod(chunk.points, LANES)))


@compiled("uint64(uint64[:,::1], int64, int64)")
def _inside(state, steps, rest):  # type: ignore[no-untyped-def]
    """Return the number of points inside, of `steps` points per lane and one more in each of the first `rest` lanes."""
    u = np.uint64
    first, second = state[0], state[1]
    outside = np.zeros(LANES, np.uint64)
    for step in range(steps + 1):
        if step == steps:
            before = outside.copy()
        for lane in range(LANES):
            a, b = first[lane], second[lane]
            bits = a + b
            b ^= a
            first[lane] = ((a << u(24)) | (a >> u(40))) ^ b ^ (b << u(16))
            second[lane] = (b << u(37)) | (b >> u(27))
            x = (bits >> u(33)) | u(1)
            y = ((bits >> u(2)) & u(0x7FFFFFFF)) | u(1)
            outside[lane] += (x * x + y * y) >> u(62)
    return u(steps * LANES + rest) - before[rest:].sum() - outside[:rest].sum()


def points(seed: int, stream: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates of a stream's first LANES * steps points, by NumPy: for the picture, and to test the kernel."""
    first, second = lanes(seed, stream)
    drawn = np.empty((steps, LANES), np.uint64)
    for step in range(steps):
        drawn[step] = first + second
        second ^= first
        first = (first << 24 | first >> 40) ^ second ^ second << 16
        second = second << 37 | second >> 27
    return tuple((grid & 0x7FFFFFFF | 1) / 2**31 for grid in (drawn.ravel() >> 33, drawn.ravel() >> 2))  # type: ignore[return-value]


def estimate(inside: int, points: int) -> tuple[float, float, float]:
    """Return pi, its error, and the error's standard deviation: 4 sqrt(p (1 - p) / n) = 1.642 / sqrt(n), with p = pi/4."""
    share = math.pi / 4
    pi = 4 * inside / points
    return pi, pi - math.pi, 4 * math.sqrt(share * (1 - share) / points)
