"""Edit the kernel's command line in cmdline.txt as text. Everything else stays the same, byte for byte.

Format: https://docs.kernel.org/admin-guide/kernel-parameters.html.
"""

from __future__ import annotations

import re

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

# Parameters that may be given several times, of which each adds something. Of any other parameter the kernel takes the last.
REPEATED_PARAMETERS = frozenset(
    {
        *("cgroup_disable", "cgroup_enable", "console", "earlycon", "initcall_blacklist", "luks.uuid", "modprobe.blacklist"),
        *("module_blacklist", "rd.luks.uuid", "systemd.mask", "systemd.setenv", "systemd.wants", "video"),
    }
)
# As the kernel reads it: white space ends a parameter, except between double quotes.
_PARAMETER = re.compile(r'((?:[^\s"]|"[^"]*")+)', re.ASCII)


def _parameter_name(parameter: str) -> str:
    """Return the name in NAME=VALUE."""
    return parameter.partition("=")[0]


def _split_line(line: str) -> tuple[list[str], int]:
    """Split a line; return its parts and the index at which the kernel's parameters end, since init gets those after `--`.

    The parts are separators at even indexes and parameters at odd ones. Raises BrambleError for what is not a command line.
    """
    if "\n" in line.rstrip() or "\r" in line.rstrip():
        raise BrambleError("it has more than one line, and the firmware reads only the first. Make it one line")
    if line.count('"') % 2:
        raise BrambleError('a double quote (") is not closed. Add or remove one')
    parts = _PARAMETER.split(line)
    return parts, parts.index("--") if "--" in parts[1::2] else len(parts)


def _find_parameter(parts: list[str], end: int, parameter: str) -> list[int]:
    """Return the indexes of a parameter in `parts`: of exactly NAME=VALUE, or of NAME with any value or without one."""
    exact = "=" in parameter
    return [i for i in range(1, end, 2) if (parts[i] if exact else _parameter_name(parts[i])) == parameter]


def check_parameter(parameter: str) -> None:
    """Check that a text is one kernel parameter. Raises BrambleError."""
    if not _PARAMETER.fullmatch(parameter) or not parameter.isascii() or not _parameter_name(parameter) or parameter == "--":
        raise BrambleError(
            f"{parameter!r} is not one kernel parameter. Write NAME or NAME=VALUE, with blanks only in double quotes."
        )


def kernel_parameters(line: str) -> list[str]:
    """Return the kernel's parameters. Raises BrambleError for what is not a command line."""
    parts, end = _split_line(line)
    return parts[1:end:2]


def set_parameter(line: str, parameter: str) -> str:
    """Return the line with a parameter. Raises BrambleError.

    It replaces the last parameter of its name, or else follows the last one. One that may be given several times replaces none.
    """
    parts, end = _split_line(line)
    places = _find_parameter(
        parts, end, parameter if _parameter_name(parameter) in REPEATED_PARAMETERS else _parameter_name(parameter)
    )
    if places:
        parts[places[-1]] = parameter
    elif end > 2:
        parts[end - 1 : end - 1] = [" ", parameter]
    elif end < len(parts):
        parts[1:1] = [parameter, " "]
    else:
        parts.insert(0, parameter)
    return "".join(parts)


def _remove_at(parts: list[str], places: list[int]) -> str:
    """Return the line without the parameters at some indexes."""
    for i in reversed(places):
        # The blank before a parameter goes with it; for the first parameter, the blank after it.
        first, beyond = (i - 1, i + 1) if i > 1 else (i, i + 2 if len(parts) > 3 else i + 1)
        del parts[first:beyond]
    return "".join(parts)


def remove_parameter(line: str, parameter: str) -> str:
    """Return the line without a parameter: without exactly NAME=VALUE, or without NAME with any value. Raises BrambleError."""
    parts, end = _split_line(line)
    return _remove_at(parts, _find_parameter(parts, end, parameter))


def restore_parameter(line: str, name: str, original: str) -> str:
    """Return the line with the parameters of a name as they were in the original line. Raises BrambleError."""
    wanted = [parameter for parameter in kernel_parameters(original) if _parameter_name(parameter) == name]
    for parameter in wanted:
        if parameter not in kernel_parameters(line):
            line = set_parameter(line, parameter)
    parts, end = _split_line(line)
    return _remove_at(parts, [i for i in _find_parameter(parts, end, name) if parts[i] not in wanted])
