"""Use clusters of stand-ins in tests: run playbooks on them, run commands on their nodes, and find their switch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from . import ROOT, rehearsal
from .rehearsal import INVENTORY, Play, play

CLIENT = "pi-client"
SERVERS = ["pi-01", "pi-02"]
"""The nodes of a scenario, and of most other clusters of tests."""
BOOKWORM = "like-rpi-bookworm"
"""The image without cloud-init that has the pitfalls of Raspberry Pi OS bookworm: images/like-rpi-bookworm.toml."""


class Cluster:
    """The stand-ins of one inventory overlay."""

    def __init__(self, name: str, overlay: Path, servers: int = 2, connect_timeout: int = 5) -> None:
        """Describe a cluster; nothing is started.

        :param name: cluster_name
        :param overlay: the inventory folder that overrides the one of the rehearsal
        :param servers: the number of active servers
        :param connect_timeout: seconds until ssh gives up connecting to a node
        """
        self.name = name
        self.state = ROOT / ".state" / name
        self.inventory = [*INVENTORY, overlay]
        self._environment = {"NODES": str(servers)}
        self._options = ("-o", f"ConnectTimeout={connect_timeout}")

    def playbook(self, name: str, *, environment: dict[str, str] | None = None, **options: Any) -> Play:
        """Run playbooks/NAME.yml on the cluster. The options are those of rehearsal.play."""
        return play(name, inventory=self.inventory, environment=self._environment | (environment or {}), **options)

    def ssh(self, node: str, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run a command on a node by ssh, with further options of ssh(1)."""
        return rehearsal.ssh(self.state, node, command, *self._options, *options)

    def output(self, node: str, command: str) -> str:
        """Return the output of a command on a node, which must succeed."""
        return node_output(self.state, node, command, options=self._options)

    def output_inside(self, node: str, *command: str) -> str:
        """Return the output of a command on a node, which must succeed. This works whatever the address of the node is."""
        run_on_node = ["docker", "exec", f"{self.name}-{node}", "run-on-node"]
        return subprocess.run([*run_on_node, *command], capture_output=True, text=True, check=True).stdout.strip()

    def switch(self) -> str:
        """Return the name of the bridge that is the cluster's switch."""
        return switch(self.name)


def scenario(name: str, **options: int) -> Cluster:
    """Return the cluster of the Molecule scenario molecule/NAME. The options are those of Cluster."""
    return Cluster(f"molecule-{name}", ROOT / "molecule" / name / "inventory", **options)


def failures(run: Play) -> str:
    """Return the messages of a run's failed tasks."""
    return "\n".join(run.failed.values())


def node_output(state: Path, node: str, command: str, *, options: Sequence[str] = ()) -> str:
    """Return the output of a command on a node, which must succeed. The state and the options are those of rehearsal.ssh."""
    done = rehearsal.ssh(state, node, command, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@contextmanager
def running_cluster(run: Callable[..., Play], state: Path, servers: Sequence[str]) -> Iterator[None]:
    """Set up a client and servers with site.yml, and remove them at the end, also after a failure.

    :param run: runs a playbook by its name
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NODES", str(len(servers)))
        try:
            for name in ("cards", "rehearse", "site"):
                run(name)
            yield
        finally:
            run("rehearse", variables={"cluster_state": "absent"})
            shutil.rmtree(state, ignore_errors=True)


def switch(cluster: str) -> str:
    """Return the name of the bridge that is the switch of a cluster."""
    inspect = ["docker", "network", "inspect", "--format", "{{.Id}}", cluster]
    return f"br-{subprocess.run(inspect, capture_output=True, text=True, check=True).stdout[:12]}"


@contextmanager
def foreign_host(name: str, bridge: str, address: str) -> Iterator[list[str]]:
    """Connect a host that is not a node to a switch, and yield the prefix of a command that runs on this host.

    :param address: the address of the host with its prefix length
    """
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


def build_bookworm() -> dict[str, Any]:
    """Build the image BOOKWORM unless it is in the cache, and return it as variables of playbooks/cards.yml."""
    recipe = Path(__file__).parent / f"images/{BOOKWORM}.toml"
    build: list[str | Path] = [
        sys.executable,
        ROOT / "images/debian/build.py",
        "--recipe",
        recipe,
        "--cache",
        ROOT / ".cache/images",
    ]
    made = json.loads(subprocess.run(build, capture_output=True, text=True, check=True).stdout)
    manifest = json.loads(Path(made["manifest"]).read_text())
    return {"image_file": made["image"], "image_sha256": manifest["sha256"], "image_init_format": manifest["init_format"]}


if __name__ == "__main__":
    # Playbooks run this as python -m tests.support.nodes, to get the variables of BOOKWORM as JSON.
    print(json.dumps(build_bookworm()))
