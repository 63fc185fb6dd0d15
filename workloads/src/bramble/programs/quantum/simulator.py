"""A Q# simulator for workers that have threads.

A qdk interpreter is bound to the thread that created it (used from another thread it panics), holds the GIL while it simulates,
and takes about a second of a workstation's core and 100 MB to start. So each worker process starts one server (`python -m` this
module), which loads the interpreter and the project's Q# once and then forks for every job. The jobs of a worker run in
parallel, each on its own core with its own interpreter; they share the server's memory and take 10 to 20 ms longer.

A job reaches the server as one end of a socket pair (socket.send_fds). The server ends when the worker does.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bramble import ResultError

if TYPE_CHECKING:
    from qdk import Context

SOURCES = Path(__file__).with_name("qsharp")
"""The folder of the Q# project (qsharp.json)."""

BYTES_PER_AMPLITUDE = 256
"""The memory that the sparse simulator needs at most for an amplitude that is not zero: measured 150 to 215 bytes with 2^17 to
2^19 of them. A dense state vector takes 16."""


class Job(NamedTuple):
    """A Q# expression to run `shots` times; `depolarizing` is the probability of an error after each gate."""

    expression: str
    shots: int
    seed: int
    depolarizing: float = 0.0


def sample(job: Job) -> dict[str, int]:
    """Return how often each outcome was measured: "True", "False", or a number as text."""
    counts: dict[str, int] = _run_on_server("sample", tuple(job))
    return counts


def estimate(expression: str) -> dict[str, Any]:
    """Return the resources of an expression on a fault-tolerant machine: `logical` counts and estimated `physical` ones."""
    counts: dict[str, Any] = _run_on_server("estimate", expression)
    return counts


def state(statements: str) -> list[complex]:
    """Return the amplitudes after Q# statements that leave qubits allocated; the first qubit is the highest bit of the index."""
    amplitudes: list[complex] = _run_on_server("state", statements)
    return amplitudes


def prepare() -> None:
    """Start the server of this process, unless it is running, and wait until it is ready."""
    _server.control()


class _Server:
    """The server of this process, which starts when it is first needed, and again if it died."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None

    def control(self) -> socket.socket:
        """Return the socket that accepts jobs. Raises ResultError if the server does not start."""
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                self.socket, child_end = socket.socketpair()
                command = [sys.executable, "-m", "bramble.programs.quantum.simulator"]
                with child_end:
                    self.process = subprocess.Popen(
                        command, stdin=child_end.fileno(), stdout=subprocess.DEVNULL, start_new_session=True
                    )
                if self.socket.recv(1) != b"+":
                    raise ResultError(
                        f"the Q# simulator does not start: `{' '.join(command)}` ended with exit code {self.process.wait()}; "
                        "run the command to see why"
                    )
            return self.socket


_server = _Server()


def _run_on_server(kind: str, argument: Any) -> Any:
    """Return the result of a job that a child of the server runs. Raises ResultError with its traceback, or if it died."""
    parent_end, child_end = socket.socketpair()
    with parent_end, parent_end.makefile("rwb") as channel:
        with child_end:
            socket.send_fds(_server.control(), [b"."], [child_end.fileno()])
        try:
            pickle.dump((kind, argument), channel)
            channel.flush()
            is_success, answer = pickle.load(channel)
        except (EOFError, OSError):
            raise ResultError(
                "the Q# simulator was killed during a job; if `dmesg | tail` names it, memory ran out: use smaller jobs"
            ) from None
    if not is_success:
        raise ResultError(answer)
    return answer


def _sample(context: "Context", job: tuple[str, int, int, float]) -> dict[str, int]:
    from qdk import DepolarizingNoise

    expression, shots, seed, depolarizing = job
    noise = DepolarizingNoise(depolarizing) if depolarizing else None
    counts = Counter(map(str, context.run(expression, shots, seed=seed, noise=noise)))
    return dict(sorted(counts.items()))


def _estimate(context: "Context", expression: str) -> dict[str, Any]:
    counts = context.logical_counts(expression)
    return {"logical": dict(counts), "physical": dict(counts.estimate()["physicalCounts"])}


def _state(context: "Context", statements: str) -> list[complex]:
    context.eval(statements)
    return list(context.dump_machine().as_dense_state())


HANDLERS: dict[str, Callable[["Context", Any], Any]] = {"sample": _sample, "estimate": _estimate, "state": _state}


def _serve(control: socket.socket) -> None:
    from qdk import Context

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program in the foreground handles Ctrl-C
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    context = Context(project_root=str(SOURCES))
    control.send(b"+")
    while descriptors := socket.recv_fds(control, 1, 1)[1]:
        with socket.socket(fileno=descriptors[0]) as channel:
            if os.fork() == 0:
                try:
                    _handle_request(context, channel)
                finally:
                    os._exit(0)


def _handle_request(context: "Context", channel: socket.socket) -> None:
    with channel.makefile("rwb") as stream:
        kind, argument = pickle.load(stream)
        try:
            reply = True, HANDLERS[kind](context, argument)
        except BaseException:  # a panic of qdk is not an Exception
            reply = False, traceback.format_exc()
        pickle.dump(reply, stream)


if __name__ == "__main__":
    _serve(socket.socket(fileno=0))
