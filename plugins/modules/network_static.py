#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: give a node its static network, by whatever has its wired port, so that a wrong one undoes itself."""

from __future__ import annotations

DOCUMENTATION = r"""
module: network_static
short_description: Give a node its static network, so that a wrong one undoes itself
description:
  - Finds out what has the wired port (NetworkManager, netplan, systemd-networkd or ifupdown), gives it the configuration, and
    takes the port out of all other configuration, cloud-init's included. Writes C(/etc/hosts) and the kernel's settings for the
    port's IPv6.
  - What only says the same in other words is just written. What changes the network is noted with what undoes it, applied a
    second after the module has ended, and undone unless C(state=confirmed) follows within I(timeout), by a login that is newer
    than the change. A node that is restarted meanwhile undoes it before the network comes up.
  - Before, it asks the wire whether somebody else has the address (RFC 5227).
author: The Bramble team (!UNKNOWN)
options:
  state:
    description:
      - C(present) looks, and changes what differs.
      - C(confirmed) lets a change stay, after it has seen that the port is as it shall be.
      - C(undone) tells why a change was undone. It changes nothing.
    type: str
    choices: [present, confirmed, undone]
    default: present
  change:
    description: The change that C(confirmed) and C(undone) are about, as C(present) has returned it.
    type: str
  interface:
    description: The wired port. Not for C(undone), nor is I(port).
    type: str
  port:
    description: Its configuration, as in C(ethernets) of netplan and cloud-init (network-config version 2).
    type: dict
  files:
    description: >-
      The same in the words of each stack, as the filter C(port_files) makes them. For C(present), as are I(uuid) and I(hosts).
    type: dict
  uuid:
    description: What NetworkManager knows our connection by.
    type: str
  hosts:
    description: What C(/etc/hosts) says.
    type: str
  timeout:
    description: Seconds until a change that is not confirmed is undone.
    type: int
    default: 90
  program:
    description: The text of module_utils/network_switch.py, which undoes a change. By default asked of Python; not under mitogen.
    type: str
attributes:
  check_mode: {support: full, description: "Says what it would change, and changes nothing. It does not ask the wire."}
  diff_mode: {support: full, description: Shows the files that change.}
"""

EXAMPLES = r"""
- name: Set the static network
  network_static:
    interface: eth0
    port: {addresses: [192.168.1.103/24]}
    files: "{{ {'addresses': ['192.168.1.103/24']} | port_files('eth0', uuid) }}"
    uuid: "{{ uuid }}"
    hosts: "127.0.0.1 localhost\n192.168.1.103 pi-03\n"
  register: network

- name: Let it stay
  network_static:
    state: confirmed
    change: "{{ network.change }}"
    interface: eth0
    port: {addresses: [192.168.1.103/24]}
  vars:
    ansible_host: 192.168.1.103
  when: network.change
"""

RETURN = r"""
change:
  description: Names the change that waits to be confirmed; empty when there is none.
  returned: always
  type: str
stack:
  description: What has the port.
  returned: with C(state=present)
  type: str
before:
  description: Address and gateway before, for people.
  returned: with C(state=present)
  type: str
why:
  description: Why a change was undone.
  returned: with C(state=undone)
  type: str
"""

import glob
import ipaddress
import json
import os
import re
import select
import socket
import subprocess
import tempfile
import time
import uuid as uuids
from collections.abc import Callable, Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module
from ansible_collections.bramble.cluster.plugins.module_utils.network import stack
from ansible_collections.bramble.cluster.plugins.module_utils.network.rollback import (
    File,
    PendingChange,
    RollbackError,
    put,
    put_all,
    read,
    run_all,
    text,
)

CLOUD = "/etc/cloud/cloud.cfg.d"
CLOUD_FILE = f"{CLOUD}/99-bramble-network.cfg"
CLOUD_TEXT = "# Bramble's network role has taken over.\nnetwork: {config: disabled}\n"
SYSCTL_FILE = "/etc/sysctl.d/60-bramble-network.conf"
SECRET = re.compile("passw|psk|secret|private", re.IGNORECASE)
SETTLE = 8.0  # seconds until a port must be as it was told


