"""The real thing on stand-ins: what the end-to-end tests share."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, rehearsal
from tests.support.rehearsal import INVENTORY, Play, play

OVERLAY = Path(__file__).parent / "inventory"
STATE = ROOT / ".state/e2e"
SERVERS = ["pi-01", "pi-02"]

playbook = partial(play, inventory=[*INVENTORY, OVERLAY])
ssh = partial(rehearsal.ssh, STATE)


def told(state: Path, node: str, command: str, *, options: Sequence[str] = ()) -> str:
    """What a command on a node says. The state and the options are those of rehearsal.ssh."""
    done = rehearsal.ssh(state, node, command, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@contextmanager
def booted(run: Callable[..., Play], state: Path, servers: Sequence[str]) -> Iterator[None]:
    """A client and these servers after site.yml, by a runner of playbooks; removed however the tests end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NODES", str(len(servers)))
        try:
            for name in ("cards", "rehearse", "site"):
                run(name)
            yield
        finally:
            run("rehearse", variables={"standin_state": "absent"})
            shutil.rmtree(state, ignore_errors=True)


def switch(cluster: str) -> str:
    """The bridge that is the switch of a cluster, by its name."""
    inspect = ["docker", "network", "inspect", "--format", "{{.Id}}", cluster]
    return f"br-{subprocess.run(inspect, capture_output=True, text=True, check=True).stdout[:12]}"


@contextmanager
def stranger(name: str, bridge: str, address: str) -> Iterator[list[str]]:
    """A host that is nobody's, on a switch (address with its prefix's length): what to put before a command that it runs."""
    try:
        for command in (
            ["ip", "netns", "add", name],
            ["ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name],
            ["ip", "link", "set", name, "master", bridge, "up"],
            ["ip", "-n", name, "address", "add", address, "dev", "eth0"],
            ["ip", "-n", name, "link", "set", "eth0", "up"],
        ):
            subprocess.run(command, check=True)
        yield ["ip", "netns", "exec", name]
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False)


def still_there() -> list[str]:
    """What is left of the stand-ins: containers, networks, loop devices."""
    found = []
    for command in (
        ["docker", "ps", "--all", "--filter", "label=bramble=e2e", "--format", "{{.Names}}"],
        ["docker", "network", "ls", "--filter", "label=bramble=e2e", "--format", "{{.Name}}"],
        # By device and inode: in a stand-in the card has another name.
        *(["losetup", "--associated", str(card)] for card in STATE.glob("cards/*.img")),
    ):
        found += subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return found


@pytest.fixture(scope="session", autouse=True)
def nodes_of_the_demo() -> None:
    os.environ["NODES"] = str(len(SERVERS))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Power off and remove the demo's cards, however the tests ended."""
    # Not while another process tests it. Without such a folder, the cluster of this name, if there is one, is another clone's.
    if not hasattr(session.config, "workerinput") and STATE.exists():
        os.environ["NODES"] = str(len(SERVERS))
        playbook("rehearse", variables={"standin_state": "absent"})
        shutil.rmtree(STATE)


@pytest.fixture(scope="session")
def bookworm() -> dict[str, Any]:
    """The image like-rpi-bookworm, as variables for the playbooks."""
    build = [sys.executable, ROOT / "images/debian/build.py", "--recipe", ROOT / "tests/e2e/identity/like-rpi-bookworm.toml"]
    said = subprocess.run([*build, "--cache", ROOT / ".cache/images"], capture_output=True, text=True, check=True).stdout
    made = json.loads(said)
    manifest = json.loads(Path(made["manifest"]).read_text())
    return {"image_file": made["image"], "image_sha256": manifest["sha256"], "image_init_format": manifest["init_format"]}


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """One whole run of the demo: its summary, its folder and what it printed."""
    reports = tmp_path_factory.mktemp("reports")
    done = subprocess.run(
        # The engine is the tests': scripts/test may have started it, and the demo would stop it.
        [sys.executable, ROOT / "scripts/demo", "--inventory", OVERLAY, "--reports", reports, "--keep-engine"],
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
    )
    logs = "\n".join(f"== {log.name}\n{log.read_text()[-6000:]}" for log in sorted(reports.glob("*/*.log")))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs}"
    left = still_there()
    folder = (reports / "latest").resolve()
    return {"summary": json.loads((folder / "summary.json").read_text()), "folder": folder, "stdout": done.stdout, "left": left}


@pytest.fixture(scope="session")
def cluster(demo: dict) -> Iterator[None]:
    """The demo's nodes, powered on again from their cards."""
    playbook("rehearse", variables={"standin_cpus": 0})
    yield
    playbook("rehearse", variables={"standin_state": "absent"})
