"""A node with one profile does not get another one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT


def profile(tasks: str, file: Path, name: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run tasks of the role profile on this machine, with its state in `file`."""
    play = [
        {
            "hosts": "localhost",
            "gather_facts": False,
            "tasks": [{"ansible.builtin.import_role": {"name": "profile", "tasks_from": tasks}}],
        }
    ]
    book = file.parent / "play.yml"
    book.write_text(json.dumps(play))
    variables = {"__profile_file": str(file), "profile_name": name, "ansible_become": False}
    return subprocess.run(
        ["ansible-playbook", "-c", "local", "-e", json.dumps(variables), *options, book],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    "old, new, way_back", [("microk8s", "isolated_lab", "playbooks/microk8s.yml"), ("isolated_lab", "base", "isolated_lab.yml")]
)
def test_another_profile_is_refused_with_the_command_to_go_back(tmp_path: Path, old: str, new: str, way_back: str) -> None:
    file = tmp_path / "bramble.fact"
    file.write_text(json.dumps({"profile": old}))
    run = profile("main", file, new)
    assert run.returncode != 0
    assert way_back in run.stdout and "cluster_state=absent" in run.stdout and "Nothing was changed" in run.stdout
    assert json.loads(file.read_text()) == {"profile": old}


def test_from_base_to_a_profile_and_back(tmp_path: Path) -> None:
    file = tmp_path / "bramble.fact"
    assert "changed=1" in profile("main", file, "microk8s").stdout
    assert json.loads(file.read_text()) == {"profile": "microk8s"}
    assert "changed=0" in profile("main", file, "microk8s").stdout
    assert profile("absent", file, "microk8s").returncode == 0
    assert json.loads(file.read_text()) == {"profile": "base"}
    assert profile("main", file, "isolated_lab").returncode == 0
    assert profile("absent", file, "base").returncode == 0
    assert not file.exists()


def test_damaged_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "bramble.fact"
    file.write_text('{"profile": ')
    run = profile("main", file, "base")
    assert run.returncode != 0 and str(file) in run.stdout and "Nothing was changed" in run.stdout
    assert file.read_text() == '{"profile": '
