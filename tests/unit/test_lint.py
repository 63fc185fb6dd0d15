"""The linters see the whole project: a call of what does not exist fails wherever it stands."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support import ROOT

PLANTED = {
    "plugins/modules/card_write.py": "card_ledger.NoSuchName(1, 2)",
    "plugins/action/card_write.py": "CardAction.no_such_name(1, 2)",
    "plugins/filter/cluster.py": "ipaddress.NoSuchName(1, 2)",
    "roles/lab_tools/files/lab.py": "subprocess.NoSuchName(1, 2)",
    "workloads/src/dispy/cluster.py": "threading.NoSuchName(1, 2)",
    "workloads/src/bramble/cli.py": "typer.NoSuchName(1, 2)",
    "images/debian/build.py": "argparse.NoSuchName(1, 2)",
    "bench/cards.py": "subprocess.NoSuchName(1, 2)",
    "scripts/demo": "console.no_such_name(1, 2)",
    "tests/support/rehearsal.py": "subprocess.NoSuchName(1, 2)",
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The project as git knows it, with the packages of this one."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists() or (ROOT / name).is_symlink():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / name, follow_symlinks=False)
    return tmp_path


def run(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    own = {"PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}", **variables}
    return subprocess.run(command, cwd=folder, env={**os.environ, **own}, capture_output=True, text=True, check=False)


def lint_imports(folder: Path) -> int:
    """Run import-linter on the copy. Without .venv's .pth file (-S), or the collection would be in two places."""
    places = [f"{folder}/.config", f"{folder}/workloads/src", sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return run(folder, sys.executable, "-S", "-c", program, "--no-cache", PYTHONPATH=":".join(places)).returncode


def test_a_planted_call_fails_in_every_room(copy: Path) -> None:
    for name, call in PLANTED.items():
        with (copy / name).open("a") as file:
            file.write(f"\n\n{call}\n")
    # Each of the commands of scripts/types, since the first that fails ends it.
    commands = [line for line in (copy / "scripts/types").read_text().splitlines() if line.startswith("mypy")]
    found = "".join(run(copy, "bash", "-c", command).stdout for command in commands)
    missed = [name for name in PLANTED if not any(f"{name}:" in line and "no attribute" in line for line in found.splitlines())]
    assert not missed, f"{missed}\n{found}"


def test_a_layer_that_imports_what_is_above_it_fails(copy: Path) -> None:
    assert lint_imports(copy) == 0
    upside_down = "import ansible_collections.bramble.cluster.plugins.module_utils.card.image\n"
    with (copy / "plugins/module_utils/core/text.py").open("a") as file:
        file.write(upside_down)
    assert lint_imports(copy) == 1
