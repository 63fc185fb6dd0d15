"""Small files are all checked, then written or removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Machine, Run


@pytest.fixture
def files(tmp_path: Path) -> list[dict]:
    (tmp_path / "gone").write_text("x")
    (tmp_path / "here").mkdir()
    (tmp_path / "here/real").write_text("old\n")
    (tmp_path / "link").symlink_to("here/real")
    return [
        {"path": f"{tmp_path}/a.d/b.d/new", "content": "new\n", "mode": "0440"},
        {"path": f"{tmp_path}/link", "content": "real\n", "check": ["grep", "-q", "real", "%s"]},
        {"path": f"{tmp_path}/mask", "link": "/dev/null"},
        {"path": f"{tmp_path}/gone", "state": "absent"},
        {"path": f"{tmp_path}/not_here", "content": "x", "only_where": f"{tmp_path}/nowhere"},
    ]


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_files_are_written_once(tmp_path: Path, run_module: Run, files: list[dict]) -> None:
    before = names(tmp_path)
    dry = run_module("node_files", {"files": files}, check=True, diff=True)
    assert names(tmp_path) == before and (tmp_path / "here/real").read_text() == "old\n"
    done = run_module("node_files", {"files": files}, diff=True)
    assert (done["files"], done["diff"]) == (dry["files"], dry["diff"])
    assert done["files"] == [entry["path"] for entry in files[:4]]
    assert names(tmp_path) == ["a.d", "a.d/b.d", "a.d/b.d/new", "here", "here/real", "link", "mask"]
    assert (tmp_path / "a.d/b.d/new").stat().st_mode & 0o777 == 0o440
    assert (tmp_path / "here/real").read_text() == "real\n" and (tmp_path / "link").is_symlink()
    assert (tmp_path / "mask").readlink() == Path("/dev/null")
    assert run_module("node_files", {"files": files})["files"] == []
    (tmp_path / "a.d/b.d/new").chmod(0o644)
    assert run_module("node_files", {"files": files})["files"] == [files[0]["path"]]


@pytest.mark.parametrize("check", [True, False])
def test_failed_check_changes_nothing_even_for_an_unchanged_file(
    tmp_path: Path, run_module: Run, files: list[dict], check: bool
) -> None:
    before = names(tmp_path)
    (tmp_path / "same").write_text("same\n")
    command = ["sh", "-c", 'echo "$1: bad" >&2; exit 3', "sh", "%s"]
    same = {"path": f"{tmp_path}/same", "content": "same\n", "check": command}
    done = run_module("node_files", {"files": [*files, same]}, check=check)
    assert (
        done["failed"]
        and done["rc"] == 3
        and done["msg"].startswith(f"The new content of {tmp_path}/same is not valid, so nothing was changed: ")
    )
    assert names(tmp_path) == sorted([*before, "same"]) and (tmp_path / "here/real").read_text() == "old\n"


def test_files_are_removed(tmp_path: Path, run_module: Run, files: list[dict]) -> None:
    run_module("node_files", {"files": files})
    absent = [{**entry, "state": "absent"} for entry in files]
    assert len(run_module("node_files", {"files": absent})["files"]) == 3
    assert names(tmp_path) == ["a.d", "a.d/b.d", "here", "here/real"]


def test_full_disk_is_found_before_anything_is_changed(machine: Machine, run_module: Run) -> None:
    point = machine.mount("-t", "tmpfs", "-o", "size=64k", "none")
    small = {"path": f"{point}/small", "content": "new\n"}
    large = {"path": f"{point}/large", "content": 100_000 * "x"}
    (point / "small").write_text("old\n")
    done = run_module("node_files", {"files": [small, large]})
    assert done["failed"] and "No space left on device" in done["msg"] and f"{point}/large" in done["msg"]
    assert names(point) == ["small"] and (point / "small").read_text() == "old\n"


def test_group_is_kept_or_set(tmp_path: Path, machine: Machine, run_module: Run) -> None:
    path = tmp_path / "key"
    entry = {"path": str(path), "content": "1", "mode": "0640"}
    assert run_module("node_files", {"files": [{**entry, "group": "daemon"}]})["changed"]
    assert (path.group(), path.stat().st_mode & 0o777) == ("daemon", 0o640)
    assert not run_module("node_files", {"files": [{**entry, "group": "daemon"}]})["changed"]
    assert run_module("node_files", {"files": [{**entry, "content": "2"}]})["changed"] and path.group() == "daemon"
    assert run_module("node_files", {"files": [{**entry, "content": "2", "group": "root"}]})["changed"] and path.group() == "root"
    wrong = run_module("node_files", {"files": [{**entry, "content": "3", "group": "nobody-has-this"}]})
    assert wrong["failed"] and "nobody-has-this" in wrong["msg"] and names(tmp_path) == ["key"] and path.read_text() == "2"


@pytest.mark.parametrize("state", ["present", "absent"])
def test_link_of_others_stays(tmp_path: Path, run_module: Run, state: str) -> None:
    (tmp_path / "mask").symlink_to("/dev/null")
    own_link = {"path": f"{tmp_path}/mask", "link": "../dev/null", "unless_link": "/dev/null", "state": state}
    assert not run_module("node_files", {"files": [own_link]})["changed"] and (tmp_path / "mask").readlink() == Path("/dev/null")
    (tmp_path / "mask").unlink()
    assert run_module("node_files", {"files": [own_link]})["changed"] == (state == "present")
    assert run_module("node_files", {"files": [{**own_link, "state": "absent"}]})["changed"] == (state == "present")
