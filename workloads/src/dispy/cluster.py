"""JobCluster: the interface that scripts use, and what submits their jobs to dask and collects the results."""

import copy
import itertools
import logging
import pickle
import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from typing import Any, Self

import cloudpickle

from bramble import BrambleError
from bramble.engine.account import MAX_ATTEMPTS, Job, JobAccount
from bramble.engine.cluster import Cluster
from bramble.engine.config import load
from dispy import node as _node
from dispy.exit import close_at_exit
from dispy.job import ClusterStatus, DispyJob, DispyNode, NodeAllocate
from dispy.log import logger
from dispy.packing import by_value, pack

CALLBACK_DELAY = 0.05
"""Seconds from submitting a job to the first callback for it: some OctaPi scripts record a job only after submitting it."""
NODE_TIMEOUT = 30.0
"""Seconds to wait for nodes at the start."""
NODE_CHECK_DELAY = 2.0
"""Seconds without a finished job before the scheduler is asked whether the nodes still exist."""
GATHER_INTERVAL = 0.005
"""Seconds in which submitted jobs are gathered: one graph of many jobs costs the scheduler less than many graphs."""
ABANDON_DELAY = 30.0
"""Seconds without scheduler or node after which jobs are abandoned."""
IGNORED_OPTIONS = frozenset(
    {
        *("host", "ip_addr", "dispy_port", "ext_host", "ext_ip_addr", "ipv4_udp_multicast", "client_port", "scheduler_host"),
        *("dest_path", "recover_file", "ping_interval", "pulse_interval", "poll_interval", "reentrant", "exclusive"),
        *("secret", "keyfile", "certfile"),
    }
)
"""Arguments of dispy that have no effect: the configuration states how to find nodes and which certificates to trust."""

Nodes = str | NodeAllocate | Sequence[str | NodeAllocate | tuple[Any, ...]] | None
Call = tuple[Callable[..., Any] | None, tuple[Any, ...]]


@dataclass(eq=False, kw_only=True)
class Task(Job):
    """A submitted job. `nodes` are the names of the only nodes that may run it, or None if all may."""

    job: DispyJob
    arguments: bytes
    nodes: tuple[str, ...] | None
    is_cancelled: bool = False


