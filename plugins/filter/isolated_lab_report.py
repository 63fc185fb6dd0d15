"""Prepare isolation proofs for the page and the picture in roles/isolated_lab/templates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Phase = Mapping[str, Any]

# In pixels. WIDTH and HEIGHT are the size of a panel; a box has its left edge, its top edge and its width.
WIDTH, HEIGHT, BOX_HEIGHT = 640, 366, 64
BOXES: dict[str, tuple[int, int, int]] = {
    "nodes": (30, 150, 130),
    "client": (315, 150, 120),
    "internet": (480, 48, 130),
    "home network": (480, 262, 130),
}
OUTSIDE = ("internet", "home network")


def sort_phases(phases: Iterable[Phase]) -> list[Phase]:
    """Return the phases in the order of time, with the phase before the isolation first."""
    return sorted(phases, key=lambda phase: (phase["phase"] != "before", phase["at"]))


def count_connections(phase: Phase) -> dict[tuple[str, str, str], tuple[int, int]]:
    """Return the number of probes, and of those that got through, for each arrow of the picture (from, to, expected)."""
    # Only the client is probed for whether it forwards.
    client = {"client", *(row["from"] for row in phase["rows"] if row["kind"] == "forwarding")}
    counts: dict[tuple[str, str, str], tuple[int, int]] = {}
    for row in phase["rows"]:
        ends = ["client" if host in client else host if host in BOXES else "nodes" for host in (row["from"], row["to"])]
        if row["to"] != "itself":
            probe_count, reached_count = counts.get((*ends, row["must"]), (0, 0))
            counts[*ends, row["must"]] = (probe_count + 1, reached_count + bool(row["reached"]))
    return counts


def _arrow_ends(start: str, end: str, is_allowed: bool) -> dict[str, float]:
    """Return the ends of the arrow between two boxes, and the position of its label."""
    (left, top, width), (other_left, other_top, other_width) = BOXES[start], BOXES[end]
    if end in OUTSIDE:
        x1: float = left + width * 0.75
        y1: float = top if end == "internet" else top + BOX_HEIGHT
        y2: float = other_top + BOX_HEIGHT / 2
    else:
        x1 = left + width if left < other_left else left
        # The arrows between nodes and client are one below the other, with the forbidden one first.
        y1 = y2 = top + BOX_HEIGHT / 2 + (26 if start == "client" else 4 if is_allowed else -18)
    x2 = other_left if left < other_left else other_left + other_width
    return {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "x": (x1 + x2) / 2, "y": (y1 + y2) / 2 - (14 if y1 > y2 else 6)}


def panel(phase: Phase) -> dict[str, Any]:
    """Return the picture of a phase.

    :returns: title, footer, and connections, each with label, its position x and y, colour (open, shut, good), dashed, and,
        except among the nodes themselves, the ends of an arrow x1, y1, x2, y2
    """
    shown: list[dict[str, Any]] = []
    for (start, end, expected), (probe_count, reached_count) in count_connections(phase).items():
        is_allowed, label = expected == "pass", f"{reached_count} of {probe_count}"
        colour = "good" if is_allowed and reached_count == probe_count else "open" if is_allowed or reached_count else "shut"
        if start == end:
            left, top, width = BOXES[start]
            label = f"{'lab ports' if is_allowed else 'ssh'} between {start}: {label}"
            place: dict[str, float] = {"x": left + width / 2, "y": top + BOX_HEIGHT + (58 if is_allowed else 34)}
        else:
            label = f"{'needed' if is_allowed else 'forbidden'}: {label}"
            place = _arrow_ends(start, end, is_allowed)
        shown.append({**place, "label": label, "colour": colour, "dashed": not reached_count})
    when = "before the isolation" if phase["phase"] == "before" else None
    title = f"probes that got through {when}" if when else f"probes that got through, {phase['phase']}"
    frames = phase.get("frames") or {}
    footer = f"frames of the lab at the uplink: {frames['lab']}" if frames else "the client has no uplink"
    return {"title": f"{title}, {phase['at']}", "footer": footer, "connections": shown}


def _cell(row: Mapping[str, Any] | None) -> dict[str, str]:
    if row is None:
        return {"colour": "shut", "word": "not probed", "seen": ""}
    must_pass = row["must"] == "pass"
    if row["reached"] != must_pass:
        return {"colour": "open", "word": "REACHED" if row["reached"] else "NOT REACHED", "seen": str(row["seen"])}
    return {"colour": "good" if must_pass else "shut", "word": "reached" if must_pass else "blocked", "seen": str(row["seen"])}


def lab_report(phases: Iterable[Phase]) -> dict[str, Any]:
    """Return the content of the report.

    :param phases: the proofs, as roles/isolated_lab/tasks/prove.yml makes them
    :returns: phases in their order; rows, each with start, what, to, must and cells, one per phase (colour, word, seen); panels
        (see `panel`) and boxes (name, left, top, width), in pixels with width, height and box_height
    """
    shown = sort_phases(phases)
    found: list[dict[tuple[str, str, str, str], Mapping[str, Any]]] = [
        {(row["from"], row.get("as", ""), row["what"], row["to"]): row for row in phase["rows"]} for phase in shown
    ]
    rows = [
        {
            "start": ", ".join(filter(None, (start, role))),
            "what": what,
            "to": to,
            "must": next(by_key[key]["must"] for by_key in found if key in by_key),
            "cells": [_cell(by_key.get(key)) for by_key in found],
        }
        for key in dict.fromkeys(key for by_key in found for key in by_key)
        for start, role, what, to in [key]
    ]
    return {
        "phases": shown,
        "rows": rows,
        "panels": [panel(phase) for phase in shown],
        "boxes": [{"name": name, "left": left, "top": top, "width": width} for name, (left, top, width) in BOXES.items()],
        "width": WIDTH,
        "height": HEIGHT,
        "box_height": BOX_HEIGHT,
    }


class FilterModule:
    """The filter lab_report."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"lab_report": lab_report}
