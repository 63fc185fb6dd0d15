"""What a Raspberry Pi reads when it starts, edited as text: cmdline.txt, the kernel's one line, and config.txt, the firmware's.

Formats: https://docs.kernel.org/admin-guide/kernel-parameters.html,
https://www.raspberrypi.com/documentation/computers/config_txt.html. What is not asked for stays as it is, byte for byte.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.text_file import read, write

ROOT = Path("/")
# Keys that may be given several times, each time adding something. Of any other key the last one counts.
REPEATED_PARAMETERS = frozenset(
    {
        *("cgroup_disable", "cgroup_enable", "console", "earlycon", "initcall_blacklist", "luks.uuid", "modprobe.blacklist"),
        *("module_blacklist", "rd.luks.uuid", "systemd.mask", "systemd.setenv", "systemd.wants", "video"),
    }
)
REPEATED_SETTINGS = frozenset(
    {"device_tree_overlay", "device_tree_param", "dtoverlay", "dtparam", "gpio", "include", "initramfs"}
)
# The firmware ignores what is beyond.
LONGEST_SETTING = 98

# As the kernel reads it: white space ends a parameter, but not between double quotes.
_PARAMETER = re.compile(r'((?:[^\s"]|"[^"]*")+)', re.ASCII)
_SECTION = re.compile(r"\s*\[([^][]*)\]\s*")
_MODEL = re.compile(r"(pi|cm)\d")
_LINE = re.compile(r"([^\n]*?)(\r?\n|\Z)")
_GENERATOR = "etc/kernel/postinst.d/z50-raspi-firmware"


# cmdline.txt


def _name(parameter: str) -> str:
    return parameter.partition("=")[0]


def _split(line: str) -> tuple[list[str], int]:
    """Separators at even places, parameters at odd ones; and the place where the kernel's end: what follows `--` is init's."""
    if "\n" in line.rstrip() or "\r" in line.rstrip():
        raise BrambleError("it has more than one line, of which only the first counts. Make it one line")
    if line.count('"') % 2:
        raise BrambleError('a double quote (") is not closed')
    parts = _PARAMETER.split(line)
    return parts, parts.index("--") if "--" in parts[1::2] else len(parts)


def _places(parts: list[str], end: int, parameter: str) -> list[int]:
    """Where a parameter is: NAME=VALUE just so, NAME with any value or none."""
    exact = "=" in parameter
    return [i for i in range(1, end, 2) if (parts[i] if exact else _name(parts[i])) == parameter]


def check_parameter(parameter: str) -> None:
    """Refuse what is not one parameter. Raises BrambleError."""
    if not _PARAMETER.fullmatch(parameter) or not parameter.isascii() or not _name(parameter) or parameter == "--":
        raise BrambleError(f"{parameter!r} is not one kernel parameter: NAME or NAME=VALUE, with blanks only in double quotes")


def parameters(line: str) -> list[str]:
    """The kernel's parameters. Raises BrambleError."""
    parts, end = _split(line)
    return parts[1:end:2]


def set_parameter(line: str, parameter: str) -> str:
    """The line with a parameter: in the place of the last of its name, else behind the others. Raises BrambleError.

    One that may be given several times replaces none.
    """
    parts, end = _split(line)
    places = _places(parts, end, parameter if _name(parameter) in REPEATED_PARAMETERS else _name(parameter))
    if places:
        parts[places[-1]] = parameter
    elif end > 2:
        parts[end - 1 : end - 1] = [" ", parameter]
    elif end < len(parts):
        parts[1:1] = [parameter, " "]
    else:
        parts.insert(0, parameter)
    return "".join(parts)


def _without(parts: list[str], places: list[int]) -> str:
    for i in reversed(places):
        # With the blank before it; the first one with the blank behind it.
        first, beyond = (i - 1, i + 1) if i > 1 else (i, i + 2 if len(parts) > 3 else i + 1)
        del parts[first:beyond]
    return "".join(parts)


def remove_parameter(line: str, parameter: str) -> str:
    """The line without a parameter: NAME=VALUE just so, NAME with any value. Raises BrambleError."""
    parts, end = _split(line)
    return _without(parts, _places(parts, end, parameter))


def restore_parameter(line: str, name: str, original: str) -> str:
    """The line with the parameters of this name as they were in the original line. Raises BrambleError."""
    wanted = [parameter for parameter in parameters(original) if _name(parameter) == name]
    for parameter in wanted:
        if parameter not in parameters(line):
            line = set_parameter(line, parameter)
    parts, end = _split(line)
    return _without(parts, [i for i in _places(parts, end, name) if parts[i] not in wanted])


# config.txt


@dataclass
class _Line:
    text: str
    end: str
    filters: tuple[str, ...]  # of the sections it is in; none where it is for all

    @property
    def key(self) -> str:
        """What it sets; empty for comments, sections and blank lines."""
        return "" if _SECTION.fullmatch(self.text) else _key(self.text)


def _key(setting: str) -> str:
    return re.split(r"[=\s#]", setting.strip(), maxsplit=1)[0]


def _kind(name: str) -> str:
    return "model" if _MODEL.match(name) else name.partition("=")[0]


def _lines(text: str) -> list[_Line]:
    """Sections narrow each other, those of one kind replace each other, [all] ends them."""
    lines = []
    filters: dict[str, str] = {}
    for found in _LINE.finditer(text):
        if not found.group():
            break
        if section := _SECTION.fullmatch(found[1]):
            name = section[1].strip().lower()
            filters = {} if name == "all" else {**filters, _kind(name): name}
        lines.append(_Line(found[1], found[2], tuple(filters.values())))
    return lines


