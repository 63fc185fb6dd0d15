"""Load Python code that cannot be imported by a statement: a plugin by its name, a script of a role by its path."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType


def load_plugin(kind: str, name: str) -> ModuleType:
    """Return the Python module of a plugin, such as load_plugin("modules", "card_write")."""
    return importlib.import_module(f"ansible_collections.bramble.cluster.plugins.{kind}.{name}")


def load_script(path: Path) -> ModuleType:
    """Return a script as a Python module with a unique name."""
    spec = importlib.util.spec_from_file_location(f"bramble_{path.parent.name}_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
