"""What all places to compute have in common."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Self

from bramble.engine import memory
from bramble.engine.outcome import Kernel, Outcome, import_and_prepare

Place = Literal["local", "workstation", "cluster"]


class Engine:
    """A place to compute: `nodes` are the names of its machines, sorted; `label` says what it is, in a few words."""

    nodes: tuple[str, ...]
    label: str
    recorded_seconds: float | None = None
    """Seconds that the jobs took, if that was not just now."""

    def slots(self, nodes: Sequence[str] | None = None) -> int:
        """How many jobs run at once here (on these nodes)."""
        return 1

    def memory(self, nodes: Sequence[str] | None = None) -> int:
        """Bytes that each of the jobs that run at once may take here (on these nodes)."""
        return memory.available() // self.slots(nodes)

    def warm_up(self, kernel: Kernel) -> None:
        """Have every worker import the kernel, so that a timing that starts now does not measure imports.

        A kernel's module may have a function `prepare()`, which does what else is done once (such as to compile).
        """
        import_and_prepare(kernel.__module__)

    def map(self, kernel: Kernel, arguments: Sequence[Any], nodes: Sequence[str] | None = None) -> Iterator[Outcome]:
        """Yield one Outcome per argument, as they finish; `nodes` restricts the jobs to these (on the cluster).

        Raises ResultError with the node, the argument and the node's traceback as soon as a job raises. However the
        iteration ends, jobs that have not started by then are cancelled.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Let go of processes and connections."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
