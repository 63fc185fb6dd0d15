"""The inventory: what is wrong with it, and what playbooks and roles derive from it."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

# RFC 1123, section 2.1, one label, in lower case: the name is used for DNS, TLS and file names.
HOSTNAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


# In place of ansible.utils.nthhost and ipaddr: every task needs its node's address, and loading those costs each 0.1 s of a core.
def address_in(subnet: str, number: int) -> str:
    """Return the IPv4 address at an offset from the network address of ADDRESS/PREFIX; empty if there is none."""
    try:
        return str(ipaddress.IPv4Network(subnet)[int(number)])
    except (ValueError, IndexError):
        return ""


def prefix_of(subnet: str) -> int:
    """Return the prefix length of a network given as ADDRESS/PREFIX; -1 if it is not a network."""
    try:
        return ipaddress.IPv4Network(subnet).prefixlen
    except ValueError:
        return -1


def _shared(values: Mapping[str, Any]) -> dict[Any, list[str]]:
    """Values that more than one host has, with the hosts."""
    owners: dict[Any, list[str]] = defaultdict(list)
    for host, value in values.items():
        if value is not None:
            owners[value].append(host)
    return {value: hosts for value, hosts in owners.items() if len(hosts) > 1}


def _subnet_problem(subnet: str) -> str | None:
    try:
        ipaddress.IPv4Network(subnet)
    except ValueError as error:
        return f"cluster_subnet is {subnet!r}: {error}. Write it as 192.168.1.0/24."
    return None


def _number_problem(host: str, number: Any) -> str | None:
    if number is None:
        return f"{host} has no node_number. Give it one of its own in inventory/hosts.yml: {host}: {{node_number: 9}}"
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        return f"{host} has node_number {number!r}. It is a whole number, 0 or more (inventory/hosts.yml)."
    return None


def _address_problem(host: str, address: Any, network: ipaddress.IPv4Network) -> str | None:
    try:
        parsed = ipaddress.IPv4Address(str(address))
    except ValueError:
        return (
            f"{host} has no address in {network}: it holds {network.num_addresses - 2} nodes. "
            "Change its node_number, cluster_first_host or cluster_subnet."
        )
    if parsed not in network:
        return f"{host} has address {parsed}, outside cluster_subnet {network}. Change one of the two."
    if parsed in (network.network_address, network.broadcast_address):
        return f"{host} has address {parsed}, which {network} keeps for itself. Change its node_number."
    return None


def _read(variables: Mapping[str, Any], name: str) -> Any:
    """A host's variable, or None where the inventory does not give it a value (Ansible evaluates it on access)."""
    try:
        value = variables.get(name)
        return value if isinstance(value, int) else str(value or "") or None
    except Exception:  # whatever a template raises: what it lacks is reported in the user's own terms
        return None


def cluster_problems(
    hostvars: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, Iterable[str]],
    subnet: str,
    known_groups: Iterable[str],
) -> list[str]:
    """Check the inventory.

    :param hostvars: host -> its variables, of which node_number and node_address are read
    :param groups: Ansible's ``groups``
    :param subnet: the IPv4 network of the nodes, as ADDRESS/PREFIX
    :param known_groups: the features there are
    :returns: one sentence per problem, each saying what to change; empty when all is well
    """
    nodes = {
        host: {"number": _read(hostvars[host], "node_number"), "address": _read(hostvars[host], "node_address")}
        for host in groups.get("cluster", [])
    }
    problems: list[str | None] = []
    known = {*known_groups, "all", "ungrouped"}
    for group in sorted(set(groups) - known):
        guess = difflib.get_close_matches(group, sorted(known), n=1)
        hint = f"Did you mean {guess[0]!r}?" if guess else f"The groups are: {', '.join(sorted(known_groups))}."
        problems.append(f"Unknown group {group!r} in the inventory. {hint}")
    for group in sorted(set(groups) & set(known_groups)):
        for host in sorted(set(groups[group]) - set(nodes)):
            problems.append(f"{host} is in group {group!r} but not in 'cluster'. Put it under client or servers.")
    in_use = set(nodes) - set(groups.get("spare", []))
    if set(groups.get("active", [])) != in_use:
        problems.append(
            f"Group 'active' has {len(list(groups.get('active', [])))} hosts, and {len(in_use)} nodes are not spare. "
            "Give inventory/active.yml as the last inventory: -i YOURS -i inventory/active.yml"
        )
    if len(list(groups.get("scheduler", []))) != 1:
        problems.append(f"Group 'scheduler' has {len(list(groups.get('scheduler', [])))} hosts. It needs exactly one.")

    for host, node in nodes.items():
        if not HOSTNAME.fullmatch(host):
            problems.append(f"{host!r} is not a legal host name (RFC 1123: a-z, 0-9 and inner hyphens, at most 63). Rename it.")
        problems.append(_number_problem(host, node.get("number")))
    for number, hosts in _shared({host: node.get("number") for host, node in nodes.items()}).items():
        problems.append(f"{' and '.join(hosts)} have the same node_number {number}. Change all but one.")

    subnet_problem = _subnet_problem(subnet)
    problems.append(subnet_problem)
    if not subnet_problem:
        network = ipaddress.IPv4Network(subnet)
        for host, node in nodes.items():
            if node.get("number") is not None:
                problems.append(_address_problem(host, node.get("address"), network))
    for address, hosts in _shared({host: node.get("address") or None for host, node in nodes.items()}).items():
        problems.append(f"{' and '.join(hosts)} have the same address {address}. Change all but one.")
    return [problem for problem in problems if problem]


