"""How far an image on its way is."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[str, int, int], None]
"""A function that is called with the phase, the bytes done, and how many they are in all (0: unknown)."""
