"""How one job is run, and how it ended."""

import importlib
import pickle
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bramble import ResultError, __version__

Kernel = Callable[[Any], Any]


@dataclass(frozen=True)
class Outcome:
    """How one job ended: its index in the arguments, and either a result or, in `lost`, the reason why there is none.

    `node` is where it ended (of a lost job: where it was last, if that is known). `seconds` is the time inside the
    kernel, by the clock of `node`; `finished_after` the seconds from the start of the map until the end of the job was
    noticed, by the clock of this machine. `retried` names the nodes that had the job before and from which it was
    resubmitted: those whose worker was lost, or restarted because of another job, while it had this one (started or
    not). A node may be in it more than once.
    """

    index: int
    result: Any = None
    node: str = ""
    seconds: float = 0.0
    finished_after: float = 0.0
    lost: str | None = None
    retried: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobResult:
    """What a worker returns for a job: the result or the text of a traceback, the worker's name, and seconds in the kernel."""

    result: Any
    traceback: str | None
    worker: str
    seconds: float

    def to_outcome(self, index: int, argument: Any, node: str, finished_after: float, retried: Sequence[str] = ()) -> Outcome:
        """Return the outcome of the job. Raises ResultError when the kernel raised an exception."""
        if self.traceback is not None:
            raise ResultError(f"job {index} failed on {node} with argument {argument!r}:\n{self.traceback.rstrip()}")
        return Outcome(index, self.result, node, self.seconds, finished_after, retried=tuple(retried))


def call_kernel(kernel: Kernel, argument: Any, worker: str) -> JobResult:
    """Run and time one job; an exception becomes the text of its traceback, since not every exception can be pickled."""
    begin = time.perf_counter()
    result, text = None, None
    try:
        result = kernel(argument)
    except Exception:
        text = traceback.format_exc()
    return JobResult(result, text, worker, time.perf_counter() - begin)


def call_on_worker(job: bytes) -> JobResult:
    """Run a job on a worker. It is a pickled kernel and argument, so that the scheduler need not import what is in it."""
    from distributed import get_worker

    kernel, argument = pickle.loads(job)
    return call_kernel(kernel, argument, str(get_worker().name))


def import_and_prepare(module: str) -> str:
    """Import a kernel's module and call its `prepare()`, if it has one; return the version of this package."""
    prepare = getattr(importlib.import_module(module), "prepare", None)
    if prepare:
        prepare()
    return __version__
