"""The kernel's command line in cmdline.txt, edited as text: what is not asked for stays as it is, byte for byte.

Format: https://docs.kernel.org/admin-guide/kernel-parameters.html.
"""

from __future__ import annotations

import re

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

# Keys that may be given several times, each time adding something. Of any other key the last one counts.
REPEATED_PARAMETERS = frozenset(
    {
        *("cgroup_disable", "cgroup_enable", "console", "earlycon", "initcall_blacklist", "luks.uuid", "modprobe.blacklist"),
        *("module_blacklist", "rd.luks.uuid", "systemd.mask", "systemd.setenv", "systemd.wants", "video"),
    }
)
# As the kernel reads it: white space ends a parameter, but not between double quotes.
_PARAMETER = re.compile(r'((?:[^\s"]|"[^"]*")+)', re.ASCII)


def _name(parameter: str) -> str:
    """Return the name in NAME=VALUE."""
    return parameter.partition("=")[0]


def _split(line: str) -> tuple[list[str], int]:
    """Return separators at even places, parameters at odd ones, and the place where the kernel's end: behind `--` are init's.

    Raises BrambleError for what is no command line.
    """
    if "\n" in line.rstrip() or "\r" in line.rstrip():
        raise BrambleError("it has more than one line, of which only the first counts. Make it one line")
    if line.count('"') % 2:
        raise BrambleError('a double quote (") is not closed')
    parts = _PARAMETER.split(line)
    return parts, parts.index("--") if "--" in parts[1::2] else len(parts)


def _places(parts: list[str], end: int, parameter: str) -> list[int]:
    """Return the places of a parameter: of exactly NAME=VALUE, or of NAME with any value or none."""
    exact = "=" in parameter
    return [i for i in range(1, end, 2) if (parts[i] if exact else _name(parts[i])) == parameter]


def check_parameter(parameter: str) -> None:
    """Check that it is one parameter. Raises BrambleError."""
    if not _PARAMETER.fullmatch(parameter) or not parameter.isascii() or not _name(parameter) or parameter == "--":
        raise BrambleError(f"{parameter!r} is not one kernel parameter: NAME or NAME=VALUE, with blanks only in double quotes")


def parameters(line: str) -> list[str]:
    """Return the kernel's parameters. Raises BrambleError for what is no command line."""
    parts, end = _split(line)
    return parts[1:end:2]


def set_parameter(line: str, parameter: str) -> str:
    """Return the line with a parameter: in the place of the last of its name, else behind the others. Raises BrambleError.

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
    """Return the line without the parameters at some places."""
    for i in reversed(places):
        # With the blank before it; the first one with the blank behind it.
        first, beyond = (i - 1, i + 1) if i > 1 else (i, i + 2 if len(parts) > 3 else i + 1)
        del parts[first:beyond]
    return "".join(parts)


def remove_parameter(line: str, parameter: str) -> str:
    """Return the line without a parameter: exactly NAME=VALUE, or NAME with any value. Raises BrambleError."""
    parts, end = _split(line)
    return _without(parts, _places(parts, end, parameter))


def restore_parameter(line: str, name: str, original: str) -> str:
    """Return the line with the parameters of a name as they were in the original line. Raises BrambleError."""
    wanted = [parameter for parameter in parameters(original) if _name(parameter) == name]
    for parameter in wanted:
        if parameter not in parameters(line):
            line = set_parameter(line, parameter)
    parts, end = _split(line)
    return _without(parts, [i for i in _places(parts, end, name) if parts[i] not in wanted])
