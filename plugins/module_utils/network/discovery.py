"""Who is on the network: what the tools say, matched to the nodes of the inventory."""

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
NOT_ITSELF = "not itself"
UNKNOWN = "unknown"
SPARE = "spare"
THIS_MACHINE = "this machine"

WRONG = {MISSING, WRONG_ADDRESS, DUPLICATE, NOT_ITSELF}
"""Verdicts that are problems. A host that nobody knows may well belong there: a printer, another workstation."""

MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


@dataclass
class Host:
    """What answered at an IPv4 address: hardware addresses in lower case, SSH host keys as "type base64"."""

    address: str
    macs: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    vendor: str = ""
    serial: str = ""


@dataclass(frozen=True)
class Node:
    """What is known of a node: its SSH host key as "type base64"; MAC and the Pi's serial number as noted in the ledger."""

    name: str
    address: str
    spare: bool = False
    key: str = ""
    mac: str = ""
    serial: str = ""


@dataclass
class Finding:
    """One line of the answer."""

    name: str
    verdict: str
    address: str
    note: str = ""
    macs: list[str] = field(default_factory=list)
    vendor: str = ""
    serial: str = ""


def network(subnet: str, most: int) -> ipaddress.IPv4Network:
    """The subnet, if it is one and not larger than so many addresses. Raises BrambleError."""
    try:
        parsed = ipaddress.IPv4Network(subnet)
    except ValueError as error:
        raise BrambleError(f"cluster_subnet is {subnet!r}: {error}. Write it as 192.168.1.0/24.") from None
    if parsed.num_addresses > most:
        raise BrambleError(
            f"{parsed} has {parsed.num_addresses} addresses, and at most {most} are searched. Nothing was sent. "
            f"If all of it is yours: -e discover_max_addresses={parsed.num_addresses}"
        )
    return parsed


def parse_nmap(text: str) -> dict[str, Host]:
    """The hosts that are up, by address, from nmap's XML (nmap.dtd). Raises BrambleError when it is not that."""
    # The standard library's parser reads no external entities, expat bounds the internal ones, and nmap has neither.
    if "<!ENTITY" in text:
        raise BrambleError("nmap's answer defines entities, which nmap never does.")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise BrambleError(f"nmap's answer is not XML: {error}") from None
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
    """Who answered for each address, from lines "ADDRESS<tab>MAC" (arp-scan --plain --format)."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and MAC.fullmatch(words[1].lower()):
            found.setdefault(words[0], set()).add(words[1].lower())
    return found


def parse_keys(text: str) -> dict[str, set[str]]:
    """The keys of each name or address as "type base64", from lines of known_hosts (sshd(8)), as ssh-keyscan writes them, too."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 3 and not words[0].startswith(("#", "@", "|")):
            for name in words[0].split(","):
                found.setdefault(name, set()).add(f"{words[1]} {words[2]}")
    return found


def _who(host: Host, nodes: Sequence[Node]) -> Node | None:
    """A card's host key says which node it is; only where no key is to be had, the Pi does (its MAC, its serial number)."""
    for node in nodes:
        if node.key and node.key in host.keys:
            return node
    if host.keys:
        return None
    return next((node for node in nodes if (node.mac and node.mac in host.macs)), None)


def _pi_of(host: Host, nodes: Sequence[Node]) -> Node | None:
    """Whose Pi it was when the ledger was written."""
    return next(
        (node for node in nodes if (node.mac and node.mac in host.macs) or (host.serial and node.serial == host.serial)), None
    )


def _note(host: Host, who: Node | None, nodes: Sequence[Node], at: Node | None) -> str:
    notes = []
    if who is None and at is not None:
        notes.append(f"at the address of {at.name}")
    if who is not None and not host.keys:
        notes.append("known by its MAC: SSH does not answer")
    pi = _pi_of(host, nodes)
    if who is not None and host.keys and pi is not None and pi is not who:
        notes.append(f"in the Pi that was {pi.name}'s")
    if who is None and pi is not None:
        notes.append(f"{pi.name}'s Pi, with a card that was not made here")
    return ", ".join(notes)


def judge(nodes: Sequence[Node], hosts: Mapping[str, Host], own: Iterable[str] = ()) -> list[Finding]:
    """Match what answered to the nodes.

    :param hosts: by address
    :param own: the addresses of this machine
    :returns: the nodes in use, in the order given, then whatever else was found, by address
    """
    own, places = set(own), {node.address: node for node in nodes}
    by_node: dict[str, list[Finding]] = {node.name: [] for node in nodes}
    others: list[Finding] = []
    for host in sorted(hosts.values(), key=lambda host: ipaddress.IPv4Address(host.address)):
        who, at = _who(host, nodes), places.get(host.address)
        finding = Finding("", UNKNOWN, host.address, _note(host, who, nodes, at), sorted(host.macs), host.vendor, host.serial)
        mine = host.address in own
        if len(host.macs) > 1 or (mine and host.macs):
            finding.verdict = DUPLICATE
            claims = [f"{mac} ({owner.name}'s Pi)" if (owner := _by_mac(nodes, mac)) else mac for mac in sorted(host.macs)]
            finding.note = f"claimed by {' and '.join((['this machine'] if mine else []) + claims)}"
        elif mine:
            finding.verdict = THIS_MACHINE
        elif who is not None:
            finding.verdict = SPARE if who.spare else UP if host.address == who.address else WRONG_ADDRESS
        elif at is not None:
            finding.verdict = NOT_ITSELF
        owner_of = who or at
        if mine or owner_of is None:
            others.append(finding)
        else:
            finding.name = owner_of.name
            by_node[owner_of.name].append(finding)
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


def _by_mac(nodes: Sequence[Node], mac: str) -> Node | None:
    return next((node for node in nodes if node.mac == mac), None)


ADVICE = {
    MISSING: "{name} does not answer at {address}. Is it powered on, its card in, its cable in this switch?",
    WRONG_ADDRESS: "{name} is at {address}, {note}. Log in there and reboot it, or flash its card again: "
    "ansible-playbook playbooks/swap.yml -e node={name}",
    DUPLICATE: "Two hosts have one address or one card: {address}, {note}. Unplug one of the two.",
    NOT_ITSELF: "What answers at {address} is not {name}: its SSH host key is not the one made for {name}'s card. "
    "Unplug it, or flash {name}'s card again: ansible-playbook playbooks/swap.yml -e node={name}",
}


def problems(findings: Iterable[Finding]) -> list[str]:
    """One sentence for each finding that is wrong, with what to do."""
    return [ADVICE[finding.verdict].format(**asdict(finding)) for finding in findings if finding.verdict in WRONG]


def table(findings: Iterable[Finding]) -> str:
    """The findings for people, one line each."""
    rows = [("node", "address", "verdict", "MAC", "what")]
    for finding in findings:
        what = ", ".join(part for part in (finding.note, finding.vendor, finding.serial and f"serial {finding.serial}") if part)
        rows.append((finding.name or "-", finding.address, finding.verdict, " ".join(finding.macs) or "-", what))
    return text_table(rows, ())


def as_dict(finding: Finding) -> dict[str, Any]:
    """A finding as JSON has it."""
    return asdict(finding)
