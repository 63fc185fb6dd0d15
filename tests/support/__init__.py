"""Helpers that tests, benchmarks and the demo share. scripts/bootstrap adds the repository to the import path of .venv."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The folder of the repository."""
