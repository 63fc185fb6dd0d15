"""One map on the cluster: dask distributes the jobs, and ClusterMap turns each of them into exactly one Outcome."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bramble import ResultError
from bramble.engine.account import MAX_ATTEMPTS, Job, JobAccount
from bramble.engine.connection import Connection, Event
from bramble.engine.outcome import JobResult, Kernel, Outcome, call_on_worker

GATHER_INTERVAL = 0.5
"""Seconds between two fetches of results: many at a time, since one request per job would overload a small scheduler."""
NODE_CHECK_DELAY = 5.0
"""Seconds without a finished job before the scheduler is asked whether the nodes of the jobs still exist."""


def running_jobs(dask_scheduler: Any) -> dict[str, tuple[str, float]]:
    """Return, by key of a running job, its worker's address and the seconds it had run at the last report.

    dask calls this on the scheduler.
    """
    return {
        str(task.key): (address, seconds)
        for address, worker in dask_scheduler.workers.items()
        for task, seconds in worker.executing.items()
    }


@dataclass(eq=False, kw_only=True)
class MapJob(Job):
    """A job: its index in the arguments, and the nodes from which it was resubmitted."""

    index: int
    retried: list[str] = field(default_factory=list)


class ClusterMap:
    """One map on the cluster. dask itself runs a job again a few times when its worker dies; this class does the rest.

    Without `nodes` the jobs may run on any node, so a node that comes back gets jobs again. With `nodes` they are
    bound to the addresses that the workers of these nodes have now (dask resolves worker names to addresses). When
    all of these workers, or the scheduler, are lost, the unfinished jobs are submitted again as soon as one is back,
    and are lost if none is back within the timeout. A job is also lost when it runs for longer than `job_timeout`
    seconds, and when its worker dies again while it is the only job that runs.
    """

    def __init__(
        self,
        connection: Connection,
        kernel: Kernel,
        arguments: Sequence[Any],
        nodes: Sequence[str] | None,
        all_nodes: Sequence[str],
        notify: Callable[[str], None],
        job_timeout: float | None,
        max_in_flight: int | None,
    ) -> None:
        self.connection, self.kernel, self.arguments, self.nodes = connection, kernel, arguments, nodes
        self.notify, self.job_timeout, self.max_in_flight = notify, job_timeout, max_in_flight
        self.node_names = ", ".join(nodes or all_nodes)
        """The names of the nodes that may run the jobs, for messages."""
        self.account = JobAccount[MapJob](connection)
        self.pending = deque(MapJob(name=str(index), index=index) for index in range(len(arguments)))
        """The jobs that have not been submitted."""
        self.jobs_of_dead_workers: deque[MapJob] = deque()
        """Jobs whose workers died more than once. Any of the jobs that a worker ran at the time may have killed it."""
        self.is_isolating_jobs = False
        """Whether these jobs are being run one at a time, to find those that kill their worker."""
        self.events: deque[Event] = deque()
        self.started_at = 0.0

    def outcomes(self) -> Iterator[Outcome]:
        """Yield the outcome of each job. Raises ResultError when a job raises an exception."""
        account = self.account
        self.started_at = last_check = time.monotonic()
        last_gather, attempts = 0.0, 1
        self.connection.listeners.append(self.events)
        try:
            for job in self.pending:
                account.add_job(job)
            while account.unfinished:
                self.submit_pending()
                ended = account.collect_ended(self.check_interval, last_gather + GATHER_INTERVAL)
                self.read_events()
                finished: list[tuple[MapJob, JobResult]] | None = None
                if ended:
                    yield from self.handle_killed_jobs(ended)
                    finished = account.fetch_results(ended)
                    last_gather = time.monotonic()
                    for job, result in finished or []:
                        yield self.finish_job(job, result)
                if self.job_timeout and time.monotonic() - last_check >= self.check_interval:
                    yield from self.end_overdue_jobs(self.job_timeout)
                    last_check = time.monotonic()

                forgotten = any(job.is_unknown_to_scheduler for job in account.submitted.values())
                if account.submitted and (forgotten or (not finished and not self.has_worker())):
                    has_returned = self.connection.wait_for_worker(self.nodes)
                    if has_returned and not forgotten and self.has_worker():
                        continue  # dask has kept the jobs
                    unfinished = sorted(account.submitted.values(), key=lambda job: job.index)
                    account.cancel(unfinished)
                    attempts += 1
                    if has_returned and attempts <= MAX_ATTEMPTS:
                        lost_part = "the scheduler" if forgotten else f"every worker of {self.node_names}"
                        self.notify(f"{lost_part} was lost and came back; {len(unfinished)} unfinished jobs are submitted again")
                        self.submit_jobs(unfinished)
                        continue
                    for job in sorted([*unfinished, *self.pending], key=lambda job: job.index):
                        reason = f"no worker of {self.node_names} was left to run it, after {attempts - 1} attempts"
                        yield self.mark_lost(job, reason)
                    self.pending.clear()
        finally:
            account.cancel(account.submitted.values())
            self.connection.listeners.remove(self.events)

    @property
    def check_interval(self) -> float:
        """Return the seconds to wait for a job to end before the scheduler is asked about the jobs and nodes."""
        return min(NODE_CHECK_DELAY, max(0.5, (self.job_timeout or 4 * NODE_CHECK_DELAY) / 4))

    def submit_pending(self) -> None:
        """Submit as many pending jobs as may be on the cluster at once; when only jobs of dead workers are left, one of them."""
        submitted = len(self.account.submitted)
        room = min(len(self.pending), (self.max_in_flight or len(self.pending)) - submitted)
        if room > 0:
            self.submit_jobs([self.pending.popleft() for _ in range(room)])
        elif not submitted:
            if not self.is_isolating_jobs:
                self.notify(
                    f"the workers of {len(self.jobs_of_dead_workers)} jobs died more than once; these jobs now run one at a time"
                )
            self.is_isolating_jobs = True
            self.submit_jobs([self.jobs_of_dead_workers.popleft()])

    def submit_jobs(self, jobs: Sequence[MapJob]) -> None:
        """Submit jobs to dask, with their kernel and arguments pickled."""
        from distributed.protocol.pickle import dumps

        self.connection.subscribe()
        addresses = sorted(self.connection.workers(self.nodes))
        # dask's pickle sends functions that a script defines itself as code.
        pickled = [dumps((self.kernel, self.arguments[job.index])) for job in jobs]
        allowed = None if self.nodes is None else addresses
        self.account.submit(jobs, call_on_worker, [pickled], self.kernel.__name__, allowed)

    def has_worker(self) -> bool:
        """Return whether every submitted job has a worker that may run it."""
        workers = self.connection.workers(self.nodes)
        return all(job.has_worker(workers) for job in self.account.submitted.values())

    def read_events(self) -> None:
        """Record from which nodes dask resubmitted jobs, by the events of workers that were removed."""
        by_key: dict[str, MapJob] = {}
        while self.events:
            event = self.events.popleft()
            if event["action"] == "add-worker":
                self.connection.workers()
            elif event["action"] == "remove-worker":
                node = self.connection.known_workers.get(str(event["worker"]), str(event["worker"]))
                by_key = by_key or {str(job.future.key): job for job in self.account.submitted.values() if job.future}
                for key in {*event["processing-tasks"], *event["lost-computed-tasks"]} & by_key.keys():
                    by_key[key].retried.append(node)

    def finish_job(self, job: MapJob, result: JobResult) -> Outcome:
        """Close a job and return its outcome. Raises ResultError when its kernel raised an exception."""
        self.account.close_job(job)
        node = self.connection.node_of(result.worker)
        return result.to_outcome(job.index, self.arguments[job.index], node, job.ended_at - self.started_at, job.retried)

    def handle_killed_jobs(self, ended: Sequence[MapJob]) -> Iterator[Outcome]:
        """Set jobs aside that dask gave up because their workers died; yield those that then ran alone, as lost."""
        from distributed import KilledWorker

        for job, error in self.account.failed_jobs(ended):
            if not isinstance(error, KilledWorker):
                raise ResultError(f"dask could not run job {job.index} with argument {self.arguments[job.index]!r}: {error!r}")
            if self.is_isolating_jobs:
                node = self.connection.node_of(str(error.last_worker.name))
                yield self.mark_lost(
                    job, f"every worker that ran it died, most recently on {node}; it may need too much memory", node
                )
            else:
                self.account.withdraw(job)
                self.jobs_of_dead_workers.append(job)

    def end_overdue_jobs(self, limit: float) -> Iterator[Outcome]:
        """Yield, as lost, the jobs that have run for longer than `limit` seconds; their worker processes are restarted."""
        running = self.connection.run_request(lambda: self.connection.client.run_on_scheduler(running_jobs)) or {}
        overdue = {
            job: running[key][0]
            for job in self.account.submitted.values()
            if job.future and (key := str(job.future.key)) in running and running[key][1] > limit
        }
        if overdue:
            # Cancelled before the restart: dask would run them again.
            self.account.cancel(overdue)
            self.connection.restart_workers(set(overdue.values()))
        for job, address in overdue.items():
            node = self.connection.known_workers.get(address, address)
            yield self.mark_lost(job, f"it ran on {node} for more than {limit:g} s (--job-timeout) and was stopped", node)

    def mark_lost(self, job: MapJob, reason: str, node: str = "") -> Outcome:
        """Close a job that has no result and return its outcome."""
        self.account.close_job(job)
        after = time.monotonic() - self.started_at
        return Outcome(job.index, node=node, finished_after=after, lost=reason, retried=tuple(job.retried))
