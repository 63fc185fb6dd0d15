"""Loads a plugin by its file, as Ansible does."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def load(path: Path) -> Any:
    """A plugin, as a Python module with a name of its own."""
    spec = importlib.util.spec_from_file_location(f"bramble_{path.parent.name}_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
