"""`molecule test`: every role on fresh stand-ins, dry, for real, once more, and looked at from outside."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT


@pytest.mark.timeout(1800)
def test_molecule(tmp_path: Path) -> None:
    # What molecule remembers is kept by the name of the folder: other clones have the same.
    environment = {**os.environ, "MOLECULE_EPHEMERAL_DIRECTORY": str(tmp_path), "NODES": "2"}
    done = subprocess.run(
        ["molecule", "test"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=1500
    )
    # Molecule tells everything on standard error.
    print(done.stderr[-30000:])
    assert done.returncode == 0
    assert " passed" in done.stderr
