"""`molecule test` of each scenario. molecule/NAME/molecule.yml describes what it tests."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT

# These scenarios take a quarter of an hour or more, so only `make test-slow` runs them.
SLOW = {"isolated_lab"}
SCENARIOS = [
    pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
    for name in sorted(path.parent.name for path in ROOT.glob("molecule/*/molecule.yml"))
]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_molecule(scenario: str, tmp_path: Path) -> None:
    # By default Molecule stores its state under the name of the project's folder, which other clones may have, too.
    environment = {**os.environ, "MOLECULE_EPHEMERAL_DIRECTORY": str(tmp_path)}
    command = ["molecule", "test", "--scenario-name", scenario]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=1700)
    # Molecule writes everything to standard error.
    print(done.stderr[-30000:])
    assert done.returncode == 0
    assert " passed" in done.stderr
