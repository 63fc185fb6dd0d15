"""dispy's interface over Bramble's cluster: scripts written for dispy, such as OctaPi's, run as they are.

It is what dispy 4.15.2 documents (https://dispy.org) for Python functions, done by dask over mutual TLS; see `docs/octapi.md`.
The cluster is the one in /etc/bramble/cluster.toml (`bramble.config`). What differs:

- `nodes`: names and addresses, with `*` and `?`. When no node matches, as when 192.168.1.* is not the network, all are used.
- A job of a node that died runs again on another (dispy: with `reentrant=True`); it is Abandoned when there is none.
- `job_status` gets the job itself, at the earliest HOLD seconds after it was submitted, and `wait` waits for it to return.
- `setup` and `cleanup` run once per worker process, and each job is forked from there.
- SharedJobCluster is the same as JobCluster: every cluster here is shared.
- Programs (a computation that is a string) are not taken.
"""

import atexit
import copy
import functools
import importlib
import inspect
import itertools
import logging
import pickle
import queue
import sys
import sysconfig
import threading
import time
import uuid
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, Self

from dispy import node as _node

__version__ = "4.15.2"
__all__ = ["ClusterStatus", "DispyJob", "DispyNode", "JobCluster", "NodeAllocate", "SharedJobCluster", "logger"]

HOLD = 0.05
"""Seconds. OctaPi's drip-fed scripts note a job after they have submitted it; one that ended before is lost to them."""
TIMEOUT, ANSWER = 30.0, 10.0
"""Seconds to wait for nodes at the start, and for an answer of the scheduler."""
SILENCE = 2.0
"""Seconds without a finished job after which we look whether the nodes still exist."""
GATHER = 0.005
"""Seconds in which submitted jobs are gathered: one graph of many costs the scheduler less than many graphs."""
PATIENCE = 30.0
"""Seconds without scheduler or node after which jobs are abandoned."""
IGNORED = frozenset(
    {
        *("host", "ip_addr", "dispy_port", "ext_host", "ext_ip_addr", "ipv4_udp_multicast", "client_port", "scheduler_host"),
        *("dest_path", "recover_file", "ping_interval", "pulse_interval", "poll_interval", "reentrant", "exclusive"),
        *("secret", "keyfile", "certfile"),
    }
)
"""Arguments of dispy that have no meaning here: how to find nodes, and whom to trust, says the configuration."""

INSTALLED = tuple(f"{sysconfig.get_path(name)}/" for name in ("stdlib", "purelib", "platlib"))
"""Folders of modules that nodes have, too."""

ClusterStatus = namedtuple("ClusterStatus", ["nodes", "jobs_pending"])


class _Logger(logging.Logger):
    """dispy's logger: lines with the time on standard output, and the levels as attributes."""

    DEBUG, INFO, WARN, WARNING, ERROR, CRITICAL, FATAL = 10, 20, 30, 30, 40, 50, 50


logger = _Logger("dispy", logging.INFO)
logger.addHandler(logging.StreamHandler(sys.stdout))
logger.handlers[0].setFormatter(logging.Formatter("%(asctime)s %(name)s - %(message)s", "%Y-%m-%d %H:%M:%S"))


