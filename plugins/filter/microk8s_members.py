"""Which node speaks for a MicroK8s cluster, and which nodes are its members."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def leader(answers: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the node that speaks for the cluster: the first node of the largest cluster; "" when none answers.

    A first node with a new card is alone in a cluster of its own: it must join the others, not the others it.

    :param answers: the results of the module microk8s_facts, by node of the control plane
    """
    led = {host: answer["nodes"] for host, answer in answers.items() if answer.get("role") == "control-plane"}
    return max(led, key=lambda host: len(led[host]), default="")


def membership(name: str, own: Mapping[str, Any], nodes: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what a node is in the cluster: `member`, `missing`, or `stale`, when the record of its name is of an earlier node.

    A node with a new card, and a node that left and was not removed, have their names in the cluster and are not in it. A node of
    the control plane then sees another record of itself than the cluster has. A worker sees none.

    :param own: the result of the module microk8s_facts on the node
    :param nodes: the cluster's nodes, by name
    """
    if name not in nodes:
        return "missing"
    if own.get("role") == "worker":
        return "member"
    return "member" if own.get("nodes", {}).get(name, {}).get("uid") == nodes[name]["uid"] else "stale"


class FilterModule:
    """Filters for the members of the cluster."""

    def filters(self) -> dict[str, Any]:
        """Name -> function."""
        return {"microk8s_leader": leader, "microk8s_membership": membership}
