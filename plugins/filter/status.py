"""Evaluate the answers of the nodes and of the scheduler: a table, and a list of problems."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.bramble.cluster.plugins.module_utils.card.ledger import WRITING, describe_verdict, running_writer
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import text_table

# Bit -> description, from 16 on since the node booted: https://www.raspberrypi.com/documentation/computers/os.html#get_throttled
THROTTLED = {
    0: "under-voltage",
    1: "frequency capped",
    2: "throttled",
    3: "soft temperature limit",
    16: "under-voltage since boot",
    17: "frequency was capped since boot",
    18: "throttled since boot",
    19: "soft temperature limit since boot",
}
DRAINED = "DRAINED"
UNDER_VOLTAGE_BITS = (1 << 0) | (1 << 16)
THROTTLED_BITS = (1 << 2) | (1 << 3) | (1 << 18) | (1 << 19)
PRE_EOL = {2: "80 % of its reserve is used", 3: "its reserve is used up"}
"""JEDEC eMMC 5.0, EXT_CSD PRE_EOL_INFO; 1 is normal."""


def throttled_words(bits: int) -> list[str]:
    """Return descriptions of the bits of `vcgencmd get_throttled`. A present state hides its bit "since boot"."""
    words = []
    for bit, word in THROTTLED.items():
        if bits >> bit & 1 and not (bit >= 16 and bits >> (bit - 16) & 1):
            words.append(word)
    if unknown := bits & ~sum(1 << bit for bit in THROTTLED):
        words.append(f"unknown bits {unknown:#x}")
    return words


def _format_uptime(seconds: float) -> str:
    """Return an uptime in days and hours, or in hours and minutes."""
    days, rest = divmod(int(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    return f"{days} d {hours} h" if days else f"{hours} h {rest // 60} min"


def _parse_workers(answer: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Return the threads of each worker that has joined, or DRAINED; and the problems of the scheduler.

    :param answer: the result of `bramble nodes --json -` on the client
    """
    if answer.get("unreachable"):
        return {}, ["The client cannot be reached, so the workers are unknown. Check its power and its card."]
    if answer.get("rc") != 0:
        lines = str(answer.get("stderr") or answer.get("msg") or "").strip().splitlines()
        reason = lines[-1] if lines else "no answer"
        return {}, [f"The scheduler does not answer: {reason}. On the client: journalctl -u bramble-scheduler"]
    nodes = json.loads(answer["stdout"])["nodes"]
    return {name: DRAINED if worker.get("drained") else f"{worker['threads']} threads" for name, worker in nodes.items()}, []