class JobCluster:
    """The nodes, prepared for one computation: a function that is called with the arguments of each `submit`.

    `depends`: functions, classes (or objects of one), modules and files that it needs. `job_status` (or `callback`) is called
    with a job when it ended or has a provisional result, `cluster_status` with (status, node, job). Without a scheduler or a
    node the constructor ends the script, with the reason in one line and exit code 3 (2 if the configuration is wrong).
    """

    def __init__(
        self,
        computation: Callable[..., Any],
        nodes: Nodes = None,
        depends: Sequence[Any] = (),
        job_status: Callable[[DispyJob], Any] | None = None,
        cluster_status: Callable[[int, DispyNode | None, DispyJob | None], Any] | None = None,
        *,
        loglevel: int = logging.INFO,
        callback: Callable[[DispyJob], Any] | None = None,
        setup: Callable[..., Any] | None = None,
        cleanup: Callable[..., Any] | bool = True,
        **options: Any,
    ) -> None:
        logger.setLevel(loglevel)
        if unknown := sorted(options.keys() - IGNORED_OPTIONS):
            raise TypeError(f"{type(self).__name__}() got an unexpected keyword argument {unknown[0]!r}")
        if not callable(computation):
            raise TypeError(f"the computation must be a function, but is {computation!r}; start a program from within a function")
        for option in sorted(options):
            logger.info("%s= has no effect on this cluster; its configuration states how to reach it", option)
        self._name = getattr(computation, "__name__", str(computation))
        self._uid = uuid.uuid4().hex
        self._computation = pack(computation, depends, setup, cleanup)
        self._job_status, self._cluster_status = job_status or callback, cluster_status

        self._engine = _connect()
        self._account = JobAccount[Task](self._engine)
        self._dispy_nodes: dict[str, DispyNode] = {}
        self._chosen_nodes = self._choose_nodes(nodes)
        self.start_time = time.time()
        self.end_time: float | None = None
        self._submitted: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._lock, self._complete, self._is_open = threading.Lock(), threading.Event(), True
        self._pending, self._numbers = 0, itertools.count()
        self._complete.set()
        self._engine.client.subscribe_topic(_node.TOPIC, self._read_event)
        for thread_main in (self._forward_submitted, self._collect_ended, self._run_callbacks):
            threading.Thread(target=thread_main, name=f"dispy {thread_main.__name__}", daemon=True).start()
        for dispy_node in self._dispy_nodes.values():
            self._notify(DispyNode.Initialized, dispy_node, None)
        close_at_exit(self.close)

    # The interface of scripts: names and signatures are dispy's.

    def submit(self, *args: Any, **kwargs: Any) -> DispyJob | None:
        """Submit a job and return it. `dispy_job_depends` lists functions and classes that only this job needs.

        Returns None and logs the reason if the arguments cannot be pickled or the cluster is closed.
        """
        return self._submit(None, self._chosen_nodes, args, kwargs)

    def submit_job_id(self, job_id: Any, *args: Any, **kwargs: Any) -> DispyJob | None:
        """Submit a job with this `job.id` and return it: see `submit`."""
        return self._submit(job_id, self._chosen_nodes, args, kwargs)

    def submit_node(self, node: DispyNode | str, *args: Any, **kwargs: Any) -> DispyJob | None:
        """Submit a job for one node, given as DispyNode, name or address; return None if there is no such node."""
        return self.submit_job_id_node(None, node, *args, **kwargs)

    def submit_job_id_node(self, job_id: Any, node: DispyNode | str, *args: Any, **kwargs: Any) -> DispyJob | None:
        """Submit a job with this `job.id` for one node and return it: see `submit_node`."""
        wanted = {node.name} if isinstance(node, DispyNode) else {node}
        names = tuple(each.name for each in self._dispy_nodes.values() if wanted & {each.name, each.ip_addr})
        if not names:
            logger.warning("Invalid node %s; the nodes are %s", *wanted, ", ".join(self._dispy_nodes))
            return None
        return self._submit(job_id, names, args, kwargs)

    def cancel(self, job: DispyJob) -> int:
        """Cancel a job and return 0, or -1 if it has ended.

        A job that has not started ends as Cancelled; one that runs is killed and ends as Terminated.
        """
        task = self._account.unfinished.get(job._uid or "")
        if task is None or task.is_cancelled:
            logger.warning("Job %s is invalid for cancellation!", job.id)
            return -1
        task.is_cancelled = True
        if job.status == DispyJob.Created:
            self._account.cancel([task])
            self._finish_task(task, None)
        else:
            self._run_on_workers(_node.stop_job, task.name)
        return 0

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all jobs have ended and `job_status` has returned for them; return False after `timeout` seconds."""
        return self._complete.wait(timeout)

    def __call__(self) -> None:
        self.wait()

    def name(self) -> str:
        """Return the name of the computation."""
        return self._name

    def status(self) -> ClusterStatus:
        """Return the nodes and the number of jobs that have not ended."""
        return ClusterStatus(list(self._dispy_nodes.values()), self._pending)

    def print_status(self, wall_time: float | None = None) -> None:
        """Print a table of the nodes, the total time of all jobs, the wall time and the speed-up."""
        row = " {:>15.15} | {:>5} | {:>7} | {:>8} | {:>13} | {:>7} | {:>7}"
        heading = row.format("Node", "CPUs", "Jobs", "Sec/Job", "Node Time Sec", "Sent", "Rcvd")
        print(f"\n{heading}\n{'-' * len(heading)}")
        nodes, pending = self.status()
        for each in nodes:
            mean = each.cpu_time / (each.jobs_done or 1)
            sizes = _format_bytes(each.tx), _format_bytes(each.rx)
            print(row.format(each.name, each.cpus, each.jobs_done, f"{mean:.1f}", f"{each.cpu_time:.1f}", *sizes))
        if pending:
            print(f"\nJobs pending: {pending}", end="")
        total = sum(each.cpu_time for each in nodes)
        wall_time = wall_time or time.time() - self.start_time
        print(f"\nTotal job time: {total:.3f} sec, wall time: {wall_time:.3f} sec, speedup: {total / wall_time:.3f}\n")

    stats = print_status

    def close(self, timeout: float | None = None, terminate: bool = False) -> bool:
        """Wait for the jobs (with `terminate`, kill them) and release the nodes.

        Returns False, and closes nothing, if jobs are left after `timeout` seconds.
        """
        if not self._is_open:
            return True
        if not terminate and not self._complete.wait(timeout):
            return False
        self._is_open = False
        for task in (tasks := list(self._account.unfinished.values())):
            task.is_cancelled = True
        self._account.cancel(tasks)
        self._run_on_workers(_node.end_server, self._uid)
        for dispy_node in self._dispy_nodes.values():
            self._notify(DispyNode.Closed, dispy_node, None)
        self._submitted.put(None)
        self._account.close()
        self._calls.put(None)
        self._engine.close()
        return True

    shutdown = close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self.close(terminate=kind is not None)

    # Internals: threads that connect the script to dask.

    def _run_on_workers(self, function: Callable[[str], object], name: str) -> None:
        """Call a function with one argument in every worker."""
        self._engine.run_request(partial(self._engine.client.run, function, name, asynchronous=True, on_error="ignore"))

    def _node_of(self, name: str, ip_addr: str) -> DispyNode:
        return self._dispy_nodes.setdefault(name, DispyNode(ip_addr, name, 0))

    def _choose_nodes(self, nodes: Nodes) -> tuple[str, ...] | None:
        """Record the nodes of the cluster; return the names of those that `nodes` selects, None for all."""
        for address, name in sorted(self._engine.workers().items(), key=lambda item: item[1]):
            self._node_of(name, address.rpartition("://")[2].rpartition(":")[0])
        for name, threads in self._engine.threads().items():
            if name in self._dispy_nodes:
                self._dispy_nodes[name].cpus = threads
        patterns = list(_patterns(nodes))
        chosen = tuple(
            each.name
            for each in self._dispy_nodes.values()
            if any(fnmatch(text, pattern) for text in (each.name, each.ip_addr) for pattern in patterns)
        )
        if not patterns or len(chosen) == len(self._dispy_nodes):
            return None
        if not chosen:
            logger.info("no node is called %s; all %s nodes are used", " or ".join(patterns), len(self._dispy_nodes))
            return None
        self._dispy_nodes = {name: each for name, each in self._dispy_nodes.items() if name in chosen}
        return chosen

    def _submit(
        self, job_id: Any, nodes: tuple[str, ...] | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> DispyJob | None:
        names = {each.__name__: each for each in kwargs.pop("dispy_job_depends", ())}
        job = DispyJob(job_id, args, kwargs)
        try:
            with by_value(names.values()):
                arguments = cloudpickle.dumps((args, kwargs, names))
        except Exception as error:
            logger.warning("Creating job for %r, %r failed: %r", args, kwargs, error)
            return None
        if not self._is_open:
            logger.warning("the cluster is closed, so no job can be submitted; create a new JobCluster")
            return None
        job._uid = f"{self._uid}-{next(self._numbers)}"
        task = Task(name=job._uid, job=job, arguments=arguments, nodes=nodes)
        with self._lock:
            self._account.add_job(task)
            self._pending += 1
            self._complete.clear()
        self._notify(DispyJob.Created, None, job)
        self._submitted.put(task)
        return job

    def _forward_submitted(self) -> None:
        """Forward submitted jobs to dask, in a thread of its own."""
        while (task := self._submitted.get()) is not None:
            time.sleep(GATHER_INTERVAL)
            groups: dict[tuple[str, ...] | None, list[Task]] = {task.nodes: [task]}
            with suppress(queue.Empty):
                while (task := self._submitted.get_nowait()) is not None:
                    groups.setdefault(task.nodes, []).append(task)
                return
            for nodes, tasks in groups.items():
                self._submit_tasks(tasks, {} if nodes is None else self._engine.workers(nodes))

    def _submit_tasks(self, tasks: Sequence[Task], workers: Mapping[str, str]) -> None:
        """Submit tasks to dask: for all nodes, or only for their own nodes, by address in `workers`."""
        nodes = tasks[0].nodes
        self._account.submit(
            tasks,
            partial(_node.run_job, self._uid, self._computation),
            [[task.name for task in tasks], [task.arguments for task in tasks]],
            [f"{self._name}-{task.name}-{task.attempts + 1}" for task in tasks],
            None if nodes is None else [address for address, node in workers.items() if node in nodes],
        )
        self._account.cancel([task for task in tasks if task.is_cancelled])

    def _read_event(self, event: tuple[float, dict[str, Any]]) -> None:
        """Process a node's event that a job has started or has a provisional result.

        dask calls this in its own thread, so it must not block.
        """
        fields = event[1]
        task = self._account.unfinished.get(fields["job"])
        if task is None or task.is_cancelled:
            return
        job = task.job
        if "result" in fields:
            job.result, job.status = pickle.loads(fields["result"]), DispyJob.ProvisionalResult
            self._calls.put((self._job_status, (copy.copy(job),)))
        else:
            job.status, job.start_time, job.ip_addr = DispyJob.Running, fields["start"], fields["address"]
        self._notify(job.status, self._node_of(self._engine.node_of(fields["node"]), fields["address"]), job)

    def _collect_ended(self) -> None:
        """Fetch the results of ended jobs, and check the others when none ends, in a thread of its own."""
        idle_since = time.monotonic()
        while True:
            ended = self._account.collect_ended(NODE_CHECK_DELAY)
            if self._account.is_closed:
                return
            finished = self._account.fetch_results(ended)
            for task, reply in finished or []:
                self._finish_task(task, reply)
            for task, error in self._account.failed_jobs(ended):
                self._finish_task(task, None, f"every node that ran it died: {error!r}")
            if finished or not self._account.unfinished:
                idle_since = time.monotonic()
            else:
                self._resubmit_or_abandon(time.monotonic() - idle_since)

    def _resubmit_or_abandon(self, idle_seconds: float) -> None:
        """Submit jobs again whose worker or scheduler was lost; abandon those that have had no node for ABANDON_DELAY."""
        workers = self._engine.workers()
        names = set(workers.values())
        for task in list(self._account.unfinished.values()):
            if task.future is None or task.is_cancelled:
                continue
            has_node = bool(names if task.nodes is None else names.intersection(task.nodes))
            if has_node and (task.is_unknown_to_scheduler or not task.has_worker(workers)) and task.attempts <= MAX_ATTEMPTS:
                logger.info("job %s is submitted again", task.job.id)
                task.job.status = DispyJob.Created
                self._submit_tasks([task], workers)
            elif not has_node and idle_seconds > ABANDON_DELAY:
                self._finish_task(task, None, f"no node was available to run it for {ABANDON_DELAY:g} s")

    def _finish_task(self, task: Task, reply: _node.Reply | None, abandon_reason: str | None = None) -> None:
        """Record the end of a job: with the node's reply, as Abandoned with the reason, or with neither as Cancelled."""
        job = task.job
        if self._job_status:
            time.sleep(min(CALLBACK_DELAY, max(0.0, job.submit_time + CALLBACK_DELAY - time.time())))
        if not self._account.close_job(task):
            return
        dispy_node, exception = None, abandon_reason
        status = DispyJob.Abandoned if abandon_reason else DispyJob.Cancelled
        if reply:
            dispy_node = self._node_of(self._engine.node_of(reply.worker), reply.address)
            dispy_node.jobs_done += 1
            dispy_node.cpu_time += reply.end - reply.start
            dispy_node.tx += len(task.arguments)
            dispy_node.rx += len(reply.result or b"") + len(reply.stdout) + len(reply.stderr)
            dispy_node.update_time = time.time()
            job.ip_addr, job.start_time, job.end_time = reply.address, reply.start, reply.end
            job.stdout, job.stderr, exception = reply.stdout, reply.stderr, reply.exception
            status = DispyJob.Terminated if exception else DispyJob.Finished
            try:
                job.result = None if reply.result is None else pickle.loads(reply.result)
            except Exception as error:
                status, exception = DispyJob.Terminated, f"the result cannot be unpickled in this script: {error!r}"
            if task.is_cancelled and exception:
                exception = "the job was cancelled while it ran"
        elif abandon_reason:
            logger.warning("job %s is abandoned: %s", job.id, abandon_reason)
        job.exception, job.status = exception, status
        job._uid = None
        self._notify(status, dispy_node, job)
        if self._job_status:
            self._calls.put((self._job_status, (job,)))
            self._calls.put((self._count_ended_job, ()))
        else:
            self._count_ended_job()
        job.finish.set()

    def _count_ended_job(self) -> None:
        with self._lock:
            self._pending -= 1
            if not self._pending:
                self.end_time = time.time()
                self._complete.set()

    def _notify(self, status: int, dispy_node: DispyNode | None, job: DispyJob | None) -> None:
        if self._cluster_status:
            self._calls.put((self._cluster_status, (status, dispy_node, copy.copy(job))))

    def _run_callbacks(self) -> None:
        """Call the script's callbacks, one after the other, in a thread of its own."""
        while (call := self._calls.get()) is not None:
            function, arguments = call
            try:
                if function:
                    function(*arguments)
            except Exception:
                logger.exception("%s failed", getattr(function, "__name__", function))


class SharedJobCluster(JobCluster):
    """The same as JobCluster: the scheduler serves any number of scripts at once."""


def _connect() -> Cluster:
    """Return the cluster. If it cannot be reached, end the script with one line on standard error."""
    try:
        return Cluster(load(), NODE_TIMEOUT, False, lambda line: logger.warning("%s", line))
    except BrambleError as error:
        print(f"dispy: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def _patterns(nodes: Nodes) -> Iterator[str]:
    """Yield the names and addresses in dispy's `nodes`: one or more strings, tuples (host, port, CPUs) or NodeAllocates."""
    for each in [nodes] if isinstance(nodes, str | NodeAllocate) else nodes or ():
        host = each.host if isinstance(each, NodeAllocate) else each if isinstance(each, str) else each[0]
        yield host.replace("\\", "")  # OctaPi's scripts escape the star as in a regular expression: '192.168.1.\*'


def _format_bytes(size: float) -> str:
    for unit in "BKMG":
        if size < 1024 or unit == "G":
            break
        size /= 1024
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
