"""Parse the output of nmap, arp-scan and ssh-keyscan, and match the hosts to the nodes of the inventory."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from xml.etree import ElementTree

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import text_table

UP = "up"
MISSING = "missing"
WRONG_ADDRESS = "wrong address"
DUPLICATE = "duplicate"
WRONG_HOST_KEY = "wrong host key"
UNKNOWN = "unknown"
SPARE = "spare"
CONTROL_MACHINE = "control machine"

PROBLEM_VERDICTS = {MISSING, WRONG_ADDRESS, DUPLICATE, WRONG_HOST_KEY}
"""The verdicts that are problems. An unknown host is not one: it may be a printer or another PC."""

MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


@dataclass
class Host:
    """A host that answers at an IPv4 address: its hardware addresses in lower case, its SSH host keys as "type base64"."""

    address: str
    macs: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    vendor: str = ""
    serial: str = ""


@dataclass(frozen=True)
class Node:
    """The known facts of a node: its SSH host key as "type base64", its MAC and the serial number of its Pi in the ledger."""

    name: str
    address: str
    spare: bool = False
    key: str = ""
    mac: str = ""
    serial: str = ""


@dataclass
class Finding:
    """A node or another host of the network, with a verdict."""

    name: str
    verdict: str
    address: str
    note: str = ""
    macs: list[str] = field(default_factory=list)
    vendor: str = ""
    serial: str = ""


def parse_subnet(subnet: str, max_addresses: int) -> ipaddress.IPv4Network:
    """Return the parsed subnet. Raises BrambleError if it is not one, or has more addresses than `max_addresses`."""
    try:
        parsed = ipaddress.IPv4Network(subnet)
    except ValueError as error:
        raise BrambleError(f"cluster_subnet is {subnet!r}: {error}. Write it as 192.168.1.0/24.") from None
    if parsed.num_addresses > max_addresses:
        raise BrambleError(
            f"{parsed} has {parsed.num_addresses} addresses, and at most {max_addresses} are searched. Nothing was sent. "
            f"To search all of it: -e discover_max_addresses={parsed.num_addresses}"
        )
    return parsed


def parse_nmap(text: str) -> dict[str, Host]:
    """Return the hosts that are up, by address, from the XML of nmap (nmap.dtd). Raises BrambleError for anything else."""
    # The parser of the standard library reads no external entities, and expat limits internal ones. nmap writes neither.
    if "<!ENTITY" in text:
        raise BrambleError("The output of nmap defines XML entities, which nmap does not do. Check which nmap is installed.")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise BrambleError(f"The output of nmap is not XML: {error}") from None
    hosts = {}
    for element in root.iter("host"):
        status = element.find("status")
        if status is None or status.get("state") != "up":
            continue
        addresses = {found.get("addrtype"): found for found in element.findall("address")}
        if "ipv4" not in addresses:
            continue
        host = Host(addresses["ipv4"].get("addr", ""))
        if (mac := addresses.get("mac")) is not None:
            host.macs.add(mac.get("addr", "").lower())
            host.vendor = mac.get("vendor", "")
        hosts[host.address] = host
    return hosts


def parse_arp_scan(text: str) -> dict[str, set[str]]:
    """Return the hardware addresses that answered for each address, from lines "ADDRESS<tab>MAC" (arp-scan --plain --format)."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and MAC.fullmatch(words[1].lower()):
            found.setdefault(words[0], set()).add(words[1].lower())
    return found


