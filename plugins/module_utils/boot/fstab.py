"""Edit /etc/fstab as text (fstab(5)). Everything else stays the same, byte for byte."""

from __future__ import annotations

import re

SWAP_OFF = "# swap is off (bramble): "
# The types of file systems that fsck(8) can check.
CHECKED_TYPES = frozenset({"ext2", "ext3", "ext4", "msdos", "vfat"})
ATIME_OPTIONS = frozenset({"atime", "noatime", "relatime", "norelatime", "strictatime", "nostrictatime"})

# The six fields of an entry, of which the last two may be missing, with the blanks around them.
_ENTRY = re.compile(r"(\s*)([^#\s]\S*)(\s+)(\S+)(\s+)(\S+)(\s+)(\S+)(?:(\s+)(\d+)(?:(\s+)(\d+))?)?(\s*)", re.ASCII)


def _check_order(where: str, number: int) -> int:
    """Return the sixth field of an entry: 1 for /, which is checked first at boot, else 2 or the number it has."""
    return 1 if where == "/" else number or 2


def _edit_line(line: str, swap: bool) -> str:
    """Return an edited line: see `edit_fstab`."""
    if swap and line.startswith(SWAP_OFF):
        line = line.removeprefix(SWAP_OFF)
    found = _ENTRY.fullmatch(line)
    if not found:
        return line
    fields = [field or "" for field in found.groups()]
    where, kind, options = fields[3], fields[5], fields[7].split(",")
    if kind == "swap":
        return line if swap else SWAP_OFF + line
    if where == "/" and "noatime" not in options:
        fields[7] = ",".join([option for option in options if option not in ATIME_OPTIONS] + ["noatime"])
    number = int(fields[11] or 0)
    if kind in CHECKED_TYPES and not {"noauto", "bind"} & set(options) and number != _check_order(where, number):
        fields[8:12] = [fields[8] or " ", fields[9] or "0", fields[10] or " ", str(_check_order(where, number))]
    return "".join(fields)


def edit_fstab(text: str, swap: bool) -> str:
    """Return the table with noatime for /, each file system checked at boot, and swap on or commented out."""
    return "".join(
        _edit_line(line.rstrip("\n"), swap) + line[len(line.rstrip("\n")) :] for line in re.findall(r"[^\n]*\n|[^\n]+", text)
    )


def has_root_entry(text: str) -> bool:
    """Return whether there is an entry for /."""
    return any((found := _ENTRY.fullmatch(line)) and found[4] == "/" for line in text.split("\n"))
