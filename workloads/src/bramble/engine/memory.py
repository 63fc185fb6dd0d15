"""The memory of this machine, so that a request that does not fit is refused before it starts."""

from pathlib import Path

from bramble import UsageError


def available() -> int:
    """Return the bytes that programs can still allocate on this machine, as Linux estimates them (proc_meminfo(5))."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def require(byte_count: int, purpose: str) -> None:
    """Raise UsageError, with both numbers, when this machine has fewer than `byte_count` bytes available for a purpose."""
    if byte_count > (free := available()):
        raise UsageError(
            f"{purpose} needs about {byte_count / 1e9:.3g} GB of memory, and {free / 1e9:.3g} GB are available on this machine; "
            "request less"
        )
