"""What came to a node with the lab's tools, so that it can be removed again."""

from __future__ import annotations

from typing import Any


def lab_difference(before: str, now: str) -> dict[str, list[str]]:
    """Return what a node has now and had not before.

    :param before: lines "package NAME VERSION", "user NAME", "group NAME"
    :param now: the same of now
    :returns: the names of `packages`, `users` and `groups`, and `other`, what no removal undoes, in sentences
    """
    earlier, there = (
        {tuple(line.split()[:2]): line.split()[2:] for line in text.splitlines() if line.strip()} for text in (before, now)
    )
    new = sorted(set(there) - set(earlier))
    other = [f"{kind} {name} is gone" for kind, name in sorted(set(earlier) - set(there))]
    other += [
        f"{name} is now {there[kind, name][0]}, was {earlier[kind, name][0]}"
        for kind, name in earlier
        if kind == "package" and there.get((kind, name), earlier[kind, name]) != earlier[kind, name]
    ]
    found = {f"{kind}s": [name for of, name in new if of == kind] for kind in ("package", "user", "group")}
    return {**found, "other": other}


class FilterModule:
    """Filters for the role lab_tools."""

    def filters(self) -> dict[str, Any]:
        """Name -> function."""
        return {"lab_difference": lab_difference}
