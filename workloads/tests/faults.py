"""A kernel whose jobs cause faults. Test clusters import it; the end-to-end tests send its source to the client."""

import time


def cause_fault(action: float | str) -> float:
    """Sleep for a number of seconds; `eat` all memory; or `hang` without end. Raises ValueError for anything else."""
    if action == "eat":
        blocks = []
        while True:
            blocks.append(b"x" * (1 << 24))
            time.sleep(0.02)
    while action == "hang":
        time.sleep(0.1)
    time.sleep(float(action))
    return float(action)
