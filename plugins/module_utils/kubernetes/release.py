"""Releases of Kubernetes, identified by their first two numbers."""

from __future__ import annotations

import re


def minor_version(version: str) -> tuple[int, int]:
    """Return (1, 33) for 1.33/stable, v1.33.2 or 1.33. Raises ValueError."""
    found = re.match(r"v?(\d+)\.(\d+)(?!\d)", version)
    if not found:
        raise ValueError(f"{version!r} does not name a release, such as 1.33.")
    return int(found[1]), int(found[2])
