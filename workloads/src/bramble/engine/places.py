"""The places where kernels run, and the engine of each: one core, this machine, or the cluster."""

from collections.abc import Callable, Iterable

from bramble import UsageError
from bramble.engine.base import Engine, Place
from bramble.engine.cluster import Cluster
from bramble.engine.config import load
from bramble.engine.local import Local
from bramble.engine.workstation import Workstation


def connect_to_nodes(nodes: Iterable[str], timeout: float) -> Cluster:
    """Return the cluster once all of these nodes are connected. Raises UsageError, and ClusterError after `timeout` seconds."""
    return Cluster(load(), timeout, True, print, nodes)


def connect(
    place: Place,
    timeout: float = 30.0,
    require_all: bool = False,
    notify: Callable[[str], None] = print,
    job_timeout: float | None = None,
    max_in_flight: int | None = None,
) -> Engine:
    """Return the engine for a place.

    For the cluster, wait up to `timeout` seconds for its nodes and `notify` the user which of them are missing. A job
    that runs there for more than `job_timeout` seconds is stopped and lost. At most `max_in_flight` jobs are on the
    cluster at a time; further ones are submitted as others end.
    Raises UsageError (configuration, certificates) and ClusterError (no scheduler; no node; with `require_all`, any
    missing node).
    """
    if place == "cluster":
        return Cluster(load(), timeout, require_all, notify, job_timeout=job_timeout, max_in_flight=max_in_flight)
    if job_timeout or max_in_flight:
        raise UsageError(f"--{'job-timeout' if job_timeout else 'max-in-flight'} needs --on cluster")
    return Workstation() if place == "workstation" else Local()


def first_nodes(engine: Engine, count: int) -> tuple[str, ...]:
    """Return the names of the first `count` nodes of the cluster. Raises UsageError if there are fewer."""
    if not isinstance(engine, Cluster):
        raise UsageError("--nodes needs --on cluster")
    if count > len(engine.nodes):
        raise UsageError(f"{count} nodes were requested, but {len(engine.nodes)} are connected: {', '.join(engine.nodes)}")
    return engine.nodes[:count]
