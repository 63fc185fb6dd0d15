"""The settings of the Raspberry Pi's firmware in config.txt, edited as text: what is not asked for stays, byte for byte.

Format: https://www.raspberrypi.com/documentation/computers/config_txt.html.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

REPEATED_SETTINGS = frozenset(
    {"device_tree_overlay", "device_tree_param", "dtoverlay", "dtparam", "gpio", "include", "initramfs"}
)
# The firmware ignores what is beyond.
LONGEST_SETTING = 98
_SECTION = re.compile(r"\s*\[([^][]*)\]\s*")
_MODEL = re.compile(r"(pi|cm)\d")
_LINE = re.compile(r"([^\n]*?)(\r?\n|\Z)")


@dataclass
class Line:
    """A line of config.txt, with its line end and the sections that narrow it."""

    text: str
    end: str
    filters: tuple[str, ...]  # of the sections it is in; none where it is for all

    @property
    def key(self) -> str:
        """The setting's name; empty for comments, sections and blank lines."""
        return "" if _SECTION.fullmatch(self.text) else setting_key(self.text)


def setting_key(setting: str) -> str:
    """Return the name in KEY=VALUE."""
    return re.split(r"[=\s#]", setting.strip(), maxsplit=1)[0]


def _kind(name: str) -> str:
    """Return the kind of a section: those of one kind replace each other."""
    return "model" if _MODEL.match(name) else name.partition("=")[0]


def parse_lines(text: str) -> list[Line]:
    """Return the lines. Sections narrow each other, those of one kind replace each other, and [all] ends them."""
    lines = []
    filters: dict[str, str] = {}
    for found in _LINE.finditer(text):
        if not found.group():
            break
        if section := _SECTION.fullmatch(found[1]):
            name = section[1].strip().lower()
            filters = {} if name == "all" else {**filters, _kind(name): name}
        lines.append(Line(found[1], found[2], tuple(filters.values())))
    return lines


def join_lines(lines: list[Line]) -> str:
    """Return the text of lines."""
    return "".join(line.text + line.end for line in lines)


def _insert(lines: list[Line], place: int, texts: Sequence[str], filters: tuple[str, ...]) -> None:
    """Insert lines. A file without a newline at its end stays without one."""
    end = lines[0].end if lines else "\n"
    lines[place:place] = [Line(text, end or "\n", filters) for text in texts]
    if place == len(lines) - len(texts) > 0:
        lines[place - 1].end, lines[-1].end = lines[-1].end, lines[place - 1].end


def check_setting(setting: str, section: str) -> None:
    """Check that it is one setting and a section of config.txt. Raises BrambleError."""
    if (
        not setting.isprintable()
        or not setting.isascii()
        or setting != setting.strip()
        or not setting_key(setting)
        or setting[0] == "["
    ):
        raise BrambleError(f"{setting!r} is not a setting of config.txt: KEY=VALUE, on one line")
    if len(setting) > LONGEST_SETTING:
        raise BrambleError(f"{setting!r} has {len(setting)} characters: the firmware ignores those beyond {LONGEST_SETTING}")
    if not section or not section.isprintable() or set(section) & set("[] "):
        raise BrambleError(f"{section!r} is not a section of config.txt: give its name without brackets, such as pi4 or all")


def _filters(section: str) -> tuple[str, ...]:
    """Return the filters of a section's lines."""
    return () if section.lower() == "all" else (section.lower(),)


def set_setting(text: str, setting: str, section: str = "all") -> str:
    """Return the text with a setting in a section: in the place of the last one of its key there, else behind the others.

    One that may be given several times replaces none.
    """
    lines, filters = parse_lines(text), _filters(section)
    inside = [i for i, line in enumerate(lines) if line.filters == filters]
    same = [i for i in inside if lines[i].key == setting_key(setting)]
    if any(lines[i].text.strip() == setting for i in (same if setting_key(setting) in REPEATED_SETTINGS else same[-1:])):
        return text
    if same and setting_key(setting) not in REPEATED_SETTINGS:
        lines[same[-1]].text = setting
    elif inside:
        # Not behind a comment or blank lines, which belong to what follows.
        ends = [i for i in inside if lines[i].key or _SECTION.fullmatch(lines[i].text)] or inside
        overlay = next((i for i, line in enumerate(lines) if line.key == "dtoverlay"), None)
        if setting_key(setting) == "dtparam" and overlay is not None:
            # Before any overlay: behind one it would be the overlay's, if that has a parameter of this name.
            at_overlay = [overlay - 1] if lines[overlay].filters == filters else ends
            ends = [i for i in same if i < overlay] or [i for i in ends if i < overlay] or at_overlay
        _insert(lines, ends[-1] + 1, [setting], filters)
    else:
        # [all] before it ends what is narrowed there, and behind it: what others append is for all, as before.
        before = ["[all]"] if lines and lines[-1].filters else []
        _insert(lines, len(lines), [*before, *([f"[{section}]", setting, "[all]"] if filters else [setting])], filters)
    return join_lines(lines)


def remove_setting(text: str, setting: str, section: str = "all") -> str:
    """Return the text without a setting in a section: exactly KEY=VALUE, or KEY with any value."""
    lines, filters = parse_lines(text), _filters(section)
    exact = "=" in setting or " " in setting
    removed = [
        line for line in lines if line.filters == filters and line.key and setting == (line.text.strip() if exact else line.key)
    ]
    kept = [line for line in lines if not any(line is other for other in removed)]
    if removed and kept and removed[-1] is lines[-1]:
        kept[-1].end = lines[-1].end
    return join_lines(kept)
