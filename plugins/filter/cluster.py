"""Check the inventory, and derive from it what playbooks and roles need."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

# One label of RFC 1123, section 2.1, in lower case, because the name is used in DNS, TLS and file names.
HOSTNAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


# Used instead of ansible.utils.nthhost and ipaddr, which take 0.1 s of a core in every task, since every task needs its address.
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


def _duplicates(values: Mapping[str, Any]) -> dict[Any, list[str]]:
    """Return the values that more than one host has, with these hosts."""
    owners: dict[Any, list[str]] = defaultdict(list)
    for host, value in values.items():
        if value is not None:
            owners[value].append(host)
    return {value: hosts for value, hosts in owners.items() if len(hosts) > 1}


def _subnet_problem(subnet: str) -> str | None:
    """Return why a text is not an IPv4 network."""
    try:
        ipaddress.IPv4Network(subnet)
    except ValueError as error:
        return f"cluster_subnet is {subnet!r}: {error}. Write it as 192.168.1.0/24."
    return None


def _number_problem(host: str, number: Any) -> str | None:
    """Return what is wrong with the node_number of a host."""
    if number is None:
        return f"{host} has no node_number. Give it a unique one in inventory/hosts.yml: {host}: {{node_number: 9}}"
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        return f"{host} has node_number {number!r}. Set it to a whole number, 0 or more (inventory/hosts.yml)."
    return None


def _address_problem(host: str, address: Any, network: ipaddress.IPv4Network) -> str | None:
    """Return what is wrong with the address of a host."""
    try:
        parsed = ipaddress.IPv4Address(str(address))
    except ValueError:
        return (
            f"{host} has no address in {network}, which has room for {network.num_addresses - 2} nodes. "
            "Change its node_number, cluster_first_host or cluster_subnet."
        )
    if parsed not in network:
        return f"{host} has address {parsed}, outside cluster_subnet {network}. Change one of the two."
    if parsed in (network.network_address, network.broadcast_address):
        return f"{host} has address {parsed}, which is the network or broadcast address of {network}. Change its node_number."
    return None


def _read_variable(variables: Mapping[str, Any], name: str) -> Any:
    """Return a variable of a host; None without a value in the inventory (Ansible evaluates it on access)."""
    try:
        value = variables.get(name)
        return value if isinstance(value, int) else str(value or "") or None
    except Exception:  # a template may raise anything; the check reports the missing value in terms of the inventory
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
    :param known_groups: the groups that the inventory may have
    :returns: one sentence for each problem, with what to change; empty without problems
    """
    nodes = {
        host: {"number": _read_variable(hostvars[host], "node_number"), "address": _read_variable(hostvars[host], "node_address")}
        for host in groups.get("cluster", [])
    }
    problems: list[str | None] = []
    known = {*known_groups, "all", "ungrouped"}
    for group in sorted(set(groups) - known):
        guess = difflib.get_close_matches(group, sorted(known), n=1)
        hint = f"Did you mean {guess[0]!r}?" if guess else f"The groups are: {', '.join(sorted(known_groups))}."
        problems.append(f"The inventory has an unknown group {group!r}. {hint}")
    for group in sorted(set(groups) & set(known_groups)):
        for host in sorted(set(groups[group]) - set(nodes)):
            problems.append(f"{host} is in group {group!r} but not in 'cluster'. Put it under client or servers.")
    in_use = set(nodes) - set(groups.get("spare", []))
    if set(groups.get("active", [])) != in_use:
        problems.append(
            f"The group 'active' has {len(list(groups.get('active', [])))} hosts, and {len(in_use)} nodes are not spare. "
            "Give inventory/active.yml as the last inventory: -i YOUR_INVENTORY -i inventory/active.yml"
        )
    if len(list(groups.get("scheduler", []))) != 1:
        problems.append(f"The group 'scheduler' has {len(list(groups.get('scheduler', [])))} hosts. It needs exactly one.")

    for host, node in nodes.items():
        if not HOSTNAME.fullmatch(host):
            problems.append(f"{host!r} is not a valid host name (RFC 1123: at most 63 of a-z, 0-9 and inner hyphens). Rename it.")
        problems.append(_number_problem(host, node.get("number")))
    for number, hosts in _duplicates({host: node.get("number") for host, node in nodes.items()}).items():
        problems.append(f"{' and '.join(hosts)} have the same node_number {number}. Change all but one.")

    subnet_problem = _subnet_problem(subnet)
    problems.append(subnet_problem)
    if not subnet_problem:
        network = ipaddress.IPv4Network(subnet)
        for host, node in nodes.items():
            if node.get("number") is not None:
                problems.append(_address_problem(host, node.get("address"), network))
    for address, hosts in _duplicates({host: node.get("address") or None for host, node in nodes.items()}).items():
        problems.append(f"{' and '.join(hosts)} have the same address {address}. Change all but one.")
    return [problem for problem in problems if problem]


def card_batch(nodes: Iterable[Mapping[str, Any]], identity: bool = True) -> list[dict[str, Any]]:
    """Return the cards of a play's nodes, as the module card_write takes them, or without `identity` the module card_facts.

    Nodes without a slot have no card. A dry run before the keys exist has no identities, so it checks the image alone.
    """
    return [
        {
            "node": node["inventory_hostname"],
            "slot": str(node["card_slot"]),
            "virtual_bytes": int(node.get("card_virtual_bytes") or 0),
            **((identity and node.get("identity_content")) or {}),
        }
        for node in nodes
        if _read_variable(node, "card_slot")
    ]


def card_numbers(found: str, places: Mapping[str, str]) -> dict[str, str]:
    """Return the numbers of a node, by name.

    :param found: lines of grep, "FILE:TEXT"
    :param places: the file of each name
    """
    texts = dict(line.split(":", 1) for line in found.splitlines() if ":" in line)
    return {name: text for name, file in places.items() if (text := texts.get(file, "").strip("\0 "))}


def cluster_addresses(
    names: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]], spare: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """Return the address of each node, and whether it is spare, as the module network_discover takes them."""
    return {name: {"address": str(hostvars[name]["node_address"]), "spare": name in set(spare)} for name in names}


def host_values(hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Return a variable of several hosts, by host, without the hosts that do not have it."""
    return {host: hostvars[host][name] for host in hosts if host in hostvars and name in hostvars[host]}


def image_manifests(nodes: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]], folder: str) -> list[str]:
    """Return the paths of the manifests of these nodes' images, each once, in the order of the nodes."""
    names = [f"{hostvars[node]['cluster_image']}-{hostvars[node]['cluster_architecture']}" for node in nodes]
    return [f"{folder}/{name}.json" for name in dict.fromkeys(names)]


def part_hosts(part: str, state: str, groups: Mapping[str, Iterable[str]], hostvars: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the host pattern of a part: the active nodes of the group of its name, or all active nodes without such a group.

    A play without hosts reports that in one line, whereas a condition would report each task as skipped by each node.

    :param state: the cluster_state of the part; with another one the pattern matches no host
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
        """Return the filters by name."""
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
