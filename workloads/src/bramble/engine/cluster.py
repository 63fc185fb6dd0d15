"""The engine that computes on the nodes of the cluster."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from bramble import ClusterError, ResultError, __version__
from bramble.engine.base import Engine
from bramble.engine.cluster_map import ClusterMap
from bramble.engine.config import ClusterConfig
from bramble.engine.connection import Connection
from bramble.engine.outcome import Kernel, Outcome, import_and_prepare

RUNNING = ("executing", "long-running", "cancelled", "resumed")
"""The states of jobs that occupy a worker (distributed.worker_state_machine)."""
WARM_UP_TIMEOUT = 120.0
"""Seconds for a node to import a kernel: with a fifth of a core, importing NumPy is slow."""


class Cluster(Connection, Engine):
    """The nodes of the cluster, through dask over mutual TLS. For `job_timeout` and `max_in_flight` see places.connect."""

    def __init__(
        self,
        config: ClusterConfig,
        timeout: float,
        require_all: bool,
        notify: Callable[[str], None],
        wanted: Iterable[str] | None = None,
        job_timeout: float | None = None,
        max_in_flight: int | None = None,
    ) -> None:
        super().__init__(config, timeout)
        self.notify, self.job_timeout, self.max_in_flight = notify, job_timeout, max_in_flight
        try:
            self.nodes = self._wait_for_nodes(set(config.nodes if wanted is None else wanted), require_all)
        except BaseException:
            self.close()
            raise
        self.label = f"{len(self.nodes)} node{'s' * (len(self.nodes) > 1)} of {config.scheduler}"

    def _wait_for_nodes(self, expected: set[str], require_all: bool) -> tuple[str, ...]:
        deadline = time.monotonic() + self.timeout
        while not expected <= (present := set(self.workers().values())) and time.monotonic() < deadline:
            time.sleep(0.25)
        if missing := ",".join(sorted(expected - present)):
            text = f"{missing} did not report to {self.config.scheduler} within {self.timeout:g} s"
            advice = (
                f"see `systemctl status bramble-worker` on the node, or run "
                f"`ansible-playbook playbooks/site.yml --tags worker --limit {missing}`"
            )
            if require_all or not present:
                raise ClusterError(f"{text}; {advice}")
            self.notify(f"{text}; continuing with the {len(present)} that did ({advice})")
        return tuple(sorted(present))

    def _scheduler_info(self, nodes: Sequence[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the node and the record of each worker (of these nodes), as the scheduler last reported them."""
        for worker in self.client.scheduler_info(n_workers=-1)["workers"].values():
            node = self.node_of(str(worker["name"]))
            if nodes is None or node in nodes:
                yield node, worker

    def threads(self) -> dict[str, int]:
        """Return how many jobs each node in the cluster runs at once."""
        threads = Counter[str]()
        for node, worker in self._scheduler_info():
            threads[node] += int(worker["nthreads"])
        return dict(sorted(threads.items()))

    def jobs_at_once(self, nodes: Sequence[str] | None = None) -> int:
        return sum(threads for node, threads in self.threads().items() if nodes is None or node in nodes)

    def memory(self, nodes: Sequence[str] | None = None) -> int:
        """Return the bytes of memory per thread of the worker that has least. A worker without a limit does not count."""
        shares = [
            int(worker["memory_limit"]) // int(worker["nthreads"])
            for _, worker in self._scheduler_info(nodes)
            if worker["memory_limit"]
        ]
        return min(shares, default=sys.maxsize)

    def drained(self) -> set[str]:
        """Return the nodes in the cluster that take no jobs until their workers are restarted."""
        return {node for node, worker in self._scheduler_info() if worker["status"] != "running"}

    def drain(self, node: str) -> bool:
        """Let a node finish its running jobs and start no others; return False if it has no worker in the cluster.

        Its results move to other nodes. This lasts until its worker is restarted.
        Raises ResultError when jobs still run at the end of the timeout, or when no other node can take its results.
        """
        addresses = sorted(self.workers([node]))
        if not addresses:
            return False
        deadline = time.monotonic() + self.timeout
        self._move_results(node, addresses)
        before, running = self.heartbeats(addresses), addresses
        while running:
            if time.monotonic() > deadline:
                raise ResultError(f"{node} still runs jobs after {self.timeout:g} s; wait, or stop the program that started them")
            time.sleep(0.25)
            # Only a heartbeat that is newer than the request counts: by then a job that was on its way has started.
            running = [
                address
                for address, (last_seen, job_count) in self.heartbeats(addresses).items()
                if job_count or last_seen == before.get(address, (0.0, 0))[0]
            ]
        self._move_results(node, addresses)  # once more, for the results of the last jobs
        return True

    def _move_results(self, node: str, addresses: Sequence[str]) -> None:
        retire = partial(self.client.retire_workers, list(addresses), close_workers=False, remove=False, asynchronous=True)
        if not self.run_request(retire) and self.workers([node]):
            raise ResultError(f"{node} holds results and no other node can take them; stop the program that started the jobs")

    def heartbeats(self, addresses: Sequence[str]) -> dict[str, tuple[float, int]]:
        """Return, by worker address, when it last reported to the scheduler (Unix time) and how many jobs it ran then."""
        return {
            address: (worker["last_seen"], sum(worker["metrics"]["task_counts"].get(state, 0) for state in RUNNING))
            for address, worker in self.identities().items()
            if address in addresses
        }

    def warm_up(self, kernel: Kernel) -> None:
        """Import the kernel in every worker. Raises ClusterError, naming the node, if one cannot."""
        module = kernel.__module__
        jobs = [
            (node, self.client.submit(import_and_prepare, module, workers=[address], pure=False))
            for address, node in self.workers().items()
        ]
        for node, job in jobs:
            advice = f"run `ansible-playbook playbooks/site.yml --tags worker --limit {node}` to install this version"
            try:
                version = job.result(timeout=WARM_UP_TIMEOUT)
            except TimeoutError:
                raise ClusterError(
                    f"{node} did not import {module} within {WARM_UP_TIMEOUT:g} s; "
                    "see `systemctl status bramble-worker` on the node"
                ) from None
            except Exception as error:  # an import can raise anything
                raise ClusterError(f"{node} cannot import {module}: {error!r}; {advice}") from None
            if version != __version__:
                raise ClusterError(f"{node} has bramble {version}, this machine has {__version__}; {advice}")

    def map(self, kernel: Kernel, arguments: Sequence[Any], nodes: Sequence[str] | None = None) -> Iterator[Outcome]:
        """Yield one Outcome per argument: see Engine.map, and ClusterMap for what happens when nodes fail."""
        return ClusterMap(
            self, kernel, arguments, nodes, self.nodes, self.notify, self.job_timeout, self.max_in_flight
        ).outcomes()
