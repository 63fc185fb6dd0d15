"""Check that MicroK8s has the add-ons that are requested."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ansible_collections.bramble.cluster.plugins.module_utils.kubernetes.release import minor_version


@dataclass(frozen=True)
class Addon:
    """An add-on of MicroK8s: the last release that has it, its architectures, and what to use instead."""

    last_release: tuple[int, int] | None = None
    architectures: tuple[str, ...] = ("amd64", "arm64")
    instead: str = ""


# Source: canonical/microk8s-core-addons, addons.yaml and its history. The module microk8s_addon checks what a node really has.
ADDONS = {
    **dict.fromkeys(
        ("cert-manager", "community", "dns", "ha-cluster", "helm", "helm3", "host-access", "hostpath-storage"), Addon()
    ),
    **dict.fromkeys(("ingress", "metallb", "metrics-server", "observability", "rbac", "registry"), Addon()),
    "dashboard": Addon(last_release=(1, 35), instead="metrics-server and `kubectl top`, or a dashboard of your own"),
    **dict.fromkeys(
        ("gpu", "nvidia"), Addon(architectures=("amd64",), instead="nothing, since a Raspberry Pi has no NVIDIA processor")
    ),
}
OLD_NAMES = {"storage": "hostpath-storage", "prometheus": "observability"}


def addon_problems(addons: Iterable[str], channel: str, architecture: str) -> list[str]:
    """Return a sentence for each add-on that MicroK8s does not have, with what to use instead.

    :param addons: as `microk8s enable` takes them: dns, metallb:ARGUMENTS; REPOSITORY/NAME is not checked
    :param channel: the release, such as 1.36/stable
    :param architecture: Debian's name, such as arm64
    """
    try:
        release = minor_version(channel)
    except ValueError as error:
        return [f"microk8s_channel: {error} Write it as 1.36/stable."]
    problems = []
    for name in (words.split(":")[0] for words in addons):
        if "/" in name:
            continue
        addon = ADDONS.get(name)
        if name in OLD_NAMES:
            problems.append(f"microk8s_addons: MicroK8s no longer has {name}. Instead: {OLD_NAMES[name]}.")
        elif addon is None:
            guess = difflib.get_close_matches(name, ADDONS, n=1)
            hint = f"Did you mean {guess[0]}?" if guess else f"The add-ons are: {', '.join(sorted(ADDONS))}."
            problems.append(
                f"microk8s_addons: there is no add-on {name!r}. {hint} Write one of another repository as REPOSITORY/NAME."
            )
        elif addon.last_release and release > addon.last_release:
            last_release = f"{addon.last_release[0]}.{addon.last_release[1]}"
            problems.append(
                f"microk8s_addons: {channel} has no {name} any more; {last_release} was the last. Instead: {addon.instead}."
            )
        elif architecture not in addon.architectures:
            problems.append(f"microk8s_addons: {name} is not made for {architecture}. Instead: {addon.instead}.")
    return problems


class FilterModule:
    """The filter microk8s_addon_problems."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"microk8s_addon_problems": addon_problems}
