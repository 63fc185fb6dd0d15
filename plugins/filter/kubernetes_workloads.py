"""Parse the output of kubectl and ctr for the role kubernetes_workloads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

INDEXED_JOBS = (1, 24)
"""The first release with Indexed Jobs (KEP-2214)."""


def has_indexed_jobs(version: Mapping[str, Any]) -> bool:
    """Return whether the API server has Indexed Jobs.

    :param version: what `kubectl version --output json` prints; some distributions write the minor version as 24+
    """
    server = version["serverVersion"]
    return (int(server["major"]), int(re.sub(r"\D", "", server["minor"]))) >= INDEXED_JOBS


def containerd_aliases(lines: Iterable[str], prefix: str) -> list[str]:
    """Return all names of the images that have a name with a prefix. containerd lists an image once for each of its names.

    :param lines: the output of `ctr images list`: name, type, digest and more
    :param prefix: the beginning of a name, such as localhost/bramble:
    """
    images = [words for line in lines if len(words := line.split()) > 2]
    digests = {words[2] for words in images if words[0].startswith(prefix)}
    return [words[0] for words in images if words[2] in digests or any(digest in words[0] for digest in digests)]


class FilterModule:
    """Filters for the role kubernetes_workloads."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"kubernetes_has_indexed_jobs": has_indexed_jobs, "containerd_aliases": containerd_aliases}
