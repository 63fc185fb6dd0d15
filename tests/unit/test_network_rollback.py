"""A change of the network is rolled back unless it is confirmed, wherever it is interrupted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bramble.cluster.plugins.module_utils.network import rollback
from ansible_collections.bramble.cluster.plugins.module_utils.network.rollback import File, PendingChange, RollbackError

LOGIN_PORT = "55555"  # the remote port of this login


class Node:
    """A folder with some files, a change of them, and a log of the commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.log.touch()
        self.state, self.units = str(folder / "state"), str(folder / "units")
        (folder / "etc").mkdir()
        (folder / "etc/kept").write_bytes(b"old \xff\n")
        (folder / "etc/kept").chmod(0o600)
        (folder / "etc/masked").symlink_to("/dev/null")
        (folder / "etc/gone").write_text("gone soon\n")
        (folder / "etc/other").write_text("nobody's business\n")
        self.new = {
            f"{folder}/etc/kept": File(b"new\n", 0o640),
            f"{folder}/etc/masked": File(b"no longer\n"),
            f"{folder}/etc/gone": None,
            f"{folder}/etc/more/made": File(b"made\n"),
        }

    @property
    def change(self) -> PendingChange:
        return PendingChange(self.state, self.units)

    def log_command(self, word: str, code: int = 0) -> list[list[str]]:
        return [["sh", "-c", f"echo {word} >>{self.log}; exit {code}"]]

    def stage_change(self, **commands: Any) -> None:
        each = {name: self.log_command(name) for name in ("before", "new", "old", "boot", "last")}
        self.change.stage_change("x", self.new, {**each, **commands})

    def tree(self) -> dict[str, File | None]:
        """Return all files."""
        paths = [path for path in sorted((self.folder / "etc").rglob("*")) if path.is_symlink() or path.is_file()]
        return {str(path.relative_to(self.folder)): rollback.read_file(str(path)) for path in paths}

    def calls(self) -> list[str]:
        return self.log.read_text().split()

    def is_pending(self) -> bool:
        """Return whether the folder or the service of a change exists."""
        left = [path for path in Path(self.units).rglob("*") if not path.is_dir()] if os.path.isdir(self.units) else []
        return os.path.exists(f"{self.state}/change") or bool(left)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setenv("SSH_CONNECTION", f"10.0.0.1 {LOGIN_PORT} 10.0.0.2 22")
    monkeypatch.setattr(rollback, "ssh_client_port", lambda pid: int(LOGIN_PORT))
    (tmp_path / "boot_id").write_text("first\n")
    monkeypatch.setattr(rollback, "BOOT_ID", str(tmp_path / "boot_id"))
    return Node(tmp_path)


def test_confirmed_change_stays(node: Node) -> None:
    before = node.tree()
    node.stage_change()
    assert node.tree() == before and node.is_pending() and not node.calls()
    assert os.stat(f"{node.state}/change/plan.json").st_mode & 0o777 == 0o600
    node.change.apply_change()
    assert node.calls() == ["before", "new"]
    assert node.tree() == {
        "etc/kept": File(b"new\n", 0o640),
        "etc/masked": File(b"no longer\n"),
        "etc/more/made": File(b"made\n"),
        "etc/other": before["etc/other"],
    }
    after = node.tree()
    node.change.confirm("x")
    node.change.roll_back()
    assert node.tree() == after and not node.is_pending() and node.calls() == ["before", "new"]


def test_unconfirmed_change_is_rolled_back(node: Node) -> None:
    before = node.tree()
    node.stage_change()
    node.change.apply_change()
    node.change.roll_back()
    assert node.tree() == before and not node.is_pending()
    assert node.calls() == ["before", "new", "before", "old"]
    assert node.change.outcome("x")["why"] == "it was not confirmed in time"
    with pytest.raises(RollbackError, match="rolled back already: it was not confirmed in time"):
        node.change.confirm("x")
    with pytest.raises(RollbackError, match="not rolled back"):
        node.change.outcome("another")


def test_after_a_restart_only_the_files_are_restored(node: Node) -> None:
    before = node.tree()
    node.stage_change()
    node.change.apply_change()
    (node.folder / "boot_id").write_text("second\n")
    node.change.roll_back()
    assert node.tree() == before and not node.is_pending()
    assert node.calls() == ["before", "new", "boot"]
    assert node.change.outcome("x")["why"] == "the node was restarted"


