"""What takes too long for every run of the tests: see `make test-slow`."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support import ROOT, rehearsal
from tests.support.rehearsal import INVENTORY, play

OVERLAY = Path(__file__).parent / "inventory"
STATE = ROOT / ".state/arm64"
NODE = "pi-01"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

playbook = partial(play, inventory=[*INVENTORY, OVERLAY])


def ssh(command: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a command on the node, which takes its time."""
    return rehearsal.ssh(STATE, NODE, command, "-o", "ConnectTimeout=60", *options, timeout=600)


@pytest.fixture(scope="session")
def unpack(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Unpack a package of Debian trixie, with what it depends on: this machine's own may be too old."""

    def one(package: str) -> Path:
        tree = tmp_path_factory.mktemp(package) / "tree"
        options = ["--variant=extract", "--format=directory", f"--keyring={KEYRING}", f"--include={package}"]
        subprocess.run(["mmdebstrap", "--quiet", *options, "trixie", tree], check=True)
        return tree

    return one


@pytest.fixture(scope="session")
def image() -> list[int]:
    """The arm64 image: what a first run changes, and a second one."""
    return [sum(playbook("image").changed.values()) for _ in range(2)]


@pytest.fixture
def card(image: list[int]) -> Iterator[Path]:
    """A freshly written card of the node."""
    shutil.rmtree(STATE, ignore_errors=True)
    playbook("cards", arguments=f"--limit {NODE}")
    yield STATE / f"cards/{NODE}.img"
    shutil.rmtree(STATE)
