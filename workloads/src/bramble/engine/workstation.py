"""The engine that computes on every core of this machine, in processes of concurrent.futures."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bramble.engine.base import Engine
from bramble.engine.outcome import JobResult, Kernel, Outcome, call_kernel, import_and_prepare

if TYPE_CHECKING:
    from concurrent.futures import Future, ProcessPoolExecutor


@contextmanager
def _defer_interrupts() -> Iterator[None]:
    """Defer Ctrl-C while processes are started: a process that is interrupted during its start prints a traceback.

    The new processes inherit the blocked signal. This process needs a handler too, since the signal may reach one of
    its other threads.
    """
    is_main_thread = threading.current_thread() is threading.main_thread()
    if not is_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    received: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if received:
        raise KeyboardInterrupt


class Workstation(Engine):
    """Every core of this machine: one process per core."""

    def __init__(self) -> None:
        self.nodes = (socket.gethostname(),)
        self.processes = len(os.sched_getaffinity(0))
        self.label = f"{self.processes} cores of {self.nodes[0]}"
        self.pool: ProcessPoolExecutor | None = None
        self.jobs: dict[Future[JobResult], int] = {}

    def jobs_at_once(self, nodes: Sequence[str] | None = None) -> int:
        return self.processes

    def warm_up(self, kernel: Kernel) -> None:
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        super().warm_up(kernel)
        if self.pool is not None:
            list(self.pool.map(import_and_prepare, [kernel.__module__] * self.processes))
            return
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([kernel.__module__])
        # A process with threads (a program that uses this as a library may have some) can fork children that hang, so a
        # server without threads forks them. Ctrl-C reaches every process on the terminal; only this one handles it.
        self.pool = ProcessPoolExecutor(
            self.processes,
            mp_context=context,
            initializer=signal.signal,
            initargs=(signal.SIGINT, signal.SIG_IGN),
        )
        with _defer_interrupts():
            modules = self.pool.map(import_and_prepare, [kernel.__module__] * self.processes)
        list(modules)

    def map(self, kernel: Kernel, arguments: Sequence[Any], nodes: Sequence[str] | None = None) -> Iterator[Outcome]:
        from concurrent.futures import as_completed
        from concurrent.futures.process import BrokenProcessPool

        if self.pool is None:
            self.warm_up(kernel)
        assert self.pool is not None
        begin, node = time.monotonic(), self.nodes[0]
        self.jobs = {self.pool.submit(call_kernel, kernel, argument, node): index for index, argument in enumerate(arguments)}
        for job in as_completed(self.jobs):
            index = self.jobs[job]
            try:
                result = job.result()
            except BrokenProcessPool:
                advice = "if `dmesg | tail` names it, memory ran out: use smaller jobs"
                yield Outcome(index, lost=f"a process on {node} was killed during a job; {advice}")
            else:
                yield result.to_outcome(index, arguments[index], node, time.monotonic() - begin)

    def close(self) -> None:
        import multiprocessing
        from concurrent.futures import wait

        if self.pool is None:
            return
        if running := [job for job in self.jobs if not job.done()]:
            # Some processes are in the middle of a job. When they end, the pool becomes broken and fails the other jobs.
            # It is shut down only then: a child that is terminated, or a job that is cancelled, while the pool shuts down
            # can leave it waiting without end.
            for child in multiprocessing.active_children():
                child.terminate()
            running = list(wait(running, timeout=5).not_done)
        # Without waiting, threads of the pool stay, which print errors when the interpreter exits.
        self.pool.shutdown(wait=not running, cancel_futures=True)
