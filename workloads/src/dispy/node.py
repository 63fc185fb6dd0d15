"""What runs on the nodes: every job is a process of its own, as with dispy.

A dask worker is one process, often with several threads. Scripts written for dispy expect more: a `random.seed()` that other
jobs do not disturb, pure Python on all cores, a standard output per job, and jobs that can be killed. So the first job of a
computation starts a small server (`serve`), which holds the computation's functions and files, runs its `setup`, and forks once
per job. It has one thread, so that forking is safe, and it does not import dask.

    dask worker, one thread per job  ── socket (one end of a pair per job) ──▶  server of the computation  ── fork ──▶  job
"""

import contextlib
import io
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import OrderedDict
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, NoReturn

MAX_SERVERS = 4
"""Servers that a worker keeps, since a client that was killed cannot end its server. The least recently used is ended."""
TOPIC = "dispy"
"""The topic of the dask events that report the start and the provisional results of jobs."""


class Reply(NamedTuple):
    """How a job ended, by the node's clock (seconds since 1970). `result` is pickled; `exception` the text of a traceback."""

    worker: str
    address: str
    start: float
    end: float
    result: bytes | None = None
    exception: str | None = None
    stdout: str = ""
    stderr: str = ""


class _Server:
    """The worker's handle of a computation's server."""

    def __init__(self, computation: bytes, folder: str | None, node: tuple[str, str]) -> None:
        self.folder = tempfile.mkdtemp(prefix="dispy-", dir=folder)
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # A session of its own, so that all processes that it forks can be ended with it.
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from dispy import node; node.serve()", str(theirs.fileno()), *node],
                stdin=subprocess.PIPE, pass_fds=[theirs.fileno()], cwd=self.folder, start_new_session=True,
            )  # fmt: skip
        self.jobs = 0
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self.process.stdin as stdin:
            stdin.write(computation)

    def connect(self) -> Connection:
        """Return a connection to a new process for one job. Raises OSError when the server has ended."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            socket.send_fds(self.control, [b"j"], [theirs.fileno()])
            return Connection(ours.detach())

    def end(self) -> None:
        """Make the server clean up and end, together with its jobs, without waiting for it."""
        self.control.close()
        threading.Thread(target=self._remove, daemon=True).start()

    def _remove(self) -> None:
        """Wait up to 10 seconds for the server, kill what is left of it, and remove its folder."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


_lock = threading.Lock()
_servers: OrderedDict[str, _Server] = OrderedDict()
_running: dict[str, int] = {}
"""The process ID of each job that runs in this worker, by the job's name."""


def _get_server(name: str, computation: bytes, folder: str, node: tuple[str, str]) -> _Server:
    """Return the server of a computation, starting it if necessary, and count one more job for it."""
    with _lock:
        found = _servers.get(name)
        if found is None or found.process.poll() is not None:
            found = _servers[name] = _Server(computation, folder, node)
        _servers.move_to_end(name)
        for old in [old for old, server in _servers.items() if not server.jobs][: max(0, len(_servers) - MAX_SERVERS)]:
            if old != name:
                _servers.pop(old).end()
        found.jobs += 1
        return found


def run_job(name: str, computation: bytes, job: str, arguments: bytes) -> Reply:
    """Run one job in a process of its own and return its reply. dask calls this in a thread of a worker."""
    from distributed import get_worker

    worker = get_worker()
    address = worker.address.rpartition("://")[2].rpartition(":")[0]
    ended = Reply(str(worker.name), address, time.time(), 0.0)
    server = _get_server(name, computation, worker.local_directory, (str(worker.name), address))
    try:
        with server.connect() as connection:
            connection.send_bytes(arguments)
            while True:
                kind, value = pickle.loads(connection.recv_bytes())
                if kind == "begin":
                    _running[job] = value
                    worker.log_event(TOPIC, {"job": job, "node": ended.worker, "address": address, "start": ended.start})
                elif kind == "provisional":
                    worker.log_event(TOPIC, {"job": job, "node": ended.worker, "address": address, "result": value})
                else:
                    return ended._replace(**value)
    except (EOFError, OSError):
        reason = "its process died: it was killed, memory ran out, or the job ended it"
        return ended._replace(end=time.time(), exception=f"job lost on {ended.worker}: {reason}\n")
    finally:
        _running.pop(job, None)
        with _lock:
            server.jobs -= 1


