#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: who is on the cluster's network."""

from __future__ import annotations

DOCUMENTATION = r"""
module: network_discover
short_description: Find the hosts of the cluster's network, and match them to the nodes
description:
  - Searches the subnet with C(nmap -sn), at a bounded rate, and nothing else. As root C(arp-scan) also asks who claims each
    address, so that two hosts with one address show.
  - A host is matched to a node by its SSH host key (C(ssh-keyscan)), which came with the node's card; where SSH does not answer,
    by its hardware address. Where the cluster's key logs in, the Pi is asked for its serial number.
  - Changes nothing.
author: The Bramble team (!UNKNOWN)
options:
  subnet:
    description: The IPv4 network, as ADDRESS/PREFIX.
    type: str
    required: true
  nodes:
    description: The nodes by name, each with C(address) and whether it is C(spare).
    type: dict
    required: true
  known_hosts:
    description: The host keys that were made for the cards, by node name (sshd(8)).
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
    description: Who logs in.
    type: str
    required: true
  interface:
    description: The wired port of a node.
    type: str
    default: eth0
  title:
    description: What the picture shows.
    type: str
    required: true
  max_rate:
    description: At most so many packets per second.
    type: int
    default: 100
  max_addresses:
    description: A larger subnet is refused.
    type: int
    default: 1024
attributes:
  check_mode: {support: full, description: It only looks.}
  diff_mode: {support: none, description: It only looks.}
"""

EXAMPLES = r"""
- name: See who is there
  network_discover:
    subnet: 192.168.1.0/24
    nodes:
      pi-client: {address: 192.168.1.100, spare: false}
      pi-01: {address: 192.168.1.101, spare: false}
    known_hosts: .state/octapi/ssh/known_hosts
    ledger: .state/octapi/cards.json
    ssh_key: .state/octapi/ssh/id_ed25519
    ssh_user: pi
    title: octapi
"""

RETURN = r"""
findings:
  description: The nodes in use, then what else was found.
  returned: always
  type: list
  elements: dict
  contains:
    name: {description: "The node; empty where it is none.", type: str}
    verdict:
      description: >-
        C(up), C(missing), C(wrong address), C(duplicate), C(not itself) (another SSH host key at a node's address), C(unknown),
        C(spare) or C(this machine).
      type: str
    address: {description: "Where it is, or should be.", type: str}
    macs: {description: The hardware addresses that answer there., type: list}
    vendor: {description: Who made the first of them., type: str}
    serial: {description: "The Pi's serial number; may be empty.", type: str}
    note: {description: What else there is to say., type: str}
problems:
  description: One sentence for each thing that is wrong, with what to do.
  returned: always
  type: list
  elements: str
blind:
  description: What could not be seen, and why.
  returned: always
  type: list
  elements: str
table:
  description: All of it for people, one line each.
  returned: always
  type: str
svg:
  description: A picture of it.
  returned: always
  type: str
"""

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.card.ledger import Ledger
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module
from ansible_collections.bramble.cluster.plugins.module_utils.network.discovery import (
    MAC,
    Host,
    Node,
    as_dict,
    judge,
    network,
    parse_arp_scan,
    parse_keys,
    parse_nmap,
    problems,
    table,
)
from ansible_collections.bramble.cluster.plugins.module_utils.network.discovery_picture import picture

SERIAL = "/proc/device-tree/serial-number"


def needed(module: AnsibleModule, program: str, package: str) -> str:
    """The path of a program. Raises BrambleError, naming its Debian package."""
    path = module.get_bin_path(program, opt_dirs=["/usr/sbin", "/sbin"])
    if not path:
        raise BrambleError(f"{program} is missing on this machine. Next: apt-get install {package}")
    return str(path)


def ask(module: AnsibleModule, *command: str, data: str = "") -> str:
    """What a program says. Raises BrambleError when it ends with an error."""
    code, out, error = module.run_command(list(command), data=data)
    if code:
        raise BrambleError(f"{os.path.basename(command[0])} ended with {code}: {(error or out).strip()}")
    return str(out)


def mac_file(options: dict) -> str:
    """Where a node has the hardware address of its wired port."""
    return f"/sys/class/net/{options['interface']}/address"


def log_in(options: dict, name: str, address: str) -> str:
    """The numbers of a Pi, as grep's lines "FILE:TEXT", strictly from the host with the node's key; or "" when it is closed."""
    command = [
        "ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-o", "StrictHostKeyChecking=yes",
        "-o", f"UserKnownHostsFile={options['known_hosts']}", "-o", f"HostKeyAlias={name}", "-o", "IdentitiesOnly=yes",
        "-i", options["ssh_key"], "-l", options["ssh_user"], address, "grep", "-s", "''", SERIAL, mac_file(options),
    ]  # fmt: skip
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20, errors="replace").stdout
    except subprocess.TimeoutExpired:
        return ""


