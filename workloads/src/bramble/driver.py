"""Map a kernel over arguments: on one core, on every core here, or on the cluster. The same kernel, the same results.

A kernel is a module-level function of one argument in this package: it travels to the nodes as a name, not as code.
dask (or concurrent.futures) does the distributing; this module keeps the account: **every job ends exactly once**,
either finished or named as lost.

    with driver.connect("cluster") as engine:
        engine.warm_up(kernel)
        for outcome in engine.map(kernel, arguments):
            ...

Nothing heavy is imported before it is needed: a small node pays for every import.
"""

import importlib
import os
import pickle
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

from bramble import ClusterError, ResultError, UsageError, __version__, memory
from bramble.config import ClusterConfig, load

if TYPE_CHECKING:
    from concurrent.futures import Future as LocalFuture
    from concurrent.futures import ProcessPoolExecutor

    from distributed import Client, Future

Place = Literal["local", "workstation", "cluster"]
Kernel = Callable[[Any], Any]

GATHER_INTERVAL = 0.5
"""Seconds: results are fetched at most this often, many at a time; one trip per job would eat a small scheduler."""
ANSWER_TIMEOUT = 10.0
"""Seconds for the scheduler to answer anything we ask, results included: they are small."""
SILENCE = 5.0
"""Seconds without a finished job after which we ask the scheduler whether the nodes we wait for still exist."""
RUNNING = ("executing", "long-running", "cancelled", "resumed")
"""The states of a job that a worker is busy with (distributed.worker_state_machine)."""
ATTEMPTS = 3
"""How often jobs are submitted when all of their nodes, or the scheduler, went away and came back."""
WARM_UP_TIMEOUT = 120.0
"""Seconds for a node to import a kernel: a fifth of a core takes its time over NumPy."""


@dataclass(frozen=True)
class Outcome:
    """How one job ended: its index in the arguments, and either a result or, in `lost`, the reason why there is none.

    `node` is where it ended (of a lost one: where it was last, if that is known). `seconds` is the time inside the
    kernel, by the clock of `node`; `after` the time from the start of the map until the job was known to have ended, by
    the clock here. `retried` names the nodes that it was taken back from: one whose worker went away, or was started
    anew because of another job, while it had this one (begun or not). A node may be in it more than once.
    """

    index: int
    result: Any = None
    node: str = ""
    seconds: float = 0.0
    after: float = 0.0
    lost: str | None = None
    retried: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Return:
    """What travels back from a job: the result, or the text of a traceback."""

    result: Any
    traceback: str | None
    worker: str
    seconds: float


def _call(kernel: Kernel, argument: Any, worker: str) -> _Return:
    """Run and time one job. An exception becomes text here, where its traceback is: not every exception can travel."""
    begin = time.perf_counter()
    result, text = None, None
    try:
        result = kernel(argument)
    except Exception:
        text = traceback.format_exc()
    return _Return(result, text, worker, time.perf_counter() - begin)


def _call_on_worker(job: bytes) -> _Return:
    """Run a job, which is a pickled kernel and argument: the scheduler hands it on without importing what is in it."""
    from distributed import get_worker

    kernel, argument = pickle.loads(job)
    return _call(kernel, argument, str(get_worker().name))


def _ready(module: str) -> str:
    """Warm-up: import the kernel's module and have it prepare; tell the version of this package here."""
    prepare = getattr(importlib.import_module(module), "prepare", None)
    if prepare:
        prepare()
    return __version__


def _outcome(index: int, argument: Any, back: _Return, node: str, after: float, retried: Sequence[str] = ()) -> Outcome:
    if back.traceback is not None:
        raise ResultError(f"job {index} failed on {node} with argument {argument!r}:\n{back.traceback.rstrip()}")
    return Outcome(index, back.result, node, back.seconds, after, retried=tuple(retried))


def _running(dask_scheduler: Any) -> dict[str, tuple[str, float]]:
    """On the scheduler: by key of a job that runs, its worker's address, and for how many seconds it ran at the last report."""
    return {
        str(task.key): (address, seconds)
        for address, worker in dask_scheduler.workers.items()
        for task, seconds in worker.executing.items()
    }


