"""Loads what has no import statement: a plugin by its name, a script of a role by its file."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType


def plugin(kind: str, name: str) -> ModuleType:
    """A plugin of the collection, such as plugin("modules", "card_write")."""
    return importlib.import_module(f"ansible_collections.bramble.cluster.plugins.{kind}.{name}")


def load(path: Path) -> ModuleType:
    """A script, as a Python module with a name of its own."""
    spec = importlib.util.spec_from_file_location(f"bramble_{path.parent.name}_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
