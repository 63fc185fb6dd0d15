"""The objects that scripts get: jobs, nodes and the cluster's status."""

import itertools
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple


class DispyJob:
    """A job: its arguments, its status and its result. Calling it waits for its end and returns the result.

    Times are seconds since 1970, `start_time` and `end_time` by the node's clock. `exception` is the text of a traceback.
    """

    Created, Running, ProvisionalResult, Cancelled, Terminated, Abandoned, Finished = range(5, 12)
    _numbers = itertools.count(1)

    def __init__(self, job_id: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.id = job_id or next(self._numbers)
        self.result: Any = None
        self.stdout: str | None = None
        self.stderr: str | None = None
        self.exception: str | None = None
        self.submit_time = time.time()
        self.start_time: float | None = None
        self.end_time: float | None = None
        self.status = DispyJob.Created
        self.ip_addr: str | None = None
        self.finish = threading.Event()
        self._args, self._kwargs = args, kwargs
        self._uid: str | None = None
        """Its name in the cluster's JobAccount, until it has ended."""

    def __call__(self, clear: bool = False) -> Any:
        self.finish.wait()
        if clear:
            self.finish.clear()
        return self.result

    def __lt__(self, other: "DispyJob") -> bool:
        return self.submit_time < other.submit_time


class DispyNode:
    """A node, the jobs that it has finished, and the bytes of their arguments (`tx`) and results (`rx`)."""

    Initialized, Closed, AvailInfo = 4, 16, 17

    def __init__(self, ip_addr: str, name: str, cpus: int) -> None:
        self.ip_addr, self.name, self.cpus, self.avail_cpus = ip_addr, name, cpus, cpus
        self.busy = self.jobs_done = self.tx = self.rx = 0
        self.cpu_time, self.update_time, self.avail_info = 0.0, 0.0, None


class NodeAllocate:
    """The name of a node, or of several with `*`. CPUs, dependencies and setup arguments are accepted and ignored."""

    def __init__(
        self, host: str, port: int | None = None, cpus: int = 0, depends: Sequence[Any] = (), setup_args: Any = ()
    ) -> None:
        self.host, self.port, self.cpus = host, port, cpus


class ClusterStatus(NamedTuple):
    """The nodes and the number of jobs that have not ended."""

    nodes: list[DispyNode]
    jobs_pending: int