class Engine:
    """A place to compute: `nodes` are the names of its machines, sorted; `label` says what it is, in a few words."""

    nodes: tuple[str, ...]
    label: str
    took: float | None = None
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
        _ready(kernel.__module__)

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


class Local(Engine):
    """One core: this process, one job after the other."""

    def __init__(self) -> None:
        self.nodes = (socket.gethostname(),)
        self.label = f"one core of {self.nodes[0]}"

    def map(self, kernel: Kernel, arguments: Sequence[Any], nodes: Sequence[str] | None = None) -> Iterator[Outcome]:
        begin, node = time.monotonic(), self.nodes[0]
        for index, argument in enumerate(arguments):
            yield _outcome(index, argument, _call(kernel, argument, node), node, time.monotonic() - begin)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait while processes are started: one that is half started complains that the rest of it is gone.

    They inherit that they do not hear it. The handler is for this process, since other threads of it may hear it.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt


class Workstation(Engine):
    """Every core of this machine: one process per core."""

    def __init__(self) -> None:
        self.nodes = (socket.gethostname(),)
        self.processes = len(os.sched_getaffinity(0))
        self.label = f"{self.processes} cores of {self.nodes[0]}"
        self.pool: ProcessPoolExecutor | None = None
        self.jobs: dict[LocalFuture[_Return], int] = {}

    def slots(self, nodes: Sequence[str] | None = None) -> int:
        return self.processes

    def warm_up(self, kernel: Kernel) -> None:
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        super().warm_up(kernel)
        if self.pool is not None:
            list(self.pool.map(_ready, [kernel.__module__] * self.processes))
            return
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([kernel.__module__])
        # Not forked from here: a process that has threads (whoever uses this as a library may) forks children that hang.
        # Ctrl-C reaches everyone on the terminal; only this process answers to it.
        self.pool = ProcessPoolExecutor(
            self.processes,
            mp_context=context,
            initializer=signal.signal,
            initargs=(signal.SIGINT, signal.SIG_IGN),
        )
        with _uninterrupted():
            modules = self.pool.map(_ready, [kernel.__module__] * self.processes)
        list(modules)

    def map(self, kernel: Kernel, arguments: Sequence[Any], nodes: Sequence[str] | None = None) -> Iterator[Outcome]:
        from concurrent.futures import as_completed
        from concurrent.futures.process import BrokenProcessPool

        if self.pool is None:
            self.warm_up(kernel)
        assert self.pool is not None
        begin, node = time.monotonic(), self.nodes[0]
        self.jobs = {self.pool.submit(_call, kernel, argument, node): index for index, argument in enumerate(arguments)}
        for job in as_completed(self.jobs):
            index = self.jobs[job]
            try:
                back = job.result()
            except BrokenProcessPool:
                yield Outcome(index, lost=f"a process of {node} died (out of memory? `dmesg | tail` tells)")
            else:
                yield _outcome(index, arguments[index], back, node, time.monotonic() - begin)

    def close(self) -> None:
        import multiprocessing
        from concurrent.futures import wait

        if self.pool is None:
            return
        if running := [job for job in self.jobs if not job.done()]:
            # In the middle of a job. The pool finds itself broken, and fails what is left; only then is it shut down: a
            # child that is terminated while the pool shuts down, or a job cancelled by hand, can leave it waiting for ever.
            for child in multiprocessing.active_children():
                child.terminate()
            running = list(wait(running, timeout=5).not_done)
        # Whoever does not wait leaves threads of the pool behind, which complain on standard error as the interpreter exits.
        self.pool.shutdown(wait=not running, cancel_futures=True)