def card_batch(nodes: Iterable[Mapping[str, Any]], identity: bool = True) -> list[dict[str, Any]]:
    """The cards of a play's nodes, as the module card_write (or without identity card_facts) takes them.

    Nodes without a slot have none. A dry run on a machine with no keys yet has no identities: those cards would get the bare
    image.
    """
    return [
        {
            "node": node["inventory_hostname"],
            "slot": str(node["card_slot"]),
            "virtual_bytes": int(node.get("card_virtual_bytes") or 0),
            **((identity and node.get("identity_seed")) or {}),
        }
        for node in nodes
        if _read(node, "card_slot")
    ]


def card_numbers(found: str, places: Mapping[str, str]) -> dict[str, str]:
    """What a node says of itself, by name, from grep's lines "FILE:TEXT" and the file of each name."""
    texts = dict(line.split(":", 1) for line in found.splitlines() if ":" in line)
    return {name: text for name, file in places.items() if (text := texts.get(file, "").strip("\0 "))}


def cluster_addresses(
    names: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]], spare: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """The address of each node, and whether it is spare, as the module network_discover takes them."""
    return {name: {"address": str(hostvars[name]["node_address"]), "spare": name in set(spare)} for name in names}


def host_values(hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Return a variable of several hosts, by host; hosts that do not have it are left out."""
    return {host: hostvars[host][name] for host in hosts if host in hostvars and name in hostvars[host]}


def image_manifests(nodes: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]], folder: str) -> list[str]:
    """Return the paths of the manifests of the images that these nodes have, each once, in the order of the nodes."""
    names = [f"{hostvars[node]['cluster_image']}-{hostvars[node]['cluster_architecture']}" for node in nodes]
    return [f"{folder}/{name}.json" for name in dict.fromkeys(names)]


def part_hosts(part: str, state: str, groups: Mapping[str, Iterable[str]], hostvars: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the host pattern of a part: the active nodes of the group of its name, or of all where there is no such group.

    A play on no host says so in one line; as a condition, `state` would have each task skipped by each node.

    :param state: the cluster_state for which the part is; for another one the pattern matches no host
    :param hostvars: the variables of the hosts, of which cluster_state is read; empty when tasks are only listed
    """
    wanted = next((str(hostvars[host]["cluster_state"]) for host in groups.get("active", []) if host in hostvars), state)
    if wanted != state:
        return "active:!active"
    return f"{part}:&active" if part in groups else "active"


def host_pattern(pattern: str) -> str:
    """Return a host pattern unchanged; a play that writes its hosts with this filter loads the collection's filters."""
    return pattern


class FilterModule:
    """Filters for the inventory of a cluster."""

    def filters(self) -> dict[str, Any]:
        return {
            "host_pattern": host_pattern,
            "host_values": host_values,
            "image_manifests": image_manifests,
            "part_hosts": part_hosts,
            "address_in": address_in,
            "prefix_of": prefix_of,
            "cluster_problems": cluster_problems,
            "cluster_addresses": cluster_addresses,
            "card_batch": card_batch,
            "card_numbers": card_numbers,
        }
