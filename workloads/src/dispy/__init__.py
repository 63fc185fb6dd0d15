"""dispy's interface to Bramble's cluster: scripts written for dispy, such as OctaPi's, run unmodified.

It implements what dispy 4.15.2 documents (https://dispy.org) for Python functions, with dask over mutual TLS; see
`docs/octapi.md`. The cluster is the one in /etc/bramble/cluster.toml (`bramble.engine.config`). Differences from dispy:

- `nodes`: names and addresses, with `*` and `?`. If no node matches, as when the network is not 192.168.1.*, all are used.
- A job of a node that died runs again on another node (dispy: with `reentrant=True`); it is Abandoned if there is none.
- `job_status` is called with the job itself, at least `dispy.cluster.CALLBACK_DELAY` seconds after the job was submitted,
  and `wait` waits until it returns.
- `setup` and `cleanup` run once per worker process, and each job is forked from there.
- SharedJobCluster is the same as JobCluster: every cluster here is shared.
- A computation must be a function: programs (given as a string) are refused.
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
    """Return JobCluster or SharedJobCluster. Their module needs dask, which jobs that import this package do not need."""
    if name not in ("JobCluster", "SharedJobCluster"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _find_packages()
    return getattr(importlib.import_module("dispy.cluster"), name)


def _find_packages() -> None:
    """Make the packages beside this one importable when it was found through the link that the role `workloads` creates.

    Their folder comes first in sys.path while dask is imported, so that its dependencies come from there, and last
    afterwards, so that it hides no package from the script.
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
