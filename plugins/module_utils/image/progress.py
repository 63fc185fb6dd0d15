"""The type of functions that report the progress of downloading, verifying and decoding an image."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[str, int, int], None]
"""A function that is called with the phase, the bytes done, and the bytes in total (0: unknown)."""
