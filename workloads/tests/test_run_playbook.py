"""playbooks/run.yml with this machine as the client: the command, a real cluster, and the report that is fetched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import LoopbackCluster

pytestmark = pytest.mark.timeout(180)
ROOT = Path(__file__).parents[2]
OVERLAY = "client:\n  vars: {ansible_connection: local, ansible_remote_tmp: %s, validate_keys: false}\n"


@pytest.fixture
def play(cluster: LoopbackCluster, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Return a function that runs the playbook with variables and returns its output and the folder of the report."""
    command = tmp_path / "bin/bramble"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bramble "$@"\n')
    command.chmod(0o755)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    (tmp_path / "overlay.yml").write_text(OVERLAY % (tmp_path / "ansible"))
    environment = cluster.environment() | {"PATH": f"{command.parent}:{os.environ['PATH']}", "TMPDIR": str(temporary)}
    environment["ANSIBLE_STRATEGY"] = "mitogen_linear"  # makes the test faster

    def run(code: int, **variables: str) -> tuple[str, Path]:
        report = tmp_path / "report"
        sources = ("inventory/hosts.yml", tmp_path / "overlay.yml", "inventory/active.yml")
        arguments = [*(f"--inventory={source}" for source in sources), "playbooks/run.yml"]
        arguments += ["-e", json.dumps({"run_report_dir": str(report), **variables})]
        playbook = Path(sys.executable).with_name("ansible-playbook")
        done = subprocess.run([playbook, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == (code == 0), done.stdout + done.stderr
        # The folder on the client is removed.
        assert not list(temporary.glob("bramble-*"))
        return done.stdout, report

    return run


def test_the_report_is_fetched(play) -> None:  # type: ignore[no-untyped-def]
    output, report = play(0, workload="quantum", workload_args="ghz --qubits 3 --shots 300")
    assert "GHZ state of 3 qubits" in output and f"The report is in {report}" in output
    assert sorted(path.name for path in report.iterdir()) == ["quantum.json", "quantum.png"]
    assert json.loads((report / "quantum.json").read_text())["on"] == "cluster"


def test_a_failed_run_is_reported(play) -> None:  # type: ignore[no-untyped-def]
    output, report = play(1, workload="quantum", workload_args="shor --number 17")
    assert "bramble quantum ended with 2. bramble: --number 17 is prime" in output.replace("\n", " ")
    assert not report.exists()


def test_a_workload_that_does_not_exist(play) -> None:  # type: ignore[no-untyped-def]
    output, _ = play(1, workload="pie")
    assert (
        "There is no workload pie. Choose one with -e workload=NAME. These exist: " in output and "compare, compute, " in output
    )
