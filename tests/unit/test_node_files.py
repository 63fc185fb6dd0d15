"""node_files: many files in one round trip, each complete or as it was."""

from __future__ import annotations

import getpass
import grp
import os
from pathlib import Path
from typing import Any

import pytest

from .conftest import Run

ME = {"owner": getpass.getuser(), "group": grp.getgrgid(os.getgid()).gr_name}


def files(*wanted: dict[str, Any]) -> dict[str, Any]:
    return {"files": [{**ME, **one, "path": str(one["path"])} for one in wanted]}


def test_made_then_unchanged(tmp_path: Path, run_module: Run) -> None:
    one, other = tmp_path / "new/folder/one", tmp_path / "other"
    other.write_text("old")
    wanted = files({"path": one, "content": "eins\n", "mode": "0640"}, {"path": other, "content": "zwei ü\r\n"})
    dry = run_module("node_files", wanted, check=True, diff=True)
    assert dry["changed_files"] == [str(one), str(other)] and not one.exists() and other.read_text() == "old"
    assert [(part["before"], part["after"]) for part in dry["diff"]] == [("", "eins\n"), ("old", "zwei ü\r\n")]
    done = run_module("node_files", wanted)
    assert done["changed"] and done["changed_files"] == dry["changed_files"]
    assert one.read_text() == "eins\n" and other.read_bytes() == "zwei ü\r\n".encode()
    assert (one.stat().st_mode & 0o777, other.stat().st_mode & 0o777) == (0o640, 0o644)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "new", "one", "other"]
    again = run_module("node_files", wanted)
    assert (again["changed"], again["changed_files"]) == (False, [])


def test_only_what_differs_is_touched(tmp_path: Path, run_module: Run) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    wanted = files({"path": one, "content": "1"}, {"path": other, "content": "2"})
    run_module("node_files", wanted)
    other.chmod(0o600)
    inode = one.stat().st_ino
    assert run_module("node_files", wanted)["changed_files"] == [str(other)]
    assert one.stat().st_ino == inode and other.stat().st_mode & 0o777 == 0o644


def test_removed(tmp_path: Path, run_module: Run) -> None:
    path = tmp_path / "one"
    path.write_text("1")
    gone = files({"path": path, "state": "absent"})
    assert run_module("node_files", gone, check=True)["changed"] and path.exists()
    assert run_module("node_files", gone)["changed"] and not path.exists()
    assert not run_module("node_files", gone)["changed"]


@pytest.mark.parametrize("path", ["relative", "{folder}", "{folder}/one"])
def test_wrong_paths_are_named_before_anything_is_changed(tmp_path: Path, run_module: Run, path: str) -> None:
    path = path.format(folder=tmp_path)
    result = run_module("node_files", files({"path": tmp_path / "one", "content": "1"}, {"path": path, "content": "2"}))
    assert result["failed"] and path in result["msg"] and "Nothing was changed" in result["msg"]
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_of_a_folder_is_said(tmp_path: Path, run_module: Run) -> None:
    (tmp_path / "file").write_text("")
    result = run_module(
        "node_files", files({"path": tmp_path / "a", "content": "1"}, {"path": tmp_path / "file/b", "content": "2"})
    )
    assert (
        result["failed"]
        and f"{tmp_path}/file/b: Not a directory" in result["msg"]
        and f"before that: {tmp_path}/a" in result["msg"]
    )
    assert result["changed"]


def test_content_is_needed(tmp_path: Path, run_module: Run) -> None:
    assert "content" in run_module("node_files", files({"path": tmp_path / "one"}))["msg"]