class PowerCutError(BaseException):
    """A power cut, which no code catches."""


@pytest.mark.parametrize("step", range(60))
def test_power_cut_leaves_the_old_files_or_a_change_that_is_rolled_back(
    node: Node, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """A power cut before each rename, link and removal while a change is staged, applied and rolled back."""
    before = node.tree()
    count = 0

    def cut_power_before(original: Any) -> Any:
        def call(*arguments: Any, **words: Any) -> Any:
            nonlocal count
            count += 1
            if count > step:
                raise PowerCutError
            return original(*arguments, **words)

        return call

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "symlink", "unlink", "fsync"):
            patch.setattr(os, name, cut_power_before(getattr(os, name)))
        try:
            node.stage_change()
            node.change.apply_change()
            node.change.roll_back()
        except PowerCutError:
            pass
        else:
            assert node.tree() == before
    (node.folder / "boot_id").write_text("second\n")
    # systemd does this at boot if the service exists.
    if os.path.exists(f"{node.state}/change"):
        assert os.path.islink(f"{node.units}/multi-user.target.wants/{rollback.UNIT}.service")
        node.change.roll_back()
    left = {path: file for path, file in node.tree().items() if not path.endswith(".new")}
    assert left == before
    # The change can be made again.
    node.stage_change()
    node.change.apply_change()
    node.change.confirm("x")
    assert node.tree()["etc/kept"] == File(b"new\n", 0o640)


def test_last_commands_run_when_the_old_ones_fail(node: Node) -> None:
    node.stage_change(old=node.log_command("old", 1))
    node.change.apply_change()
    node.change.roll_back()
    assert node.calls()[-2:] == ["old", "last"]
    assert "ended with 1" in node.change.outcome("x")["wrong"]


def test_failed_command_is_the_reason(node: Node) -> None:
    node.stage_change(new=[["sh", "-c", "echo no such port >&2; exit 3"]])
    node.change.apply_change()
    node.change.roll_back()
    assert node.change.outcome("x")["why"].endswith("ended with 3: no such port")


def test_only_a_login_newer_than_the_change_confirms(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.stage_change()
    with pytest.raises(RollbackError, match="not applied yet"):
        node.change.confirm("x")
    monkeypatch.setattr(rollback, "peer_ports", lambda tables: [int(LOGIN_PORT), 4])
    node.change.apply_change()
    with pytest.raises(RollbackError, match="older than the change"):
        node.change.confirm("x")
    monkeypatch.setattr(rollback, "ssh_client_port", lambda pid: 0)
    with pytest.raises(RollbackError, match="older than the change"):
        node.change.confirm("x")
    assert node.is_pending()


def test_second_change_is_refused(node: Node) -> None:
    node.stage_change()
    with pytest.raises(RollbackError, match="Another change"):
        node.stage_change()


def test_remote_ports_of_connections() -> None:
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    rows = "   0: 0100007F:0016 00000000:0000 0A 0\n   1: 655B4D0A:0016 015B4D0A:D903 01 0\n"
    six = "   0: 0000:0016 00000000000000000000000000000000:1F90 01 0\n"
    assert rollback.peer_ports([head + rows, head + six, head, ""]) == [0x1F90, 0xD903]


def test_login_is_found_in_a_parent_process() -> None:
    """sudo removes SSH_CONNECTION from the environment of its child."""
    load = f"import importlib.util as u, os; s = u.spec_from_file_location('s', {rollback.__file__!r}); m = u.module_from_spec(s)"
    program = f"{load}; s.loader.exec_module(m); print(m.ssh_client_port(os.getpid()))"
    for environment, port in ({"SSH_CONNECTION": "10.0.0.1 40123 10.0.0.2 22"}, "40123"), ({}, None):
        command = ["sh", "-c", 'env -u SSH_CONNECTION "$0" -c "$1"; true', sys.executable, program]
        clean = {name: value for name, value in os.environ.items() if name != "SSH_CONNECTION"}
        stdout = subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=True).stdout.strip()
        assert stdout == port if port else stdout.isdigit()
