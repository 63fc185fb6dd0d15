"""The kernel that sleeps, and how long each job sleeps."""

import random
import socket
import time
from collections.abc import Sequence

SHORTEST, LONGEST = 5, 20
"""Seconds that a job sleeps at least and at most, with scale 1."""


def durations(jobs: int, scale: float, seed: int) -> list[float]:
    """Return the seconds to sleep for each job: random whole numbers from 5 to 20 by `seed`, multiplied by `scale`."""
    generator = random.Random(seed)
    return [generator.randint(SHORTEST, LONGEST) * scale for _ in range(jobs)]


def shortest_makespan(durations: Sequence[float], jobs_at_once: int) -> float:
    """Return a lower bound of the seconds until the last job ends, for any schedule that does not split jobs.

    It is the largest of: the longest job; all seconds divided by `jobs_at_once`; the two shortest of the `jobs_at_once` + 1
    longest jobs, because two of these must run one after the other (R. L. Graham, "Bounds on multiprocessing timing
    anomalies", SIAM J. Appl. Math. 17(2), 1969).
    """
    longest = sorted(durations, reverse=True)
    pair = longest[jobs_at_once - 1] + longest[jobs_at_once] if len(longest) > jobs_at_once else 0.0
    return max(longest[0], sum(longest) / jobs_at_once, pair)


def sleep_and_report_host(seconds: float) -> str:
    """Sleep, then return the name of the host that slept."""
    time.sleep(seconds)
    return socket.gethostname()
