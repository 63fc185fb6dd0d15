"""How long site.yml takes on 1, 2, 4 and 8 stand-ins (and their client): the first time, and when there is nothing to change.

    make bench-provision      writes reports/bench/provision.json

For each number of nodes: blank cards, first boot, then site.yml twice. On the most nodes, the run that changes nothing is done
again with Ansible's stock settings and with Mitogen (plugins/strategy), in turns, and one node is swapped.

  first_eight_vs_one           the first run on 8 nodes against the first on 1
  nochange_eight_vs_one        the run that changes nothing, likewise; at most 2.0
  nochange_stock_vs_mitogen    how many times as long stock settings take (5 forks, no pipelining) as Mitogen
  nochange_ours_vs_mitogen     and how many times as long ansible.cfg as it is
  round_trips                  tasks that reach into a node in a run that changes nothing: per playbook, on the node with the most
  swap_seconds                 what of swap.yml is Ansible's: not powering off, writing the card, booting; at most 60

Stand-ins share this machine's cores with Ansible, which a real cluster's nodes do not: eight of them are slower here than there.
Seconds are in the report for the shape of it, per role; the ratios are what counts. Needs root, a Docker engine, half an hour.
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
# Done by the control machine itself, or by nobody.
AT_HOME = {
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


def run(playbook: str, arguments: str = "", environment: dict[str, str] | None = None, **variables: Any) -> Play:
    """One playbook on the bench's own cluster."""
    return play(playbook, inventory=INVENTORY, variables={**CLUSTER, **variables}, arguments=arguments, environment=environment)


def moments(done: Play) -> list[tuple[datetime, str]]:
    """When each task began, and the role (or else the play) it is of; at last, when all ended."""
    starts = [event for event in done.events if event["event"] == "playbook_on_task_start"]
    last = done.events[-1]
    marks = [(event["created"], event["event_data"].get("role") or event["event_data"]["play"]) for event in starts]
    return [(datetime.fromisoformat(created), name) for created, name in [*marks, (last["created"], "")]]


def seconds(done: Play) -> float:
    """How long a run took, from the first event to the last."""
    first, last = (datetime.fromisoformat(done.events[place]["created"]) for place in (0, -1))
    return (last - first).total_seconds()


def per_role(done: Play) -> dict[str, float]:
    """Seconds per role, or per play for tasks that are in none."""
    took: defaultdict[str, float] = defaultdict(float)
    marks = moments(done)
    for (start, name), (end, _) in itertools.pairwise(marks):
        took[name] += (end - start).total_seconds()
    return {name: round(value, 1) for name, value in sorted(took.items(), key=lambda item: -item[1])}


def round_trips(done: Play) -> dict[str, int]:
    """Per play, how many tasks reached into the node that has the most; more than one item of a loop counts as so many."""
    reached: dict[str, Counter[str]] = {}
    for event in done.events:
        data = event["event_data"]
        if event["event"] not in {"runner_on_ok", "runner_item_on_ok"} or data.get("task_action", "").split(".")[-1] in AT_HOME:
            continue
        result = data.get("res") or {}
        if (result.get("_ansible_delegated_vars") or {}).get("ansible_delegated_host", data["host"]) != data["host"]:
            continue
        if event["event"] == "runner_on_ok" and "results" in result:
            continue  # its items were counted
        reached.setdefault(data["play"], Counter())[data["host"]] += 1
    return {name: max(hosts.values()) for name, hosts in reached.items()}


def power_off() -> None:
    """Stand-ins and cards are gone."""
    run("rehearse", cluster_state="absent")
    shutil.rmtree(ROOT / ".state" / NAME, ignore_errors=True)


def measure(sizes: list[int], rounds: int) -> dict[str, Any]:
    """Everything, the fewest nodes first."""
    first, nochange = dict[int, Play](), dict[int, Play]()
    for number in sizes:
        os.environ["NODES"] = str(number)
        power_off()
        run("cards")
        run("rehearse")
        first[number] = run("site")
        again = [run("site") for _ in range(rounds)]
        changed = [change for each in again for change in each.changes()]
        if changed:
            raise SystemExit(f"bench: the second run changed something: {changed}")
        nochange[number] = min(again, key=seconds)
        print(
            f"{number} nodes: first {seconds(first[number]):.1f} s, nothing to change {seconds(nochange[number]):.1f} s",
            flush=True,
        )
    stock, mitogen = list[float](), list[float]()
    for _ in range(rounds):
        stock.append(seconds(run("site", environment=STOCK)))
        mitogen.append(seconds(run("site", environment=MITOGEN)))
    most, least = sizes[-1], sizes[0]
    trips = round_trips(nochange[most])
    run("swap", node="pi-01", card_confirm=True, cluster_reports_dir=str(ROOT / ".state" / NAME / "reports"))
    stages = json.loads((ROOT / ".state" / NAME / "reports/swap/pi-01.json").read_text())["seconds"]
    ratios = {
        "first_eight_vs_one": seconds(first[most]) / seconds(first[least]),
        "nochange_eight_vs_one": seconds(nochange[most]) / seconds(nochange[least]),
        "nochange_stock_vs_mitogen": min(stock) / min(mitogen),
        "nochange_ours_vs_mitogen": seconds(nochange[most]) / min(mitogen),
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
            "first": {number: round(seconds(done), 1) for number, done in first.items()},
            "nochange": {number: round(seconds(done), 1) for number, done in nochange.items()},
            "nochange, stock settings": round(min(stock), 1),
            "nochange, Mitogen": round(min(mitogen), 1),
            "first, per role": per_role(first[most]),
            "nochange, per role": per_role(nochange[most]),
            "swap": stages,
        },
    }


def main() -> int:
    """Measure, show, write it down."""
    options = argparse.ArgumentParser()
    options.add_argument("--nodes", default="1,2,4,8", help="numbers of nodes, ascending")
    options.add_argument("--rounds", type=int, default=2, help="of runs that change nothing; the best counts")
    chosen = options.parse_args()
    try:
        report = measure([int(number) for number in chosen.nodes.split(",")], chosen.rounds)
    finally:
        power_off()
    reports = ROOT / "reports/bench"
    reports.mkdir(parents=True, exist_ok=True)
    (reports / "provision.json").write_text(json.dumps(report, indent=2) + "\n")
    for name, ratio in report["ratios"].items():
        target = f"  target at most {AT_MOST[name]}" if name in AT_MOST else ""
        print(f"{name:<28}{ratio:10.2f}{target}{', missed' if name in report['missed'] else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
