"""The proof of isolation for people: a page and a picture of what could reach what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

Phase = Mapping[str, Any]

# Line; told apart in words and dashes, too (after Okabe and Ito).
OPEN, SHUT, GOOD = "#a83200", "#8a8a8a", "#00694d"
FONT = "font-family='DejaVu Sans, Verdana, sans-serif'"
WIDE, HIGH = 640, 366
# Of the picture: name -> where its box is, and how wide.
BOXES: dict[str, tuple[float, float, float]] = {
    "nodes": (30, 150, 130),
    "client": (315, 150, 120),
    "internet": (480, 48, 130),
    "home network": (480, 262, 130),
}
BOX_HIGH = 64

STYLE = """
body { font: 15px/1.5 'DejaVu Sans', Verdana, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1d1d1d }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #ddd }
th { position: sticky; top: 0; background: #fff } .open { color: #a83200; font-weight: bold } .shut { color: #5a5a5a }
.good { color: #00694d } svg { max-width: 100%; height: auto } .red { border-left: 4px solid #a83200; padding-left: 1rem }
"""


def ordered(phases: Iterable[Phase]) -> list[Phase]:
    """In the order in which they were; that before the isolation is the first."""
    return sorted(phases, key=lambda phase: (phase["phase"] != "before", phase["at"]))


def ways(phase: Phase) -> dict[tuple[str, str, str], tuple[int, int]]:
    """Of each way in the picture (from, to, must): how many probes went it, and how many got through."""
    # The one host that is asked whether it forwards.
    client = {"client", *(row["from"] for row in phase["rows"] if row["kind"] == "forwarding")}
    counts: dict[tuple[str, str, str], tuple[int, int]] = {}
    for row in phase["rows"]:
        ends = ["client" if host in client else host if host in BOXES else "nodes" for host in (row["from"], row["to"])]
        if row["to"] != "itself":
            tried, through = counts.get((*ends, row["must"]), (0, 0))
            counts[*ends, row["must"]] = (tried + 1, through + bool(row["reached"]))
    return counts


def _text(x: float, y: float, text: str, colour: str = "#1d1d1d", size: int = 12, weight: str = "normal") -> str:
    return (
        f"<text x='{x:g}' y='{y:g}' fill='{colour}' font-size='{size}' font-weight='{weight}' text-anchor='middle' {FONT}>"
        f"{escape(text)}</text>"
    )


def _panel(phase: Phase, x: float) -> list[str]:
    words = (
        "probes that got through before the isolation"
        if phase["phase"] == "before"
        else f"probes that got through, {phase['phase']}"
    )
    parts = [f"<g transform='translate({x:g},0)'>", _text(WIDE / 2, 28, f"{words}, {phase['at']}", size=15, weight="bold")]
    for (start, end, must), (tried, through) in ways(phase).items():
        one, other = BOXES[start], BOXES[end]
        good = must == "pass"
        colour = GOOD if good and through == tried else OPEN if good or through else SHUT
        dashes = "" if through else " stroke-dasharray='6 5'"
        label = f"{through} of {tried}"
        if start == end:  # among the nodes
            y = one[1] + BOX_HIGH + (58 if good else 34)
            parts.append(_text(one[0] + one[2] / 2, y, f"{'lab ports' if good else 'ssh'}: {label}", colour, 11, "bold"))
            continue
        # In and out of the client one below the other, what is forbidden first; to the others around it.
        down = 26 if start == "client" else 4 if good else -18
        x1, x2 = (one[0] + one[2], other[0]) if one[0] < other[0] else (one[0], other[0] + other[2])
        y1 = y2 = one[1] + BOX_HIGH / 2 + down
        if end in ("internet", "home network"):
            x1, y1 = one[0] + one[2] * 0.75, one[1] if end == "internet" else one[1] + BOX_HIGH
            y2 = other[1] + BOX_HIGH / 2
        parts.append(
            f"<line x1='{x1:g}' y1='{y1:g}' x2='{x2:g}' y2='{y2:g}' stroke='{colour}' stroke-width='2.4'{dashes} "
            f"marker-end='url(#{colour[1:]})'/>"
        )
        parts.append(_text((x1 + x2) / 2, (y1 + y2) / 2 - (14 if y1 > y2 else 6), label, colour, 11, "bold"))
    for name, (left, top, width) in BOXES.items():
        parts.append(
            f"<rect x='{left:g}' y='{top:g}' width='{width:g}' height='{BOX_HIGH}' rx='8' fill='#f4f4f4' stroke='#3c3c3c'/>"
        )
        parts.append(_text(left + width / 2, top + BOX_HIGH / 2 + 4, name, size=13, weight="bold"))
    frames = phase.get("frames") or {}
    parts.append(
        _text(WIDE / 2, HIGH - 12, f"frames of the lab at the uplink: {frames['lab']}" if frames else "the client has no uplink")
    )
    return [*parts, "</g>"]


def lab_picture(phases: Iterable[Phase]) -> str:
    """What could reach what, a panel for each phase: SVG 1.1."""
    shown = ordered(phases)
    arrows = [
        f"<marker id='{colour[1:]}' markerWidth='9' markerHeight='9' refX='7' refY='4' orient='auto'>"
        f"<path d='M0,0 L8,4 L0,8 z' fill='{colour}'/></marker>"
        for colour in (OPEN, SHUT, GOOD)
    ]
    wide = WIDE * len(shown)
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{wide}' height='{HIGH}' viewBox='0 0 {wide} {HIGH}'>",
        f"<defs>{''.join(arrows)}</defs><rect width='100%' height='100%' fill='#ffffff'/>",
    ]
    for number, phase in enumerate(shown):
        parts += _panel(phase, number * WIDE)
    return "\n".join([*parts, "</svg>", ""])


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "<td class='shut'>not tried</td>"
    good = row["reached"] == (row["must"] == "pass")
    word = ("reached" if row["must"] == "pass" else "blocked") if good else ("REACHED" if row["reached"] else "NOT REACHED")
    kind = "open" if not good else "good" if row["must"] == "pass" else "shut"
    return f"<td class='{kind}'>{word}<br><small>{escape(str(row['seen']))}</small></td>"


def lab_report(phases: Iterable[Phase]) -> str:
    """A page: the picture, what is wrong, and every probe of every phase."""
    shown = ordered(phases)
    last = shown[-1]
    titles = [f"<th>{escape(phase['phase'])}<br><small>{escape(phase['at'])}</small></th>" for phase in shown]
    found: list[dict[tuple[Any, ...], Mapping[str, Any]]] = [
        {(row["from"], row.get("as", ""), row["what"], row["to"]): row for row in phase["rows"]} for phase in shown
    ]
    keys = list(dict.fromkeys(key for rows in found for key in rows))
    lines = []
    for key in keys:
        start, root, what, to = key
        must = next(rows[key]["must"] for rows in found if key in rows)
        cells = "".join(_cell(rows.get(key)) for rows in found)
        head = "".join(f"<td>{escape(text)}</td>" for text in (f"{start}{root and ', ' + root}", what, to, f"must {must}"))
        lines.append(f"<tr>{head}{cells}</tr>")
    verdict = _verdict(last)
    return "\n".join(
        [
            "<!doctype html><html lang='en'><meta charset='utf-8'>",
            f"<title>Isolated lab {escape(last['cluster'])}</title><style>{STYLE}</style>",
            f"<h1>Is the lab {escape(last['subnet'])} isolated?</h1>",
            *verdict,
            lab_picture(shown),
            f"<table><tr><th>from</th><th>what</th><th>to</th><th></th>{''.join(titles)}</tr>",
            *lines,
            "</table>",
            "<p>Only machines you own, inside this network.</p></html>",
            "",
        ]
    )


def _verdict(phase: Phase) -> Sequence[str]:
    if phase["phase"] == "before":
        return ["<p>Not yet: this is how it was before.</p>"]
    if phase["red"]:
        items = "".join(f"<li>{escape(line)}</li>" for line in phase["red"])
        return [f"<div class='red'><p class='open'>No, by the proof of {escape(phase['at'])}:</p><ul>{items}</ul></div>"]
    return [
        f"<p class='good'>Yes, by the proof of {escape(phase['at'])}: none of {phase['forbidden']} forbidden probes got through, "
        f"all of {phase['allowed']} allowed ones did.</p>"
    ]


class FilterModule:
    """What Ansible finds here."""

    def filters(self) -> dict[str, Any]:
        """Name -> function."""
        return {"lab_picture": lab_picture, "lab_report": lab_report}
