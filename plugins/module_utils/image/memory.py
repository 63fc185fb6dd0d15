"""The memory that a decompressor may use. Sizes are in bytes."""

from __future__ import annotations

import re
import resource

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

MEMINFO = "/proc/meminfo"
MEMORY_SHARE = 0.75  # of the available memory; the rest is for the other programs of this machine
PROGRAM_BYTES = 64 * 2**20  # of the address space, for the decompressor itself, its libraries and its buffers
_ASSUMED_AVAILABLE = 2**30  # without MEMINFO


class TooLittleMemory(BrambleError):
    """A file needs more memory to be decoded than is available. The file can be a good one."""


def available_memory() -> int:
    """Return how much memory a decompressor may use: a share of what is available, within the limit of the address space.

    Source: proc(5), MemAvailable; getrlimit(2), RLIMIT_AS.
    """
    try:
        with open(MEMINFO, encoding="ascii") as file:
            found = re.search(r"^MemAvailable: +(\d+) kB$", file.read(), re.MULTILINE)
    except OSError:
        found = None
    available = int((int(found[1]) * 1024 if found else _ASSUMED_AVAILABLE) * MEMORY_SHARE)
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        available = min(available, soft - PROGRAM_BYTES)
    return max(available, 2**20)


def too_little_memory(name: str, needed: int | None, available: int) -> TooLittleMemory:
    """Return the error for a file that needs more memory; `needed` is None if it is not known how much."""
    need = f"{-(-needed // 2**20):,} MiB of memory" if needed else "more memory than this"
    return TooLittleMemory(
        f"{name} was compressed with a large window: to decode it needs {need}, and {available // 2**20:,} MiB are available. "
        "Close other programs or raise the limit (ulimit -v), or decode the file on a machine with more memory"
    )
