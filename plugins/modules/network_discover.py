#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: find the hosts on the cluster's network, and match them to the nodes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: network_discover
short_description: Find the hosts on the cluster's network, and match them to the nodes
description:
  - Searches only the subnet, with C(nmap -sn) at a limited rate. As root it also runs C(arp-scan), which finds two hosts with the
    same address.
  - Matches a host to a node by its SSH host key (C(ssh-keyscan)), which was written to the node's card, or, if SSH does not
    answer, by its hardware address. Where the cluster's key logs in, it reads the serial number of the Pi.
  - Changes nothing.
author: The Bramble team (!UNKNOWN)
options:
  subnet:
    description: The IPv4 network, as ADDRESS/PREFIX.
    type: str
    required: true
  nodes:
    description: The nodes by name, each with its C(address) and whether it is C(spare).
    type: dict
    required: true
  known_hosts:
    description: The known_hosts file (sshd(8)) with the host keys of the cards, by node name.
    type: path
    required: true
  ledger:
    description: The cards' ledger (M(bramble.cluster.card_ledger)), for the MAC and the Pi's serial number of each node.
    type: path
    required: true
  ssh_key:
    description: The private key that logs in to the nodes.
    type: path
    required: true
  ssh_user:
    description: The user that logs in to the nodes.
    type: str
    required: true
  interface:
    description: The wired port of the nodes.
    type: str
    default: eth0
  max_rate:
    description: The greatest number of packets per second.
    type: int
    default: 100
  max_addresses:
    description: The greatest number of addresses of a subnet that is searched. A larger subnet is refused.
    type: int
    default: 1024
attributes:
  check_mode: {support: full, description: The module changes nothing.}
  diff_mode: {support: none, description: The module changes nothing.}
"""

EXAMPLES = r"""
- name: Find the hosts on the cluster's network
  bramble.cluster.network_discover:
    subnet: 192.168.1.0/24
    nodes:
      pi-client: {address: 192.168.1.100, spare: false}
      pi-01: {address: 192.168.1.101, spare: false}
    known_hosts: .state/octapi/ssh/known_hosts
    ledger: .state/octapi/cards.json
    ssh_key: .state/octapi/ssh/id_ed25519
    ssh_user: pi
