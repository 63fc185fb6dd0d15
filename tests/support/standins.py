"""Run a cluster of stand-ins with a fraction of a core each, so that more nodes are faster even on one machine."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from . import ROOT
from .rehearsal import INVENTORY, PlaybookFailed, play, ssh

CPUS = 0.2
"""The share of a core that a stand-in can use."""


@contextmanager
def cluster(name: str, subnet: str, nodes: int, cpus: float = CPUS) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Power on a client and some servers, and yield a function that runs a workload on the client and returns its record.

    The nodes are set up without a limit of cores, which is set afterwards. They are removed at the end, also after a failure.

    :param nodes: the number of servers
    :param cpus: the share of a core that a stand-in can use
    """
    state = ROOT / ".state" / name

    def run(playbook: str, arguments: str = "", **variables: Any) -> None:
        cluster_variables = {"cluster_name": name, "cluster_subnet": subnet}
        play(playbook, inventory=INVENTORY, variables=cluster_variables | variables, arguments=arguments)

    def run_workload(command: str) -> dict[str, Any]:
        done = ssh(state, "pi-client", f"{command} --json -", timeout=900)
        if done.returncode:
            raise PlaybookFailed(f"{command} failed with exit code {done.returncode}: {done.stderr}")
        return json.loads(done.stdout)

    os.environ["NODES"] = str(nodes)
    run("rehearse", cluster_state="absent")
    try:
        for playbook in ("cards", "rehearse", "site"):
            run(playbook)
        run("rehearse", "--skip-tags wait", standin_cpus=cpus)
        yield run_workload
    finally:
        run("rehearse", cluster_state="absent")
        shutil.rmtree(state, ignore_errors=True)
