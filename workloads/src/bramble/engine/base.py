"""The interface of all engines."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Self

from bramble.engine import memory
from bramble.engine.outcome import Kernel, Outcome, import_and_prepare

Place = Literal["local", "workstation", "cluster"]


class Engine:
    """A place to compute: `nodes` are the sorted names of its machines; `label` describes it in a few words."""

    nodes: tuple[str, ...]
    label: str
    recorded_seconds: float | None = None
    """Seconds that the jobs took, when their results were computed earlier; else None."""

    def jobs_at_once(self, nodes: Sequence[str] | None = None) -> int:
        """Return how many jobs run at once (on these nodes)."""
        return 1

    def memory(self, nodes: Sequence[str] | None = None) -> int:
        """Return how many bytes of memory each of the jobs that run at once may use (on these nodes)."""
        return memory.available() // self.jobs_at_once(nodes)

    def warm_up(self, kernel: Kernel) -> None:
        """Import the kernel in every worker, so that a timing that starts afterwards does not measure imports.

        A kernel's module may have a function `prepare()` for other work that is done once, such as starting a server.
        """
        import_and_prepare(kernel.__module__)

    def map(self, kernel: Kernel, arguments: Sequence[Any], nodes: Sequence[str] | None = None) -> Iterator[Outcome]:
        """Yield one Outcome per argument as the jobs end; on the cluster, `nodes` restricts the jobs to these nodes.

        Raises ResultError with the node, the argument and the node's traceback as soon as a job raises an exception.
        However the iteration ends, jobs that have not started by then are cancelled.
        """
        raise NotImplementedError

    def close(self) -> None:
        """End the engine's processes and connections."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
