"""The fixtures and helpers that the end-to-end tests share. They run playbooks on stand-ins."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.support import ROOT, rehearsal
from tests.support.nodes import build_bookworm, foreign_host, node_output, running_cluster, switch
from tests.support.process_state import unchanged_process
from tests.support.rehearsal import INVENTORY, play

__all__ = ["foreign_host", "node_output", "running_cluster", "switch", "unchanged_process"]

OVERLAY = Path(__file__).parent / "inventory"
STATE = ROOT / ".state/e2e"
SERVERS = ["pi-01", "pi-02"]
SCENARIOS = "test_molecule.py"

playbook = partial(play, inventory=[*INVENTORY, OVERLAY])
ssh = partial(rehearsal.ssh, STATE)


def remaining_resources() -> list[str]:
    """Return the containers, networks and loop devices of the demo's stand-ins that still exist."""
    found = []
    for command in (
        ["docker", "ps", "--all", "--filter", "label=bramble=e2e", "--format", "{{.Names}}"],
        ["docker", "network", "ls", "--filter", "label=bramble=e2e", "--format", "{{.Name}}"],
        # losetup compares device and inode, since the card has another name in a stand-in.
        *(["losetup", "--associated", str(card)] for card in STATE.glob("cards/*.img")),
    ):
        found += subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return found


@pytest.fixture(scope="session", autouse=True)
def limit_nodes() -> None:
    """Make all servers but SERVERS spare."""
    os.environ["NODES"] = str(len(SERVERS))


class ClusterScheduling(LoadScopeScheduling):
    """Assigns tests that share a cluster to one process: the tests of a file, and each scenario of Molecule by itself.

    The marker xdist_group does not work: pytest-xdist 3.8.0 appends the group to Item._nodeid, which pytest 9.2 does not read.
    """

    def _split_scope(self, nodeid: str) -> str:
        """Return the name of the unit of work that a test belongs to."""
        file = nodeid.partition("::")[0]
        return nodeid if Path(file).name == SCENARIOS else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ClusterScheduling:
    """Return the scheduler. It replaces the one of the option --dist."""
    return ClusterScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the scenarios of Molecule first, since they take longest."""
    items.sort(key=lambda item: item.path.name != SCENARIOS)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Power off the demo's nodes and remove their cards, even if tests have failed."""
    # Only the main process does so, when the others have ended. Without the folder, a cluster of this name is another clone's.
    if not hasattr(session.config, "workerinput") and STATE.exists():
        os.environ["NODES"] = str(len(SERVERS))
        playbook("rehearse", variables={"cluster_state": "absent"})
        shutil.rmtree(STATE)


@pytest.fixture(scope="session")
def bookworm() -> dict[str, Any]:
    """Return the image like-rpi-bookworm as variables for the playbooks."""
    return build_bookworm()


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Run the demo; return its summary, its folder, its standard output and the resources that it has left."""
    reports = tmp_path_factory.mktemp("reports")
    done = subprocess.run(
        # The tests still need the Docker engine, which the demo would stop.
        [sys.executable, ROOT / "scripts/demo", "--inventory", OVERLAY, "--reports", reports, "--keep-engine"],
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
    )
    logs = "\n".join(f"== {log.name}\n{log.read_text()[-6000:]}" for log in sorted(reports.glob("*/*.log")))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs}"
    left = remaining_resources()
    folder = (reports / "latest").resolve()
    return {"summary": json.loads((folder / "summary.json").read_text()), "folder": folder, "stdout": done.stdout, "left": left}


@pytest.fixture(scope="session")
def cluster(demo: dict) -> Iterator[None]:
    """Power on the demo's nodes again, from their cards."""
    playbook("rehearse", variables={"standin_cpus": 0})
    yield
    playbook("rehearse", variables={"cluster_state": "absent"})