def search(module: AnsibleModule, blind: list[str]) -> tuple[dict[str, Host], set[str]]:
    """What answers, by address, and this machine's own address in the subnet. Appends to `blind` what could not be seen."""
    options = module.params
    subnet = network(options["subnet"], options["max_addresses"])
    rate = options["max_rate"]
    # Without root nmap can only knock: at the port of SSH, besides its own choice.
    ping = ["-sn", "-n", "-PS22", f"--max-rate={rate}", "-oX", "-", str(subnet)]
    hosts = parse_nmap(ask(module, needed(module, "nmap", "nmap"), *ping))
    (route, *_) = json.loads(ask(module, needed(module, "ip", "iproute2"), "-json", "route", "get", str(subnet[1])))
    if route.get("dev") == "lo":  # that is this machine's own address: another tells the way
        (route, *_) = json.loads(ask(module, needed(module, "ip", "iproute2"), "-json", "route", "get", str(subnet[2])))
    if "gateway" in route or route.get("prefsrc") is None:
        blind.append(
            f"This machine has no address in {subnet}: hardware addresses, and two hosts with one address, cannot be seen."
        )
        return hosts, set()
    if os.geteuid():
        blind.append(
            "Not root: hardware addresses, two hosts with one address, and hosts that answer no knock, cannot be seen. "
            "With sudo: -e discover_become=true --ask-become-pass"
        )
        return hosts, {route["prefsrc"]}
    try:
        scan = needed(module, "arp-scan", "arp-scan")
    except BrambleError as error:
        blind.append(f"Two hosts with one address cannot be seen: {error}")
        return hosts, {route["prefsrc"]}
    # An ARP request is 64 bytes on the wire.
    answers = ask(
        module, scan, f"--interface={route['dev']}", "--plain", "--format=${ip}\t${mac}", f"--bandwidth={rate * 64 * 8}",
        "--retry=2", str(subnet),
    )  # fmt: skip
    for address, macs in parse_arp_scan(answers).items():
        hosts.setdefault(address, Host(address)).macs |= macs
    return hosts, {route["prefsrc"]}


def run(module: AnsibleModule) -> dict[str, Any]:
    """Look, match, and say. Raises BrambleError, OSError."""
    options = module.params
    blind: list[str] = []
    hosts, own = search(module, blind)
    if others := [address for address in hosts if address not in own]:
        said = ask(module, needed(module, "ssh-keyscan", "openssh-client"), "-T", "5", "-t", "ed25519,ecdsa,rsa", "-f", "-",
                   data="\n".join(others) + "\n")  # fmt: skip
        for address, keys in parse_keys(said).items():
            if address in hosts:
                hosts[address].keys = keys
    try:
        with open(options["known_hosts"], encoding="utf-8") as file:
            made = parse_keys(file.read())
    except FileNotFoundError:
        made = {}
        blind.append(f"There are no host keys yet ({options['known_hosts']}): nodes are known by their MAC alone.")
    ledger = Ledger(options["ledger"]).read()
    nodes = [
        Node(
            name,
            node["address"],
            bool(node.get("spare")),
            next(iter(made.get(name, ())), ""),
            str(ledger.get(name, {}).get("mac", "")).lower(),
            str(ledger.get(name, {}).get("pi_serial", "")),
        )
        for name, node in options["nodes"].items()
    ]
    known = [(node.name, host) for host in hosts.values() for node in nodes if node.key and node.key in host.keys]
    if os.access(options["ssh_key"], os.R_OK) and known:
        with ThreadPoolExecutor(16) as pool:
            told = pool.map(lambda pair: log_in(options, pair[0], pair[1].address), known)
        for (_, host), text in zip(known, told, strict=True):
            numbers = {file: value.strip("\0 \n") for file, _, value in (line.partition(":") for line in text.splitlines())}
            host.serial = numbers.get(SERIAL, "")
            mac = numbers.get(mac_file(options), "")
            if not host.macs and MAC.fullmatch(mac):
                host.macs = {mac}
    findings = judge(nodes, hosts, own)
    subtitle = f"{options['subnet']} · {datetime.now():%Y-%m-%d %H:%M}" + (" · not all could be seen" if blind else "")
    return dict(
        changed=False,
        findings=[as_dict(finding) for finding in findings],
        problems=problems(findings),
        blind=blind,
        table=table(findings),
        svg=picture(findings, options["title"], subtitle),
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
        "title": {"type": "str", "required": True},
        "max_rate": {"type": "int", "default": 100},
        "max_addresses": {"type": "int", "default": 1024},
    }
    run_module(spec, run)


if __name__ == "__main__":
    main()
