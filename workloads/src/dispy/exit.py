"""Close a script's clusters when the script ends."""

import atexit
import sys
from collections.abc import Callable
from types import TracebackType

_closers: list[Callable[..., bool]] = []


def close_at_exit(close: Callable[..., bool]) -> None:
    """Register the `close` of a cluster: at the end of the script it waits for jobs; after Ctrl-C or an error it kills them."""
    _closers.append(close)
    if len(_closers) > 1:
        return
    atexit.register(lambda: [each() for each in _closers])
    previous_hook = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        for each in _closers:
            each(terminate=True)
        if issubclass(kind, KeyboardInterrupt):
            print("dispy: stopped; the jobs are cancelled", file=sys.stderr)
        else:
            previous_hook(kind, error, trace)

    sys.excepthook = hook