class DispyJob:
    """A job: what it was given, where it is, what came of it. Calling it waits for its end and gives its result.

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
        self._task: _Task | None = None

    def __call__(self, clear: bool = False) -> Any:
        self.finish.wait()
        if clear:
            self.finish.clear()
        return self.result

    def __lt__(self, other: "DispyJob") -> bool:
        return self.submit_time < other.submit_time


class DispyNode:
    """A node, its share of the jobs so far, and the bytes of their arguments (`tx`) and results (`rx`)."""

    Initialized, Closed, AvailInfo = 4, 16, 17

    def __init__(self, ip_addr: str, name: str, cpus: int) -> None:
        self.ip_addr, self.name, self.cpus, self.avail_cpus = ip_addr, name, cpus, cpus
        self.busy = self.jobs_done = self.tx = self.rx = 0
        self.cpu_time, self.update_time, self.avail_info = 0.0, 0.0, None


class NodeAllocate:
    """Names a node, or several with `*`. (Which of its cores, and what it needs, is the cluster's business.)"""

    def __init__(
        self, host: str, port: int | None = None, cpus: int = 0, depends: Sequence[Any] = (), setup_args: Any = ()
    ) -> None:
        self.host, self.port, self.cpus = host, port, cpus


class _Task:
    """A job on its way through dask: `nodes` are the names of the only nodes that may run it, if not all may."""

    def __init__(self, uid: str, job: DispyJob, arguments: bytes, nodes: tuple[str, ...] | None) -> None:
        self.uid, self.job, self.arguments, self.nodes = uid, job, arguments, nodes
        self.attempts, self.cancelled = 0, False
        self.future: Any = None
        self.addresses: list[str] | None = None


class JobCluster:
    """The nodes, ready for one computation: a function, which gets the arguments of each `submit`.

    `depends`: functions, classes (or objects of one), modules and files that it needs. `job_status` (or `callback`) is called
    with a job when it ended or has a provisional result, `cluster_status` with (status, node, job). Without a scheduler or a
    node the script ends here, with one line that says why and exit code 3 (2 when the configuration is wrong).
    """

    def __init__(
        self,
        computation: Callable[..., Any],
        nodes: Any = None,
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
        if unknown := sorted(options.keys() - IGNORED):
            raise TypeError(f"{type(self).__name__}() got an unexpected keyword argument {unknown[0]!r}")
        if not callable(computation):
            raise TypeError(f"the computation must be a function, is {computation!r}; a program can be started by a function")
        for option in sorted(options):
            logger.info("%s= has no meaning on this cluster; its configuration says how to reach it", option)
        self._name = getattr(computation, "__name__", str(computation))
        self._uid = uuid.uuid4().hex
        _find_packages()
        self._computation = _pack(computation, depends, setup, cleanup)
        self._job_status, self._cluster_status = job_status or callback, cluster_status

        self._engine = _connect()
        self._client = self._engine.client
        self._dispy_nodes: dict[str, DispyNode] = {}
        self._only = self._choose(nodes)
        self.start_time = time.time()
        self.end_time: float | None = None
        self._tasks: dict[str, _Task] = {}
        self._submitted, self._ended, self._calls = (queue.SimpleQueue[Any]() for _ in range(3))
        self._lock, self._complete, self._open = threading.Lock(), threading.Event(), True
        self._pending, self._numbers = 0, itertools.count()
        self._complete.set()
        self._client.subscribe_topic(_node.TOPIC, self._heard)
        for work in (self._hand_over, self._collect, self._call):
            threading.Thread(target=work, name=f"dispy {work.__name__}", daemon=True).start()
        for dispy_node in self._dispy_nodes.values():
            self._tell(DispyNode.Initialized, dispy_node, None)
        _at_the_end(self)

    # What scripts call.

    def submit(self, *args: Any, **kwargs: Any) -> DispyJob | None:
        """A new job. `dispy_job_depends` may name functions and classes that only this one needs.

        None, and a line in the log, when the arguments cannot be pickled or the cluster is closed.
        """
        return self._submit(None, self._only, args, kwargs)

    def submit_job_id(self, job_id: Any, *args: Any, **kwargs: Any) -> DispyJob | None:
        """As `submit`; `job.id` is set."""
        return self._submit(job_id, self._only, args, kwargs)

    def submit_node(self, node: DispyNode | str, *args: Any, **kwargs: Any) -> DispyJob | None:
        """A job for one node, by its DispyNode, name or address. None, and a line in the log, when there is no such node."""
        return self.submit_job_id_node(None, node, *args, **kwargs)

    def submit_job_id_node(self, job_id: Any, node: DispyNode | str, *args: Any, **kwargs: Any) -> DispyJob | None:
        """As `submit_node`; `job.id` is set."""
        wanted = {node.name} if isinstance(node, DispyNode) else {node}
        found = tuple(each.name for each in self._dispy_nodes.values() if wanted & {each.name, each.ip_addr})
        if not found:
            logger.warning("Invalid node %s; there are %s", *wanted, ", ".join(self._dispy_nodes))
            return None
        return self._submit(job_id, found, args, kwargs)

    def cancel(self, job: DispyJob) -> int:
        """Take a job back: one that has not begun ends as Cancelled, one that runs is killed and ends as Terminated. 0 or -1."""
        task = job._task
        if task is None or task.cancelled:
            logger.warning("Job %s is invalid for cancellation!", job.id)
            return -1
        task.cancelled = True
        if job.status == DispyJob.Created:
            if task.future:
                self._ask(partial(self._client.cancel, [task.future], asynchronous=True, force=True))
            self._finish(task, None)
        else:
            self._ask(partial(self._client.run, _node.stop, task.uid, asynchronous=True, on_error="ignore"))
        return 0

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all jobs have ended, and `job_status` has returned for them; False if not after so many seconds."""
        return self._complete.wait(timeout)

    def __call__(self) -> None:
        self.wait()

    def name(self) -> str:
        """The computation's name."""
        return self._name

    def status(self) -> ClusterStatus:
        """The nodes, and how many jobs have not ended."""
        return ClusterStatus(list(self._dispy_nodes.values()), self._pending)

    def print_status(self, wall_time: float | None = None) -> None:
        """A table of the nodes, the time of all jobs together, and how much shorter the wall clock says it was."""
        row = " {:>15.15} | {:>5} | {:>7} | {:>8} | {:>13} | {:>7} | {:>7}"
        heading = row.format("Node", "CPUs", "Jobs", "Sec/Job", "Node Time Sec", "Sent", "Rcvd")
        print(f"\n{heading}\n{'-' * len(heading)}")
        nodes, pending = self.status()
        for each in nodes:
            mean = each.cpu_time / (each.jobs_done or 1)
            sizes = _bytes(each.tx), _bytes(each.rx)
            print(row.format(each.name, each.cpus, each.jobs_done, f"{mean:.1f}", f"{each.cpu_time:.1f}", *sizes))
        if pending:
            print(f"\nJobs pending: {pending}", end="")
        total = sum(each.cpu_time for each in nodes)
        wall_time = wall_time or time.time() - self.start_time
        print(f"\nTotal job time: {total:.3f} sec, wall time: {wall_time:.3f} sec, speedup: {total / wall_time:.3f}\n")

    stats = print_status

    def close(self, timeout: float | None = None, terminate: bool = False) -> bool:
        """Wait for the jobs (with `terminate`, kill them), let go of the nodes. False if jobs were left after so many seconds."""
        if not self._open:
            return True
        if not terminate and not self._complete.wait(timeout):
            return False
        self._open = False
        for task in list(self._tasks.values()):
            task.cancelled = True
        if futures := [task.future for task in self._tasks.values() if task.future]:
            self._ask(partial(self._client.cancel, futures, asynchronous=True, force=True))
        self._ask(partial(self._client.run, _node.end, self._uid, asynchronous=True, on_error="ignore"))
        for dispy_node in self._dispy_nodes.values():
            self._tell(DispyNode.Closed, dispy_node, None)
        self._submitted.put(None)
        self._ended.put(None)
        self._calls.put(None)
        self._engine.close()
        return True

    shutdown = close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self.close(terminate=kind is not None)

    # Between the script and dask.

    def _workers(self) -> dict[str, tuple[str, int]] | None:
        """Address to (name of its node, threads) of the workers there are; None without an answer of the scheduler."""
        identity = self._ask(lambda: self._client.scheduler.identity(n_workers=-1))
        if identity is None:
            return None
        return {
            address: (self._engine.node_of(str(worker["name"])), int(worker["nthreads"]))
            for address, worker in identity["workers"].items()
        }

    def _node_of(self, name: str, ip_addr: str) -> DispyNode:
        return self._dispy_nodes.setdefault(name, DispyNode(ip_addr, name, 0))

    def _choose(self, nodes: Any) -> tuple[str, ...] | None:
        """Note the nodes there are; the names of those that were asked for, None for all."""
        for address, (name, threads) in sorted((self._workers() or {}).items(), key=lambda item: item[1]):
            self._node_of(name, _host(address)).cpus += threads
        patterns = list(_patterns(nodes))
        chosen = tuple(
            each.name
            for each in self._dispy_nodes.values()
            if any(fnmatch(text, pattern) for text in (each.name, each.ip_addr) for pattern in patterns)
        )
        if not patterns or len(chosen) == len(self._dispy_nodes):
            return None
        if not chosen:
            logger.info("no node is called %s; all %s are used", " or ".join(patterns), len(self._dispy_nodes))
            return None
        self._dispy_nodes = {name: each for name, each in self._dispy_nodes.items() if name in chosen}
        return chosen

    def _submit(
        self, job_id: Any, nodes: tuple[str, ...] | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> DispyJob | None:
        import cloudpickle

        names = {each.__name__: each for each in kwargs.pop("dispy_job_depends", ())}
        job = DispyJob(job_id, args, kwargs)
        try:
            with _by_value(names.values()):
                arguments = cloudpickle.dumps((args, kwargs, names))
        except Exception as error:
            logger.warning("Creating job for %r, %r failed: %r", args, kwargs, error)
            return None
        if not self._open:
            logger.warning("the cluster is closed: no job can be submitted")
            return None
        job._task = task = _Task(f"{self._uid}-{next(self._numbers)}", job, arguments, nodes)
        with self._lock:
            self._tasks[task.uid] = task
            self._pending += 1
            self._complete.clear()
        self._tell(DispyJob.Created, None, job)
        self._submitted.put(task)
        return job

    def _hand_over(self) -> None:
        """A thread: give dask what was submitted."""
        while (task := self._submitted.get()) is not None:
            time.sleep(GATHER)
            groups: dict[tuple[str, ...] | None, list[_Task]] = {task.nodes: [task]}
            with suppress(queue.Empty):
                while (task := self._submitted.get_nowait()) is not None:
                    groups.setdefault(task.nodes, []).append(task)
                return
            for nodes, tasks in groups.items():
                self._start(tasks, nodes, None if nodes is None else self._workers())

    def _start(self, tasks: Sequence[_Task], nodes: Sequence[str] | None, workers: dict[str, tuple[str, int]] | None) -> None:
        """Hand jobs to dask, for any or only for these nodes."""
        addresses = None if nodes is None else [address for address, (name, _) in (workers or {}).items() if name in nodes]
        for task in tasks:
            task.attempts += 1
            task.addresses = addresses
        futures = self._client.map(
            partial(_node.work, self._uid, self._computation),
            [task.uid for task in tasks],
            [task.arguments for task in tasks],
            key=[f"{self._name}-{task.uid}-{task.attempts}" for task in tasks],
            workers=addresses,
            pure=False,
        )
        for task, future in zip(tasks, futures, strict=True):
            task.future = future
            self._watch(task, future)
            if task.cancelled:
                self._ask(partial(self._client.cancel, [future], asynchronous=True, force=True))

    def _watch(self, task: _Task, future: Any) -> None:
        future.add_done_callback(lambda future: self._ended.put((task, future)))

    def _ask(self, request: Callable[[], Any]) -> Any:
        """Run an asynchronous request to its end; None if there is no answer, for whatever reason dask gives."""
        try:
            return self._client.sync(request, callback_timeout=ANSWER)
        except Exception:
            return None

    def _heard(self, event: tuple[float, dict[str, Any]]) -> None:
        """A node says that a job begins, or has a provisional result. (In dask's own thread: nothing here may wait.)"""
        news = event[1]
        task = self._tasks.get(news["job"])
        if task is None or task.cancelled:
            return
        job = task.job
        if "result" in news:
            job.result, job.status = pickle.loads(news["result"]), DispyJob.ProvisionalResult
            self._calls.put((self._job_status, (copy.copy(job),)))
        else:
            job.status, job.start_time, job.ip_addr = DispyJob.Running, news["start"], news["address"]
        self._tell(job.status, self._node_of(self._engine.node_of(news["node"]), news["address"]), job)

    def _collect(self) -> None:
        """A thread: fetch what has ended, as many at a time as there are, and keep the account of what has not."""
        silent_since = time.monotonic()
        while True:
            batch: dict[str, tuple[_Task, Any]] = {}
            try:
                ended: tuple[_Task, Any] | None = self._ended.get(timeout=SILENCE)
                while ended is not None:
                    if self._tasks.get(ended[0].uid) is ended[0] and ended[0].future is ended[1]:  # not of an earlier attempt
                        batch[ended[0].uid] = ended
                    ended = self._ended.get_nowait()
                return
            except queue.Empty:
                pass
            finished = [(task, future) for task, future in batch.values() if future.status == "finished"]
            gather = partial(self._client.gather, [future for _, future in finished], asynchronous=True)
            replies = self._ask(gather) if finished else []
            for (done, future), reply in zip(finished, replies or [None] * len(finished), strict=True):
                if reply is not None:
                    self._finish(done, reply)
                else:  # its node died before it handed over: dask computes it again
                    self._watch(done, future)
            for done, future in batch.values():
                if future.status == "error":
                    self._finish(done, None, f"every node that ran it died: {future.exception()!r}")
            if (finished and replies) or not self._tasks:
                silent_since = time.monotonic()
            else:
                self._look(time.monotonic() - silent_since)

    def _look(self, silent: float) -> None:
        """Start jobs again that nobody has any more; abandon them when that does not help."""
        workers = self._workers()
        names = {name for name, _ in (workers or {}).values()}
        for task in list(self._tasks.values()):
            if task.future is None or task.cancelled:
                continue
            adrift = task.future.cancelled()  # the scheduler went away
            homeless = task.addresses is not None and workers is not None and workers.keys().isdisjoint(task.addresses)
            able = bool(names if task.nodes is None else names.intersection(task.nodes))
            if (adrift or homeless) and able and task.attempts <= 3:
                logger.info("job %s is started again", task.job.id)
                task.job.status = DispyJob.Created
                self._start([task], task.nodes, workers)
            elif not able and silent > PATIENCE:
                self._finish(task, None, f"no node was there to run it for {PATIENCE:g} s")

    def _finish(self, task: _Task, reply: _node.Reply | None, why: str | None = None) -> None:
        """A job has ended: with a reply of the node; or Abandoned, and `why`; or Cancelled."""
        job = task.job
        if self._job_status:
            time.sleep(max(0.0, job.submit_time + HOLD - time.time()))
        with self._lock:
            if self._tasks.pop(task.uid, None) is None:
                return
        dispy_node, exception = None, why
        status = DispyJob.Abandoned if why else DispyJob.Cancelled
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
                status, exception = DispyJob.Terminated, f"the result cannot be read here: {error!r}"
            if task.cancelled and exception:
                exception = "the job was cancelled while it ran"
        elif why:
            logger.warning("job %s is abandoned: %s", job.id, why)
        job.exception, job.status = exception, status
        job._task = task.future = None
        self._tell(status, dispy_node, job)
        if self._job_status:
            self._calls.put((self._job_status, (job,)))
            self._calls.put((self._count_down, ()))
        else:
            self._count_down()
        job.finish.set()

    def _count_down(self) -> None:
        with self._lock:
            self._pending -= 1
            if not self._pending:
                self.end_time = time.time()
                self._complete.set()

    def _tell(self, status: int, dispy_node: DispyNode | None, job: DispyJob | None) -> None:
        if self._cluster_status:
            self._calls.put((self._cluster_status, (status, dispy_node, copy.copy(job))))

    def _call(self) -> None:
        """A thread: call the script's own functions, one after the other."""
        while (call := self._calls.get()) is not None:
            function, arguments = call
            try:
                if function:
                    function(*arguments)
            except Exception:
                logger.exception("%s failed", getattr(function, "__name__", function))


class SharedJobCluster(JobCluster):
    """The same: the scheduler here serves any number of scripts at once."""


def _find_packages() -> None:
    """Make this package's neighbours importable when it was found alone, by the link that the role `workloads` makes.

    They are put first, so that what dask needs comes from one place, then last, so that they hide nothing from the script.
    """
    site = str(Path(__file__).resolve().parents[1])
    if site in sys.path:
        return
    sys.path.insert(0, site)
    try:
        for name in ("cloudpickle", "distributed", "bramble.driver"):
            importlib.import_module(name)
    finally:
        sys.path.remove(site)
        sys.path.append(site)


def _connect() -> Any:
    """The cluster. Ends the script, with one line on standard error, when there is none."""
    from bramble import BrambleError, driver

    try:
        return driver.connect("cluster", TIMEOUT, say=lambda line: logger.warning("%s", line))
    except BrambleError as error:
        print(f"dispy: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def _pack(computation: Callable[..., Any], depends: Iterable[Any], setup: Any, cleanup: Any) -> bytes:
    """The computation for the nodes. Raises FileNotFoundError, and TypeError when something cannot be sent."""
    files: dict[str, bytes] = {}
    names: dict[str, Any] = {}
    for each in depends:
        if inspect.ismodule(each) or isinstance(each, str):
            path = Path(each) if isinstance(each, str) else Path(str(each.__file__))
            if not path.is_file():
                raise FileNotFoundError(f"depends: {path} is not a file")
            files[path.name] = path.read_bytes()
        else:
            base = each.func if isinstance(each, functools.partial) else each
            named = base if hasattr(base, "__name__") else type(base)
            names[named.__name__] = named
    cleanup = cleanup if callable(cleanup) else None
    modules = {each.__name__ for each in depends if inspect.ismodule(each)}
    with _by_value([computation, setup, cleanup, *names.values()], modules):
        return _node.pack(files, computation, names, setup, cleanup)


@contextmanager
def _by_value(objects: Iterable[Any], sent: Iterable[str] = ()) -> Iterator[None]:
    """Pickle functions and classes of the script's own modules by value: nodes have what is installed, and what was `sent`."""
    import cloudpickle

    known = {*sent, *cloudpickle.list_registry_pickle_by_value()}
    added = []
    for each in objects:
        module = sys.modules.get(getattr(getattr(each, "func", each), "__module__", None) or "")
        path = getattr(module, "__file__", None)
        if module and path and module.__name__ not in known and not path.startswith(INSTALLED):
            cloudpickle.register_pickle_by_value(module)
            known.add(module.__name__)
            added.append(module)
    try:
        yield
    finally:
        for module in added:
            cloudpickle.unregister_pickle_by_value(module)


def _patterns(nodes: Any) -> Iterator[str]:
    """The names and addresses in dispy's `nodes`: one or many of a string, a tuple (host, port, CPUs) or a NodeAllocate."""
    for each in [nodes] if isinstance(nodes, str | NodeAllocate) else nodes or ():
        host = each.host if isinstance(each, NodeAllocate) else each if isinstance(each, str) else each[0]
        yield host.replace("\\", "")  # OctaPi writes '192.168.1.\*', as if it were a regular expression


def _host(address: str) -> str:
    return address.rpartition("://")[2].rpartition(":")[0]


def _bytes(size: float) -> str:
    for unit in "BKMG":
        if size < 1024 or unit == "G":
            break
        size /= 1024
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"


_clusters: list[JobCluster] = []


def _at_the_end(cluster: JobCluster) -> None:
    """Close a cluster with the script: wait for its jobs, or kill them if somebody stopped it or it failed."""
    _clusters.append(cluster)
    if len(_clusters) > 1:
        return
    atexit.register(lambda: [each.close() for each in _clusters])
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        for each in _clusters:
            each.close(terminate=True)
        if issubclass(kind, KeyboardInterrupt):
            print("dispy: stopped; the jobs are cancelled", file=sys.stderr)
        else:
            before(kind, error, trace)

    sys.excepthook = hook