"""

RETURN = r"""
findings:
  description: The active nodes, then the other hosts.
  returned: always
  type: list
  elements: dict
  contains:
    name: {description: "The name of the node; empty for another host.", type: str}
    verdict:
      description: >-
        C(up), C(missing), C(wrong address), C(duplicate), C(wrong host key) (another SSH host key at a node's address),
        C(unknown), C(spare) or C(control machine).
      type: str
    address: {description: "The address of the host; of a missing node the address that it should have.", type: str}
    macs: {description: The hardware addresses that answer there., type: list}
    vendor: {description: The vendor of the first hardware address., type: str}
    serial: {description: "The serial number of the Pi; empty if it is unknown.", type: str}
    note: {description: Further facts of the host., type: str}
problems:
  description: A text for each problem, with what to do.
  returned: always
  type: list
  elements: str
limitations:
  description: Sentences on what could not be found out, and why.
  returned: always
  type: list
  elements: str
table:
  description: The findings as a table, one line for each.
  returned: always
  type: str
"""

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.card.ledger import Ledger
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module
from ansible_collections.bramble.cluster.plugins.module_utils.network.discovery import (
    MAC,
    Host,
    Node,
    describe_problems,
    finding_as_dict,
    findings_table,
    match_hosts,
    parse_arp_scan,
    parse_keys,
    parse_nmap,
    parse_subnet,
)

SERIAL = "/proc/device-tree/serial-number"


def program_path(module: AnsibleModule, program: str, package: str) -> str:
    """Return the path of a program. Raises BrambleError, which names its Debian package, if it is missing."""
    path = module.get_bin_path(program, opt_dirs=["/usr/sbin", "/sbin"])
    if not path:
        raise BrambleError(f"{program} is missing on the control machine. Install it: apt-get install {package}")
    return str(path)


def program_output(module: AnsibleModule, *command: str, data: str = "") -> str:
    """Return the standard output of a program. Raises BrambleError when it fails."""
    code, out, error = module.run_command(list(command), data=data)
    if code:
        raise BrambleError(f"{os.path.basename(command[0])} ended with {code}: {(error or out).strip()}")
    return str(out)


def mac_file(options: dict) -> str:
    """Return the file of a node that has the hardware address of its wired port."""
    return f"/sys/class/net/{options['interface']}/address"


def read_pi_numbers(options: dict, name: str, address: str) -> str:
    """Return the serial number and the MAC of a Pi as lines of grep, "FILE:TEXT"; "" if the login fails.

    The login is strict: only the host with the node's host key is asked.
    """
    command = [
        "ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-o", "StrictHostKeyChecking=yes",
        "-o", f"UserKnownHostsFile={options['known_hosts']}", "-o", f"HostKeyAlias={name}", "-o", "IdentitiesOnly=yes",
        "-i", options["ssh_key"], "-l", options["ssh_user"], address, "grep", "-s", "''", SERIAL, mac_file(options),
    ]  # fmt: skip
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20, errors="replace").stdout
    except subprocess.TimeoutExpired:
        return ""


def search_subnet(module: AnsibleModule, limitations: list[str]) -> tuple[dict[str, Host], set[str]]:
    """Return the hosts that answer, by address, and the control machine's addresses in the subnet.

    Raises BrambleError.

    :param limitations: gets a sentence for each fact that cannot be found out
    """
    options = module.params
    subnet = parse_subnet(options["subnet"], options["max_addresses"])
    rate = options["max_rate"]
    # Without root nmap only tries TCP connections: to the port of SSH, besides its default ports.
    ping = ["-sn", "-n", "-PS22", f"--max-rate={rate}", "-oX", "-", str(subnet)]
    hosts = parse_nmap(program_output(module, program_path(module, "nmap", "nmap"), *ping))
    (route, *_) = json.loads(
        program_output(module, program_path(module, "ip", "iproute2"), "-json", "route", "get", str(subnet[1]))
    )
    if route.get("dev") == "lo":  # the control machine has this address, so another one tells the route
        (route, *_) = json.loads(
            program_output(module, program_path(module, "ip", "iproute2"), "-json", "route", "get", str(subnet[2]))
        )
    if "gateway" in route or route.get("prefsrc") is None:
        limitations.append(
            f"The control machine has no address in {subnet}, so hardware addresses, and two hosts with one address, cannot be "
            "found."
        )
        return hosts, set()
    if os.geteuid():
        limitations.append(
            "Without root, hardware addresses, two hosts with one address, and hosts that refuse no connection cannot be found. "
            "To search as root: -e discover_become=true --ask-become-pass"
        )
        return hosts, {route["prefsrc"]}
    try:
        scan = program_path(module, "arp-scan", "arp-scan")
    except BrambleError as error:
        limitations.append(f"Two hosts with one address cannot be found: {error}")
        return hosts, {route["prefsrc"]}
    # An ARP request is 64 bytes on the wire.
    answers = program_output(
        module, scan, f"--interface={route['dev']}", "--plain", "--format=${ip}\t${mac}", f"--bandwidth={rate * 64 * 8}",
        "--retry=2", str(subnet),
    )  # fmt: skip
    for address, macs in parse_arp_scan(answers).items():
        hosts.setdefault(address, Host(address)).macs |= macs
    return hosts, {route["prefsrc"]}


def run(module: AnsibleModule) -> dict[str, Any]:
    """Find the hosts and match them to nodes; return the result of the module. Raises BrambleError, OSError."""
    options = module.params
    limitations: list[str] = []
    hosts, own_addresses = search_subnet(module, limitations)
    if others := [address for address in hosts if address not in own_addresses]:
        stdout = program_output(module, program_path(module, "ssh-keyscan", "openssh-client"),
                                "-T", "5", "-t", "ed25519,ecdsa,rsa", "-f", "-",
                   data="\n".join(others) + "\n")  # fmt: skip
        for address, keys in parse_keys(stdout).items():
            if address in hosts:
                hosts[address].keys = keys
    try:
        with open(options["known_hosts"], encoding="utf-8") as file:
            card_keys = parse_keys(file.read())
    except FileNotFoundError:
        card_keys = {}
        limitations.append(f"There are no host keys yet ({options['known_hosts']}), so nodes are identified only by their MAC.")
    ledger = Ledger(options["ledger"]).read()
    nodes = [
        Node(
            name,
            node["address"],
            bool(node.get("spare")),
            next(iter(card_keys.get(name, ())), ""),
            str(ledger.get(name, {}).get("mac", "")).lower(),
            str(ledger.get(name, {}).get("pi_serial", "")),
        )
        for name, node in options["nodes"].items()
    ]
    known = [(node.name, host) for host in hosts.values() for node in nodes if node.key and node.key in host.keys]
    if os.access(options["ssh_key"], os.R_OK) and known:
        with ThreadPoolExecutor(16) as pool:
            outputs = pool.map(lambda pair: read_pi_numbers(options, pair[0], pair[1].address), known)
        for (_, host), text in zip(known, outputs, strict=True):
            numbers = {file: value.strip("\0 \n") for file, _, value in (line.partition(":") for line in text.splitlines())}
            host.serial = numbers.get(SERIAL, "")
            mac = numbers.get(mac_file(options), "")
            if not host.macs and MAC.fullmatch(mac):
                host.macs = {mac}
    findings = match_hosts(nodes, hosts, own_addresses)
    return dict(
        changed=False,
        findings=[finding_as_dict(finding) for finding in findings],
        problems=describe_problems(findings),
        limitations=limitations,
        table=findings_table(findings),
    )


def main() -> None:
    """Run the module."""
    spec = {
        "subnet": {"type": "str", "required": True},
        "nodes": {"type": "dict", "required": True},
        "known_hosts": {"type": "path", "required": True},
        "ledger": {"type": "path", "required": True},
        "ssh_key": {"type": "path", "required": True, "no_log": False},
        "ssh_user": {"type": "str", "required": True},
        "interface": {"type": "str", "default": "eth0"},
        "max_rate": {"type": "int", "default": 100},
        "max_addresses": {"type": "int", "default": 1024},
    }
    run_module(spec, run)


if __name__ == "__main__":
    main()
