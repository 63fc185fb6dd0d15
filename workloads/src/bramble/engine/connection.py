"""The scheduler and its workers, over mutual TLS: who is there, and what they are asked."""

import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from bramble import ClusterError, UsageError
from bramble.engine.config import ClusterConfig

if TYPE_CHECKING:
    from distributed import Client, Future

ANSWER_TIMEOUT = 10.0
"""Seconds for the scheduler to answer anything we ask, results included: they are small."""

Event = dict[str, Any]
"""What the scheduler tells of: a worker that came or went, and the jobs that it had."""


class Connection:
    """A client of the scheduler.

    A worker's node is the expected node (`nodes` in the configuration) that bears its name, up to the `-0`, `-1`...
    that dask appends when a node runs several worker processes: both `pi-01` and `pi-01-3` are node `pi-01`. The list
    decides, since `pi-01` itself looks like process 1 of a node `pi`. A worker that is not on the list is its own node.
    """

    def __init__(self, config: ClusterConfig, timeout: float) -> None:
        """Raises UsageError (certificates) and ClusterError (no scheduler within `timeout` seconds)."""
        self.config, self.timeout = config, timeout
        self.known_workers: dict[str, str] = {}
        """Address to node of every worker that was ever here."""
        self.listeners: list[deque[Event]] = []
        """Where to put what happens on the cluster: a queue for each map."""
        self.client = self._connect()

    def _connect(self) -> "Client":
        import logging

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
        self._probe(context)
        # The client's own refresh of a list that nobody looks at costs a small scheduler time.
        dask.config.set({"distributed.client.scheduler-info-interval": "1h"})
        try:
            return Client(config.scheduler, security=security, timeout=self.timeout, set_as_default=False)
        except OSError as error:
            raise self._unreachable(error) from None

    def _probe(self, context: ssl.SSLContext) -> None:
        """Make one plain TLS connection: it tells at once, and exactly, what a dask client tells after a timeout."""
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

    @property
    def _scheduler(self) -> Any:
        """The scheduler's own functions; each call gives what can be awaited."""
        return self.client.scheduler

    def run_request(self, request: Callable[[], Any]) -> Any:
        """Run an asynchronous dask request to its end and return what it returns; None if there is no answer in time.

        dask has many words for a scheduler or a node that is gone (timeout, cancelled, closed, lost); the account of
        the jobs does not depend on which one it was.
        """
        try:
            return self.client.sync(request, callback_timeout=ANSWER_TIMEOUT)
        except Exception:
            return None

    def identities(self) -> dict[str, dict[str, Any]]:
        """Return what the scheduler knows of each worker, by its address; nothing without a scheduler."""
        # Not client.scheduler_info(): without a scheduler that tells what it last knew.
        found = self.run_request(lambda: self._scheduler.identity(n_workers=-1))
        workers: dict[str, dict[str, Any]] = found["workers"] if found else {}
        return workers

    def workers(self, nodes: Collection[str] | None = None) -> dict[str, str]:
        """Return address to node of the workers that the scheduler has now (of these nodes); empty without a scheduler."""
        found = {address: self.node_of(str(worker["name"])) for address, worker in self.identities().items()}
        self.known_workers |= found
        return {address: node for address, node in found.items() if nodes is None or node in nodes}

    def node_of(self, worker: str) -> str:
        """Return the node of a worker, by its name: see the class."""
        stem, _, process = worker.rpartition("-")
        return stem if worker not in self.config.nodes and stem in self.config.nodes and process.isdigit() else worker

    def wait_for_worker(self, nodes: Collection[str] | None) -> bool:
        """Wait up to the timeout for a worker (of these nodes); return whether there is one."""
        deadline = time.monotonic() + self.timeout
        while not (there := self.workers(nodes)) and time.monotonic() < deadline:
            time.sleep(0.5)
        return bool(there)

    def cancel(self, futures: Iterable["Future[Any]"]) -> None:
        """Cancel jobs, running ones too. Best effort: without a scheduler there is nothing to cancel."""
        if futures := list(futures):
            self.run_request(partial(self.client.cancel, futures, asynchronous=True, force=True))

    def subscribe(self) -> None:
        """Have the listeners told of what happens on the cluster. A scheduler that was restarted has to be asked again."""

        def forward_event(event: tuple[float, Event]) -> None:
            for listener in self.listeners:
                listener.append(event[1])

        self.client.subscribe_topic("all", forward_event)

    def restart_workers(self, addresses: Iterable[str]) -> None:
        """Have the nannies of these workers start them anew; whatever runs there ends."""
        self.run_request(
            lambda: self._scheduler.restart_workers(
                workers=sorted(addresses), timeout=ANSWER_TIMEOUT, wait_for_workers=False, on_error="return",
                stimulus_id=f"bramble-job-timeout-{time.time()}",
            )
        )  # fmt: skip

    def close(self) -> None:
        self.client.close(timeout=2)