def _power_problems(node: str, answer: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
    """Return the problems of a node's power supply and temperature."""
    found = []
    bits = answer.get("throttled") or 0
    words = ", ".join(throttled_words(bits))
    if bits & UNDER_VOLTAGE_BITS:
        found.append(f"{node} has too little voltage ({words}). Use a stronger power supply, or a shorter and thicker cable.")
    elif bits & THROTTLED_BITS:
        found.append(f"{node} is throttled because of heat ({words}). Cool the node with a heat sink or a fan.")
    heat = answer.get("temperature")
    if heat is not None and heat > limits["temperature"]:
        found.append(
            f"{node} has {heat:.0f} °C (status_max_temperature is {limits['temperature']:g}). "
            "Cool the node with a heat sink or a fan."
        )
    return found


def _disk_problems(node: str, answer: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
    """Return the problems of a node's mounted file systems."""
    found = []
    for point, disk in answer.get("disks", {}).items():
        if disk["used"] * 100 > limits["disk"]:
            found.append(
                f"{node}: {point} is {disk['used'] * 100:.0f} % full (status_max_disk is {limits['disk']:g}). "
                f"Find the largest folders: sudo du -xh --max-depth=2 {point} | sort -h | tail"
            )
        if disk["read_only"]:
            found.append(
                f"{node}: {point} is read-only, as it is after an error of the card. Replace the card: "
                f"ansible-playbook playbooks/swap.yml -e node={node}"
            )
    return found


def _card_problems(node: str, answer: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
    """Return one sentence with all signs that a node's card fails; an empty list without signs."""
    card = answer.get("card", {})
    life_time = card.get("life_time")
    signs = [
        f"{card['ext4_errors']} errors in its file system" if card.get("ext4_errors") else "",
        # The value n means from 10 (n - 1) to 10 n percent of the card's life time, and 11 means more than its life time.
        f"{(life_time - 1) * 10} % or more worn" if life_time and (life_time - 1) * 10 >= limits["card_worn"] else "",
        PRE_EOL.get(card.get("pre_eol") or 0, ""),
        f"{len(answer['io_errors'])} I/O errors in this boot, the last: {answer['io_errors'][-1]}"
        if answer.get("io_errors")
        else "",
    ]
    if not any(signs):
        return []
    return [
        f"{node}'s card fails: {'; '.join(filter(None, signs))}. Replace it: ansible-playbook playbooks/swap.yml -e node={node}"
    ]


def _writing_problems(node: str, entry: Mapping[str, Any]) -> list[str]:
    """Return one sentence if the writing of a node's new card has not ended; an empty list otherwise."""
    if running_writer(entry):
        return [f"The new card of {node} is not finished: {describe_verdict(entry)}. Wait for this process."]
    if entry.get("verdict") == WRITING:
        again = f"ansible-playbook playbooks/cards.yml --limit {node} -e card_confirm=true"
        return [f"The new card of {node} is not finished: {describe_verdict(entry)}. To flash it again: {again}"]
    return []


def _system_problems(node: str, answer: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
    """Return the problems of a node's load, memory, clock and services."""
    found = []
    load = answer["load"] / (answer.get("cores") or 1)
    if load > limits["load"]:
        found.append(f"{node} has a load of {load:.1f} for each core (status_max_load is {limits['load']:g}). On the node: top")
    available = answer.get("memory_available")
    if available is not None and available * 100 < limits["memory"]:
        found.append(
            f"{node} has {available * 100:.0f} % of its memory available (status_min_memory is {limits['memory']:g}). On the "
            "node: top -o %MEM"
        )
    offset = answer.get("clock_offset", 0.0)
    if abs(offset) - answer.get("clock_error", 0.0) > limits["clock_offset"]:
        found.append(
            f"{node}'s clock is {abs(offset):.0f} s {'ahead of' if offset > 0 else 'behind'} the control machine's "
            f"(status_max_clock_offset is {limits['clock_offset']:g}). "
            "Set it: ansible-playbook playbooks/site.yml --tags time_sync"
        )
    own_units = answer.get("units", {})
    for name in answer.get("failed_units", []):
        if name.removesuffix(".service") not in own_units:
            found.append(f"{node}: the unit {name} has failed. On the node: systemctl status {name}")
    for name, unit in own_units.items():
        role = name.removeprefix("bramble-")
        if unit["active"] not in ("active", "activating"):
            found.append(
                f"{name} of {node} is {unit['active']}. On the node: journalctl -u {name}; "
                f"then: ansible-playbook playbooks/site.yml --tags {role} --limit {node}"
            )
        elif unit["restarts"] > limits["restarts"]:
            found.append(f"{name} of {node} has restarted {unit['restarts']} times. On the node: journalctl -u {name}")
    return found


def _difference_problems(what: str, values: Mapping[str, str], remedy: str) -> list[str]:
    """Return a sentence that names the nodes with another value than most nodes; an empty list if all have the same.

    :param what: the name of the value
    :param values: the value of each node; empty if it is unknown
    """
    counted = Counter(value for value in values.values() if value).most_common()
    if len(counted) < 2:
        return []
    most_frequent_value = counted[0][0]
    others = [f"{node} has {value}" for node, value in values.items() if value and value != most_frequent_value]
    return [f"Not all nodes have the same {what}: most have {most_frequent_value}, {', '.join(others)}. {remedy}"]


def _version_problems(answers: Mapping[str, Mapping[str, Any]], images: Mapping[str, str]) -> list[str]:
    """Return the differences between the nodes' packages, kernels, systems and images."""
    same = "ansible-playbook playbooks/upgrade.yml makes them the same."
    alive = {node: answer for node, answer in answers.items() if "uptime" in answer}
    bundles = {
        f"{name} of {node}": unit["bundle"] for node, answer in alive.items() for name, unit in answer.get("units", {}).items()
    }
    return [
        *_difference_problems("packages", bundles, same),
        *_difference_problems(
            "kernel", {node: answer.get("kernel", "") for node, answer in alive.items()}, "Flash them from one image."
        ),
        *_difference_problems(
            "system", {node: answer.get("os", "") for node, answer in alive.items()}, "Flash them from one image."
        ),
        *_difference_problems(
            "image on its card", {node: images.get(node, "") for node in alive}, "playbooks/swap.yml flashes a node again."
        ),
    ]


def cluster_status(
    answers: Mapping[str, Mapping[str, Any]],
    scheduler: Mapping[str, Any],
    workers: Sequence[str],
    limits: Mapping[str, float],
    ledger: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Evaluate the answers of a cluster.

    :param answers: node -> the result of the module node_status
    :param scheduler: the result of `bramble nodes --json -` on the client
    :param workers: the nodes whose workers should have joined
    :param limits: the thresholds of inventory/group_vars/all/status.yml, without their prefixes
    :param ledger: node -> its entry in the cards' ledger
    :returns: rows, the cells of a table; problems, one sentence each; nodes, all facts of each node for JSON
    """
    limits = {name: float(value) for name, value in limits.items()}
    joined, problems = _parse_workers(scheduler)
    answered = not problems
    rows = [["node", "up", "load", "°C", "power", "disk", "card", "clock", "worker"]]
    for node, answer in answers.items():
        problems += _writing_problems(node, ledger.get(node, {}))
        if answer.get("unreachable") or "uptime" not in answer:
            rows.append([node, "DOWN", *[""] * 7])
            lines = str(answer.get("msg") or "").strip().splitlines()
            problems.append(
                f"{node} cannot be reached. Check its power, its card and its cable."
                if answer.get("unreachable")
                else f"{node} has sent no status: {lines[-1] if lines else 'no message'}. Try: ansible -m ping {node}"
            )
            continue
        worker = ""
        if node in workers:
            worker = joined.get(node, "MISSING")
            if worker == DRAINED:
                problems.append(
                    f"{node} is drained and gets no jobs. To use it again, on the node: sudo systemctl restart bramble-worker"
                )
            if node not in joined and answered:
                problems.append(
                    f"The worker of {node} has not joined. On the node: journalctl -u bramble-worker; "
                    f"then: ansible-playbook playbooks/site.yml --tags worker --limit {node}"
                )
        bad_card = _card_problems(node, answer, limits)
        problems += (
            _power_problems(node, answer, limits)
            + _disk_problems(node, answer, limits)
            + bad_card
            + _system_problems(node, answer, limits)
        )
        bits, heat = answer.get("throttled"), answer.get("temperature")
        rows.append(
            [
                node,
                _format_uptime(answer["uptime"]),
                f"{answer['load']:.2f}",
                "-" if heat is None else f"{heat:.0f}",
                "-" if bits is None else ", ".join(throttled_words(bits)) or "ok",
                f"{answer['disks']['/']['used'] * 100:.0f} %" if "/" in answer.get("disks", {}) else "-",
                "FAILS" if bad_card else "ok",
                f"{answer['clock_offset']:+.1f} s"
                if abs(answer.get("clock_offset", 0)) > answer.get("clock_error", 0)
                else "±0 s",
                worker,
            ]
        )
    images = {node: str(entry.get("image", "")) for node, entry in ledger.items()}
    problems += _version_problems(answers, images)
    nodes = {
        node: {key: value for key, value in answer.items() if key not in ("failed", "changed", "invocation")}
        | {
            "joined": node in joined,
            "image": images.get(node, ""),
            "throttled_words": throttled_words(answer.get("throttled") or 0),
        }
        for node, answer in answers.items()
    }
    return {"rows": rows, "problems": problems, "nodes": nodes}


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, one for each row."""
    return text_table(rows, right_aligned=()).splitlines()


class FilterModule:
    """Filters for playbooks/status.yml."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"cluster_status": cluster_status, "columns": columns}