def stop_job(job: str) -> bool:
    """Kill a job if it runs in this worker; return whether it ran."""
    process = _running.get(job)
    if process is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    return True


def end_server(name: str) -> None:
    """End a computation's server in this worker, and its jobs."""
    with _lock:
        server = _servers.pop(name, None)
    if server:
        server.end()


def pack(files: dict[str, bytes], function: Any, names: dict[str, Any], setup: Any, cleanup: Any) -> bytes:
    """Return what all jobs of a computation share, pickled. `names` are further globals of the function: functions and classes.

    All functions are in one pickle, so that functions of one module share their globals and jobs see what `setup` has set.
    """
    import cloudpickle

    return pickle.dumps((files, cloudpickle.dumps((function, names, setup, cleanup))))


def serve() -> NoReturn:
    """Run the server: read the computation from standard input, run its setup, and fork a process per connection.

    It ends when the worker closes the control socket.
    """
    import cloudpickle  # noqa: F401  imported before forking, because every job needs it

    descriptor, worker, address = sys.argv[1:]
    control = socket.socket(fileno=int(descriptor))
    setup_error, function, cleanup = "", None, None
    sys.path.insert(0, os.getcwd())
    try:
        files, code = pickle.loads(sys.stdin.buffer.read())
        for name, content in files.items():
            with open(name, "wb") as file:
                file.write(content)
        function, names, setup, cleanup = pickle.loads(code)
        place = {"dispy_node_name": worker, "dispy_node_ip_addr": address, "dispy_job_path": os.getcwd()}
        _function_globals(function).update(place, **names)
        if setup and setup() not in (None, 0, 1, 2):  # dispy takes all of these as success
            raise RuntimeError("`setup` must return 0 on success and returned another value")
    except BaseException:
        setup_error = f"this node could not be set up:\n{traceback.format_exc()}"
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies: the connection reports how a job ended
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not descriptors:
            break
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            control.close()
            with Connection(descriptors[0]) as connection:
                _run_in_child(connection, function, setup_error)
            os._exit(0)
        os.close(descriptors[0])
    if cleanup:
        with contextlib.suppress(Exception):
            cleanup()
    os.killpg(0, signal.SIGKILL)
    raise AssertionError


def _function_globals(function: Any) -> dict[str, Any]:
    """Return the globals of a function, a method or a functools.partial of one."""
    while hasattr(function, "func"):
        function = function.func
    return getattr(getattr(function, "__func__", function), "__globals__", {})


def _run_in_child(connection: Connection, function: Any, setup_error: str) -> None:
    """Run one job in this process and send its result through the connection."""
    import cloudpickle

    def send(kind: str, value: Any) -> None:
        connection.send_bytes(pickle.dumps((kind, value)))

    stdout, stderr = sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
    result, exception, start = None, setup_error or None, time.time()
    send("begin", os.getpid())
    try:
        arguments, keywords, names = pickle.loads(connection.recv_bytes())
        if not setup_error:
            names["dispy_provisional_result"] = lambda result: send("provisional", cloudpickle.dumps(result))
            _function_globals(function).update(names)
            result = cloudpickle.dumps(function(*arguments, **keywords))
    except BaseException as error:
        # Without the frame of this function: the traceback begins in the job's function.
        exception = "".join(traceback.format_exception(type(error), error, error.__traceback__ and error.__traceback__.tb_next))
    ended = {"start": start, "end": time.time(), "result": result, "exception": exception}
    send("end", ended | {"stdout": stdout.getvalue(), "stderr": stderr.getvalue()})
