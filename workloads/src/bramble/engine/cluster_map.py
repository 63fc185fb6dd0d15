"""One map on the cluster: dask distributes, this sees to it that every job leaves it once, as an Outcome."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bramble import ResultError
from bramble.engine.account import ATTEMPTS, Account, Job
from bramble.engine.connection import Connection, Event
from bramble.engine.outcome import Kernel, Outcome, Return, call_on_worker

GATHER_INTERVAL = 0.5
"""Seconds: results are fetched at most this often, many at a time; one trip per job would eat a small scheduler."""
SILENCE = 5.0
"""Seconds without a finished job after which we ask the scheduler whether the nodes we wait for still exist."""


def jobs_that_run(dask_scheduler: Any) -> dict[str, tuple[str, float]]:
    """On the scheduler: by key of a job that runs, its worker's address, and for how many seconds it ran at the last report."""
    return {
        str(task.key): (address, seconds)
        for address, worker in dask_scheduler.workers.items()
        for task, seconds in worker.executing.items()
    }


@dataclass(eq=False, kw_only=True)
class MapJob(Job):
    """A job by its index in the arguments, and the nodes from which it was resubmitted."""

    index: int
    retried: list[str] = field(default_factory=list)


class ClusterMap:
    """One map. dask itself runs a job again when its worker dies, a few times; this adds the rest.

    Without `nodes` there is no restriction, so a node that comes back gets work again. With `nodes` the jobs are
    bound to the addresses that these nodes' workers have now (which is what dask makes of a worker's name). When
    all of them are gone, or the scheduler went away, what is unfinished is submitted again as soon as one is back;
    it is lost when none is back within the timeout. So is a job that runs for longer than `job_timeout`, and one
    whose worker died again when it was the only one that ran.
    """

    def __init__(
        self,
        connection: Connection,
        kernel: Kernel,
        arguments: Sequence[Any],
        nodes: Sequence[str] | None,
        all_nodes: Sequence[str],
        say: Callable[[str], None],
        job_timeout: float | None,
        max_in_flight: int | None,
    ) -> None:
        self.connection, self.kernel, self.arguments, self.nodes = connection, kernel, arguments, nodes
        self.say, self.job_timeout, self.max_in_flight = say, job_timeout, max_in_flight
        self.wanted = ", ".join(nodes or all_nodes)
        """The nodes that the jobs may go to, for people."""
        self.account = Account[MapJob](connection)
        self.pending = deque(MapJob(name=str(index), index=index) for index in range(len(arguments)))
        """The jobs that have not been submitted."""
        self.suspects: deque[MapJob] = deque()
        """Jobs whose workers died again and again. Any of those that a worker ran at the time may be the one that kills."""
        self.one_by_one = False
        """Whether the suspects are being tried, one after the other."""
        self.events: deque[Event] = deque()
        self.begin = 0.0

    def outcomes(self) -> Iterator[Outcome]:
        """Yield how each job ended. Raises ResultError when one raises."""
        account = self.account
        self.begin = last_check = time.monotonic()
        last_gather, attempts = 0.0, 1
        self.connection.listeners.append(self.events)
        try:
            for job in self.pending:
                account.add(job)
            while account.open:
                self.submit_pending()
                ended = account.collect(self.patience, last_gather + GATHER_INTERVAL)
                self.read_events()
                finished: list[tuple[MapJob, Return]] | None = None
                if ended:
                    yield from self.sort_out_killed(ended)
                    finished = account.fetch(ended)
                    last_gather = time.monotonic()
                    for job, back in finished or []:
                        yield self.finish(job, back)
                if self.job_timeout and time.monotonic() - last_check >= self.patience:
                    yield from self.end_overdue(self.job_timeout)
                    last_check = time.monotonic()

                forgotten = any(job.is_forgotten for job in account.submitted.values())
                if account.submitted and (forgotten or (not finished and not self.has_worker())):
                    back_again = self.connection.wait_for_worker(self.nodes)
                    if back_again and not forgotten and self.has_worker():
                        continue  # dask has kept the jobs
                    unfinished = sorted(account.submitted.values(), key=lambda job: job.index)
                    account.cancel(unfinished)
                    attempts += 1
                    if back_again and attempts <= ATTEMPTS:
                        who = "the scheduler" if forgotten else f"every worker of {self.wanted}"
                        self.say(f"{who} went away and came back; {len(unfinished)} unfinished jobs are submitted again")
                        self.submit(unfinished)
                        continue
                    for job in sorted([*unfinished, *self.pending], key=lambda job: job.index):
                        yield self.mark_lost(job, f"no worker of {self.wanted} was left to run it, in {attempts - 1} attempts")
                    self.pending.clear()
        finally:
            account.cancel(account.submitted.values())
            self.connection.listeners.remove(self.events)

    @property
    def patience(self) -> float:
        """Seconds to wait for a job to end before the scheduler is asked what it is about."""
        return min(SILENCE, max(0.5, (self.job_timeout or 4 * SILENCE) / 4))

    def submit_pending(self) -> None:
        """Submit what may be on the cluster now. When only suspects are left, one of them."""
        submitted = len(self.account.submitted)
        room = min(len(self.pending), (self.max_in_flight or len(self.pending)) - submitted)
        if room > 0:
            self.submit([self.pending.popleft() for _ in range(room)])
        elif not submitted:
            if not self.one_by_one:
                self.say(f"the workers of {len(self.suspects)} jobs died more than once; now one of these after the other")
            self.one_by_one = True
            self.submit([self.suspects.popleft()])

    def submit(self, jobs: Sequence[MapJob]) -> None:
        from distributed.protocol.pickle import dumps

        self.connection.subscribe()
        addresses = sorted(self.connection.workers(self.nodes))
        # dask's pickle: what a script defines itself travels as code.
        packed = [dumps((self.kernel, self.arguments[job.index])) for job in jobs]
        bound = None if self.nodes is None else addresses
        self.account.submit(jobs, call_on_worker, [packed], self.kernel.__name__, bound)

    def has_worker(self) -> bool:
        """Return whether workers are there that may run the jobs as they were submitted."""
        workers = self.connection.workers(self.nodes)
        return all(job.has_worker(workers) for job in self.account.submitted.values())

    def read_events(self) -> None:
        """Note which jobs were resubmitted from which node."""
        by_key: dict[str, MapJob] = {}
        while self.events:
            event = self.events.popleft()
            if event["action"] == "add-worker":
                self.connection.workers()
            elif event["action"] == "remove-worker":
                node = self.connection.seen.get(str(event["worker"]), str(event["worker"]))
                by_key = by_key or {str(job.future.key): job for job in self.account.submitted.values() if job.future}
                for key in {*event["processing-tasks"], *event["lost-computed-tasks"]} & by_key.keys():
                    by_key[key].retried.append(node)

    def finish(self, job: MapJob, back: Return) -> Outcome:
        """Close a job that dask has a result of. Raises ResultError when its kernel raised."""
        self.account.end(job)
        node = self.connection.node_of(back.worker)
        return back.outcome(job.index, self.arguments[job.index], node, job.ended_at - self.begin, job.retried)

    def sort_out_killed(self, ended: Sequence[MapJob]) -> Iterator[Outcome]:
        """Make suspects of jobs that dask gave up since their workers died; one that was a suspect is lost."""
        from distributed import KilledWorker

        for job, error in self.account.errors(ended):
            if not isinstance(error, KilledWorker):
                raise ResultError(f"job {job.index} failed with argument {self.arguments[job.index]!r}: {error!r}")
            if self.one_by_one:
                node = self.connection.node_of(str(error.last_worker.name))
                yield self.mark_lost(job, f"every worker that ran it died, {node} the last; too much memory?", node)
            else:
                self.account.withdraw(job)
                self.suspects.append(job)

    def end_overdue(self, limit: float) -> Iterator[Outcome]:
        """Lose the jobs that run for longer than `limit` seconds; their worker processes are started anew."""
        running = self.connection.ask(lambda: self.connection.client.run_on_scheduler(jobs_that_run)) or {}
        overdue = {
            job: running[key][0]
            for job in self.account.submitted.values()
            if job.future and (key := str(job.future.key)) in running and running[key][1] > limit
        }
        if overdue:
            # First, or dask would run them again.
            self.account.cancel(overdue)
            self.connection.restart_workers(set(overdue.values()))
        for job, address in overdue.items():
            node = self.connection.seen.get(address, address)
            yield self.mark_lost(job, f"it ran on {node} for more than {limit:g} s (--job-timeout) and was ended", node)

    def mark_lost(self, job: MapJob, reason: str, node: str = "") -> Outcome:
        """Close a job that has no result."""
        self.account.end(job)
        after = time.monotonic() - self.begin
        return Outcome(job.index, node=node, after=after, lost=reason, retried=tuple(job.retried))
