"""Which add-ons MicroK8s has."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ansible_collections.bramble.cluster.plugins.module_utils.kubernetes.release import minor


@dataclass(frozen=True)
class Addon:
    """An add-on of MicroK8s: the last release that has it, the architectures, and what there is instead."""

    last: tuple[int, int] | None = None
    architectures: tuple[str, ...] = ("amd64", "arm64")
    instead: str = ""


# canonical/microk8s-core-addons: addons.yaml and its history. What a release really has, the node says (module microk8s_addon).
ADDONS = {
    **dict.fromkeys(
        ("cert-manager", "community", "dns", "ha-cluster", "helm", "helm3", "host-access", "hostpath-storage"), Addon()
    ),
    **dict.fromkeys(("ingress", "metallb", "metrics-server", "observability", "rbac", "registry"), Addon()),
    "dashboard": Addon(last=(1, 35), instead="metrics-server and `kubectl top`, or a dashboard of your own"),
    **dict.fromkeys(("gpu", "nvidia"), Addon(architectures=("amd64",), instead="nothing: a Raspberry Pi has no such processor")),
}
OLD_NAMES = {"storage": "hostpath-storage", "prometheus": "observability"}


def addon_problems(addons: Iterable[str], channel: str, architecture: str) -> list[str]:
    """Which add-ons there are not, each with what to take instead.

    :param addons: as `microk8s enable` takes them: dns, metallb:ARGUMENTS; REPOSITORY/NAME is not looked at
    :param channel: the release, such as 1.36/stable
    :param architecture: in Debian's words
    """
    try:
        release = minor(channel)
    except ValueError as error:
        return [f"microk8s_channel: {error} Write it as 1.36/stable."]
    problems = []
    for name in (words.split(":")[0] for words in addons):
        if "/" in name:
            continue
        addon = ADDONS.get(name)
        if name in OLD_NAMES:
            problems.append(f"microk8s_addons: {name} is no more. Instead: {OLD_NAMES[name]}.")
        elif addon is None:
            guess = difflib.get_close_matches(name, ADDONS, n=1)
            hint = f"Did you mean {guess[0]}?" if guess else f"These exist: {', '.join(sorted(ADDONS))}."
            problems.append(f"microk8s_addons: there is no add-on {name!r}. {hint} One of another repository is REPOSITORY/NAME.")
        elif addon.last and release > addon.last:
            last = f"{addon.last[0]}.{addon.last[1]}"
            problems.append(f"microk8s_addons: {channel} has no {name} any more; {last} was the last. Instead: {addon.instead}.")
        elif architecture not in addon.architectures:
            problems.append(f"microk8s_addons: {name} is not made for {architecture}. Instead: {addon.instead}.")
    return problems


class FilterModule:
    """The filter microk8s_addon_problems."""

    def filters(self) -> dict[str, Any]:
        """Name -> function."""
        return {"microk8s_addon_problems": addon_problems}
