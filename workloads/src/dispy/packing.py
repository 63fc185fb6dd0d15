"""Pickle what a computation needs: installed modules by name, the script's own functions and classes by value."""

import functools
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle

from dispy import node

INSTALLED = tuple(f"{sysconfig.get_path(name)}/" for name in ("stdlib", "purelib", "platlib"))
"""Folders of modules that the nodes also have."""


def pack(computation: Callable[..., Any], depends: Iterable[Any], setup: Any, cleanup: Any) -> bytes:
    """Return a pickled computation for the nodes. Raises FileNotFoundError, and TypeError if something cannot be pickled."""
    files: dict[str, bytes] = {}
    names: dict[str, Any] = {}
    for each in depends:
        if inspect.ismodule(each) or isinstance(each, str):
            path = Path(each) if isinstance(each, str) else Path(str(each.__file__))
            if not path.is_file():
                raise FileNotFoundError(f"depends= names {path}, which is not a file")
            files[path.name] = path.read_bytes()
        else:
            base = each.func if isinstance(each, functools.partial) else each
            named = base if hasattr(base, "__name__") else type(base)
            names[named.__name__] = named
    cleanup = cleanup if callable(cleanup) else None
    modules = {each.__name__ for each in depends if inspect.ismodule(each)}
    with by_value([computation, setup, cleanup, *names.values()], modules):
        return node.pack(files, computation, names, setup, cleanup)


@contextmanager
def by_value(objects: Iterable[Any], sent: Iterable[str] = ()) -> Iterator[None]:
    """Pickle functions and classes of the script's own modules by value within this context.

    Modules that are installed, or `sent` as files, are pickled by name, since the nodes have them.
    """
    known = {*sent, *cloudpickle.list_registry_pickle_by_value()}
    added = []
    for each in objects:
        module = sys.modules.get(getattr(getattr(each, "func", each), "__module__", None) or "")
        path = getattr(module, "__file__", None)
        if module and path and module.__name__ not in known and not path.startswith(INSTALLED):
            cloudpickle.register_pickle_by_value(module)
            known.add(module.__name__)
            added.append(module)
    try:
        yield
    finally:
        for module in added:
            cloudpickle.unregister_pickle_by_value(module)
