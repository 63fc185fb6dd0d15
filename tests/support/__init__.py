"""Helpers that the tests, the benches and the demo share. scripts/bootstrap puts the repository on the path of its Python."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The repository."""
