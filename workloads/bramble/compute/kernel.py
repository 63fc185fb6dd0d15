"""The job, and how long each one sleeps."""

import random
import socket
import time

SHORTEST, LONGEST = 5, 20
"""Seconds."""


def durations(jobs: int, scale: float, seed: int) -> list[float]:
    """Seconds to sleep, one per job: whole numbers from 5 to 20 drawn from `seed`, then times `scale`."""
    draw = random.Random(seed)
    return [draw.randint(SHORTEST, LONGEST) * scale for _ in range(jobs)]


def nap(seconds: float) -> str:
    """Sleep, then tell the name of the host that slept."""
    time.sleep(seconds)
    return socket.gethostname()
