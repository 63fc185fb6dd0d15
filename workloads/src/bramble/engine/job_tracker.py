"""The account of jobs over dask: each that is opened ends exactly once, finished or lost."""

import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from bramble.engine.connection import Connection

if TYPE_CHECKING:
    from distributed import Future

MAX_ATTEMPTS = 3
"""How often jobs are submitted when all of their nodes, or the scheduler, went away and came back."""


@dataclass(eq=False, kw_only=True)
class Job:
    """A job that has not ended: its name in the account; of its last attempt dask's future, and the only workers for it, if any.

    A program that counts on a job may add to it what it needs.
    """

    name: str
    attempts: int = 0
    future: "Future[Any] | None" = None
    addresses: Collection[str] | None = None
    ended_at: float = 0.0
    """When its future was known to have ended, by time.monotonic()."""

    def has_worker(self, workers: Collection[str]) -> bool:
        """Return whether one of these workers, by address, may run the job as it was submitted."""
        return bool(workers) if self.addresses is None else not set(workers).isdisjoint(self.addresses)

    @property
    def is_forgotten(self) -> bool:
        """Whether the scheduler that had the job went away."""
        future = self.future  # another thread may end the job meanwhile
        return future is not None and future.cancelled()


AnyJob = TypeVar("AnyJob", bound=Job)


class JobTracker(Generic[AnyJob]):
    """Jobs on their way through dask.

    `open` holds all that have not ended, by name; `submitted` those of them that dask has. A job's future may end although
    the job does not: its result was on a node that died, or the scheduler went away. Whoever keeps the account decides then
    whether it is submitted again or lost. Threads may submit, collect and end jobs at the same time.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.unfinished: dict[str, AnyJob] = {}
        self.submitted: dict[str, AnyJob] = {}
        self.is_closed = False
        self._ended: queue.SimpleQueue[tuple[AnyJob, Future[Any], float] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()

    def add_job(self, job: AnyJob) -> None:
        """Open a job."""
        self.unfinished[job.name] = job

    def submit(
        self,
        jobs: Sequence[AnyJob],
        function: Callable[..., Any],
        columns: Sequence[Sequence[Any]],
        key: str | list[str],
        addresses: Collection[str] | None,
    ) -> None:
        """Hand jobs to dask, for all workers or only for these: a column for each argument of the function."""
        # One call for all jobs. Even placement needs no help: a job without data goes to the worker with the least
        # backlog, so 16 jobs on 4 or 8 idle nodes are 4 or 2 for each, and work stealing evens out the end.
        workers = None if addresses is None else list(addresses)
        futures = self.connection.client.map(function, *columns, key=key, workers=workers, pure=False)
        for job, future in zip(jobs, futures, strict=True):
            job.attempts += 1
            job.addresses = addresses
            self._watch(job, future)

    def _watch(self, job: AnyJob, future: "Future[Any]") -> None:
        job.future = future
        with self._lock:
            if job.name in self.unfinished:
                self.submitted[job.name] = job
        future.add_done_callback(lambda future: self._ended.put((job, future, time.monotonic())))

    def collect_ended(self, timeout: float, until: float = 0.0) -> list[AnyJob]:
        """Return jobs whose futures ended: wait `timeout` seconds for the first, for more until a time (by time.monotonic())."""
        found: dict[str, AnyJob] = {}
        deadline = time.monotonic() + timeout
        while not found or len(found) < len(self.submitted):
            try:
                ended = self._ended.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if ended is None:  # closed
                break
            job, future, ended_at = ended
            if self.submitted.get(job.name) is job and job.future is future:  # not of an earlier attempt
                job.ended_at = ended_at
                found[job.name] = job
                deadline = until
        return list(found.values())

    def failed_jobs(self, jobs: Iterable[AnyJob]) -> Iterator[tuple[AnyJob, BaseException]]:
        """Yield those of collected jobs that dask gave up, with the reason."""
        for job in jobs:
            if (future := job.future) is not None and future.status == "error" and (error := future.exception()):
                yield job, error

    def fetch_results(self, jobs: Iterable[AnyJob]) -> list[tuple[AnyJob, Any]] | None:
        """Return results of collected jobs that finished; None without an answer. What a dead node had, dask computes again."""
        futures = {job: future for job in jobs if job.name in self.submitted and (future := job.future) is not None}
        finished = {job: future for job, future in futures.items() if future.status == "finished"}
        gather = partial(self.connection.client.gather, list(finished.values()), asynchronous=True)
        values = self.connection.run_request(gather) if finished else []
        for job, future in futures.items():
            if future.status not in ("error", "cancelled") and (values is None or job not in finished):
                self._watch(job, future)
        return None if values is None else list(zip(finished, values, strict=True))

    def withdraw(self, job: AnyJob) -> None:
        """Take a job back from those that dask has. It is still open."""
        with self._lock:
            self.submitted.pop(job.name, None)

    def close_job(self, job: AnyJob) -> bool:
        """Close a job; return False if it had ended before."""
        with self._lock:
            self.submitted.pop(job.name, None)
            job.future = None  # dask drops what nobody holds
            return self.unfinished.pop(job.name, None) is not None

    def cancel(self, jobs: Iterable[AnyJob]) -> None:
        """Have dask drop jobs, running ones too. They are still open."""
        self.connection.cancel([future for job in list(jobs) if (future := job.future) is not None])

    def close(self) -> None:
        """End the waiting of whoever collects."""
        self.is_closed = True
        self._ended.put(None)
