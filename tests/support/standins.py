"""A cluster of stand-ins of a fraction of a core each, on which more nodes are faster on one machine, too."""

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
"""Cores of a stand-in."""


@contextmanager
def cluster(name: str, subnet: str, nodes: int, cpus: float = CPUS) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Power on so many nodes and their client; gives what runs a workload on the client, and returns its record.

    They are set up with all the machine has and capped afterwards; however it ends, they are gone.
    """
    state = ROOT / ".state" / name

    def run(playbook: str, arguments: str = "", **variables: Any) -> None:
        own = {"cluster_name": name, "cluster_subnet": subnet}
        play(playbook, inventory=INVENTORY, variables=own | variables, arguments=arguments)

    def client(command: str) -> dict[str, Any]:
        done = ssh(state, "pi-client", f"{command} --json -", timeout=900)
        if done.returncode:
            raise PlaybookFailed(f"{command} ended with {done.returncode}: {done.stderr}")
        return json.loads(done.stdout)

    os.environ["NODES"] = str(nodes)
    run("rehearse", cluster_state="absent")
    try:
        for playbook in ("cards", "rehearse", "site"):
            run(playbook)
        run("rehearse", "--skip-tags wait", standin_cpus=cpus)
        yield client
    finally:
        run("rehearse", cluster_state="absent")
        shutil.rmtree(state, ignore_errors=True)
