"""Compare the engine with bare dask and dispy, and measure how well it uses more nodes, in one run.

    make bench-engine      writes reports/bench/engine.json

On this machine, with two jobs at once and in turns: no-op jobs per second, and lost jobs of 1000 jobs of 10 ms, with
bramble.engine, with bare dask on the same TLS cluster, and with dispy 4.15.2 (in .cache/bench-dispy, with the fix that it needs
since Python 3.13); then 50,000 no-op jobs with bramble.engine. On 1, 2, 4 and 8 stand-ins of 0.2 core: pi in chunks of a second
or more, jobs that only sleep, and the sixteen jobs.

  efficiency_8_pi       speed-up of pi on 8 nodes, divided by 8; at least 0.95
  makespan_vs_optimal   time of sixteen jobs on two nodes, divided by the lower bound of all schedules; at most 1.05
  tasks_vs_bare_dask    no-op jobs per second of bramble.engine, divided by those of bare dask; at least 0.8
  lost_of_1000          lost jobs of bramble.engine; 0

Needs root, a Docker engine, an otherwise idle machine of two cores or more, and half an hour. --only tasks or --only nodes runs
one half.
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
CHUNK_POINTS, CHUNKS_PER_THREAD = 80_000_000, 10
"""The points of a chunk, which take more than a second on one of the four threads of a stand-in; and the chunks for each thread
of the largest cluster."""
SLEEP_SECONDS = 0.5
DISPY = ROOT / ".cache/bench-dispy"
DISPY_PACKAGES = ["dispy==4.15.2", "pycos==4.12.2", "psutil==7.2.2"]

# A program for dispy's own Python: run `count` jobs that sleep `seconds`, and print the time and the lost jobs.
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
    begin = time.monotonic()
    jobs = [cluster.submit(seconds) for _ in range(count)]
    last, done = begin, 0
    while done < count and time.monotonic() - begin < limit and time.monotonic() - last < 20:
        ended = sum(job.status in (dispy.DispyJob.Finished, dispy.DispyJob.Terminated, dispy.DispyJob.Cancelled) for job in jobs)
        if ended > done:
            done, last = ended, time.monotonic()
        time.sleep(0.05)
    good = sum(job.status == dispy.DispyJob.Finished and job.result == 1 for job in jobs)
    print(json.dumps({"seconds": last - begin, "lost": count - good}), flush=True)
    import os
    os._exit(0)
"""
# Since Python 3.13 the default of dbm is SQLite, which does not work with the threads of dispy.
DISPY_FIX = "import dbm, dbm.dumb\ndbm._defaultmod = dbm.dumb\n"


def run_dispy(count: int, seconds: float) -> dict[str, float]:
    """Run `count` jobs that sleep, with dispy and two slots on the loopback. Return the seconds and the lost jobs."""
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


def measure_tasks(rounds: int) -> dict[str, Any]:
    """Return jobs per second and lost jobs of bramble.engine, bare dask and dispy, with two jobs at once, of the best round."""
    from bramble.engine import places
    from workloads.tests.conftest import start_cluster

    def run_bramble(count: int, seconds: float) -> dict[str, float]:
        begin = time.perf_counter()
        ends = [outcome.lost for outcome in engine.map(time.sleep, [seconds] * count)]
        return {"seconds": time.perf_counter() - begin, "lost": count - ends.count(None)}

    def run_dask(count: int, seconds: float) -> dict[str, float]:
        begin = time.perf_counter()
        futures = engine.client.map(time.sleep, [seconds] * count, pure=False)
        found = engine.client.gather(futures, errors="skip")
        return {"seconds": time.perf_counter() - begin, "lost": count - len(found)}

    programs: dict[str, Callable[[int, float], dict[str, float]]] = {"ours": run_bramble, "dask": run_dask, "dispy": run_dispy}
    with tempfile.TemporaryDirectory() as folder:
        cluster = start_cluster(Path(folder), ["pi-01"])
        os.environ["BRAMBLE_CONFIG"] = str(cluster.config)
        try:
            with places.connect_to_nodes(["pi-01"], 30) as engine:
                engine.warm_up(time.sleep)
                run_dask(200, 0)
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
                many = run_bramble(50_000, 0)
                found["ours"] |= {
                    "lost_of_50000": many["lost"],
                    "milliseconds_per_task": round(1000 * many["seconds"] / 50_000, 3),
                }
        finally:
            cluster.stop()
    return found


def efficiency_of(nodes: int, first: float, seconds: float) -> float:
    """Return the speed-up divided by the number of nodes.

    :param first: the seconds on one node
    :param seconds: the seconds on these nodes
    """
    return round(first / seconds / nodes, 3)


def measure_nodes(sizes: list[int]) -> dict[str, Any]:
    """Measure pi and sleeping jobs on clusters of these sizes, and the sixteen jobs on two nodes."""
    with standins.cluster(NAME, SUBNET, sizes[-1]) as client:
        return measure_sizes(sizes, client)


def measure_sizes(sizes: list[int], client: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Measure on the first nodes of a cluster; `client` runs a command on the client and returns its record."""
    slots = 4 * sizes[-1]
    counts = ",".join(map(str, sizes))
    pi = client(f"bramble pi --points {slots * CHUNKS_PER_THREAD * CHUNK_POINTS} --chunk {CHUNK_POINTS} --nodes {counts}")
    print("pi", [round(run["seconds"], 1) for run in pi["runs"]], flush=True)
    # The same number of sleeping jobs for each slot of the largest cluster.
    sleep_seconds = {}
    for count in sizes:
        record = client(f"bramble compute --jobs {slots * CHUNKS_PER_THREAD} --scale {SLEEP_SECONDS / 12.5} --nodes {count}")
        sleep_seconds[count] = record["seconds"]
    sixteen = client(f"bramble compute --scale 0.5 --nodes {min(2, sizes[-1])}")
    return {
        "pi": {run["nodes"]: {key: round(run[key], 3) for key in ("seconds", "speedup", "efficiency")} for run in pi["runs"]},
        "chunk_seconds": round(pi["runs"][-1]["job_seconds"] / pi["runs"][-1]["jobs"], 2),
        "naps": {
            count: {"seconds": round(took, 2), "efficiency": efficiency_of(count, sleep_seconds[sizes[0]], took)}
            for count, took in sleep_seconds.items()
        },
        "sixteen": {key: round(sixteen[key], 3) for key in ("seconds", "seconds_at_best", "job_seconds", "lost")},
    }


def main() -> int:
    """Measure, print the ratios, and write the report."""
    options = argparse.ArgumentParser()
    options.add_argument("--only", choices=["tasks", "nodes"])
    options.add_argument("--nodes", default="1,2,4,8", help="numbers of nodes, ascending from 1")
    options.add_argument("--rounds", type=int, default=2, help="rounds of the comparison on this machine")
    chosen = options.parse_args()
    sizes = [int(number) for number in chosen.nodes.split(",")]
    found: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    if chosen.only != "nodes":
        found["tasks"] = measure_tasks(chosen.rounds)
        ratios["tasks_vs_bare_dask"] = round(
            found["tasks"]["ours"]["tasks_per_second"] / found["tasks"]["dask"]["tasks_per_second"], 3
        )
        ratios["lost_of_1000"] = found["tasks"]["ours"]["lost_of_1000"]
    if chosen.only != "tasks":
        found["nodes"] = measure_nodes(sizes)
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
