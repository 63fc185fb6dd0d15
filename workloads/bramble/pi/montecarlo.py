"""The kernel, its chunks and the statistics of the Monte Carlo estimate of pi."""

import math
from typing import NamedTuple

import numpy as np

BATCH = 1 << 15
"""Points per inner step: 288 KiB of buffers per thread. With smaller ones threads wait for the GIL, not for numbers."""
CHUNK = 4_000_000
"""Points of a default chunk: about half a second on one of four threads that share a fifth of a core."""
SLOTS, MOST_CHUNKS = 32, 512
"""Eight nodes of four threads; a default number of chunks is a multiple of the first and at most the second."""

MOST_POINTS = 10**13
"""Beyond, the float32 grid would show: its spacing of 2^-24 shifts pi by less than 2.4e-7, half a sigma here."""


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
    rounds = min(max(1, round(points / CHUNK / SLOTS)), MOST_CHUNKS // SLOTS)
    return max(BATCH, -(-points // (rounds * SLOTS)))


def count_inside(chunk: Chunk) -> int:
    """How many of a chunk's points lie inside the circle x^2 + y^2 < 1.

    Coordinates are float32 from PCG64 (M. O'Neill, 2014) and every operation is one of IEEE 754, so that the count is
    the same on every processor. Memory is allocated once, and NumPy lets go of the GIL in each step: threads share a
    process without waiting for each other.
    """
    sequence = np.random.SeedSequence(chunk.seed, spawn_key=(chunk.stream,))  # = .spawn(n)[stream]
    generator = np.random.Generator(np.random.PCG64(sequence))
    buffer, mask = np.empty(2 * BATCH, np.float32), np.empty(BATCH, np.bool_)
    inside = 0
    for begin in range(0, chunk.points, BATCH):
        size = min(BATCH, chunk.points - begin)
        points, hits = buffer[: 2 * size], mask[:size]
        x, y = points[:size], points[size:]
        generator.random(dtype=np.float32, out=points)
        np.multiply(points, points, out=points)
        np.add(x, y, out=x)
        np.less(x, 1, out=hits)
        inside += int(np.count_nonzero(hits))
    return inside


def estimate(inside: int, points: int) -> tuple[float, float, float]:
    """Pi, its error, and the standard deviation 4 sqrt(p (1 - p) / n), p = pi/4, of that error: 1.642 / sqrt(n)."""
    share = math.pi / 4
    pi = 4 * inside / points
    return pi, pi - math.pi, 4 * math.sqrt(share * (1 - share) / points)
