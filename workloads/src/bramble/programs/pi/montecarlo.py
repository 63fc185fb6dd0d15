"""The kernel, its chunks and the statistics of the Monte Carlo estimate of pi."""

import math
from typing import NamedTuple

import numpy as np

from bramble.arithmetic.jit import compiled

LANES = 16
"""Generators abreast: a vector unit advances several at once. A part of what a stream is: another number, other points."""
POINTS_PER_SECOND = 400e6
"""On one core of a workstation."""
CHUNK = 256_000_000
"""Points of a default chunk: a fifth of a second on a core of a PC, four on one of four threads that share a fifth of one."""
SLOTS, MAX_CHUNKS = 32, 512
"""Eight nodes of four threads; a default number of chunks is a multiple of the first and at most the second."""
MIN_CHUNK = 1 << 15

MAX_POINTS = 10**18
"""Beyond, 64 bits do not hold the count of a chunk."""


class Chunk(NamedTuple):
    """So many points of one of the independent streams that grow from `seed`."""

    seed: int
    stream: int
    points: int


def chunks(points: int, chunk: int, seed: int) -> list[Chunk]:
    """Cut `points` into chunks of `chunk` and a rest. Its place decides its stream, whoever computes it."""
    return [Chunk(seed, index, min(chunk, points - begin)) for index, begin in enumerate(range(0, points, chunk))]


def default_chunk(points: int) -> int:
    """Points per chunk: near CHUNK, the same number of chunks for every slot, not more than a small scheduler likes."""
    rounds = min(max(1, round(points / CHUNK / SLOTS)), MAX_CHUNKS // SLOTS)
    return max(MIN_CHUNK, -(-points // (rounds * SLOTS)))


def lanes(seed: int, stream: int) -> np.ndarray:
    """The states of a stream's generators: uint64, of shape (2, LANES)."""
    sequence = np.random.SeedSequence(seed, spawn_key=(stream,))  # = .spawn(n)[stream]
    return sequence.generate_state(2 * LANES, np.uint64).reshape(2, LANES)


def count_inside(chunk: Chunk) -> int:
    """How many of a chunk's points lie inside the circle x^2 + y^2 < 1.

    The generators are xoroshiro128+ (D. Blackman and S. Vigna, 2018). All arithmetic is of integers, so the count is the
    same on every processor: x = (2i + 1) / 2^31 is the middle of a cell of a grid so fine that its error (less than 1e-11)
    never shows, and the sum of two squares below 2^62 is inside.
    """
    return int(_inside(lanes(chunk.seed, chunk.stream), *divmod(chunk.points, LANES)))


@compiled("uint64(uint64[:,::1], int64, int64)")
def _inside(state, steps, rest):  # type: ignore[no-untyped-def]
    """Of `steps` points per lane and one more in each of the first `rest` lanes."""
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
    """The coordinates of a stream's first LANES * steps points, by NumPy: for a picture, and to test the kernel."""
    first, second = lanes(seed, stream)
    drawn = np.empty((steps, LANES), np.uint64)
    for step in range(steps):
        drawn[step] = first + second
        second ^= first
        first = (first << 24 | first >> 40) ^ second ^ second << 16
        second = second << 37 | second >> 27
    return tuple((grid & 0x7FFFFFFF | 1) / 2**31 for grid in (drawn.ravel() >> 33, drawn.ravel() >> 2))  # type: ignore[return-value]


def estimate(inside: int, points: int) -> tuple[float, float, float]:
    """Pi, its error, and the standard deviation 4 sqrt(p (1 - p) / n), p = pi/4, of that error: 1.642 / sqrt(n)."""
    share = math.pi / 4
    pi = 4 * inside / points
    return pi, pi - math.pi, 4 * math.sqrt(share * (1 - share) / points)