def parse_keys(text: str) -> dict[str, set[str]]:
    """Return the keys of each name or address as "type base64", from the known_hosts format (sshd(8), ssh-keyscan(1))."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 3 and not words[0].startswith(("#", "@", "|")):
            for name in words[0].split(","):
                found.setdefault(name, set()).add(f"{words[1]} {words[2]}")
    return found


def _find_node(host: Host, nodes: Sequence[Node]) -> Node | None:
    """Return the node of a host: by the host key of its card, or, if SSH does not answer, by the MAC of its Pi."""
    for node in nodes:
        if node.key and node.key in host.keys:
            return node
    if host.keys:
        return None
    return next((node for node in nodes if (node.mac and node.mac in host.macs)), None)


def _find_previous_node(host: Host, nodes: Sequence[Node]) -> Node | None:
    """Return the node that the Pi of a host was when the ledger was written."""
    return next(
        (node for node in nodes if (node.mac and node.mac in host.macs) or (host.serial and node.serial == host.serial)), None
    )


def _describe_host(host: Host, node_found: Node | None, nodes: Sequence[Node], node_expected: Node | None) -> str:
    """Return further facts of a host as a text.

    :param node_found: the node that the host is
    :param node_expected: the node whose address the host has
    """
    notes = []
    if node_found is None and node_expected is not None:
        notes.append(f"at the address of {node_expected.name}")
    if node_found is not None and not host.keys:
        notes.append("identified by its MAC, because SSH does not answer")
    pi = _find_previous_node(host, nodes)
    if node_found is not None and host.keys and pi is not None and pi is not node_found:
        notes.append(f"in the Pi that was {pi.name}'s")
    if node_found is None and pi is not None:
        notes.append(f"{pi.name}'s Pi, with a card that this control machine has not written")
    return ", ".join(notes)


def match_hosts(nodes: Sequence[Node], hosts: Mapping[str, Host], own_addresses: Iterable[str] = ()) -> list[Finding]:
    """Match hosts to nodes, and return a finding for each host and for each missing node.

    :param hosts: the hosts by address
    :param own_addresses: the addresses of the control machine
    :returns: the findings of the nodes in their order, then those of other hosts by address
    """
    own_addresses, node_by_address = set(own_addresses), {node.address: node for node in nodes}
    by_node: dict[str, list[Finding]] = {node.name: [] for node in nodes}
    others: list[Finding] = []
    for host in sorted(hosts.values(), key=lambda host: ipaddress.IPv4Address(host.address)):
        node_found, node_expected = _find_node(host, nodes), node_by_address.get(host.address)
        finding = Finding(
            "",
            UNKNOWN,
            host.address,
            _describe_host(host, node_found, nodes, node_expected),
            sorted(host.macs),
            host.vendor,
            host.serial,
        )
        is_own = host.address in own_addresses
        if len(host.macs) > 1 or (is_own and host.macs):
            finding.verdict = DUPLICATE
            claims = [f"{mac} ({owner.name}'s Pi)" if (owner := _node_by_mac(nodes, mac)) else mac for mac in sorted(host.macs)]
            finding.note = f"claimed by {' and '.join((['the control machine'] if is_own else []) + claims)}"
        elif is_own:
            finding.verdict = CONTROL_MACHINE
        elif node_found is not None:
            finding.verdict = SPARE if node_found.spare else UP if host.address == node_found.address else WRONG_ADDRESS
        elif node_expected is not None:
            finding.verdict = WRONG_HOST_KEY
        matched_node = node_found or node_expected
        if is_own or matched_node is None:
            others.append(finding)
        else:
            finding.name = matched_node.name
            by_node[matched_node.name].append(finding)
    for node in nodes:
        found = by_node[node.name]
        wrong = [finding for finding in found if finding.verdict == WRONG_ADDRESS]
        for finding in wrong:
            finding.note = ", ".join(part for part in (f"should be {node.address}", finding.note) if part)
            if len(found) > len(wrong):
                finding.verdict, finding.note = DUPLICATE, f"a second host with {node.name}'s card; its address is {node.address}"
        if not found and not node.spare:
            found.append(Finding(node.name, MISSING, node.address))
    return [finding for node in nodes for finding in by_node[node.name]] + others


def _node_by_mac(nodes: Sequence[Node], mac: str) -> Node | None:
    """Return the node whose Pi has a MAC."""
    return next((node for node in nodes if node.mac == mac), None)


ADVICE = {
    MISSING: "{name} does not answer at {address}. Check its power, its card, and its cable to the switch.",
    WRONG_ADDRESS: "{name} is at {address}, {note}. Log in there and reboot it, or flash its card again: "
    "ansible-playbook playbooks/swap.yml -e node={name}",
    DUPLICATE: "Two hosts have one address or one card: {address}, {note}. Unplug one of the two.",
    WRONG_HOST_KEY: "The host at {address} is not {name}: its SSH host key is not the one of {name}'s card. "
    "Unplug it, or flash {name}'s card again: ansible-playbook playbooks/swap.yml -e node={name}",
}


def describe_problems(findings: Iterable[Finding]) -> list[str]:
    """Return a text for each finding that is a problem, with what to do."""
    return [ADVICE[finding.verdict].format(**asdict(finding)) for finding in findings if finding.verdict in PROBLEM_VERDICTS]


def findings_table(findings: Iterable[Finding]) -> str:
    """Return the findings as a table."""
    rows = [("node", "address", "verdict", "MAC", "note")]
    for finding in findings:
        note = ", ".join(part for part in (finding.note, finding.vendor, finding.serial and f"serial {finding.serial}") if part)
        rows.append((finding.name or "-", finding.address, finding.verdict, " ".join(finding.macs) or "-", note))
    return text_table(rows, ())


def finding_as_dict(finding: Finding) -> dict[str, Any]:
    """Return a finding as a mapping, for JSON."""
    return asdict(finding)
