"""How much memory there is, so that what does not fit is refused before it starts."""

from pathlib import Path

from bramble import UsageError


def available() -> int:
    """Bytes that programs can still have on this machine, as Linux estimates it (proc(5))."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def require(byte_count: int, purpose: str) -> None:
    """Raise UsageError, with the numbers, when this machine has not so many bytes for something."""
    if need > (there := available()):
        raise UsageError(f"{what} needs about {need / 1e9:.3g} GB of memory, {there / 1e9:.3g} GB are free here; ask for less")
