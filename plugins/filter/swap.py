"""Check that a node can be swapped, find how far a swap has got, and report its times, for playbooks/swap.yml."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

HARDWARE_STAGES = {"power off", "write the card", "boot"}
"""The stages of a swap whose time depends on the card and the node, not on Ansible."""


def swap_problems(groups: Mapping[str, Iterable[str]], node: str, slot: str) -> list[str]:
    """Return why a node cannot be swapped, one sentence for each problem, with what to do; empty when it can be.

    :param groups: Ansible's ``groups``
    :param node: its name, or "" when none was given
    :param slot: its card_slot, or ""
    """
    servers = sorted(set(groups.get("cluster", [])) - set(groups.get("scheduler", [])))
    if not node:
        return ["No node is given. Name the node to swap: ansible-playbook playbooks/swap.yml -e node=pi-05"]
    if node not in groups.get("cluster", []):
        guess = difflib.get_close_matches(node, servers, n=1)
        hint = f"Did you mean {guess[0]}?" if guess else f"The servers are: {', '.join(servers)}."
        return [f"There is no node {node!r} in the inventory. {hint}"]
    if node in groups.get("scheduler", []):
        return [
            f"{node} runs the scheduler, without which a node cannot be swapped. Flash its card with playbooks/cards.yml "
            f"--limit {node} -e card_confirm=true, insert the card, then run playbooks/site.yml."
        ]
    if node in groups.get("spare", []):
        return [f"{node} is in the group 'spare', so no playbook uses it. Remove it from that group first (inventory/hosts.yml)."]
    if not slot:
        return [
            f"{node} has no card_slot. Name the slot of the replacement card: -e card_slot=/dev/disk/by-path/... "
            "(ls -l /dev/disk/by-path shows the readers)"
        ]
    return []


def swap_state(record: Mapping[str, Any], ledger: Mapping[str, Mapping[str, Any]], node: str) -> dict[str, Any]:
    """Return how far a swap has got.

    :param record: the file that the swap has written when it began, with `began` (RFC 3339, UTC) and `new_key`
    :param ledger: the cards' ledger, by node
    :returns: began and new_key of the record, and written: whether the card was written since
    """
    entry = ledger.get(node, {})
    written = entry.get("verdict") == "verified" and str(entry.get("time", "")) >= str(record["began"])
    return {"began": record["began"], "new_key": bool(record["new_key"]), "written": written}


def swap_seconds(times: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Return the seconds of each stage, of all stages, and of those that depend on Ansible.

    :param times: each stage with the time of its end; the first entry is the beginning of the swap
    """
    spent = {name: round(end - before, 1) for (_, before), (name, end) in itertools.pairwise(times)}
    ansible_seconds = sum(seconds for name, seconds in spent.items() if name not in HARDWARE_STAGES)
    return {**spent, "all": round(sum(spent.values()), 1), "Ansible's part": round(ansible_seconds, 1)}


def card_advice(table: str, fit: bool) -> list[str]:
    """Return the lines of a card's table, and what to do next: confirm the card if it is fit, otherwise replace it."""
    confirm = "If this is the right card and its content can be lost: -e card_confirm=true"
    replace = "Insert another card into the reader, or name the slot of another card: -e card_slot=/dev/disk/by-path/..."
    return [*table.splitlines(), f"Nothing was changed. {confirm if fit else replace}"]


def swap_table(seconds: Mapping[str, float]) -> list[str]:
    """Return the lines of a table of the seconds by stage."""
    return [f"{name:<22} {value:6.1f} s" for name, value in seconds.items()]


class FilterModule:
    """Filters for playbooks/swap.yml."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "swap_problems": swap_problems,
            "swap_state": swap_state,
            "swap_seconds": swap_seconds,
            "swap_table": swap_table,
            "card_advice": card_advice,
        }
