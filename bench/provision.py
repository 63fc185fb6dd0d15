"""Measure how long site.yml takes on 1, 2, 4 and 8 stand-ins (and their client), the first time and with nothing to change.

    make bench-provision      writes reports/bench/provision.json

For each number of nodes: blank cards, first boot, then site.yml twice. On the largest cluster, the run that changes nothing is
repeated with Ansible's stock settings and with Mitogen (plugins/strategy), in turns, and one node is swapped.

  first_eight_vs_one           time of the first run on 8 nodes, divided by that on 1 node
  nochange_eight_vs_one        time of the run that changes nothing on 8 nodes, divided by that on 1 node; at most 2.0
  nochange_stock_vs_mitogen    time with stock settings (5 forks, no pipelining), divided by that with Mitogen
  nochange_ours_vs_mitogen     time with ansible.cfg of the project, divided by that with Mitogen
  round_trips                  tasks on a node in a run that changes nothing, per play on the node with the most; at most 20
  swap_seconds                 time of swap.yml without powering off, writing the card and booting; at most 60

Stand-ins share the cores of this machine with Ansible, which the nodes of a real cluster do not, so eight stand-ins are slower.
Only the ratios can be compared; the report has seconds, per role, for their proportions. Needs root, a Docker engine, half an
hour.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import sys
from collections import Counter, defaultdict
from datetime import datetime
from typing import Any

from tests.support import ROOT
from tests.support.rehearsal import INVENTORY, Play, play

AT_MOST = {"nochange_eight_vs_one": 2.0, "round_trips": 20, "swap_seconds": 60}
NAME, SUBNET = "bench", "10.77.89.0/24"
CLUSTER = {"cluster_name": NAME, "cluster_subnet": SUBNET}
STOCK = {"ANSIBLE_FORKS": "5", "ANSIBLE_PIPELINING": "false"}
MITOGEN = {"ANSIBLE_STRATEGY": "mitogen_linear"}
# Actions that run on the control machine, and those that run nothing.
CONTROL_MACHINE_ACTIONS = {
    "add_host",
    "assert",
    "debug",
    "fail",
    "include_role",
    "include_tasks",
    "import_role",
    "import_tasks",
    "meta",
    "set_fact",
}


def run_playbook(playbook: str, arguments: str = "", environment: dict[str, str] | None = None, **variables: Any) -> Play:
    """Run a playbook on the cluster of this bench."""
    return play(playbook, inventory=INVENTORY, variables={**CLUSTER, **variables}, arguments=arguments, environment=environment)


def task_starts(done: Play) -> list[tuple[datetime, str]]:
    """Return the start of each task with its role, or else its play; the last entry is the end of the run."""
    starts = [event for event in done.events if event["event"] == "playbook_on_task_start"]
    last = done.events[-1]
    marks = [(event["created"], event["event_data"].get("role") or event["event_data"]["play"]) for event in starts]
    return [(datetime.fromisoformat(created), name) for created, name in [*marks, (last["created"], "")]]


def total_seconds(done: Play) -> float:
    """Return the seconds of a run, from the first event to the last."""
    first, last = (datetime.fromisoformat(done.events[place]["created"]) for place in (0, -1))
    return (last - first).total_seconds()


def seconds_per_role(done: Play) -> dict[str, float]:
    """Return the seconds per role, or per play for tasks without a role."""
    took: defaultdict[str, float] = defaultdict(float)
    marks = task_starts(done)
    for (start, name), (end, _) in itertools.pairwise(marks):
        took[name] += (end - start).total_seconds()
    return {name: round(value, 1) for name, value in sorted(took.items(), key=lambda item: -item[1])}


def count_round_trips(done: Play) -> dict[str, int]:
    """Return the number of tasks per play that ran on the node with the most. Each item of a loop counts as a task."""
    reached: dict[str, Counter[str]] = {}
    for event in done.events:
        data = event["event_data"]
        if (
            event["event"] not in {"runner_on_ok", "runner_item_on_ok"}
            or data.get("task_action", "").split(".")[-1] in CONTROL_MACHINE_ACTIONS
        ):
            continue
        result = data.get("res") or {}
        if (result.get("_ansible_delegated_vars") or {}).get("ansible_delegated_host", data["host"]) != data["host"]:
            continue
        if event["event"] == "runner_on_ok" and "results" in result:
            continue  # its items were counted
        reached.setdefault(data["play"], Counter())[data["host"]] += 1
    return {name: max(hosts.values()) for name, hosts in reached.items()}


def remove_cluster() -> None:
    """Remove the stand-ins and the cards."""
    run_playbook("rehearse", cluster_state="absent")
    shutil.rmtree(ROOT / ".state" / NAME, ignore_errors=True)


def measure(sizes: list[int], rounds: int) -> dict[str, Any]:
    """Measure all sizes of the cluster, the smallest first; return the report."""
    first, nochange = dict[int, Play](), dict[int, Play]()
    for number in sizes:
        os.environ["NODES"] = str(number)
        remove_cluster()
        run_playbook("cards")
        run_playbook("rehearse")
        first[number] = run_playbook("site")
        again = [run_playbook("site") for _ in range(rounds)]
        changed = [change for each in again for change in each.changes()]
        if changed:
            raise SystemExit(f"bench/provision.py: the second run of site.yml changed something: {changed}")
        nochange[number] = min(again, key=total_seconds)
        print(
            f"{number} nodes: first {total_seconds(first[number]):.1f} s, "
            f"nothing to change {total_seconds(nochange[number]):.1f} s",
            flush=True,
        )
    stock, mitogen = list[float](), list[float]()
    for _ in range(rounds):
        stock.append(total_seconds(run_playbook("site", environment=STOCK)))
        mitogen.append(total_seconds(run_playbook("site", environment=MITOGEN)))
    most, least = sizes[-1], sizes[0]
    trips = count_round_trips(nochange[most])
    run_playbook("swap", node="pi-01", card_confirm=True, cluster_reports_dir=str(ROOT / ".state" / NAME / "reports"))
    stages = json.loads((ROOT / ".state" / NAME / "reports/swap/pi-01.json").read_text())["seconds"]
    ratios = {
        "first_eight_vs_one": total_seconds(first[most]) / total_seconds(first[least]),
        "nochange_eight_vs_one": total_seconds(nochange[most]) / total_seconds(nochange[least]),
        "nochange_stock_vs_mitogen": min(stock) / min(mitogen),
        "nochange_ours_vs_mitogen": total_seconds(nochange[most]) / min(mitogen),
        "round_trips": max(trips.values()),
        "swap_seconds": stages["Ansible's part"],
    }
    ratios = {name: round(value, 3) for name, value in ratios.items()}
    return {
        "ratios": ratios,
        "targets": AT_MOST,
        "missed": {name: most for name, most in AT_MOST.items() if ratios[name] > most},
        "round_trips": trips,
        "seconds": {
            "first": {number: round(total_seconds(done), 1) for number, done in first.items()},
            "nochange": {number: round(total_seconds(done), 1) for number, done in nochange.items()},
            "nochange, stock settings": round(min(stock), 1),
            "nochange, Mitogen": round(min(mitogen), 1),
            "first, per role": seconds_per_role(first[most]),
            "nochange, per role": seconds_per_role(nochange[most]),
            "swap": stages,
        },
    }


def main() -> int:
    """Measure, print the ratios, and write the report."""
    options = argparse.ArgumentParser()
    options.add_argument("--nodes", default="1,2,4,8", help="numbers of nodes, ascending")
    options.add_argument("--rounds", type=int, default=2, help="rounds of the runs that change nothing; the best counts")
    chosen = options.parse_args()
    try:
        report = measure([int(number) for number in chosen.nodes.split(",")], chosen.rounds)
    finally:
        remove_cluster()
    reports = ROOT / "reports/bench"
    reports.mkdir(parents=True, exist_ok=True)
    (reports / "provision.json").write_text(json.dumps(report, indent=2) + "\n")
    for name, ratio in report["ratios"].items():
        target = f"  target at most {AT_MOST[name]}" if name in AT_MOST else ""
        print(f"{name:<28}{ratio:10.2f}{target}{', missed' if name in report['missed'] else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