def ask(*command: str) -> str:
    """What a command says; nothing where it fails or does not exist."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def look(interface: str) -> stack.Facts:
    """What the node says of the port."""
    services = ("NetworkManager", "systemd-networkd", "networking")
    states = ask("systemctl", "is-active", *services).split()
    active = frozenset(name for name, state in zip(services, states, strict=False) if state == "active")
    state = nm_uuid = file = networkd_state = networkd_file = ""
    if "NetworkManager" in active:
        said = stack.nmcli(ask("nmcli", "--terse", "--fields", "GENERAL.STATE,GENERAL.CON-UUID", "device", "show", interface))
        state, nm_uuid = said.get("GENERAL.STATE", ""), said.get("GENERAL.CON-UUID", "")
        file = stack.nmcli(ask("nmcli", "--terse", "--fields", "UUID,FILENAME", "connection", "show")).get(nm_uuid, "")
    if "systemd-networkd" in active:
        networkd_state, networkd_file = stack.networkctl(ask("networkctl", "--json=short", "status", interface))
    ifupdown = ask("ifquery", "--state", interface).startswith(f"{interface}=")
    return stack.Facts(interface, active, state, nm_uuid, file, networkd_state, networkd_file, ifupdown)


def live(interface: str) -> stack.Live:
    """What the kernel has of the port."""
    address = json.loads(ask("ip", "-json", "address", "show", "dev", interface) or "[]")
    route = json.loads(ask("ip", "-json", "route", "show", "default") or "[]")
    return stack.live(address, route, interface)


def ports() -> dict[str, str]:
    """The wired ports that there are, with their hardware addresses."""
    found = {}
    for folder in sorted(glob.glob("/sys/class/net/*")):
        # ARPHRD_ETHER; what software made has no device, but a stand-in's port has none either.
        if text(read(f"{folder}/type")).strip() == "1" and not os.path.exists(f"{folder}/wireless"):
            found[os.path.basename(folder)] = text(read(f"{folder}/address")).strip()
    return found


def taken(interface: str, mac: str, address: str) -> str:
    """Whoever else has an address on the wire: a hardware address, empty if nobody answers. Raises OSError."""
    own = bytes.fromhex(mac.replace(":", ""))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(stack.ETH_P_ARP)) as wire:
        wire.bind((interface, 0))
        # On a wire an answer takes a millisecond: no need for the seconds that RFC 5227 gives a radio.
        for _ in range(3):
            wire.send(stack.arp_probe(own, address))
            end = time.monotonic() + 0.5
            while (left := end - time.monotonic()) > 0:
                if select.select([wire], [], [], left)[0] and (other := stack.arp_conflict(wire.recv(2048), own, address)):
                    return other
    return ""


def check_netplan(texts: Mapping[str, str], changes: Mapping[str, str | None]) -> None:
    """Let netplan parse what it is going to have, in an empty root. Raises BrambleError, OSError."""
    with tempfile.TemporaryDirectory() as root:
        for path, content in {**texts, **changes}.items():
            if path.startswith("/etc/netplan/") and content is not None:
                put(f"{root}{path}", File(content.encode(errors="surrogateescape"), 0o600))
        command = ["netplan", "generate", "--root-dir", root]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BrambleError(f"netplan refuses the network: {done.stderr.strip().replace(root, '')} Nothing was changed.")


class Node:
    """The node and what it shall have."""

    def __init__(self, options: Mapping[str, Any], warn: Callable[[str], None]) -> None:
        self.interface, self.port, self.options, self._warn = options["interface"], options["port"], options, warn
        there = ports()
        if self.interface not in there:
            names = ", ".join(f"{name} ({mac})" for name, mac in there.items()) or "none"
            raise BrambleError(
                f"There is no port {self.interface}. The wired ports are: {names}. Set cluster_interface to one of them. "
                "Nothing was changed."
            )
        stack.check(self.port)
        self.mac = there[self.interface]
        self.now = live(self.interface)
        self.change = PendingChange()

    def plan(self) -> tuple[stack.Owner, stack.Facts, dict[str, File | None], bool]:
        """Who has the port, the files that differ, and whether that changes the network. Raises BrambleError, OSError."""
        entries = {path: read(path) for places in stack.PLACES.values() for path in glob.glob(places) if os.path.isfile(path)}
        texts = {path: text(entry) for path, entry in entries.items()}
        facts = look(self.interface)
        who = stack.owner(facts, texts)
        ours, mode = stack.own_path(who.stack, self.interface)
        changes = stack.wanted(who, self.interface, self.options["files"][who.stack], texts, self.mac)
        if changes and who.stack == "netplan":
            check_netplan(texts, changes)
        differs = bool(stack.differences(self.port, self.now)) or not stack.same(who.stack, texts, changes)
        files: dict[str, File | None] = {}
        for path, content in changes.items():
            old = entries.get(path)
            keep = old.mode if old and path != ours else mode if path == ours else 0o644
            files[path] = None if content is None else File(content.encode(errors="surrogateescape"), keep)
        if ours not in changes and (old := entries[ours]) and old.mode != mode:
            files[ours] = old._replace(mode=mode)
        others = {"/etc/hosts": File(self.options["hosts"].encode())}
        if os.path.isdir(CLOUD):
            others[CLOUD_FILE] = File(CLOUD_TEXT.encode())
        files.update({path: file for path, file in others.items() if read(path) != file})
        if self.port.get("nameservers") and who.backend != "NetworkManager" and not os.path.exists("/run/systemd/resolve"):
            self._warn(f"{who.backend} leaves name servers to systemd-resolved or resolvconf: cluster_dns may have no effect.")
        return who, facts, files, differs

    def ipv6(self, dry: bool) -> dict[str, File | None]:
        """Set the kernel's settings for IPv6. Returns the file of them if it or the kernel differed."""
        kernel = f"/proc/sys/net/ipv6/conf/{self.interface}"
        if not os.path.isdir(kernel):
            return {}
        settings = stack.ipv6_settings(self.port)
        lines = [f"net.ipv6.conf.{self.interface.replace('.', '/')}.{name} = {value}" for name, value in settings.items()]
        file = File("\n".join(["# From Bramble's inventory.", *lines, ""]).encode())
        # NetworkManager and networkd take advertisements by themselves, and tell the kernel not to.
        checked = settings if settings["accept_ra"] == "0" else {"disable_ipv6": settings["disable_ipv6"]}
        stale = [address for address in self.now.dynamic_ipv6 if settings["accept_ra"] == "0"]
        right = read(SYSCTL_FILE) == file and all(
            text(read(f"{kernel}/{name}")).strip() == value for name, value in checked.items()
        )
        if right and not stale:
            return {}
        if not dry:
            put(SYSCTL_FILE, file)
            for name, value in settings.items():
                with open(f"{kernel}/{name}", "w", encoding="ascii") as setting:
                    setting.write(value)
            for address in stale:
                ask("ip", "address", "delete", address, "dev", self.interface)
        return {SYSCTL_FILE: file}

    def free(self) -> None:
        """Refuse an address that somebody else has. Raises BrambleError, OSError."""
        for address in self.port.get("addresses") or []:
            wanted = ipaddress.ip_interface(str(address))
            if wanted.version == 6 or any(entry.split("/")[0] == str(wanted.ip) for entry in self.now.ipv4):
                continue
            if other := taken(self.interface, self.mac, str(wanted.ip)):
                raise BrambleError(
                    f"The address {wanted.ip} is in use: {other} answers to it at {self.interface}. Give that machine another, "
                    "or change cluster_subnet, cluster_first_host or this node's node_number. Nothing was changed."
                )

    def commands(self, who: stack.Owner, facts: stack.Facts) -> stack.Commands:
        """How the stack is told."""
        return stack.commands(who, self.interface, self.options["uuid"], facts.nm_uuid)

    def stage(self, who: stack.Owner, facts: stack.Facts, files: Mapping[str, File | None]) -> str:
        """Have the change made, and undone unless it is confirmed; its name. Raises RollbackError, OSError."""
        commands = self.commands(who, facts)
        name = str(uuids.uuid4())
        self.change.stage(name, files, commands._asdict(), self.options["program"] or "")
        self.change.arm(self.options["timeout"])
        return name

    def waiting(self) -> str:
        """The change of an earlier run that waits to be confirmed, if it is what is wanted; else empty. Raises RollbackError."""
        plan = self.change.plan()
        if not plan:
            return ""
        applied = all(read(path) == (entry and File.unpack(entry)) for path, entry in plan["new"].items())
        if applied and not stack.differences(self.port, self.now):
            return str(plan["name"])
        raise RollbackError(
            "A change of an earlier run was not confirmed and undoes itself in a minute or two. Then run this again."
        )

    def settled(self) -> None:
        """Wait until the port is as it shall be. Raises BrambleError."""
        end = time.monotonic() + SETTLE
        while wrong := stack.differences(self.port, live(self.interface)):
            if time.monotonic() > end:
                raise BrambleError(f"{self.interface} is not as it shall be: {'; '.join(wrong)}.")
            time.sleep(0.5)


