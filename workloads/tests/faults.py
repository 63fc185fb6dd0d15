"""A kernel whose jobs do what jobs should not. Test clusters find it; the end-to-end tests send it along."""

import time


def misbehave(what: float | str) -> float:
    """Sleep for so many seconds; or `eat` all memory, or `hang` for ever. Raises ValueError for anything else."""
    if what == "eat":
        eaten = []
        while True:
            eaten.append(b"x" * (1 << 24))
            time.sleep(0.02)
    while what == "hang":
        time.sleep(0.1)
    time.sleep(float(what))
    return float(what)
