"""Edit the files of ifupdown, interfaces(5): remove a port, and check that they read the folder interfaces.d."""

from __future__ import annotations

import re

SOURCE_LINE = "source /etc/network/interfaces.d/*"
# The keywords that begin a stanza of interfaces(5). The lines up to the next keyword belong to the stanza.
STANZA_KEYWORD = re.compile(
    r"(iface|mapping|auto|allow-\S+|no-auto-down|no-scripts|source|source-directory|template|rename)(\s|$)"
)


def _logical_lines(text: str) -> list[list[str]]:
    """Return the logical lines of interfaces(5): each is a list of the lines that backslashes join."""
    lines: list[list[str]] = []
    joined = False
    for line in text.splitlines(keepends=True):
        if joined:
            lines[-1].append(line)
        else:
            lines.append([line])
        # A backslash does not continue a comment.
        joined = line.rstrip("\n").endswith("\\") and not lines[-1][0].lstrip().startswith("#")
    return lines


def without_ifupdown_port(text: str, interface: str) -> str:
    """Return the text of interfaces(5) without a port: without its stanzas, and without its name in lists of ports."""
    kept: list[str] = []
    in_stanza = False
    for line in _logical_lines(text):
        words = "".join(line).replace("\\\n", " ").split()
        if words and STANZA_KEYWORD.match(f"{words[0]} "):
            in_stanza = words[0] == "iface" and words[1:2] == [interface]
            if (words[0] in ("auto", "no-auto-down", "no-scripts") or words[0].startswith("allow-")) and interface in words[1:]:
                rest = [word for word in words[1:] if word != interface]
                if rest:
                    kept.append(f"{words[0]} {' '.join(rest)}\n")
                continue
        # Comments and blank lines stay, because they may belong to another stanza.
        if not in_stanza or not words or words[0].startswith("#"):
            kept += line
    return "".join(kept)


def reads_interfaces_folder(text: str) -> bool:
    """Return whether a file of interfaces(5) reads the folder interfaces.d."""
    for line in _logical_lines(text):
        words = "".join(line).replace("\\\n", " ").split()
        if words[:1] == ["source-directory"] and any(word.rstrip("/").endswith("/interfaces.d") for word in words[1:]):
            return True
        if words[:1] == ["source"] and any(word.endswith(("/interfaces.d/*", "interfaces.d/bramble-*")) for word in words[1:]):
            return True
    return False
