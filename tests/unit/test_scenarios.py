"""The scenarios of Molecule: each is described in CONTRIBUTING.md, has its own addresses, and is listed by `molecule list`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import ClusterScheduling
from tests.support import ROOT

SCENARIOS = sorted(path.parent.name for path in ROOT.glob("molecule/*/molecule.yml"))


def test_every_scenario_applies_a_playbook() -> None:
    assert sorted(path.parent.name for path in ROOT.glob("molecule/*/converge.yml")) == SCENARIOS


def test_contributing_describes_every_scenario() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## Scenarios")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^\| `([a-z0-9_]+)` \|", text, re.MULTILINE)) == SCENARIOS


def test_molecule_lists_every_scenario() -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["molecule", "list", "--format", "plain"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    # The columns are instance, driver, provisioner, scenario, created, converged.
    assert sorted({line.split()[3] for line in done.stdout.splitlines() if line}) == SCENARIOS


def test_no_two_scenarios_share_a_cluster() -> None:
    """They do not share one with the other tests either, since all may run at the same time."""
    overlays = [*ROOT.glob("molecule/*/inventory/group_vars/all/*.yml"), *ROOT.glob("tests/**/group_vars/all/*.yml")]
    clusters = [yaml.safe_load(path.read_text()) for path in overlays]
    for name in ("cluster_name", "cluster_subnet"):
        values = [cluster[name] for cluster in clusters if name in cluster]
        assert len(values) == len(set(values))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_cluster_has_the_name_of_its_scenario(scenario: str) -> None:
    (path,) = (ROOT / "molecule" / scenario / "inventory/group_vars/all").iterdir()
    assert yaml.safe_load(path.read_text())["cluster_name"] == f"molecule-{scenario}"


def test_each_scenario_is_one_unit_of_work_and_so_are_the_tests_of_another_file() -> None:
    scenario, other = "tests/e2e/test_molecule.py::test_molecule[swap]", "tests/e2e/test_ops.py"
    scheduling = object.__new__(ClusterScheduling)
    assert scheduling._split_scope(scenario) == scenario
    assert {scheduling._split_scope(f"{other}::test_{name}") for name in "ab"} == {other}