def shown(path: str, before: File | None, after: File | None) -> dict[str, str]:
    """A file in a diff; not the text if it may hold a secret, as that of a wireless network does."""
    old, new = text(before), text(after)
    if SECRET.search(old + new):
        old, new = "(with secrets)\n", "(with secrets, changed)\n" if after else ""
    return {"before_header": path, "after_header": path, "before": old, "after": new}


def present(module: AnsibleModule) -> dict[str, Any]:
    """Look, and change what differs. Raises BrambleError, RollbackError, OSError."""
    node = Node(module.params, module.warn)
    if name := node.waiting():
        return {"changed": True, "change": name, "stack": "", "before": node.now.words()}
    who, facts, files, differs = node.plan()
    by = who.stack if who.stack == who.backend.lower() else f"{who.stack}, carried out by {who.backend}"
    result: dict[str, Any] = {"change": "", "stack": by, "before": node.now.words()}
    policy = node.ipv6(dry=True)
    after = {**files, **policy}
    result["changed"] = bool(after) or differs
    if module._diff:
        result["diff"] = [shown(path, read(path), file) for path, file in after.items()]
    if module.check_mode or not result["changed"]:
        return result
    if differs:
        node.free()
        return {**result, "change": node.stage(who, facts, files)}
    put_all(files)
    if stack.own_path(who.stack, node.interface)[0] in files and (wrong := run_all(node.commands(who, facts).same)):
        raise RollbackError(f"The files are changed, the network is not: {wrong}. Restart the node.")
    node.ipv6(dry=False)
    return result


