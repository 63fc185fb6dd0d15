"""The engine against bare dask and dispy, and how well it uses more nodes: all in one run.

    make bench-engine      writes reports/bench/engine.json

On this machine, two jobs at once, in turns: no-op jobs per second and what is lost of 1000 jobs of 10 ms, by bramble.engine, by
bare dask on the same TLS cluster, and by dispy 4.15.2 (in .cache/bench-dispy, with the fix that it needs since Python 3.13); then
50,000 no-op jobs by ours. On 1, 2, 4 and 8 stand-ins of 0.2 core: pi in chunks of a second or more, jobs that only sleep, and the
sixteen jobs.

  efficiency_8_pi       speed-up of pi on 8 nodes, divided by 8; at least 0.95
  makespan_vs_optimal   sixteen jobs on two nodes, against what no schedule can be below; at most 1.05
  tasks_vs_bare_dask    no-op jobs per second, ours divided by dask's; at least 0.8
  lost_of_1000          ours; 0

Needs root, a Docker engine, a quiet machine of two cores or more, half an hour. --only tasks or --only nodes is one half of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support import ROOT, standins

AT_LEAST = {"efficiency_8_pi": 0.95, "tasks_vs_bare_dask": 0.8}
AT_MOST = {"makespan_vs_optimal": 1.05, "lost_of_1000": 0}
NAME, SUBNET = "bench-engine", "10.77.112.0/24"
CHUNK, ROUNDS = 80_000_000, 10
"""Points of a chunk: more than a second on one of the four threads of such a node. Chunks for each thread of the most nodes."""
NAP = 0.5
DISPY = ROOT / ".cache/bench-dispy"
DISPY_PACKAGES = ["dispy==4.15.2", "pycos==4.12.2", "psutil==7.2.2"]

# Run by dispy's own Python: what it says of `count` jobs that sleep `seconds`.
DISPY_PROGRAM = """
import json, sys, time
import dispy
def job(seconds):
    import time
    time.sleep(seconds)
    return 1
if __name__ == "__main__":
    count, seconds, limit = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    cluster = dispy.JobCluster(job, nodes=["127.0.0.1"], host="127.0.0.1")
    begin = time.time()
    jobs = [cluster.submit(seconds) for _ in range(count)]
    last, done = begin, 0
    while done < count and time.time() - begin < limit and time.time() - last < 20:
        ended = sum(job.status in (dispy.DispyJob.Finished, dispy.DispyJob.Terminated, dispy.DispyJob.Cancelled) for job in jobs)
        if ended > done:
            done, last = ended, time.time()
        time.sleep(0.05)
    good = sum(job.status == dispy.DispyJob.Finished and job.result == 1 for job in jobs)
    print(json.dumps({"seconds": last - begin, "lost": count - good}), flush=True)
    import os
    os._exit(0)
