"""What playbooks/swap.yml has to know: whether the node can be swapped, how far a swap is, and where its time went."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NOT_ANSIBLES = {"power off", "write the card", "boot"}
"""The stages of a swap whose time is the card's and the node's."""


def swap_problems(groups: Mapping[str, Iterable[str]], node: str, slot: str) -> list[str]:
    """Why this node cannot be swapped, one sentence each, with what to do; empty when it can.

    :param groups: Ansible's ``groups``
    :param node: its name, or "" when none was given
    :param slot: its card_slot, or ""
    """
    servers = sorted(set(groups.get("cluster", [])) - set(groups.get("scheduler", [])))
    if not node:
        return ["Say which node: ansible-playbook playbooks/swap.yml -e node=pi-05"]
    if node not in groups.get("cluster", []):
        guess = difflib.get_close_matches(node, servers, n=1)
        hint = f"Did you mean {guess[0]}?" if guess else f"There are: {', '.join(servers)}."
        return [f"There is no node {node!r} in the inventory. {hint}"]
    if node in groups.get("scheduler", []):
        return [
            f"{node} hands out the jobs: without it there is no cluster to swap a node of. Flash it with playbooks/cards.yml "
            f"--limit {node} -e card_confirm=true, put the card in, then run playbooks/site.yml."
        ]
    if node in groups.get("spare", []):
        return [f"{node} is in the group 'spare', so no playbook uses it. Take it out of there first (inventory/hosts.yml)."]
    if not slot:
        return [
            f"{node} has no card_slot. Say where the replacement card is: -e card_slot=/dev/disk/by-path/... "
            "(ls -l /dev/disk/by-path shows the readers)"
        ]
    return []


def swap_state(mark: Mapping[str, Any], ledger: Mapping[str, Mapping[str, Any]], node: str) -> dict[str, Any]:
    """How far a swap is: the mark it made when it began, and whether the card was written since (by RFC 3339 times in UTC)."""
    entry = ledger.get(node, {})
    written = entry.get("verdict") == "verified" and str(entry.get("time", "")) >= str(mark["began"])
    return {"began": mark["began"], "new_key": bool(mark["new_key"]), "written": written}


def swap_seconds(times: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Where the time went, in seconds by stage, from the end of each; the first entry is the beginning."""
    spent = {name: round(end - before, 1) for (_, before), (name, end) in itertools.pairwise(times)}
    ours = sum(seconds for name, seconds in spent.items() if name not in NOT_ANSIBLES)
    return {**spent, "all": round(sum(spent.values()), 1), "Ansible's part": round(ours, 1)}


def card_advice(table: str, fit: bool) -> list[str]:
    """Return the lines of a card's table, and what to do when the card is not confirmed (it is fit) or not fit."""
    confirm = "If this is the right card and its content can be lost: -e card_confirm=true"
    replace = "Put another card into the reader, or say where it is: -e card_slot=/dev/disk/by-path/..."
    return [*table.splitlines(), f"Nothing was changed. {confirm if fit else replace}"]


def swap_table(seconds: Mapping[str, float]) -> list[str]:
    """The same for people."""
    return [f"{name:<22} {value:6.1f} s" for name, value in seconds.items()]


class FilterModule:
    """Filters for playbooks/swap.yml."""

    def filters(self) -> dict[str, Any]:
        return {
            "swap_problems": swap_problems,
            "swap_state": swap_state,
            "swap_seconds": swap_seconds,
            "swap_table": swap_table,
            "card_advice": card_advice,
        }
