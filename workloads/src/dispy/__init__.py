"""dispy's interface over Bramble's cluster: scripts written for dispy, such as OctaPi's, run as they are.

It is what dispy 4.15.2 documents (https://dispy.org) for Python functions, done by dask over mutual TLS; see `docs/octapi.md`.
The cluster is the one in /etc/bramble/cluster.toml (`bramble.engine.config`). What differs:

- `nodes`: names and addresses, with `*` and `?`. When no node matches, as when 192.168.1.* is not the network, all are used.
- A job of a node that died runs again on another (dispy: with `reentrant=True`); it is Abandoned when there is none.
- `job_status` gets the job itself, at the earliest CALLBACK_DELAY seconds after it was submitted, and `wait` waits for it to return.
- `setup` and `cleanup` run once per worker process, and each job is forked from there.
- SharedJobCluster is the same as JobCluster: every cluster here is shared.
- Programs (a computation that is a string) are not taken.
"""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dispy.job import ClusterStatus, DispyJob, DispyNode, NodeAllocate
from dispy.log import logger

if TYPE_CHECKING:
    from dispy.cluster import JobCluster, SharedJobCluster

__version__ = "4.15.2"
__all__ = ["ClusterStatus", "DispyJob", "DispyNode", "JobCluster", "NodeAllocate", "SharedJobCluster", "logger"]


def __getattr__(name: str) -> Any:
    """Return JobCluster or SharedJobCluster. Their module needs dask: jobs import this package, too, and do without it."""
    if name not in ("JobCluster", "SharedJobCluster"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _find_packages()
    return getattr(importlib.import_module("dispy.cluster"), name)


def _find_packages() -> None:
    """Make this package's neighbours importable when it was found alone, by the link that the role `workloads` makes.

    They are put first, so that what dask needs comes from one place, then last, so that they hide nothing from the script.
    """
    site = str(Path(__file__).resolve().parents[1])
    if site in sys.path:
        return
    sys.path.insert(0, site)
    try:
        for name in ("cloudpickle", "distributed", "bramble.engine.places"):
            importlib.import_module(name)
    finally:
        sys.path.remove(site)
        sys.path.append(site)
