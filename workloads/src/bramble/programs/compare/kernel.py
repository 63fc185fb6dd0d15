"""The description of a machine, as a job on it returns it."""

import os
import platform
from pathlib import Path
from typing import Any


def describe(_: object) -> dict[str, Any]:
    """Return model, architecture, cores, memory (bytes), kernel and Python version of this machine. The argument is ignored."""
    try:
        model = Path("/proc/device-tree/model").read_text(encoding="utf-8").strip("\0\n ")
    except OSError:  # not a Raspberry Pi
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "model": model,
        "architecture": platform.machine(),
        "cores": os.cpu_count() or 1,
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
