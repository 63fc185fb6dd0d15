"""A change of files that is undone unless it is confirmed, wherever it is interrupted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bramble.cluster.plugins.module_utils.network import rollback as switch
from ansible_collections.bramble.cluster.plugins.module_utils.network.rollback import File, PendingChange, RollbackError

MINE = "55555"  # the other side's port of this login


class Node:
    """Some files, a change of them that is staged, and a log of the commands."""

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

    def says(self, word: str, code: int = 0) -> list[list[str]]:
        return [["sh", "-c", f"echo {word} >>{self.log}; exit {code}"]]

    def stage(self, **commands: Any) -> None:
        each = {name: self.says(name) for name in ("down", "new", "old", "boot", "last")}
        self.change.stage("x", self.new, {**each, **commands})

    def tree(self) -> dict[str, File | None]:
        """All files there are."""
        paths = [path for path in sorted((self.folder / "etc").rglob("*")) if path.is_symlink() or path.is_file()]
        return {str(path.relative_to(self.folder)): switch.read(str(path)) for path in paths}

    def told(self) -> list[str]:
        return self.log.read_text().split()

    def waits(self) -> bool:
        """Whether anything of it is left: the folder, or the service."""
        left = [path for path in Path(self.units).rglob("*") if not path.is_dir()] if os.path.isdir(self.units) else []
        return os.path.exists(f"{self.state}/change") or bool(left)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setenv("SSH_CONNECTION", f"10.0.0.1 {MINE} 10.0.0.2 22")
    monkeypatch.setattr(switch, "login", lambda pid: int(MINE))
    (tmp_path / "boot_id").write_text("first\n")
    monkeypatch.setattr(switch, "BOOT_ID", str(tmp_path / "boot_id"))
    return Node(tmp_path)


def test_it_is_applied_and_stays_when_it_is_confirmed(node: Node) -> None:
    before = node.tree()
    node.stage()
    assert node.tree() == before and node.waits() and not node.told()
    assert os.stat(f"{node.state}/change/plan.json").st_mode & 0o777 == 0o600
    node.change.apply()
    assert node.told() == ["down", "new"]
    assert node.tree() == {
        "etc/kept": File(b"new\n", 0o640),
        "etc/masked": File(b"no longer\n"),
        "etc/more/made": File(b"made\n"),
        "etc/other": before["etc/other"],
    }
    after = node.tree()
    node.change.confirm("x")
    node.change.undo()
    assert node.tree() == after and not node.waits() and node.told() == ["down", "new"]


def test_it_is_undone_when_it_is_not(node: Node) -> None:
    before = node.tree()
    node.stage()
    node.change.apply()
    node.change.undo()
    assert node.tree() == before and not node.waits()
    assert node.told() == ["down", "new", "down", "old"]
    assert node.change.outcome("x")["why"] == "it was not confirmed in time"
    with pytest.raises(RollbackError, match="undone already: it was not confirmed in time"):
        node.change.confirm("x")
    with pytest.raises(RollbackError, match="not undone"):
        node.change.outcome("another")


def test_after_a_restart_only_the_files_are_put_back(node: Node) -> None:
    before = node.tree()
    node.stage()
    node.change.apply()
    (node.folder / "boot_id").write_text("second\n")
    node.change.undo()
    assert node.tree() == before and not node.waits()
    assert node.told() == ["down", "new", "boot"]
    assert node.change.outcome("x")["why"] == "the node was restarted"


class PowerCutError(BaseException):
    """Nothing runs after it."""


@pytest.mark.parametrize("step", range(60))
def test_a_power_cut_anywhere_leaves_the_old_files_or_a_change_that_is_undone(
    node: Node, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Before each rename, link and removal there is, of staging, applying and undoing."""
    before = node.tree()
    count = 0

    def cut(really: Any) -> Any:
        def call(*arguments: Any, **words: Any) -> Any:
            nonlocal count
            count += 1
            if count > step:
                raise PowerCutError
            return really(*arguments, **words)

        return call

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "symlink", "unlink", "fsync"):
            patch.setattr(os, name, cut(getattr(os, name)))
        try:
            node.stage()
            node.change.apply()
            node.change.undo()
        except PowerCutError:
            pass
        else:
            assert node.tree() == before
    (node.folder / "boot_id").write_text("second\n")
    # What systemd does at boot, if the service is there.
    if os.path.exists(f"{node.state}/change"):
        assert os.path.islink(f"{node.units}/multi-user.target.wants/{switch.UNIT}.service")
        node.change.undo()
    left = {path: file for path, file in node.tree().items() if not path.endswith(".new")}
    assert left == before
    # And it can be done again.
    node.stage()
    node.change.apply()
    node.change.confirm("x")
    assert node.tree()["etc/kept"] == File(b"new\n", 0o640)


def test_what_can_not_be_undone_gently_is_undone_by_force(node: Node) -> None:
    node.stage(old=node.says("old", 1))
    node.change.apply()
    node.change.undo()
    assert node.told()[-2:] == ["old", "last"]
    assert "ended with 1" in node.change.outcome("x")["wrong"]


def test_a_command_that_fails_is_why(node: Node) -> None:
    node.stage(new=[["sh", "-c", "echo no such port >&2; exit 3"]])
    node.change.apply()
    node.change.undo()
    assert node.change.outcome("x")["why"].endswith("ended with 3: no such port")


def test_only_a_login_that_is_newer_than_the_change_confirms(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.stage()
    with pytest.raises(RollbackError, match="not applied yet"):
        node.change.confirm("x")
    monkeypatch.setattr(switch, "connections", lambda tables: [int(MINE), 4])
    node.change.apply()
    with pytest.raises(RollbackError, match="older than the change"):
        node.change.confirm("x")
    monkeypatch.setattr(switch, "login", lambda pid: 0)
    with pytest.raises(RollbackError, match="older than the change"):
        node.change.confirm("x")
    assert node.waits()


def test_there_is_one_at_most(node: Node) -> None:
    node.stage()
    with pytest.raises(RollbackError, match="Another change"):
        node.stage()


def test_connections_are_known_by_the_other_side_s_port() -> None:
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    rows = "   0: 0100007F:0016 00000000:0000 0A 0\n   1: 655B4D0A:0016 015B4D0A:D903 01 0\n"
    six = "   0: 0000:0016 00000000000000000000000000000000:1F90 01 0\n"
    assert switch.connections([head + rows, head + six, head, ""]) == [0x1F90, 0xD903]


def test_a_login_is_found_among_the_ancestors() -> None:
    """sudo takes SSH_CONNECTION away: it is the parent's."""
    load = f"import importlib.util as u, os; s = u.spec_from_file_location('s', {switch.__file__!r}); m = u.module_from_spec(s)"
    program = f"{load}; s.loader.exec_module(m); print(m.login(os.getpid()))"
    for environment, port in ({"SSH_CONNECTION": "10.0.0.1 40123 10.0.0.2 22"}, "40123"), ({}, None):
        command = ["sh", "-c", 'env -u SSH_CONNECTION "$0" -c "$1"; true', sys.executable, program]
        clean = {name: value for name, value in os.environ.items() if name != "SSH_CONNECTION"}
        said = subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=True).stdout.strip()
        assert said == port if port else said.isdigit()
