#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: configure the static network of a node, with a rollback unless the change is confirmed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: network_static
short_description: Configure the static network of a node, with a rollback unless the change is confirmed
description:
  - Finds the network stack that manages the wired port (NetworkManager, netplan, systemd-networkd or ifupdown), writes the
    configuration for it, and removes the port from all other configuration, including that of cloud-init. Writes C(/etc/hosts)
    and the kernel parameters for the port's IPv6.
  - New files that mean the same as the old ones are written at once. A change of the network is recorded together with its
    rollback, and applied one second after the module has ended. It is rolled back unless O(state=confirmed) follows within
    O(timeout), in a login that is newer than the change. When the node restarts before that, the change is rolled back before the
    network is set up.
  - Before a change, ARP probes check that no other host has the address (RFC 5227).
author: The Bramble team (!UNKNOWN)
options:
  state:
    description:
      - V(present) changes the network if it differs.
      - V(confirmed) confirms a change, after it has checked that the port is configured.
      - V(rolled_back) returns why a change was rolled back. It changes nothing.
    type: str
    choices: [present, confirmed, rolled_back]
    default: present
  change:
    description: The change to confirm, or that was rolled back, as O(state=present) has returned it.
    type: str
  interface:
    description: The wired port. Required by V(present) and V(confirmed).
    type: str
  port:
    description: The configuration of the port, as in C(ethernets) of netplan (network-config version 2). See O(interface).
    type: dict
  files:
    description: >-
      The configuration of the port for each stack, as the filter C(port_files) returns it. Required by V(present), as are O(uuid)
      and O(hosts).
    type: dict
  uuid:
    description: The uuid of the connection in NetworkManager.
    type: str
  hosts:
    description: The text of C(/etc/hosts).
    type: str
  timeout:
    description: The time in seconds after which a change is rolled back unless it is confirmed.
    type: int
    default: 90
  program:
    description: The text of network/rollback.py, which rolls back a change. By default, Python reads it; not with mitogen.
    type: str
attributes:
  check_mode: {support: full, description: "Reports what it would change, and changes nothing. Sends no ARP probes."}
  diff_mode: {support: full, description: Shows the files that change.}
"""

EXAMPLES = r"""
- name: Set the static network
  bramble.cluster.network_static:
    interface: eth0
    port: {addresses: [192.168.1.103/24]}
    files: "{{ {'addresses': ['192.168.1.103/24']} | port_files('eth0', uuid) }}"
    uuid: "{{ uuid }}"
    hosts: "127.0.0.1 localhost\n192.168.1.103 pi-03\n"
  register: network

- name: Confirm the change
  bramble.cluster.network_static:
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
  description: The name of the change that waits to be confirmed; empty without one.
  returned: always
  type: str
stack:
  description: The network stack that manages the port.
  returned: with C(state=present)
  type: str
before:
  description: A text with address and gateway before the change.
  returned: with C(state=present)
  type: str
why:
  description: Why a change was rolled back.
  returned: with C(state=rolled_back)
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
from ansible_collections.bramble.cluster.plugins.module_utils.network.arp import ETH_P_ARP, arp_conflict, arp_probe
from ansible_collections.bramble.cluster.plugins.module_utils.network.commands import StackCommands, stack_commands
from ansible_collections.bramble.cluster.plugins.module_utils.network.owner import (
    Owner,
    PortFacts,
    find_owner,
    parse_networkctl,
    parse_nmcli,
)
from ansible_collections.bramble.cluster.plugins.module_utils.network.places import PLACES, configuration_path
from ansible_collections.bramble.cluster.plugins.module_utils.network.port import (
    PortState,
    check_gateways,
    ipv4_differences,
    ipv6_settings,
    parse_port_state,
)
from ansible_collections.bramble.cluster.plugins.module_utils.network.rollback import (
    File,
    PendingChange,
    RollbackError,
    file_text,
    read_file,
    run_commands,
    write_file,
    write_files,
)
from ansible_collections.bramble.cluster.plugins.module_utils.network.stack import changed_files, has_equal_settings

