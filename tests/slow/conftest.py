"""The fixtures of the tests that take too long for every run: see `make test-slow`."""

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
    """Run a command on the node, with long timeouts, since the node is emulated."""
    return rehearsal.ssh(STATE, NODE, command, "-o", "ConnectTimeout=60", *options, timeout=600)


@pytest.fixture(scope="session")
def unpack(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that unpacks a package of Debian trixie and its dependencies, and returns the folder.

    The control machine's own version of the package may be too old.
    """

    def unpack_package(package: str) -> Path:
        tree = tmp_path_factory.mktemp(package) / "tree"
        options = ["--variant=extract", "--format=directory", f"--keyring={KEYRING}", f"--include={package}"]
        subprocess.run(["mmdebstrap", "--quiet", *options, "trixie", tree], check=True)
        return tree

    return unpack_package


@pytest.fixture(scope="session")
def image() -> list[int]:
    """Provide the arm64 image twice; return the number of changes of each run."""
    return [sum(playbook("image").changed.values()) for _ in range(2)]


@pytest.fixture
def card(image: list[int]) -> Iterator[Path]:
    """Write a card for the node, yield its file, and remove it."""
    shutil.rmtree(STATE, ignore_errors=True)
    playbook("cards", arguments=f"--limit {NODE}")
    yield STATE / f"cards/{NODE}.img"
    shutil.rmtree(STATE)
