"""`molecule test`: every role on fresh stand-ins, dry, for real, once more, and looked at from outside."""

from __future__ import annotations

import subprocess

from rehearsal import ROOT


def test_molecule() -> None:
    done = subprocess.run(["molecule", "test"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=1500)
    print(done.stdout[-30000:], done.stderr[-10000:])
    assert done.returncode == 0
    assert " passed" in done.stdout
