"""The fixtures of the unit tests: a tiny card image, cards, loop devices and mounts, modules, and a web server."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from tests.support import tiny_image
from tests.support.load_plugin import load_plugin
from tests.support.process_state import unchanged_process
from tests.support.web import Site

__all__ = ["unchanged_process"]

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse card image of 22 MiB: an MBR, a FAT partition, an ext4 partition with a few files, and an empty end."""
    path = tmp_path_factory.mktemp("image") / "tiny.img"
    tiny_image.build(path)
    return path


@pytest.fixture(scope="session")
def sha256(image: Path) -> str:
    """The SHA-256 of the tiny image."""
    return hashlib.sha256(image.read_bytes()).hexdigest()


@pytest.fixture
def card(tmp_path: Path) -> Callable[..., Path]:
    """Makes a sparse file card: card("pi-01"), card("pi-02", size=...), filled with `fill` where given."""

    def make(name: str, size: int = 32 * 2**20, fill: bytes = b"") -> Path:
        path = tmp_path / f"{name}.img"
        with path.open("wb") as file:
            file.write(fill)
            file.truncate(size)
        return path

    return make


class Machine:
    """The loop devices and mounts of a test, which are removed in reverse order at its end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._undo: list[list[str | Path]] = []

    def loop(self, path: Path) -> Path:
        """Attach a loop device to a file; return the device."""
        made = subprocess.run(["losetup", "-f", "--show", path], check=True, capture_output=True, text=True)
        device = Path(made.stdout.strip())
        self._undo.append(["losetup", "-d", device])
        return device

    def mount(self, *arguments: str | Path, on: Path | None = None) -> Path:
        """Mount a file system on a new folder, or on a given one, and return it: mount("-t", "tmpfs", "none")."""
        point = on or self._folder / f"mount{len(self._undo)}"
        if not on:
            point.mkdir()
        subprocess.run(["mount", *arguments, point], check=True)
        self._undo.append(["umount", point])
        return point

    def undo(self) -> None:
        """Remove all loop devices and mounts."""
        for command in reversed(self._undo):
            subprocess.run(command, check=True)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """This machine, for tests that need root's devices."""
    if os.geteuid() or not os.path.exists("/dev/loop-control"):
        pytest.skip("loop devices and mounts need root")
    machine = Machine(tmp_path)
    yield machine
    machine.undo()


@pytest.fixture
def run_module(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a module of plugins/modules as Ansible would: run_module("card_facts", {...}, check=True) is what it returns."""
    # If another test has imported the controller part of Ansible, a module would print its warnings instead of returning them.
    monkeypatch.setattr("ansible.module_utils._internal.is_controller", False)

    def run(name: str, arguments: dict[str, Any], check: bool = False, diff: bool = False) -> dict[str, Any]:
        module = load_plugin("modules", name)
        extra = {"_ansible_check_mode": check, "_ansible_diff": diff}
        with patch_module_args({**arguments, **extra}), pytest.raises(SystemExit):
            module.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return run


@pytest.fixture
def no_retry_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause between attempts to reach a server, and no proxy for this machine."""
    monkeypatch.setattr("ansible_collections.bramble.cluster.plugins.module_utils.image.http.RETRY_DELAY", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def site(no_retry_delay: None) -> Iterator[Site]:
    """A web server on this machine, which can misbehave as a test asks."""
    site = Site()
    yield site
    site.close()
