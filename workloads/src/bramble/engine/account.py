"""The record of jobs that dask runs: every job that is added ends exactly once, finished or lost."""

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
"""How often a job is submitted when all of its nodes, or the scheduler, were lost and came back."""


@dataclass(eq=False, kw_only=True)
class Job:
    """A job that has not ended, by its name; `future` and `addresses` are of its last attempt.

    `addresses` are those of the only workers that may run it; None if all may. Subclasses add fields of their own.
    """

    name: str
    attempts: int = 0
    future: "Future[Any] | None" = None
    addresses: Collection[str] | None = None
    ended_at: float = 0.0
    """When the end of its future was noticed, by time.monotonic()."""

    def has_worker(self, workers: Collection[str]) -> bool:
        """Return whether one of these workers (addresses) may run the job as it was submitted."""
        return bool(workers) if self.addresses is None else not set(workers).isdisjoint(self.addresses)

    @property
    def is_unknown_to_scheduler(self) -> bool:
        """Return whether the scheduler that had the job was lost."""
        future = self.future  # a copy, since another thread may end the job meanwhile
        return future is not None and future.cancelled()


AnyJob = TypeVar("AnyJob", bound=Job)


class JobAccount(Generic[AnyJob]):
    """The jobs of one computation on the cluster.

    `unfinished` holds all jobs that have not ended, by name; `submitted` those of them that dask has. A job's future may
    end although the job does not: its result was on a node that died, or the scheduler was lost. The caller then decides
    whether the job is submitted again or lost. Threads may submit, collect and close jobs at the same time.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.unfinished: dict[str, AnyJob] = {}
        self.submitted: dict[str, AnyJob] = {}
        self.is_closed = False
        self._ended: queue.SimpleQueue[tuple[AnyJob, Future[Any], float] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()

    def add_job(self, job: AnyJob) -> None:
        """Add a job that is to be submitted."""
        self.unfinished[job.name] = job

    def submit(
        self,
        jobs: Sequence[AnyJob],
        function: Callable[..., Any],
        columns: Sequence[Sequence[Any]],
        key: str | list[str],
        addresses: Collection[str] | None,
    ) -> None:
        """Submit jobs to dask, for all workers or only for those at `addresses`.

        `columns` has a sequence for each argument of the function, with one value per job.
        """
        # One call submits all jobs. dask balances them by itself: a job without data goes to the worker with the shortest
        # queue, so 16 jobs on 4 or 8 idle nodes are 4 or 2 for each, and work stealing evens out the rest.
        workers = None if addresses is None else list(addresses)
        futures = self.connection.client.map(function, *columns, key=key, workers=workers, pure=False)
        for job, future in zip(jobs, futures, strict=True):
            job.attempts += 1
            job.addresses = addresses
            self._report_end_of(job, future)

    def _report_end_of(self, job: AnyJob, future: "Future[Any]") -> None:
        job.future = future
        with self._lock:
            if job.name in self.unfinished:
                self.submitted[job.name] = job
        future.add_done_callback(lambda future: self._ended.put((job, future, time.monotonic())))

    def collect_ended(self, timeout: float, until: float = 0.0) -> list[AnyJob]:
        """Return jobs whose futures ended.

        Waits `timeout` seconds for the first of them, and for more until the time `until` (by time.monotonic()).
        """
        found: dict[str, AnyJob] = {}
        deadline = time.monotonic() + timeout
        while not found or len(found) < len(self.submitted):
            try:
                ended = self._ended.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if ended is None:  # the account was closed
                break
            job, future, ended_at = ended
            if self.submitted.get(job.name) is job and job.future is future:  # ignores an earlier attempt
                job.ended_at = ended_at
                found[job.name] = job
                deadline = until
        return list(found.values())

    def failed_jobs(self, jobs: Iterable[AnyJob]) -> Iterator[tuple[AnyJob, BaseException]]:
        """Yield the collected jobs that dask gave up, each with the reason."""
        for job in jobs:
            if (future := job.future) is not None and future.status == "error" and (error := future.exception()):
                yield job, error

    def fetch_results(self, jobs: Iterable[AnyJob]) -> list[tuple[AnyJob, Any]] | None:
        """Return collected jobs that finished, each with its result; None if the scheduler does not answer.

        dask computes a result again if it was on a node that died.
        """
        futures = {job: future for job in jobs if job.name in self.submitted and (future := job.future) is not None}
        finished = {job: future for job, future in futures.items() if future.status == "finished"}
        gather = partial(self.connection.client.gather, list(finished.values()), asynchronous=True)
        values = self.connection.run_request(gather) if finished else []
        for job, future in futures.items():
            if future.status not in ("error", "cancelled") and (values is None or job not in finished):
                self._report_end_of(job, future)
        return None if values is None else list(zip(finished, values, strict=True))

    def withdraw(self, job: AnyJob) -> None:
        """Remove a job from those that dask has. It stays unfinished."""
        with self._lock:
            self.submitted.pop(job.name, None)

    def close_job(self, job: AnyJob) -> bool:
        """Record that a job has ended; return False if it had ended before."""
        with self._lock:
            self.submitted.pop(job.name, None)
            job.future = None  # dask frees a result when no future refers to it
            return self.unfinished.pop(job.name, None) is not None

    def cancel(self, jobs: Iterable[AnyJob]) -> None:
        """Cancel jobs in dask, running ones too. They stay unfinished."""
        self.connection.cancel([future for job in list(jobs) if (future := job.future) is not None])

    def close(self) -> None:
        """End a `collect_ended` that waits in another thread."""
        self.is_closed = True
        self._ended.put(None)
