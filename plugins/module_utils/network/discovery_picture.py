"""Draw who is on the network as SVG 1.1: the switch, and a box for each node and each unknown host."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ansible_collections.bramble.cluster.plugins.module_utils.network.discovery import (
    DUPLICATE,
    MISSING,
    NOT_ITSELF,
    SPARE,
    THIS_MACHINE,
    UNKNOWN,
    UP,
    WRONG_ADDRESS,
    Finding,
)

# Fill; line and text. Told apart by those who do not see all colours, too (after Okabe and Ito), and the verdict is in words.
COLOURS = {
    UP: ("#d9f2e6", "#00694d"),
    MISSING: ("#ffffff", "#8a8a8a"),
    WRONG_ADDRESS: ("#fdebc8", "#9a5b00"),
    DUPLICATE: ("#f9d7d0", "#a83200"),
    NOT_ITSELF: ("#f9d7d0", "#a83200"),
    UNKNOWN: ("#f1e1ec", "#8b3f70"),
    SPARE: ("#e4edf5", "#00527f"),
    THIS_MACHINE: ("#e4edf5", "#00527f"),
}
WIDE, HIGH, GAP, CABLE, SWITCH, MARGIN, TOP = 168, 74, 16, 52, 44, 28, 64
FONT = "font-family='DejaVu Sans, Verdana, sans-serif'"


def _text(x: float, y: float, text: str, colour: str, size: int = 12, weight: str = "normal", anchor: str = "middle") -> str:
    return (
        f"<text x='{x:g}' y='{y:g}' fill='{colour}' font-size='{size}' font-weight='{weight}' text-anchor='{anchor}' {FONT}>"
        f"{escape(text)}</text>"
    )


def _box(finding: Finding, x: float, y: float) -> list[str]:
    fill, line = COLOURS[finding.verdict]
    dashes = " stroke-dasharray='5 4'" if finding.verdict == MISSING else ""
    name = finding.name or ("this machine" if finding.verdict == THIS_MACHINE else "?")
    parts = [f"<g><title>{escape(', '.join(filter(None, [name, finding.address, finding.verdict, finding.note])))}</title>"]
    if finding.verdict == DUPLICATE:  # two of them
        parts.append(f"<rect x='{x + 5}' y='{y - 5}' width='{WIDE}' height='{HIGH}' rx='9' fill='{fill}' stroke='{line}'/>")
    parts += [
        f"<rect x='{x}' y='{y}' width='{WIDE}' height='{HIGH}' rx='9' fill='{fill}' stroke='{line}' stroke-width='1.6'{dashes}/>",
        _text(x + WIDE / 2, y + 22, name, "#1d1d1d", 14, "bold"),
        _text(x + WIDE / 2, y + 42, finding.address, "#3c3c3c"),
        _text(x + WIDE / 2, y + 61, finding.verdict if name != finding.verdict else "", line, 12, "bold"),
        "</g>",
    ]
    return parts


def picture(findings: Sequence[Finding], title: str, subtitle: str) -> str:
    """Return the SVG: nodes above and below the switch, in the order given, and a cable to each that answers."""
    columns = max(3, -(-len(findings) // 2))
    width = 2 * MARGIN + columns * WIDE + (columns - 1) * GAP
    switch = TOP + HIGH + CABLE
    height = switch + SWITCH + CABLE + HIGH + MARGIN
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' viewBox='0 0 {width} {height}' role='img'>",
        f"<title>{escape(title)}</title>",
        f"<rect width='{width}' height='{height}' fill='#ffffff'/>",
        _text(MARGIN, 30, title, "#1d1d1d", 17, "bold", "start"),
        _text(MARGIN, 50, subtitle, "#5a5a5a", 12, "normal", "start"),
    ]
    for index, finding in enumerate(findings):
        row, column = divmod(index, columns)
        x = MARGIN + column * (WIDE + GAP)
        y = TOP if row == 0 else switch + SWITCH + CABLE
        _, line = COLOURS[finding.verdict]
        start: float = y + HIGH if row == 0 else y
        end: float = switch + 8 if row == 0 else switch + SWITCH - 8
        if finding.verdict == MISSING:  # the end of its cable hangs loose
            end = (start + end) / 2
        dashes = " stroke-dasharray='3 4'" if finding.verdict == MISSING else ""
        parts.append(
            f"<line x1='{x + WIDE / 2:g}' y1='{start:g}' x2='{x + WIDE / 2:g}' y2='{end:g}' "
            f"stroke='{line}' stroke-width='3'{dashes}/>"
        )
        parts += _box(finding, x, y)
    middle = switch + SWITCH / 2
    parts.append(f"<rect x='{MARGIN}' y='{switch}' width='{width - 2 * MARGIN}' height='{SWITCH}' rx='7' fill='#30363d'/>")
    for index, finding in enumerate(findings):
        row, column = divmod(index, columns)
        port_x = MARGIN + column * (WIDE + GAP) + WIDE // 2
        lit = "#ffffff" if finding.verdict == MISSING else COLOURS[finding.verdict][0]
        opacity = 0.25 if finding.verdict == MISSING else 1
        port = switch + 6 if row == 0 else switch + SWITCH - 14
        parts.append(f"<rect x='{port_x - 8}' y='{port:g}' width='16' height='8' rx='2' fill='{lit}' fill-opacity='{opacity}'/>")
    parts.append(_text(width / 2, middle + 4, "switch", "#ffffff", 12))
    parts.append("</svg>")
    return "\n".join(parts) + "\n"