CLOUD_FOLDER = "/etc/cloud/cloud.cfg.d"
CLOUD_FILE = f"{CLOUD_FOLDER}/99-bramble-network.cfg"
CLOUD_TEXT = "# Bramble's network role has taken over.\nnetwork: {config: disabled}\n"
SYSCTL_FILE = "/etc/sysctl.d/60-bramble-network.conf"
SECRET_KEY = re.compile("passw|psk|secret|private", re.IGNORECASE)
CONFIGURE_SECONDS = 8.0  # in which a port must be configured after a change


def command_output(*command: str) -> str:
    """Return the standard output of a command; empty if it does not exist or does not end."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def read_port_facts(interface: str) -> PortFacts:
    """Return the facts of the node about the port."""
    services = ("NetworkManager", "systemd-networkd", "networking")
    states = command_output("systemctl", "is-active", *services).split()
    active = frozenset(name for name, state in zip(services, states, strict=False) if state == "active")
    state = nm_uuid = file = networkd_state = networkd_file = ""
    if "NetworkManager" in active:
        device = parse_nmcli(
            command_output("nmcli", "--terse", "--fields", "GENERAL.STATE,GENERAL.CON-UUID", "device", "show", interface)
        )
        state, nm_uuid = device.get("GENERAL.STATE", ""), device.get("GENERAL.CON-UUID", "")
        file = parse_nmcli(command_output("nmcli", "--terse", "--fields", "UUID,FILENAME", "connection", "show")).get(nm_uuid, "")
    if "systemd-networkd" in active:
        networkd_state, networkd_file = parse_networkctl(command_output("networkctl", "--json=short", "status", interface))
    ifupdown = command_output("ifquery", "--state", interface).startswith(f"{interface}=")
    return PortFacts(interface, active, state, nm_uuid, file, networkd_state, networkd_file, ifupdown)


def read_port_state(interface: str) -> PortState:
    """Return the state of the port in the kernel."""
    address = json.loads(command_output("ip", "-json", "address", "show", "dev", interface) or "[]")
    route = json.loads(command_output("ip", "-json", "route", "show", "default") or "[]")
    return parse_port_state(address, route, interface)


def wired_ports() -> dict[str, str]:
    """Return the wired ports of the node, with their hardware addresses."""
    found = {}
    for folder in sorted(glob.glob("/sys/class/net/*")):
        # ARPHRD_ETHER. Only hardware has a folder `device`, but the port of a stand-in has none either, so that is not checked.
        if file_text(read_file(f"{folder}/type")).strip() == "1" and not os.path.exists(f"{folder}/wireless"):
            found[os.path.basename(folder)] = file_text(read_file(f"{folder}/address")).strip()
    return found


def find_address_owner(interface: str, mac: str, address: str) -> str:
    """Return the hardware address of another host that has an IPv4 address; empty if none answers. Raises OSError."""
    own = bytes.fromhex(mac.replace(":", ""))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ARP)) as sock:
        sock.bind((interface, 0))
        # On a cable an answer takes a millisecond, so the seconds of RFC 5227, which are also for radio, are not needed.
        for _ in range(3):
            sock.send(arp_probe(own, address))
            end = time.monotonic() + 0.5
            while (left := end - time.monotonic()) > 0:
                if select.select([sock], [], [], left)[0] and (other := arp_conflict(sock.recv(2048), own, address)):
                    return other
    return ""


def check_netplan(texts: Mapping[str, str], changes: Mapping[str, str | None]) -> None:
    """Check that netplan accepts its new files, in an empty root. Raises BrambleError, OSError."""
    with tempfile.TemporaryDirectory() as root:
        for path, content in {**texts, **changes}.items():
            if path.startswith("/etc/netplan/") and content is not None:
                write_file(f"{root}{path}", File(content.encode(errors="surrogateescape"), 0o600))
        command = ["netplan", "generate", "--root-dir", root]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise BrambleError(f"netplan refuses its new files: {result.stderr.strip().replace(root, '')} Nothing was changed.")


class Node:
    """The node, with the wanted configuration of its port."""

    def __init__(self, options: Mapping[str, Any], warn: Callable[[str], None]) -> None:
        self.interface, self.port, self.options, self._warn = options["interface"], options["port"], options, warn
        existing_ports = wired_ports()
        if self.interface not in existing_ports:
            names = ", ".join(f"{name} ({mac})" for name, mac in existing_ports.items()) or "none"
            raise BrambleError(
                f"There is no port {self.interface}. The wired ports are: {names}. Set cluster_interface to one of them. "
                "Nothing was changed."
            )
        check_gateways(self.port)
        self.mac = existing_ports[self.interface]
        self.state = read_port_state(self.interface)
        self.change = PendingChange()

    def plan(self) -> tuple[Owner, PortFacts, dict[str, File | None], bool]:
        """Plan the change. Raises BrambleError, OSError.

        :returns: the stack that manages the port, the facts of the port, the files that differ, and whether the network changes
        """
        entries = {path: read_file(path) for places in PLACES.values() for path in glob.glob(places) if os.path.isfile(path)}
        texts = {path: file_text(entry) for path, entry in entries.items()}
        facts = read_port_facts(self.interface)
        owner = find_owner(facts, texts)
        bramble_file, mode = configuration_path(owner.stack, self.interface)
        changes = changed_files(owner, self.interface, self.options["files"][owner.stack], texts, self.mac)
        if changes and owner.stack == "netplan":
            check_netplan(texts, changes)
        differs = bool(ipv4_differences(self.port, self.state)) or not has_equal_settings(owner.stack, texts, changes)
        files: dict[str, File | None] = {}
        for path, content in changes.items():
            old = entries.get(path)
            file_mode = old.mode if old and path != bramble_file else mode if path == bramble_file else 0o644
            files[path] = None if content is None else File(content.encode(errors="surrogateescape"), file_mode)
        if bramble_file not in changes and (old := entries[bramble_file]) and old.mode != mode:
            files[bramble_file] = old._replace(mode=mode)
        others = {"/etc/hosts": File(self.options["hosts"].encode())}
        if os.path.isdir(CLOUD_FOLDER):
            others[CLOUD_FILE] = File(CLOUD_TEXT.encode())
        files.update({path: file for path, file in others.items() if read_file(path) != file})
        if self.port.get("nameservers") and owner.backend != "NetworkManager" and not os.path.exists("/run/systemd/resolve"):
            self._warn(f"{owner.backend} leaves name servers to systemd-resolved or resolvconf: cluster_dns may have no effect.")
        return owner, facts, files, differs

    def apply_ipv6_settings(self, dry_run: bool) -> dict[str, File | None]:
        """Set the kernel parameters for IPv6, unless it is a dry run. Return their file if it or the kernel differed."""
        kernel = f"/proc/sys/net/ipv6/conf/{self.interface}"
        if not os.path.isdir(kernel):
            return {}
        settings = ipv6_settings(self.port)
        lines = [f"net.ipv6.conf.{self.interface.replace('.', '/')}.{name} = {value}" for name, value in settings.items()]
        file = File("\n".join(["# From Bramble's inventory.", *lines, ""]).encode())
        # NetworkManager and networkd handle advertisements themselves, and set accept_ra to 0 for the kernel.
        checked = settings if settings["accept_ra"] == "0" else {"disable_ipv6": settings["disable_ipv6"]}
        stale = [address for address in self.state.dynamic_ipv6 if settings["accept_ra"] == "0"]
        is_set = read_file(SYSCTL_FILE) == file and all(
            file_text(read_file(f"{kernel}/{name}")).strip() == value for name, value in checked.items()
        )
        if is_set and not stale:
            return {}
        if not dry_run:
            write_file(SYSCTL_FILE, file)
            for name, value in settings.items():
                with open(f"{kernel}/{name}", "w", encoding="ascii") as setting:
                    setting.write(value)
            for address in stale:
                command_output("ip", "address", "delete", address, "dev", self.interface)
        return {SYSCTL_FILE: file}

    def check_addresses_are_free(self) -> None:
        """Check that no other host has the wanted addresses. Raises BrambleError, OSError."""
        for address in self.port.get("addresses") or []:
            wanted = ipaddress.ip_interface(str(address))
            if wanted.version == 6 or any(entry.split("/")[0] == str(wanted.ip) for entry in self.state.ipv4):
                continue
            if other := find_address_owner(self.interface, self.mac, str(wanted.ip)):
                raise BrambleError(
                    f"The address {wanted.ip} is in use: {other} answers to it at {self.interface}. Give that machine another "
                    "address, or change cluster_subnet, cluster_first_host or this node's node_number. Nothing was changed."
                )

    def commands(self, owner: Owner, facts: PortFacts) -> StackCommands:
        """Return the commands that make the stack apply changed files."""
        return stack_commands(owner, self.interface, self.options["uuid"], facts.nm_uuid)

    def stage(self, owner: Owner, facts: PortFacts, files: Mapping[str, File | None]) -> str:
        """Stage the change and start its timers; return its name. Raises RollbackError, OSError."""
        commands = self.commands(owner, facts)
        name = str(uuids.uuid4())
        self.change.stage_change(name, files, commands._asdict(), self.options["program"] or "")
        self.change.start_timers(self.options["timeout"])
        return name

    def pending_change_name(self) -> str:
        """Return the name of a pending change of an earlier run that has the wanted files; empty without a pending change.

        Raises RollbackError when another change is pending.
        """
        plan = self.change.staged_change()
        if not plan:
            return ""
        is_applied = all(read_file(path) == (entry and File.from_json(entry)) for path, entry in plan["new"].items())
        if is_applied and not ipv4_differences(self.port, self.state):
            return str(plan["name"])
        raise RollbackError(
            "A change of an earlier run was not confirmed. It is rolled back within two minutes; then run the same command again."
        )

    def wait_until_configured(self) -> None:
        """Wait until the port is configured. Raises BrambleError after CONFIGURE_SECONDS."""
        end = time.monotonic() + CONFIGURE_SECONDS
        while problem := ipv4_differences(self.port, read_port_state(self.interface)):
            if time.monotonic() > end:
                raise BrambleError(
                    f"{self.interface} is not configured: {'; '.join(problem)}. The rollback timer rolls back the change."
                )
            time.sleep(0.5)


def diff_entry(path: str, before: File | None, after: File | None) -> dict[str, str]:
    """Return the diff of a file, without its text if it may have a secret, such as the password of a wireless network."""
    old, new = file_text(before), file_text(after)
    if SECRET_KEY.search(old + new):
        old, new = "(with secrets)\n", "(with secrets, changed)\n" if after else ""
    return {"before_header": path, "after_header": path, "before": old, "after": new}


def apply_present(module: AnsibleModule) -> dict[str, Any]:
    """Change the network if it differs; return the result of the module. Raises BrambleError, RollbackError, OSError."""
    node = Node(module.params, module.warn)
    if name := node.pending_change_name():
        return {"changed": True, "change": name, "stack": "", "before": node.state.summary()}
    owner, facts, files, differs = node.plan()
    stack_name = owner.stack if owner.stack == owner.backend.lower() else f"{owner.stack}, carried out by {owner.backend}"
    result: dict[str, Any] = {"change": "", "stack": stack_name, "before": node.state.summary()}
    ipv6_files = node.apply_ipv6_settings(dry_run=True)
    after = {**files, **ipv6_files}
    result["changed"] = bool(after) or differs
    if module._diff:
        result["diff"] = [diff_entry(path, read_file(path), file) for path, file in after.items()]
    if module.check_mode or not result["changed"]:
        return result
    if differs:
        node.check_addresses_are_free()
        return {**result, "change": node.stage(owner, facts, files)}
    write_files(files)
    if configuration_path(owner.stack, node.interface)[0] in files and (
        problem := run_commands(node.commands(owner, facts).same)
    ):
        raise RollbackError(f"The files are changed, but the network is not: {problem}. Restart the node.")
    node.apply_ipv6_settings(dry_run=False)
    return result


def run(module: AnsibleModule) -> dict[str, Any]:
    """Do what `state` asks for; return the result of the module. Raises BrambleError, RollbackError, OSError."""
    name = module.params["change"] or ""
    if module.params["state"] == "present":
        return apply_present(module)
    if module.params["state"] == "rolled_back":
        outcome = PendingChange().outcome(name)
        return {"changed": False, "change": "", "why": "; ".join(filter(None, [outcome["why"], outcome["wrong"]]))}
    node = Node(module.params, module.warn)
    if node.change.staged_change():
        node.wait_until_configured()
    node.change.confirm(name)
    node.apply_ipv6_settings(dry_run=False)
    return {"changed": True, "change": ""}


def main() -> None:
    """Run the module."""
    spec = {
        "state": {"type": "str", "choices": ["present", "confirmed", "rolled_back"], "default": "present"},
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
        ("state", "rolled_back", ["change"]),
    ]
    run_module(spec, run, errors=(BrambleError, RollbackError, OSError), required_if=needed)


if __name__ == "__main__":
    main()
