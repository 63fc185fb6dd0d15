"""The connection to the scheduler over mutual TLS: the workers that it has, and requests to it."""

import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from bramble import ClusterError, UsageError
from bramble.engine.config import CERTIFICATE_REMEDY, ClusterConfig

if TYPE_CHECKING:
    from distributed import Client, Future

ANSWER_TIMEOUT = 10.0
"""Seconds for the scheduler to answer any request, fetching results included, since results are small."""

Event = dict[str, Any]
"""An event of the scheduler: a worker was added or removed, and which jobs it had."""


class Connection:
    """A client of the scheduler.

    A worker's node is the expected node (`nodes` in the configuration) of the same name, without the `-0`, `-1`...
    that dask appends when a node runs several worker processes: both `pi-01` and `pi-01-3` are node `pi-01`. The list
    is needed because `pi-01` itself looks like process 1 of a node `pi`. A worker that is not on the list counts as a
    node of its own name.
    """

    def __init__(self, config: ClusterConfig, timeout: float) -> None:
        """Connect. Raises UsageError (certificates) and ClusterError (no scheduler within `timeout` seconds)."""
        self.config, self.timeout = config, timeout
        self.known_workers: dict[str, str] = {}
        """The node of every worker that was ever seen, by the worker's address."""
        self.listeners: list[deque[Event]] = []
        """The queues that get the scheduler's events: one for each map."""
        self.client = self._connect()

    def _connect(self) -> "Client":
        """Return a client of the scheduler. Raises UsageError (certificates) and ClusterError (no scheduler)."""
        import logging

        import dask
        from distributed import Client
        from distributed.security import Security

        config = self.config
        for name in ("distributed", "distributed.client", "tornado.application"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # the errors of this package report every failure in one line
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
                f"{config.cert}, {config.key} and {config.ca} are not a valid TLS identity: {error}; {CERTIFICATE_REMEDY}"
            ) from None
        self._probe(context)
        # The client would refresh a list of workers that is not used, which takes time on a small scheduler.
        dask.config.set({"distributed.client.scheduler-info-interval": "1h"})
        try:
            return Client(config.scheduler, security=security, timeout=self.timeout, set_as_default=False)
        except OSError as error:
            raise self._unreachable(error) from None

    def _probe(self, context: ssl.SSLContext) -> None:
        """Check the connection with plain TLS, which fails at once and with the exact reason, where dask waits for a timeout."""
        try:
            with (
                socket.create_connection(self.config.address, timeout=min(self.timeout, 10.0)) as plain,
                context.wrap_socket(plain) as wrapped,
            ):
                # In TLS 1.3 a client learns with the first bytes that it was refused; a scheduler always sends first.
                if not wrapped.recv(1):
                    raise ConnectionError("the scheduler closed the connection")
        except OSError as error:  # ssl.SSLError and TimeoutError are OSErrors
            raise self._unreachable(error) from None

    def _unreachable(self, reason: OSError) -> ClusterError:
        """Return the error for a scheduler that cannot be reached."""
        return ClusterError(
            f"no scheduler at {self.config.scheduler}: {reason}; see `systemctl status bramble-scheduler` on the client, "
            "or run `ansible-playbook playbooks/site.yml --tags scheduler`"
        )

    @property
    def _scheduler(self) -> Any:
        """Return dask's proxy of the scheduler; each call of its methods returns an awaitable."""
        return self.client.scheduler

    def run_request(self, request: Callable[[], Any]) -> Any:
        """Return the result of an asynchronous dask request; None if there is no answer within ANSWER_TIMEOUT.

        dask has many exceptions for a scheduler or a node that is gone (timeout, cancelled, closed, lost); the record of
        the jobs does not depend on which one it was.
        """
        try:
            return self.client.sync(request, callback_timeout=ANSWER_TIMEOUT)
        except Exception:
            return None

    def identities(self) -> dict[str, dict[str, Any]]:
        """Return the scheduler's record of each worker, by the worker's address; empty without a scheduler."""
        # client.scheduler_info() would return what it last knew when there is no scheduler.
        identity = self.run_request(lambda: self._scheduler.identity(n_workers=-1))
        workers: dict[str, dict[str, Any]] = identity["workers"] if identity else {}
        return workers

    def workers(self, nodes: Collection[str] | None = None) -> dict[str, str]:
        """Return the node of each worker that the scheduler has now, by address (of these nodes); empty without a scheduler."""
        workers = {address: self.node_of(str(worker["name"])) for address, worker in self.identities().items()}
        self.known_workers |= workers
        return {address: node for address, node in workers.items() if nodes is None or node in nodes}

    def node_of(self, worker: str) -> str:
        """Return the node of a worker, by the worker's name: see the class."""
        stem, _, process = worker.rpartition("-")
        return stem if worker not in self.config.nodes and stem in self.config.nodes and process.isdigit() else worker

    def wait_for_worker(self, nodes: Collection[str] | None) -> bool:
        """Wait up to the timeout for a worker (of these nodes); return whether there is one."""
        deadline = time.monotonic() + self.timeout
        while not (workers := self.workers(nodes)) and time.monotonic() < deadline:
            time.sleep(0.5)
        return bool(workers)

    def cancel(self, futures: Iterable["Future[Any]"]) -> None:
        """Cancel jobs, running ones too, if there is a scheduler."""
        if futures := list(futures):
            self.run_request(partial(self.client.cancel, futures, asynchronous=True, force=True))

    def subscribe(self) -> None:
        """Send the scheduler's events to the listeners. After a restart of the scheduler this is needed again."""

        def forward_event(event: tuple[float, Event]) -> None:
            for listener in self.listeners:
                listener.append(event[1])

        self.client.subscribe_topic("all", forward_event)

    def restart_workers(self, addresses: Iterable[str]) -> None:
        """Restart these workers through their nannies; the jobs that they run end."""
        self.run_request(
            lambda: self._scheduler.restart_workers(
                workers=sorted(addresses), timeout=ANSWER_TIMEOUT, wait_for_workers=False, on_error="return",
                stimulus_id=f"bramble-job-timeout-{time.time()}",
            )
        )  # fmt: skip

    def close(self) -> None:
        """Close the client."""
        self.client.close(timeout=2)