"""
# With Python 3.13, dbm's default is SQLite, which does not go with dispy's threads.
DISPY_FIX = "import dbm, dbm.dumb\ndbm._defaultmod = dbm.dumb\n"


def dispy(count: int, seconds: float) -> dict[str, float]:
    """Jobs that sleep, by dispy with two slots on the loopback: seconds that it took, how many were lost."""
    python = DISPY / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", DISPY], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *DISPY_PACKAGES], check=True)
    (site,) = DISPY.glob("lib/python3*/site-packages")
    (site / "sitecustomize.py").write_text(DISPY_FIX)
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "program.py")
        program.write_text(DISPY_PROGRAM)
        options = f"--clean --cpus 2 --host 127.0.0.1 --daemon --dest_path_prefix {folder}".split()
        command: list[str | Path] = [python, DISPY / "bin/dispynode.py", *options]
        node = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            time.sleep(3)
            done = subprocess.run(
                [python, program, str(count), str(seconds), "60"],
                cwd=folder,
                capture_output=True,
                text=True,
                check=True,
                timeout=120,
            )
        finally:
            node.terminate()
            node.wait(20)
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def tasks(rounds: int) -> dict[str, Any]:
    """Tasks per second and lost jobs of ours, bare dask and dispy, two jobs at once each, in turns; the best round counts."""
    from bramble.engine import places

    from workloads.tests.conftest import start_cluster

    def ours(count: int, seconds: float) -> dict[str, float]:
        begin = time.perf_counter()
        ends = [outcome.lost for outcome in engine.map(time.sleep, [seconds] * count)]
        return {"seconds": time.perf_counter() - begin, "lost": count - ends.count(None)}

    def bare(count: int, seconds: float) -> dict[str, float]:
        begin = time.perf_counter()
        futures = engine.client.map(time.sleep, [seconds] * count, pure=False)
        found = engine.client.gather(futures, errors="skip")
        return {"seconds": time.perf_counter() - begin, "lost": count - len(found)}

    programs: dict[str, Callable[[int, float], dict[str, float]]] = {"ours": ours, "dask": bare, "dispy": dispy}
    with tempfile.TemporaryDirectory() as folder:
        cluster = start_cluster(Path(folder), ["pi-01"])
        os.environ["BRAMBLE_CONFIG"] = str(cluster.config)
        try:
            with places.connect_to_nodes(["pi-01"], 30) as engine:
                engine.warm_up(time.sleep)
                bare(200, 0)
                found: dict[str, Any] = {name: {"tasks_per_second": 0.0, "lost_of_1000": 0} for name in programs}
                for _ in range(rounds):
                    for name, program in programs.items():
                        count = 500 if name == "dispy" else 3000
                        noop = program(count, 0)
                        rate = (count - noop["lost"]) / noop["seconds"] if noop["seconds"] else 0.0
                        found[name]["tasks_per_second"] = max(found[name]["tasks_per_second"], round(rate, 1))
                        found[name]["lost_of_noop"] = [*found[name].get("lost_of_noop", []), noop["lost"]]
                        found[name]["lost_of_1000"] = max(found[name]["lost_of_1000"], program(1000, 0.01)["lost"])
                        print(f"{name}: {found[name]}", flush=True)
                many = ours(50_000, 0)
                found["ours"] |= {
                    "lost_of_50000": many["lost"],
                    "milliseconds_per_task": round(1000 * many["seconds"] / 50_000, 3),
                }
        finally:
            cluster.stop()
    return found


def efficiency(nodes: int, first: float, seconds: float) -> float:
    return round(first / seconds / nodes, 3)


def nodes(sizes: list[int]) -> dict[str, Any]:
    """pi and sleeping jobs on so many stand-ins each, and the sixteen jobs on two."""
    with standins.cluster(NAME, SUBNET, sizes[-1]) as client:
        return curves(sizes, client)


def curves(sizes: list[int], client: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    slots = 4 * sizes[-1]
    counts = ",".join(map(str, sizes))
    pi = client(f"bramble pi --points {slots * ROUNDS * CHUNK} --chunk {CHUNK} --nodes {counts}")
    print("pi", [round(each["seconds"], 1) for each in pi["runs"]], flush=True)
    # As many sleeping jobs for each slot of the most nodes.
    naps = {}
    for count in sizes:
        record = client(f"bramble compute --jobs {slots * ROUNDS} --scale {NAP / 12.5} --nodes {count}")
        naps[count] = record["seconds"]
    sixteen = client(f"bramble compute --scale 0.5 --nodes {min(2, sizes[-1])}")
    return {
        "pi": {each["nodes"]: {key: round(each[key], 3) for key in ("seconds", "speedup", "efficiency")} for each in pi["runs"]},
        "chunk_seconds": round(pi["runs"][-1]["job_seconds"] / pi["runs"][-1]["jobs"], 2),
        "naps": {
            count: {"seconds": round(took, 2), "efficiency": efficiency(count, naps[sizes[0]], took)}
            for count, took in naps.items()
        },
        "sixteen": {key: round(sixteen[key], 3) for key in ("seconds", "seconds_at_best", "job_seconds", "lost")},
    }


def main() -> int:
    """Measure, show, write it down."""
    options = argparse.ArgumentParser()
    options.add_argument("--only", choices=["tasks", "nodes"])
    options.add_argument("--nodes", default="1,2,4,8", help="numbers of nodes, ascending from 1")
    options.add_argument("--rounds", type=int, default=2, help="of the comparison on this machine")
    chosen = options.parse_args()
    sizes = [int(number) for number in chosen.nodes.split(",")]
    found: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    if chosen.only != "nodes":
        found["tasks"] = tasks(chosen.rounds)
        ratios["tasks_vs_bare_dask"] = round(
            found["tasks"]["ours"]["tasks_per_second"] / found["tasks"]["dask"]["tasks_per_second"], 3
        )
        ratios["lost_of_1000"] = found["tasks"]["ours"]["lost_of_1000"]
    if chosen.only != "tasks":
        found["nodes"] = nodes(sizes)
        ratios[f"efficiency_{sizes[-1]}_pi"] = found["nodes"]["pi"][sizes[-1]]["efficiency"]
        ratios["makespan_vs_optimal"] = round(
            found["nodes"]["sixteen"]["seconds"] / found["nodes"]["sixteen"]["seconds_at_best"], 3
        )
    targets = {name: f"at least {least}" for name, least in AT_LEAST.items()} | {
        name: f"at most {most}" for name, most in AT_MOST.items()
    }
    missed = [name for name, ratio in ratios.items() if ratio < AT_LEAST.get(name, ratio) or ratio > AT_MOST.get(name, ratio)]
    reports = ROOT / "reports/bench"
    reports.mkdir(parents=True, exist_ok=True)
    report = {"ratios": ratios, "targets": targets, "missed": missed, **found}
    (reports / "engine.json").write_text(json.dumps(report, indent=2) + "\n")
    for name, ratio in ratios.items():
        print(f"{name:<22}{ratio:8.3f}  target {targets.get(name, 'none')}{', missed' if name in missed else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
