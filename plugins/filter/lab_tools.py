"""Find what the installation of the lab's tools has added to a node, so that it can be removed again."""

from __future__ import annotations

from typing import Any


def lab_difference(before: str, now: str) -> dict[str, list[str]]:
    """Return what a node has now and did not have before.

    :param before: lines "package NAME VERSION", "user NAME" and "group NAME"
    :param now: the same lines of now
    :returns: the names of the new `packages`, `users` and `groups`, and `other`: a phrase for each change that a removal does
        not undo
    """
    earlier, current = (
        {tuple(line.split()[:2]): line.split()[2:] for line in text.splitlines() if line.strip()} for text in (before, now)
    )
    new = sorted(set(current) - set(earlier))
    other = [f"{kind} {name} was removed" for kind, name in sorted(set(earlier) - set(current))]
    other += [
        f"{name} is now {current[kind, name][0]}, was {earlier[kind, name][0]}"
        for kind, name in earlier
        if kind == "package" and current.get((kind, name), earlier[kind, name]) != earlier[kind, name]
    ]
    found = {f"{kind}s": [name for new_kind, name in new if new_kind == kind] for kind in ("package", "user", "group")}
    return {**found, "other": other}


class FilterModule:
    """Filters for the role lab_tools."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"lab_difference": lab_difference}
