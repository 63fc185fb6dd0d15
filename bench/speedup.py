"""Measure how much faster more nodes are: Monte Carlo pi on 1, 2, 4 and 8 stand-ins, in one run of the demo.

    make bench-speedup      writes reports/bench/speedup.json

Only ratios, since seconds differ between machines. Targets: at least 3.6 with 4 nodes and 7 with 8. Needs an otherwise idle
machine of two cores or more, since eight nodes of 0.2 core and their client use nearly all of two.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.support import ROOT

TARGETS = {"pi_4_vs_1": 3.6, "pi_8_vs_1": 7.0}


def main() -> int:
    """Run the demo, print the ratios, and write the report."""
    reports = ROOT / "reports/bench"
    reports.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [sys.executable, ROOT / "scripts/demo", "--reports", reports / "runs"], env={**os.environ, "NODES": "8"}, check=True
    )
    summary = json.loads((reports / "runs/latest/summary.json").read_text())
    speedups = {f"pi_{run['nodes']}_vs_1": round(run["speedup"], 3) for run in summary["pi"]["runs"]}
    ratios = {**speedups, "jobs_16_vs_1": round(summary["compute"]["speedup"], 3)}
    missed = {name: target for name, target in TARGETS.items() if ratios[name] < target}
    (reports / "speedup.json").write_text(json.dumps({"ratios": ratios, "targets": TARGETS, "missed": missed}, indent=2) + "\n")
    for name, ratio in ratios.items():
        target = f"  target {TARGETS[name]}{', missed' if name in missed else ''}" if name in TARGETS else ""
        print(f"{name:<14}{ratio:6.2f}{target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
