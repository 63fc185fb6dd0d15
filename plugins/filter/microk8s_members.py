"""Find the node whose view of a MicroK8s cluster counts, and tell which nodes are members of the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def leader(answers: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the node whose view of the cluster counts: the first node of the largest cluster; "" when no node answers.

    A node with a new card is alone in its own cluster. It must join the others, so the largest cluster counts.

    :param answers: the results of the module microk8s_facts, by node of the control plane
    """
    clusters = {host: answer["nodes"] for host, answer in answers.items() if answer.get("role") == "control-plane"}
    return max(clusters, key=lambda host: len(clusters[host]), default="")


def membership(name: str, own: Mapping[str, Any], nodes: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the membership of a node: `member`, `missing`, or `stale` if the cluster knows an earlier node of this name.

    The cluster still has a record of a node that has got a new card, or has left without being removed. A node of the control
    plane then sees another record of itself than the cluster has. A worker sees no records.

    :param own: the result of the module microk8s_facts on the node
    :param nodes: the nodes that the cluster has, by name
    """
    if name not in nodes:
        return "missing"
    if own.get("role") == "worker":
        return "member"
    return "member" if own.get("nodes", {}).get(name, {}).get("uid") == nodes[name]["uid"] else "stale"


class FilterModule:
    """Filters for the members of the cluster."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"microk8s_leader": leader, "microk8s_membership": membership}
