"""/etc/fstab, edited as text (fstab(5)). What is not asked for stays as it is, byte for byte."""

from __future__ import annotations

import re

SWAP_OFF = "# swap is off (bramble): "
# Of these, fsck(8) knows what to do.
CHECKED = frozenset({"ext2", "ext3", "ext4", "msdos", "vfat"})
ATIME = frozenset({"atime", "noatime", "relatime", "norelatime", "strictatime", "nostrictatime"})

# Six fields, of which the last two may be missing, and the blanks around them.
_ENTRY = re.compile(r"(\s*)([^#\s]\S*)(\s+)(\S+)(\s+)(\S+)(\s+)(\S+)(?:(\s+)(\d+)(?:(\s+)(\d+))?)?(\s*)", re.ASCII)


def _pass(where: str, number: int) -> int:
    """Return when a file system is checked at boot: / first, others then."""
    return 1 if where == "/" else number or 2


def _edited(line: str, swap: bool) -> str:
    """Return a line of the edited table."""
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
        fields[7] = ",".join([option for option in options if option not in ATIME] + ["noatime"])
    number = int(fields[11] or 0)
    if kind in CHECKED and not {"noauto", "bind"} & set(options) and number != _pass(where, number):
        fields[8:12] = [fields[8] or " ", fields[9] or "0", fields[10] or " ", str(_pass(where, number))]
    return "".join(fields)


def edited(text: str, swap: bool) -> str:
    """Return the table with noatime for /, each file system checked at boot, and swap on or commented out."""
    return "".join(
        _edited(line.rstrip("\n"), swap) + line[len(line.rstrip("\n")) :] for line in re.findall(r"[^\n]*\n|[^\n]+", text)
    )


def has_root(text: str) -> bool:
    """Return whether there is an entry for /."""
    return any((found := _ENTRY.fullmatch(line)) and found[4] == "/" for line in text.split("\n"))