def _text(lines: list[_Line]) -> str:
    return "".join(line.text + line.end for line in lines)


def _insert(lines: list[_Line], place: int, texts: Sequence[str], filters: tuple[str, ...]) -> None:
    """Insert lines. A file without a newline at its end stays one."""
    end = lines[0].end if lines else "\n"
    lines[place:place] = [_Line(text, end or "\n", filters) for text in texts]
    if place == len(lines) - len(texts) > 0:
        lines[place - 1].end, lines[-1].end = lines[-1].end, lines[place - 1].end


def check_setting(setting: str, section: str) -> None:
    """Refuse what is not a line of config.txt. Raises BrambleError."""
    if not setting.isprintable() or not setting.isascii() or setting != setting.strip() or not _key(setting) or setting[0] == "[":
        raise BrambleError(f"{setting!r} is not a setting of config.txt: KEY=VALUE, on one line")
    if len(setting) > LONGEST_SETTING:
        raise BrambleError(f"{setting!r} has {len(setting)} characters: the firmware ignores those beyond {LONGEST_SETTING}")
    if not section or not section.isprintable() or set(section) & set("[] "):
        raise BrambleError(f"{section!r} is not a section of config.txt: give its name without brackets, such as pi4 or all")


def _filters(section: str) -> tuple[str, ...]:
    return () if section.lower() == "all" else (section.lower(),)


def set_setting(text: str, setting: str, section: str = "all") -> str:
    """The text with a setting in a section: in the place of the last one of its key there, else behind the others.

    One that may be given several times replaces none.
    """
    lines, filters = _lines(text), _filters(section)
    inside = [i for i, line in enumerate(lines) if line.filters == filters]
    same = [i for i in inside if lines[i].key == _key(setting)]
    if any(lines[i].text.strip() == setting for i in (same if _key(setting) in REPEATED_SETTINGS else same[-1:])):
        return text
    if same and _key(setting) not in REPEATED_SETTINGS:
        lines[same[-1]].text = setting
    elif inside:
        # Not behind a comment or blank lines, which belong to what follows.
        ends = [i for i in inside if lines[i].key or _SECTION.fullmatch(lines[i].text)] or inside
        overlay = next((i for i, line in enumerate(lines) if line.key == "dtoverlay"), None)
        if _key(setting) == "dtparam" and overlay is not None:
            # Before any overlay: behind one it would be the overlay's, if that has a parameter of this name.
            at_overlay = [overlay - 1] if lines[overlay].filters == filters else ends
            ends = [i for i in same if i < overlay] or [i for i in ends if i < overlay] or at_overlay
        _insert(lines, ends[-1] + 1, [setting], filters)
    else:
        # [all] before it ends what is narrowed there, and behind it: what others append is for all, as before.
        before = ["[all]"] if lines and lines[-1].filters else []
        _insert(lines, len(lines), [*before, *([f"[{section}]", setting, "[all]"] if filters else [setting])], filters)
    return _text(lines)


def remove_setting(text: str, setting: str, section: str = "all") -> str:
    """The text without a setting in a section: KEY=VALUE just so, KEY with any value."""
    lines, filters = _lines(text), _filters(section)
    exact = "=" in setting or " " in setting
    gone = [
        line for line in lines if line.filters == filters and line.key and setting == (line.text.strip() if exact else line.key)
    ]
    kept = [line for line in lines if not any(line is other for other in gone)]
    if gone and kept and gone[-1] is lines[-1]:
        kept[-1].end = lines[-1].end
    return _text(kept)


# Where they are


@dataclass(frozen=True)
class Boot:
    """The files of a card, those that are there; `inputs` are what a generator makes them from."""

    cmdline: Path | None
    config: Path | None
    cmdline_inputs: tuple[Path, ...] = ()
    config_inputs: tuple[Path, ...] = ()


def find() -> Boot:
    """Where this card has its files: in /boot/firmware or, on images that do not have such a folder, in /boot."""
    folder = ROOT / "boot/firmware"
    if not folder.is_dir():
        folder = ROOT / "boot"
    config = folder / "config.txt"
    found = {"os_prefix": "", "cmdline": "cmdline.txt"}
    for line in _lines(read(config)):
        if line.key in found and not line.filters:
            found[line.key] = line.text.partition("=")[2].strip()
    names = (found["os_prefix"] + found["cmdline"], found["cmdline"])
    cmdline = next((path for path in (folder / name for name in names) if path.is_file()), None)
    # Debian's raspi-firmware writes both files anew whenever a kernel, an initramfs or the firmware changes.
    with contextlib.suppress(OSError):
        if "raspi-extra-cmdline" in (ROOT / _GENERATOR).read_text(encoding="utf-8", errors="replace"):
            inputs = (ROOT / "etc/default/raspi-extra-cmdline",), (ROOT / "etc/default/raspi-firmware-custom",)
            return Boot(cmdline, config if config.is_file() else None, *inputs)
    return Boot(cmdline, config if config.is_file() else None)


def backup_of(path: Path) -> Path:
    """Where a file is kept as it was before it was edited for the first time."""
    return path.with_name(path.name + ".before-bramble")


def save(path: Path, text: str) -> None:
    """Write a file, and keep what was there before the first time. Raises OSError."""
    if not backup_of(path).exists():
        write(backup_of(path), read(path))
    write(path, text)
