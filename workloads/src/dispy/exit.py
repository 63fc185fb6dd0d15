"""The end of a script is the end of its clusters."""

import atexit
import sys
from collections.abc import Callable
from types import TracebackType

_closers: list[Callable[..., bool]] = []


def close_at_exit(close: Callable[..., bool]) -> None:
    """Close a cluster with the script: wait for its jobs, or kill them if somebody stopped it or it failed."""
    _closers.append(close)
    if len(_closers) > 1:
        return
    atexit.register(lambda: [each() for each in _closers])
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        for each in _closers:
            each(terminate=True)
        if issubclass(kind, KeyboardInterrupt):
            print("dispy: stopped; the jobs are cancelled", file=sys.stderr)
        else:
            before(kind, error, trace)

    sys.excepthook = hook