def run(module: AnsibleModule) -> dict[str, Any]:
    """Do what is asked. Raises BrambleError, RollbackError, OSError."""
    name = module.params["change"] or ""
    if module.params["state"] == "present":
        return present(module)
    if module.params["state"] == "undone":
        outcome = PendingChange().outcome(name)
        return {"changed": False, "change": "", "why": "; ".join(filter(None, [outcome["why"], outcome["wrong"]]))}
    node = Node(module.params, module.warn)
    if node.change.plan():
        node.settled()
    node.change.confirm(name)
    node.ipv6(dry=False)
    return {"changed": True, "change": ""}


def main() -> None:
    """Run the module."""
    spec = {
        "state": {"type": "str", "choices": ["present", "confirmed", "undone"], "default": "present"},
        "change": {"type": "str"},
        "interface": {"type": "str"},
        "port": {"type": "dict"},
        "files": {"type": "dict"},
        "uuid": {"type": "str"},
        "hosts": {"type": "str"},
        "timeout": {"type": "int", "default": 90},
        "program": {"type": "str"},
    }
    needed = [
        ("state", "present", ["interface", "port", "files", "uuid", "hosts"]),
        ("state", "confirmed", ["change", "interface", "port"]),
        ("state", "undone", ["change"]),
    ]
    run_module(spec, run, errors=(BrambleError, RollbackError, OSError), required_if=needed)


if __name__ == "__main__":
    main()
