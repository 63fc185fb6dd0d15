"""Is every node well? Turns what nodes and scheduler answered into a table and a list of problems."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def _uptime(seconds: float) -> str:
    days, rest = divmod(int(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    return f"{days} d {hours} h" if days else f"{hours} h {rest // 60} min"


def _workers(answer: Mapping[str, Any]) -> tuple[dict[str, int], list[str]]:
    """The threads of each worker that has joined, and what is wrong with the scheduler."""
    if answer.get("unreachable"):
        return {}, ["The client cannot be reached, so the scheduler could not be asked."]
    if answer.get("rc") != 0:
        said = str(answer.get("stderr") or answer.get("msg") or "nothing").strip().splitlines()
        return {}, [f"The scheduler could not be asked: {said[-1] if said else 'no answer'}"]
    return {name: int(worker["threads"]) for name, worker in json.loads(answer["stdout"])["nodes"].items()}, []


def cluster_status(
    answers: Mapping[str, Mapping[str, Any]], scheduler: Mapping[str, Any], workers: Sequence[str]
) -> dict[str, list[str]]:
    """Judge the cluster.

    :param answers: node -> the result of reading /proc/uptime and /proc/loadavg on it (proc(5))
    :param scheduler: the result of `bramble nodes --json -` on the client
    :param workers: the nodes that should have joined
    :returns: lines, a table to print; problems, one sentence each, empty when all is well
    """
    joined, problems = _workers(scheduler)
    answered = not problems
    lines = [f"{'node':<12} {'up':<12} {'load':>5}  worker"]
    for node, answer in answers.items():
        fields = str(answer.get("stdout", "")).split()
        if answer.get("unreachable") or answer.get("rc") != 0 or not fields:
            lines.append(f"{node:<12} {'DOWN':<12} {'':>5}")
            problems.append(f"{node} cannot be reached. Is it powered on? Is its card in?")
            continue
        worker = ""
        if node in workers:
            worker = f"{joined[node]} threads" if node in joined else "MISSING"
            if node not in joined and answered:
                problems.append(
                    f"The worker of {node} has not joined. On the node: journalctl -u bramble-worker; "
                    f"then: ansible-playbook playbooks/site.yml --tags worker --limit {node}"
                )
        lines.append(f"{node:<12} {_uptime(float(fields[0])):<12} {fields[2]:>5}  {worker}".rstrip())
    return {"lines": lines, "problems": problems}


class FilterModule:
    """Filters for playbooks/status.yml."""

    def filters(self) -> dict[str, Any]:
        return {"cluster_status": cluster_status}
