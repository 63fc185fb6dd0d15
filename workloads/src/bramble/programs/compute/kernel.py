"""The job, and how long each one sleeps."""

import random
import socket
import time
from collections.abc import Sequence

SHORTEST, LONGEST = 5, 20
"""Seconds."""


def durations(jobs: int, scale: float, seed: int) -> list[float]:
    """Seconds to sleep, one per job: whole numbers from 5 to 20 drawn from `seed`, then times `scale`."""
    draw = random.Random(seed)
    return [draw.randint(SHORTEST, LONGEST) * scale for _ in range(jobs)]


def shortest_makespan(durations: Sequence[float], slots: int) -> float:
    """When the last job ends if nobody could arrange them better: no schedule of jobs that are not cut is below this.

    The largest of: the longest job; the work shared evenly; two of the first slots + 1 jobs, as these do not all begin at once
    (R. L. Graham, "Bounds on multiprocessing timing anomalies", SIAM J. Appl. Math. 17(2), 1969).
    """
    longest = sorted(durations, reverse=True)
    pair = longest[slots - 1] + longest[slots] if len(longest) > slots else 0.0
    return max(longest[0], sum(longest) / slots, pair)


def sleep_and_report_host(seconds: float) -> str:
    """Sleep, then tell the name of the host that slept."""
    time.sleep(seconds)
    return socket.gethostname()
