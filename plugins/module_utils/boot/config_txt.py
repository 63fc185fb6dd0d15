"""Edit the firmware's settings in config.txt of a Raspberry Pi as text. Everything else stays the same, byte for byte.

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
# In characters. The firmware ignores the rest of a longer line.
MAX_SETTING_LENGTH = 98
_SECTION = re.compile(r"\s*\[([^][]*)\]\s*")
_MODEL = re.compile(r"(pi|cm)\d")
_LINE = re.compile(r"([^\n]*?)(\r?\n|\Z)")


@dataclass
class Line:
    """A line of config.txt, with its line end and the sections that it is in."""

    text: str
    end: str
    filters: tuple[str, ...]  # the conditions of its sections; empty for [all]

    @property
    def key(self) -> str:
        """The setting's name; empty for comments, sections and blank lines."""
        return "" if _SECTION.fullmatch(self.text) else setting_key(self.text)


def setting_key(setting: str) -> str:
    """Return the name in KEY=VALUE."""
    return re.split(r"[=\s#]", setting.strip(), maxsplit=1)[0]


def _section_kind(name: str) -> str:
    """Return the kind of a section: a section replaces one of the same kind, and narrows those of other kinds."""
    return "model" if _MODEL.match(name) else name.partition("=")[0]


def parse_lines(text: str) -> list[Line]:
    """Return the lines. Sections of different kinds narrow each other, one replaces another of its kind, and [all] ends all."""
    lines = []
    filters: dict[str, str] = {}
    for found in _LINE.finditer(text):
        if not found.group():
            break
        if section := _SECTION.fullmatch(found[1]):
            name = section[1].strip().lower()
            filters = {} if name == "all" else {**filters, _section_kind(name): name}
        lines.append(Line(found[1], found[2], tuple(filters.values())))
    return lines


def join_lines(lines: list[Line]) -> str:
    """Return the text that consists of these lines."""
    return "".join(line.text + line.end for line in lines)


def _insert_lines(lines: list[Line], place: int, texts: Sequence[str], filters: tuple[str, ...]) -> None:
    """Insert lines before the line at index `place`. A file without a newline at its end stays without one."""
    end = lines[0].end if lines else "\n"
    lines[place:place] = [Line(text, end or "\n", filters) for text in texts]
    if place == len(lines) - len(texts) > 0:
        lines[place - 1].end, lines[-1].end = lines[-1].end, lines[place - 1].end


def check_setting(setting: str, section: str) -> None:
    """Check that the texts are one setting and one section of config.txt. Raises BrambleError."""
    if (
        not setting.isprintable()
        or not setting.isascii()
        or setting != setting.strip()
        or not setting_key(setting)
        or setting[0] == "["
    ):
        raise BrambleError(f"{setting!r} is not a setting of config.txt. Write KEY=VALUE, on one line.")
    if len(setting) > MAX_SETTING_LENGTH:
        raise BrambleError(
            f"{setting!r} has {len(setting)} characters, and the firmware ignores those after {MAX_SETTING_LENGTH}. Shorten it."
        )
    if not section or not section.isprintable() or set(section) & set("[] "):
        raise BrambleError(f"{section!r} is not a section of config.txt. Give its name without brackets, such as pi4 or all.")


def _section_filters(section: str) -> tuple[str, ...]:
    """Return the `filters` of the lines in a section."""
    return () if section.lower() == "all" else (section.lower(),)


def set_setting(text: str, setting: str, section: str = "all") -> str:
    """Return the text with a setting in a section.

    It replaces the last setting of its key in the section, or else follows the section's last one. One that may be given several
    times replaces none.
    """
    lines, filters = parse_lines(text), _section_filters(section)
    inside = [i for i, line in enumerate(lines) if line.filters == filters]
    same = [i for i in inside if lines[i].key == setting_key(setting)]
    if any(lines[i].text.strip() == setting for i in (same if setting_key(setting) in REPEATED_SETTINGS else same[-1:])):
        return text
    if same and setting_key(setting) not in REPEATED_SETTINGS:
        lines[same[-1]].text = setting
    elif inside:
        # Comments and blank lines at the end belong to what follows, so the setting comes before them.
        ends = [i for i in inside if lines[i].key or _SECTION.fullmatch(lines[i].text)] or inside
        overlay = next((i for i, line in enumerate(lines) if line.key == "dtoverlay"), None)
        if setting_key(setting) == "dtparam" and overlay is not None:
            # A dtparam after a dtoverlay is a parameter of the overlay if that has one of this name, so it comes before them all.
            at_overlay = [overlay - 1] if lines[overlay].filters == filters else ends
            ends = [i for i in same if i < overlay] or [i for i in ends if i < overlay] or at_overlay
        _insert_lines(lines, ends[-1] + 1, [setting], filters)
    else:
        # [all] ends the sections before it, and its own, so that what others append applies to all models as before.
        before = ["[all]"] if lines and lines[-1].filters else []
        _insert_lines(lines, len(lines), [*before, *([f"[{section}]", setting, "[all]"] if filters else [setting])], filters)
    return join_lines(lines)


def remove_setting(text: str, setting: str, section: str = "all") -> str:
    """Return the text without a setting in a section: without exactly KEY=VALUE, or without KEY with any value."""
    lines, filters = parse_lines(text), _section_filters(section)
    exact = "=" in setting or " " in setting
    removed = [
        line for line in lines if line.filters == filters and line.key and setting == (line.text.strip() if exact else line.key)
    ]
    kept = [line for line in lines if not any(line is other for other in removed)]
    if removed and kept and removed[-1] is lines[-1]:
        kept[-1].end = lines[-1].end
    return join_lines(kept)
