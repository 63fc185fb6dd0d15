"""Run a playbook on this machine, without the inventory of the project."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support import ROOT


def run_locally(playbook: Path, variables: Mapping[str, Any], *options: str) -> subprocess.CompletedProcess[str]:
    """Run a playbook on localhost, with extra variables and further options of ansible-playbook."""
    command: list[str | Path] = [Path(sys.executable).with_name("ansible-playbook"), "-i", "localhost,", "-c", "local"]
    command += ["-e", json.dumps(variables), *options, playbook]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
