"""The linters check the whole project: a call of a missing function fails in every part of it."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.files import project_files

INVALID_CALLS = {
    "plugins/modules/card_write.py": "card_ledger.NoSuchName(1, 2)",
    "plugins/action/card_write.py": "CardAction.no_such_name(1, 2)",
    "plugins/filter/cluster.py": "ipaddress.NoSuchName(1, 2)",
    "plugins/lookup/microk8s_snap_files.py": "subprocess.NoSuchName(1, 2)",
    "roles/lab_tools/files/lab.py": "subprocess.NoSuchName(1, 2)",
    "roles/lab_target/files/targets.py": "import lab; lab.no_such_name(1, 2)",
    "workloads/src/dispy/cluster.py": "threading.NoSuchName(1, 2)",
    "workloads/src/bramble/cli.py": "typer.NoSuchName(1, 2)",
    "images/debian/build.py": "argparse.NoSuchName(1, 2)",
    "bench/cards.py": "subprocess.NoSuchName(1, 2)",
    "scripts/demo": "console.no_such_name(1, 2)",
    "tests/support/rehearsal.py": "subprocess.NoSuchName(1, 2)",
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the project, with all files that git does not ignore."""
    for name in project_files("--cached", "--others", "--exclude-standard"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name, follow_symlinks=False)
    return tmp_path


def run(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}", **variables}
    return subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def lint_imports(folder: Path) -> int:
    """Run import-linter on the copy, without the .pth file of .venv (-S), which would add the collection a second time."""
    import_path = [f"{folder}/.config", f"{folder}/workloads/src", sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return run(folder, sys.executable, "-S", "-c", program, "--no-cache", PYTHONPATH=":".join(import_path)).returncode


def test_invalid_call_is_found_everywhere(copy: Path) -> None:
    for name, call in INVALID_CALLS.items():
        with (copy / name).open("a") as file:
            file.write(f"\n\n{call}\n")
    # Run each command of scripts/types separately, as the script ends with the first one that fails.
    commands = [line for line in (copy / "scripts/types").read_text().splitlines() if line.startswith("mypy")]
    found = "".join(run(copy, "bash", "-c", command).stdout for command in commands)
    missed = [
        name for name in INVALID_CALLS if not any(f"{name}:" in line and "no attribute" in line for line in found.splitlines())
    ]
    assert not missed, f"{missed}\n{found}"


PLUGINS = "ansible_collections.bramble.cluster.plugins"
FORBIDDEN_IMPORTS = {
    "plugins/module_utils/core/text.py": f"{PLUGINS}.module_utils.card.image",
    "plugins/module_utils/capture/tools.py": f"{PLUGINS}.module_utils.lab.probe",
    "plugins/module_utils/lab/probe.py": f"{PLUGINS}.module_utils.network.port",
    "plugins/module_utils/card/guard.py": "bramble.engine.config",
    "plugins/modules/card_write.py": f"{PLUGINS}.modules.card_ledger",
    "plugins/modules/card_facts.py": f"{PLUGINS}.plugin_utils.card_progress",
    "plugins/action/card_write.py": f"{PLUGINS}.modules.card_write",
    "plugins/filter/swap.py": f"{PLUGINS}.filter.cluster",
    "workloads/src/bramble/engine/local.py": f"{PLUGINS}.module_utils.core.text",
    "workloads/src/bramble/engine/config.py": "bramble.study.record",
    "workloads/src/bramble/programs/pi/bbp.py": "bramble.engine.local",
    "workloads/src/bramble/programs/pi/montecarlo.py": "distributed",
    "workloads/src/bramble/programs/primes/run.py": "bramble.programs.pi.run",
    "workloads/src/dispy/cluster.py": "bramble.programs.pi.run",
    "workloads/src/dispy/node.py": "bramble.engine.local",
}


def test_import_against_the_layers_fails(copy: Path) -> None:
    assert lint_imports(copy) == 0
    for name, imported in FORBIDDEN_IMPORTS.items():
        source = (copy / name).read_text()
        (copy / name).write_text(f"{source}import {imported}\n")
        assert lint_imports(copy) == 1, f"{name} may import {imported}"
        (copy / name).write_text(source)


def test_modules_import_of_ansible_only_what_it_sends_to_a_node() -> None:
    """As the test `import` of ansible-test does, which needs environments of its own."""
    for path in [*ROOT.glob("plugins/modules/*.py"), *ROOT.glob("plugins/module_utils/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong = [
                name for name in names if name.partition(".")[0] == "ansible" and not name.startswith("ansible.module_utils")
            ]
            assert not wrong, (path, wrong)


def test_template_of_a_workload_passes_the_linters_where_it_is_copied_to(copy: Path) -> None:
    """workloads/README.md tells people to copy it."""
    for folder in ("src", "tests"):
        shutil.copytree(copy / "workloads/tests/template" / folder, copy / "workloads" / folder, dirs_exist_ok=True)
    commands = [line for line in (copy / "scripts/types").read_text().splitlines() if "workloads/pyproject.toml" in line]
    for command in [*commands, "ruff check workloads", "ruff format --check workloads"]:
        done = run(copy, "bash", "-c", command)
        assert done.returncode == 0, done.stdout + done.stderr