class Cluster(Engine):
    """The nodes of the cluster, through dask over mutual TLS.

    A worker's node is the expected node (`nodes` in the configuration) that bears its name, up to the `-0`, `-1`...
    that dask appends when a node runs several worker processes: both `pi-01` and `pi-01-3` are node `pi-01`. The list
    decides, since `pi-01` itself looks like process 1 of a node `pi`. A worker that is not on the list is its own node.
    """

    def __init__(
        self,
        config: ClusterConfig,
        timeout: float,
        require_all: bool,
        say: Callable[[str], None],
        wanted: Iterable[str] | None = None,
        job_timeout: float | None = None,
        drip: int | None = None,
    ) -> None:
        self.config, self.timeout, self.say, self.job_timeout, self.drip = config, timeout, say, job_timeout, drip
        self.seen: dict[str, str] = {}
        """Address to node of every worker that was ever here."""
        self.ears: list[deque[dict[str, Any]]] = []
        """Where to put what happens on the cluster: a queue for each map."""
        self.client = self._connect()
        try:
            self.nodes = self._wait_for_nodes(set(config.nodes if wanted is None else wanted), require_all, say)
        except BaseException:
            self.close()
            raise
        self.label = f"{len(self.nodes)} node{'s' * (len(self.nodes) > 1)} of {config.scheduler}"

    def _connect(self) -> "Client":
        import logging
        import ssl

        import dask
        from distributed import Client
        from distributed.security import Security

        config = self.config
        for name in ("distributed", "distributed.client", "tornado.application"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # every failure is reported here, in one line
        security = Security(
            require_encryption=True,
            tls_ca_file=str(config.ca),
            tls_client_cert=str(config.cert),
            tls_client_key=str(config.key),
        )
        try:
            context = security.get_connection_args("client")["ssl_context"]
        except (ssl.SSLError, ValueError) as error:
            raise UsageError(
                f"{config.cert}, {config.key} and {config.ca} do not make a TLS identity: {error}; "
                "`ansible-playbook playbooks/site.yml --tags scheduler` makes the certificates"
            ) from None
        self._knock(context)
        # The client's own refresh of a list that nobody looks at costs a small scheduler time.
        dask.config.set({"distributed.client.scheduler-info-interval": "1h"})
        try:
            return Client(config.scheduler, security=security, timeout=self.timeout, set_as_default=False)
        except OSError as error:
            raise self._unreachable(error) from None

    def _knock(self, context: Any) -> None:
        """One plain TLS connection first: it tells at once, and exactly, what a dask client tells after a timeout."""
        try:
            with (
                socket.create_connection(self.config.address, timeout=min(self.timeout, 10.0)) as plain,
                context.wrap_socket(plain) as wrapped,
            ):
                # In TLS 1.3 a refused client hears of it with the first bytes; a scheduler always speaks first.
                if not wrapped.recv(1):
                    raise ConnectionError("it closed the connection")
        except OSError as error:  # ssl.SSLError and TimeoutError are OSErrors
            raise self._unreachable(error) from None

    def _unreachable(self, reason: OSError) -> ClusterError:
        return ClusterError(
            f"no scheduler at {self.config.scheduler}: {reason}; on the client see "
            "`systemctl status bramble-scheduler`, or run `ansible-playbook playbooks/site.yml --tags scheduler`"
        )

    def _wait_for_nodes(self, expected: set[str], require_all: bool, say: Callable[[str], None]) -> tuple[str, ...]:
        deadline = time.monotonic() + self.timeout
        while not expected <= (there := set(self._workers().values())) and time.monotonic() < deadline:
            time.sleep(0.25)
        if missing := ",".join(sorted(expected - there)):
            text = f"{missing} did not report to {self.config.scheduler} within {self.timeout:g} s"
            advice = (
                f"see `systemctl status bramble-worker` there, or run "
                f"`ansible-playbook playbooks/site.yml --tags worker --limit {missing}`"
            )
            if require_all or not there:
                raise ClusterError(f"{text}; {advice}")
            say(f"{text}; going on with the {len(there)} that did ({advice})")
        return tuple(sorted(there))

    def _workers(self, nodes: Sequence[str] | None = None) -> dict[str, str]:
        """Address to node of the workers that the scheduler has now (of these nodes); empty without a scheduler."""
        # Not client.scheduler_info(): without a scheduler that tells what it last knew.
        identity = self._ask(lambda: self.client.scheduler.identity(n_workers=-1)) or {"workers": {}}
        found = {address: self.node_of(str(worker["name"])) for address, worker in identity["workers"].items()}
        self.seen |= found
        return {address: node for address, node in found.items() if nodes is None or node in nodes}

    def threads(self) -> dict[str, int]:
        """How many jobs each node that is here does at once."""
        found: dict[str, int] = {}
        for worker in self.client.scheduler_info(n_workers=-1)["workers"].values():
            node = self.node_of(str(worker["name"]))
            found[node] = found.get(node, 0) + int(worker["nthreads"])
        return dict(sorted(found.items()))

    def slots(self, nodes: Sequence[str] | None = None) -> int:
        return sum(threads for node, threads in self.threads().items() if nodes is None or node in nodes)

    def memory(self, nodes: Sequence[str] | None = None) -> int:
        """A node's share for jobs, by its thread; the least there is. A worker without a limit does not count."""
        workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
        shares = [
            int(worker["memory_limit"]) // int(worker["nthreads"])
            for worker in workers
            if worker["memory_limit"] and (nodes is None or self.node_of(str(worker["name"])) in nodes)
        ]
        return min(shares, default=sys.maxsize)

    def drain(self, node: str) -> bool:
        """Have a node end the jobs that it runs and begin no other; False if it has no worker here.

        What it has computed goes to other nodes. It stays like this until its worker is started anew.
        Raises ResultError when jobs still run at the end of the timeout, or nobody can take what it holds.
        """
        addresses = sorted(self._workers([node]))
        if not addresses:
            return False
        deadline = time.monotonic() + self.timeout
        self._retire(node, addresses)
        asked, running = self._beats(addresses), addresses
        while running:
            if time.monotonic() > deadline:
                raise ResultError(f"{node} still runs jobs after {self.timeout:g} s; wait, or end the program that they are of")
            time.sleep(0.25)
            # By heartbeats from after the request: a job that was on its way has begun by then.
            running = [
                address
                for address, (seen, busy) in self._beats(addresses).items()
                if busy or seen == asked.get(address, (0.0, 0))[0]
            ]
        self._retire(node, addresses)  # with what the last jobs made
        return True

    def _retire(self, node: str, addresses: Sequence[str]) -> None:
        retire = partial(self.client.retire_workers, list(addresses), close_workers=False, remove=False, asynchronous=True)
        if not self._ask(retire) and self._workers([node]):
            raise ResultError(f"{node} holds results, and no other node can take them; end the program that they are of")

    def _beats(self, addresses: Sequence[str]) -> dict[str, tuple[float, int]]:
        """By address of a worker that is there, when it last reported to the scheduler, and how many jobs it ran then."""
        workers = (self._ask(lambda: self.client.scheduler.identity(n_workers=-1)) or {"workers": {}})["workers"]
        return {
            address: (worker["last_seen"], sum(worker["metrics"]["task_counts"].get(state, 0) for state in RUNNING))
            for address, worker in workers.items()
            if address in addresses
        }

    def drained(self) -> set[str]:
        """The nodes that are here and take no jobs, until their workers are started anew."""
        workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
        return {self.node_of(str(worker["name"])) for worker in workers if worker["status"] != "running"}

    def node_of(self, worker: str) -> str:
        """The node of a worker, by its name: see the class."""
        stem, _, process = worker.rpartition("-")
        return stem if worker not in self.config.nodes and stem in self.config.nodes and process.isdigit() else worker

    def warm_up(self, kernel: Kernel) -> None:
        """Have every worker import the kernel. Raises ClusterError, naming the node, if one cannot."""
        module = kernel.__module__
        jobs = [
            (node, self.client.submit(_ready, module, workers=[address], pure=False)) for address, node in self._workers().items()
        ]
        for node, job in jobs:
            advice = f"`ansible-playbook playbooks/site.yml --tags worker --limit {node}` installs it"
            try:
                version = job.result(timeout=WARM_UP_TIMEOUT)
            except TimeoutError:
                raise ClusterError(f"{node} does not answer; see `systemctl status bramble-worker` there") from None
            except Exception as error:  # whatever an import can raise
                raise ClusterError(f"{node} cannot import {module}: {error!r}; {advice}") from None
            if version != __version__:
                raise ClusterError(f"{node} has bramble {version}, here is {__version__}; {advice}")

    def map(self, kernel: Kernel, arguments: Sequence[Any], nodes: Sequence[str] | None = None) -> Iterator[Outcome]:
        """See Engine.map. dask itself runs a job again when its worker dies, a few times; this adds the rest.

        Without `nodes` there is no restriction, so a node that comes back gets work again. With `nodes` the jobs are
        bound to the addresses that these nodes' workers have now (which is what dask makes of a worker's name). When
        all of them are gone, or the scheduler went away, what is unfinished is submitted again as soon as one is back;
        it is lost when none is back within the timeout. So is a job that runs for longer than `job_timeout`, and one
        whose worker died again when it was the only one that ran.
        """
        return _Map(self, kernel, arguments, nodes).outcomes()

    def _ask(self, request: Callable[[], Any]) -> Any:
        """Run an asynchronous dask request to its end and return what it returns; None if there is no answer in time.

        dask has many words for a scheduler or a node that is gone (timeout, cancelled, closed, lost); the account of
        the jobs does not depend on which one it was.
        """
        try:
            return self.client.sync(request, callback_timeout=ANSWER_TIMEOUT)
        except Exception:
            return None

    def _cancel(self, futures: Iterable["Future"]) -> None:
        """Best effort: without a scheduler there is nothing to cancel."""
        if futures := list(futures):
            self._ask(partial(self.client.cancel, futures, asynchronous=True, force=True))

    def _await_worker(self, nodes: Sequence[str] | None) -> bool:
        """Wait up to the timeout for a worker (of these nodes); tell whether there is one."""
        deadline = time.monotonic() + self.timeout
        while not (there := self._workers(nodes)) and time.monotonic() < deadline:
            time.sleep(0.5)
        return bool(there)

    def _listen(self) -> None:
        """Be told of what happens on the cluster. A scheduler that was restarted has to be asked again."""

        def hear(event: tuple[float, dict[str, Any]]) -> None:
            for ear in self.ears:
                ear.append(event[1])

        self.client.subscribe_topic("all", hear)

    def _restart(self, addresses: Iterable[str]) -> None:
        """Have the nannies of these workers start them anew; whatever runs there ends."""
        self._ask(
            lambda: self.client.scheduler.restart_workers(
                workers=sorted(addresses), timeout=ANSWER_TIMEOUT, wait_for_workers=False, on_error="return",
                stimulus_id=f"bramble-job-timeout-{time.time()}",
            )
        )  # fmt: skip

    def close(self) -> None:
        self.client.close(timeout=2)


@dataclass
class _Map:
    """The account of one map on the cluster: every job leaves it once, as an Outcome."""

    engine: Cluster
    kernel: Kernel
    arguments: Sequence[Any]
    nodes: Sequence[str] | None
    begin: float = 0.0
    todo: deque[int] = field(default_factory=deque)
    """The jobs that have not been submitted."""
    waiting: dict[int, "Future"] = field(default_factory=dict)
    """Those that were, and have not ended, by index."""
    ended: "queue.SimpleQueue[tuple[int, Future, float]]" = field(default_factory=queue.SimpleQueue)
    """Futures that did, and seconds after the start; some of attempts that do not count any more."""
    after: dict[int, float] = field(default_factory=dict)
    retried: defaultdict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    addresses: Sequence[str] = ()
    """The workers that were there at the last attempt."""
    news: deque[dict[str, Any]] = field(default_factory=deque)
    suspects: list[int] = field(default_factory=list)
    """Jobs whose workers died again and again. Any of those that a worker ran at the time may be the one that kills."""
    alone: bool = False
    """Whether the suspects are being tried, one by one."""

    def outcomes(self) -> Iterator[Outcome]:
        self.begin = last_check = time.monotonic()
        last_gather, attempts = 0.0, 1
        self.engine.ears.append(self.news)
        try:
            self.todo.extend(range(len(self.arguments)))
            while self.todo or self.waiting or self.suspects:
                self.feed()
                if not self.waiting:
                    if not self.alone:
                        self.engine.say(
                            f"the workers of {len(self.suspects)} jobs died more than once; now one of these after the other"
                        )
                    self.alone = True
                    self.submit([self.suspects.pop(0)])
                batch = self.collect(last_gather)
                self.hear()
                values = None
                if batch:
                    yield from self.killed(batch)
                    finished = {index: future for index, future in batch.items() if future.status == "finished"}
                    fetch = partial(self.engine.client.gather, list(finished.values()), asynchronous=True)
                    values = self.engine._ask(fetch) if finished else []
                    last_gather = time.monotonic()
                    for index, back in zip(finished, values or [], strict=values is not None):
                        del self.waiting[index]
                        node = self.engine.node_of(back.worker)
                        yield _outcome(index, self.arguments[index], back, node, self.after[index], self.retried[index])
                    for index in batch.keys() & self.waiting.keys():
                        self.watch(index, self.waiting[index])  # its node died before handing over: dask computes it again
                if self.engine.job_timeout and time.monotonic() - last_check >= self.patience:
                    yield from self.overdue(self.engine.job_timeout)
                    last_check = time.monotonic()

                adrift = any(future.cancelled() for future in self.waiting.values())  # the scheduler went away
                if self.waiting and (adrift or (not values and not self.served())):
                    back = self.engine._await_worker(self.nodes)
                    if back and not adrift and self.served():
                        continue  # dask has kept the jobs
                    self.engine._cancel(self.waiting.values())
                    attempts += 1
                    there = ", ".join(self.nodes or self.engine.nodes)
                    if back and attempts <= ATTEMPTS:
                        who = "the scheduler" if adrift else f"every worker of {there}"
                        self.engine.say(f"{who} went away and came back; {len(self.waiting)} unfinished jobs are submitted again")
                        self.submit(sorted(self.waiting))
                        continue
                    for index in sorted([*self.waiting, *self.todo]):
                        yield self.lose(index, f"no worker of {there} was left to run it, in {attempts - 1} attempts")
                    self.todo.clear()
        finally:
            self.engine._cancel(self.waiting.values())
            self.engine.ears.remove(self.news)

    @property
    def patience(self) -> float:
        """Seconds to wait for a job to end before the scheduler is asked what it is about."""
        return min(SILENCE, max(0.5, (self.engine.job_timeout or 4 * SILENCE) / 4))

    def feed(self) -> None:
        """Submit what may be on the cluster now."""
        room = min(len(self.todo), (self.engine.drip or len(self.todo)) - len(self.waiting))
        if room > 0:
            self.submit([self.todo.popleft() for _ in range(room)])

    def submit(self, indices: Sequence[int]) -> None:
        from distributed.protocol.pickle import dumps

        self.engine._listen()
        self.addresses = sorted(self.engine._workers(self.nodes))
        # One call for all jobs. Even placement needs no help: a job without data goes to the worker with the least
        # backlog, so 16 jobs on 4 or 8 idle nodes are 4 or 2 for each, and work stealing evens out the end.
        futures = self.engine.client.map(
            _call_on_worker,
            # dask's: what a script defines itself travels as code.
            [dumps((self.kernel, self.arguments[index])) for index in indices],
            key=self.kernel.__name__,
            workers=None if self.nodes is None else self.addresses,
            pure=False,
        )
        for index, future in zip(indices, futures, strict=True):
            self.watch(index, future)

    def served(self) -> bool:
        """Whether a worker is there that may run the jobs as they were submitted."""
        there = self.engine._workers(self.nodes)
        return bool(there if self.nodes is None else there.keys() & self.addresses)

    def watch(self, index: int, future: "Future") -> None:
        self.waiting[index] = future
        future.add_done_callback(lambda future: self.ended.put((index, future, time.monotonic() - self.begin)))

    def collect(self, last_gather: float) -> dict[int, "Future"]:
        """The jobs that ended: wait for one, and for more until the next gather is due. None after `patience`."""
        batch: dict[int, Future] = {}
        until = time.monotonic() + self.patience
        while len(batch) < len(self.waiting):
            try:
                index, future, elapsed = self.ended.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if self.waiting.get(index) is future:  # not of an earlier attempt
                batch[index], self.after[index] = future, elapsed
                until = last_gather + GATHER_INTERVAL
        return batch

    def hear(self) -> None:
        """Note which jobs were taken back from which node."""
        index_of: dict[str, int] = {}
        while self.news:
            event = self.news.popleft()
            if event["action"] == "add-worker":
                self.engine._workers()
            elif event["action"] == "remove-worker":
                node = self.engine.seen.get(event["worker"], event["worker"])
                index_of = index_of or {str(future.key): index for index, future in self.waiting.items()}
                for key in {*event["processing-tasks"], *event["lost-computed-tasks"]} & index_of.keys():
                    self.retried[index_of[key]].append(node)

    def killed(self, batch: dict[int, "Future"]) -> Iterator[Outcome]:
        """Take out what dask gave up: it becomes a suspect, and is lost if it was one."""
        from distributed import KilledWorker

        for index in [index for index, future in batch.items() if future.status == "error"]:
            error = batch[index].exception()
            if not isinstance(error, KilledWorker):
                raise ResultError(f"job {index} failed with argument {self.arguments[index]!r}: {error!r}")
            if self.alone:
                node = self.engine.node_of(str(error.last_worker.name))
                yield self.lose(index, f"every worker that ran it died, {node} the last; too much memory?", node)
            else:
                del self.waiting[index]
                self.suspects.append(index)

    def overdue(self, limit: float) -> Iterator[Outcome]:
        """Lose the jobs that run for longer than `limit` seconds; their worker processes are started anew."""
        running = self.engine._ask(lambda: self.engine.client.run_on_scheduler(_running)) or {}
        over = {
            index: running[key][0]
            for index, future in self.waiting.items()
            if (key := str(future.key)) in running and running[key][1] > limit
        }
        if over:
            # First, or dask would run them again.
            self.engine._cancel([self.waiting[index] for index in over])
            self.engine._restart(set(over.values()))
        for index, address in over.items():
            node = self.engine.seen.get(address, address)
            yield self.lose(index, f"it ran on {node} for more than {limit:g} s (--job-timeout) and was ended", node)

    def lose(self, index: int, reason: str, node: str = "") -> Outcome:
        self.waiting.pop(index, None)
        after = time.monotonic() - self.begin
        return Outcome(index, node=node, after=after, lost=reason, retried=tuple(self.retried[index]))


def connect_to(nodes: Iterable[str], timeout: float) -> Cluster:
    """The cluster, as soon as all of these nodes are there. Raises UsageError; ClusterError if one is not within `timeout`."""
    return Cluster(load(), timeout, True, print, nodes)


def connect(
    place: Place,
    timeout: float = 30.0,
    require_all: bool = False,
    say: Callable[[str], None] = print,
    job_timeout: float | None = None,
    drip: int | None = None,
) -> Engine:
    """The engine for a place. For the cluster: wait up to `timeout` seconds for its nodes, `say` which are missing.

    A job that runs there for more than `job_timeout` seconds is ended and lost. With `drip`, at most so many jobs are there
    at a time: the next ones are handed over as others end.
    Raises UsageError (configuration, certificates) and ClusterError (no scheduler; no node; with `require_all`, any
    node missing).
    """
    if place == "cluster":
        return Cluster(load(), timeout, require_all, say, job_timeout=job_timeout, drip=drip)
    if job_timeout or drip:
        raise UsageError(f"--{'job-timeout' if job_timeout else 'drip'} goes with --on cluster")
    return Workstation() if place == "workstation" else Local()


def first(engine: Engine, count: int) -> tuple[str, ...]:
    """The first `count` nodes of the cluster, by name. Raises UsageError if there are not so many."""
    if not isinstance(engine, Cluster):
        raise UsageError("--nodes goes with --on cluster")
    if count > len(engine.nodes):
        raise UsageError(f"{count} nodes were asked for, {len(engine.nodes)} are there: {', '.join(engine.nodes)}")
    return engine.nodes[:count]
