"""The paths that a card module is given. They are taken literally: `$` and `~` are characters of a name like any other.

Ansible's option type "path" replaces both, so that a card named `$HOME.img` was another file: the card modules use "str".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError


def check_slots(cards: Iterable[Mapping[str, Any]]) -> None:
    """Check that each card ({node, slot}) of a batch has a slot that can be taken literally. Raises BrambleError.

    The message has all slots that cannot, and what to write instead.
    """
    problems = [f"{card['node']}: {problem}" for card in cards if (problem := slot_problem(card["slot"]))]
    if problems:
        raise BrambleError("\n".join(["A slot is not a valid name of a card. Nothing was written.", *problems]))


def check_paths(options: Mapping[str, Any], *names: str) -> None:
    """Check that the values of path options, where they are set, can be taken literally. Raises BrambleError."""
    problems = [f"{name}: {problem}" for name in names if options[name] and (problem := _path_problem("path", options[name]))]
    if problems:
        raise BrambleError("\n".join(["A path is not valid. Nothing was written.", *problems]))


def slot_problem(slot: str) -> str:
    """Return why a slot cannot be taken literally, and what to write instead; "" when it can."""
    if problem := _path_problem("slot", slot):
        return problem
    if not slot.startswith("/"):
        return (
            f"The slot {slot!r} is not an absolute path, so it would depend on the folder in which Ansible runs. Write the full "
            "path, such as /dev/disk/by-path/... (to list the card readers: ls -l /dev/disk/by-path), or for a virtual card "
            f"/home/NAME/{slot}."
        )
    if slot.endswith("/"):
        return f"The slot {slot!r} ends with '/', so it is the name of a folder. Write the name of the card without it."
    return ""


def _path_problem(kind: str, path: str) -> str:
    """Return why a path cannot be taken literally; "" when it can. `kind` is its name in the message."""
    if path.startswith("~"):
        return (
            f"The {kind} {path!r} begins with '~', which is not replaced by a home folder, as each name is taken literally. "
            f"Write the full path, such as /home/NAME/{path.partition('/')[2]}."
        )
    if "\0" in path:
        return f"The {kind} {path!r} has a null byte, which no file name can have. Write the path without it."
    return ""
