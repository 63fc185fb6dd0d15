"""Is every node well? Turns what nodes and scheduler answered into a table and a list of problems."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

# https://www.raspberrypi.com/documentation/computers/os.html#get_throttled: bit -> words. From 16 on: since the node booted.
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
POWER = (1 << 0) | (1 << 16)
HEAT = (1 << 2) | (1 << 3) | (1 << 18) | (1 << 19)
PRE_EOL = {2: "80 % of its reserve is used", 3: "its reserve is used up"}
"""JEDEC eMMC 5.0, EXT_CSD PRE_EOL_INFO; 1 is normal."""


def throttled_words(bits: int) -> list[str]:
    """What the bits of `vcgencmd get_throttled` mean; what happens now hides that it has happened since boot."""
    words = []
    for bit, word in THROTTLED.items():
        if bits >> bit & 1 and not (bit >= 16 and bits >> (bit - 16) & 1):
            words.append(word)
    if unknown := bits & ~sum(1 << bit for bit in THROTTLED):
        words.append(f"unknown bits {unknown:#x}")
    return words


def _uptime(seconds: float) -> str:
    days, rest = divmod(int(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    return f"{days} d {hours} h" if days else f"{hours} h {rest // 60} min"


def _workers(answer: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """What each worker that has joined can do, or DRAINED, and what is wrong with the scheduler."""
    if answer.get("unreachable"):
        return {}, ["The client cannot be reached, so the scheduler could not be asked."]
    if answer.get("rc") != 0:
        said = str(answer.get("stderr") or answer.get("msg") or "nothing").strip().splitlines()
        return {}, [f"The scheduler could not be asked: {said[-1] if said else 'no answer'}"]
    nodes = json.loads(answer["stdout"])["nodes"]
    return {name: DRAINED if worker.get("drained") else f"{worker['threads']} threads" for name, worker in nodes.items()}, []


def _power(node: str, answer: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
    found = []
    bits = answer.get("throttled") or 0
    words = ", ".join(throttled_words(bits))
    if bits & POWER:
        found.append(f"{node} has too little voltage ({words}). Use a stronger power supply, or a shorter and thicker cable.")
    elif bits & HEAT:
        found.append(f"{node} slows itself down ({words}). Cool it: a heat sink, a fan, more air.")
    heat = answer.get("temperature")
    if heat is not None and heat > limits["temperature"]:
        found.append(f"{node} is {heat:.0f} °C hot (status_max_temperature is {limits['temperature']:g}). Cool it.")
    return found


def _disks(node: str, answer: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
    found = []
    for point, disk in answer.get("disks", {}).items():
        if disk["used"] * 100 > limits["disk"]:
            found.append(
                f"{node}: {point} is {disk['used'] * 100:.0f} % full (status_max_disk is {limits['disk']:g}). "
                f"See what takes the space: sudo du -xh --max-depth=2 {point} | sort -h | tail"
            )
        if disk["read_only"]:
            found.append(
                f"{node}: {point} is read-only, as after an error of its card. Replace it: playbooks/swap.yml -e node={node}"
            )
    return found


def _card(node: str, answer: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
    card = answer.get("card", {})
    worn = card.get("life_time")
    signs = [
        f"{card['ext4_errors']} errors in its file system" if card.get("ext4_errors") else "",
        # The value n means from 10 (n - 1) to 10 n percent; 11, more than it was made for.
        f"{(worn - 1) * 10} % or more worn" if worn and (worn - 1) * 10 >= limits["card_worn"] else "",
        PRE_EOL.get(card.get("pre_eol") or 0, ""),
        f"{len(answer['io_errors'])} I/O errors in this boot, the last: {answer['io_errors'][-1]}"
        if answer.get("io_errors")
        else "",
    ]
    if not any(signs):
        return []
    return [f"{node}'s card fails: {'; '.join(filter(None, signs))}. Replace it: playbooks/swap.yml -e node={node}"]


def _system(node: str, answer: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
    found = []
    load = answer["load"] / (answer.get("cores") or 1)
    if load > limits["load"]:
        found.append(f"{node} has a load of {load:.1f} for each core (status_max_load is {limits['load']:g}). See: top")
    left = answer.get("memory_available")
    if left is not None and left * 100 < limits["memory"]:
        found.append(
            f"{node} has {left * 100:.0f} % of its memory left (status_min_memory is {limits['memory']:g}). See: top -o %MEM"
        )
    off = answer.get("clock_offset", 0.0)
    if abs(off) - answer.get("clock_error", 0.0) > limits["clock_offset"]:
        found.append(
            f"{node}'s clock is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} this machine's "
            f"(status_max_clock_offset is {limits['clock_offset']:g}). Set it: ansible-playbook playbooks/site.yml --limit {node}"
        )
    ours = answer.get("units", {})
    for name in answer.get("failed_units", []):
        if name.removesuffix(".service") not in ours:
            found.append(f"{node}: {name} has failed. On the node: systemctl status {name}")
    for name, unit in ours.items():
        role = name.removeprefix("bramble-")
        if unit["active"] not in ("active", "activating"):
            found.append(
                f"{name} of {node} is {unit['active']}. On the node: journalctl -u {name}; "
                f"then: ansible-playbook playbooks/site.yml --tags {role} --limit {node}"
            )
        elif unit["restarts"] > limits["restarts"]:
            found.append(f"{name} of {node} was started again {unit['restarts']} times. On the node: journalctl -u {name}")
    return found


def _differing(what: str, of: Mapping[str, str], remedy: str) -> list[str]:
    """A sentence for the nodes that have something else than most have."""
    counted = Counter(value for value in of.values() if value).most_common()
    if len(counted) < 2:
        return []
    usual = counted[0][0]
    odd = [f"{node} has {value}" for node, value in of.items() if value and value != usual]
    return [f"Not all nodes have the same {what}: most have {usual}, {', '.join(odd)}. {remedy}"]


def _versions(answers: Mapping[str, Mapping[str, Any]], images: Mapping[str, str]) -> list[str]:
    same = "ansible-playbook playbooks/upgrade.yml makes them the same."
    alive = {node: answer for node, answer in answers.items() if "uptime" in answer}
    bundles = {
        f"{name} of {node}": unit["bundle"] for node, answer in alive.items() for name, unit in answer.get("units", {}).items()
    }
    return [
        *_differing("packages", bundles, same),
        *_differing("kernel", {node: answer.get("kernel", "") for node, answer in alive.items()}, "Flash them from one image."),
        *_differing("system", {node: answer.get("os", "") for node, answer in alive.items()}, "Flash them from one image."),
        *_differing(
            "image on its card", {node: images.get(node, "") for node in alive}, "playbooks/swap.yml flashes a node anew."
        ),
    ]


def cluster_status(
    answers: Mapping[str, Mapping[str, Any]],
    scheduler: Mapping[str, Any],
    workers: Sequence[str],
    limits: Mapping[str, float],
    ledger: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Judge the cluster.

    :param answers: node -> the result of the module node_status
    :param scheduler: the result of `bramble nodes --json -` on the client
    :param workers: the nodes that should have joined
    :param limits: the thresholds of inventory/group_vars/all/status.yml, without their prefixes
    :param ledger: what the cards' ledger says of each node
    :returns: rows, a table as cells; problems, one sentence each, empty when all is well; nodes, all of it for JSON
    """
    limits = {name: float(value) for name, value in limits.items()}
    joined, problems = _workers(scheduler)
    answered = not problems
    rows = [["node", "up", "load", "°C", "power", "disk", "card", "clock", "worker"]]
    for node, answer in answers.items():
        if answer.get("unreachable") or "uptime" not in answer:
            rows.append([node, "DOWN", *[""] * 7])
            said = str(answer.get("msg") or "").strip().splitlines()
            problems.append(
                f"{node} cannot be reached. Is it powered on? Is its card in?"
                if answer.get("unreachable")
                else f"{node} could not be asked: {said[-1] if said else 'it said nothing'}"
            )
            continue
        worker = ""
        if node in workers:
            worker = joined.get(node, "MISSING")
            if worker == DRAINED:
                problems.append(f"{node} was drained and takes no jobs. On the node: sudo systemctl restart bramble-worker")
            if node not in joined and answered:
                problems.append(
                    f"The worker of {node} has not joined. On the node: journalctl -u bramble-worker; "
                    f"then: ansible-playbook playbooks/site.yml --tags worker --limit {node}"
                )
        bad_card = _card(node, answer, limits)
        problems += _power(node, answer, limits) + _disks(node, answer, limits) + bad_card + _system(node, answer, limits)
        bits, heat = answer.get("throttled"), answer.get("temperature")
        rows.append(
            [
                node,
                _uptime(answer["uptime"]),
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
    problems += _versions(answers, images)
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
    """A table for people, a line per row."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


class FilterModule:
    """Filters for playbooks/status.yml."""

    def filters(self) -> dict[str, Any]:
        return {"cluster_status": cluster_status, "columns": columns}
