"""The nodes of the cluster as a place to compute."""

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
"""The states of a job that a worker is busy with (distributed.worker_state_machine)."""
WARM_UP_TIMEOUT = 120.0
"""Seconds for a node to import a kernel: a fifth of a core takes its time over NumPy."""


class Cluster(Connection, Engine):
    """The nodes of the cluster, through dask over mutual TLS. `job_timeout`, `max_in_flight`: see places.connect."""

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
        while not expected <= (there := set(self.workers().values())) and time.monotonic() < deadline:
            time.sleep(0.25)
        if missing := ",".join(sorted(expected - there)):
            text = f"{missing} did not report to {self.config.scheduler} within {self.timeout:g} s"
            advice = (
                f"see `systemctl status bramble-worker` there, or run "
                f"`ansible-playbook playbooks/site.yml --tags worker --limit {missing}`"
            )
            if require_all or not there:
                raise ClusterError(f"{text}; {advice}")
            self.notify(f"{text}; going on with the {len(there)} that did ({advice})")
        return tuple(sorted(there))

    def _scheduler_info(self, nodes: Sequence[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield node and record of each worker (of these nodes), as the scheduler last told."""
        for worker in self.client.scheduler_info(n_workers=-1)["workers"].values():
            node = self.node_of(str(worker["name"]))
            if nodes is None or node in nodes:
                yield node, worker

    def threads(self) -> dict[str, int]:
        """Return how many jobs each node that is here does at once."""
        found = Counter[str]()
        for node, worker in self._scheduler_info():
            found[node] += int(worker["nthreads"])
        return dict(sorted(found.items()))

    def slots(self, nodes: Sequence[str] | None = None) -> int:
        return sum(threads for node, threads in self.threads().items() if nodes is None or node in nodes)

    def memory(self, nodes: Sequence[str] | None = None) -> int:
        """Return a node's share for jobs, by its thread; the least there is. A worker without a limit does not count."""
        shares = [
            int(worker["memory_limit"]) // int(worker["nthreads"])
            for _, worker in self._scheduler_info(nodes)
            if worker["memory_limit"]
        ]
        return min(shares, default=sys.maxsize)

    def drained(self) -> set[str]:
        """Return the nodes that are here and take no jobs, until their workers are started anew."""
        return {node for node, worker in self._scheduler_info() if worker["status"] != "running"}

    def drain(self, node: str) -> bool:
        """Have a node end the jobs that it runs and begin no other; return False if it has no worker here.

        What it has computed goes to other nodes. It stays like this until its worker is started anew.
        Raises ResultError when jobs still run at the end of the timeout, or nobody can take what it holds.
        """
        addresses = sorted(self.workers([node]))
        if not addresses:
            return False
        deadline = time.monotonic() + self.timeout
        self._retire(node, addresses)
        asked, running = self.heartbeats(addresses), addresses
        while running:
            if time.monotonic() > deadline:
                raise ResultError(f"{node} still runs jobs after {self.timeout:g} s; wait, or end the program that they are of")
            time.sleep(0.25)
            # By heartbeats from after the request: a job that was on its way has begun by then.
            running = [
                address
                for address, (seen, busy) in self.heartbeats(addresses).items()
                if busy or seen == asked.get(address, (0.0, 0))[0]
            ]
        self._retire(node, addresses)  # with what the last jobs made
        return True

    def _retire(self, node: str, addresses: Sequence[str]) -> None:
        retire = partial(self.client.retire_workers, list(addresses), close_workers=False, remove=False, asynchronous=True)
        if not self.run_request(retire) and self.workers([node]):
            raise ResultError(f"{node} holds results, and no other node can take them; end the program that they are of")

    def heartbeats(self, addresses: Sequence[str]) -> dict[str, tuple[float, int]]:
        """Return, by address of a worker, when it last reported to the scheduler and how many jobs it ran then."""
        return {
            address: (worker["last_seen"], sum(worker["metrics"]["task_counts"].get(state, 0) for state in RUNNING))
            for address, worker in self.identities().items()
            if address in addresses
        }

    def warm_up(self, kernel: Kernel) -> None:
        """Have every worker import the kernel. Raises ClusterError, naming the node, if one cannot."""
        module = kernel.__module__
        jobs = [
            (node, self.client.submit(import_and_prepare, module, workers=[address], pure=False))
            for address, node in self.workers().items()
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
        """See Engine.map and ClusterMap."""
        return ClusterMap(self, kernel, arguments, nodes, self.nodes, self.notify, self.job_timeout, self.max_in_flight).outcomes()
