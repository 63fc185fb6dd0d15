"""Find the network stack that manages a wired port, from the output of its programs and from its files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.network.netplan import netplan_ports
from ansible_collections.bramble.cluster.plugins.module_utils.network.places import belongs_to


class PortFacts(NamedTuple):
    """The facts of a node about its wired port."""

    interface: str
    active: frozenset[str]  # the services that run, of NetworkManager, systemd-networkd and networking
    nm_state: str = ""  # in `nmcli device show`, such as 100 (connected)
    nm_uuid: str = ""  # the active connection of the port
    nm_file: str = ""  # the file of that connection
    networkd_state: str = ""  # in `networkctl status`: configured, configuring, failed, unmanaged …
    networkd_file: str = ""
    ifupdown: bool = False  # ifup has set the port up

    def summary(self) -> str:
        """Return the facts as a text."""
        return (
            f"running: {', '.join(sorted(self.active)) or 'none of NetworkManager, systemd-networkd and networking'}; "
            f"{self.interface} in NetworkManager: {self.nm_state or 'unknown'}, in networkd: {self.networkd_state or 'unknown'}, "
            f"in ifupdown: {'up' if self.ifupdown else 'not up'}"
        )


class Owner(NamedTuple):
    """What manages a port: one of STACKS, and the backend, which is the same or for netplan one of two programs."""

    stack: str
    backend: str


def parse_nmcli(text: str) -> dict[str, str]:
    """Return the output of `nmcli --terse`, value by name. A backslash escapes a colon or a backslash (nmcli(1))."""
    values = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            values[name] = re.sub(r"\\(.)", r"\1", value)
    return values


def parse_networkctl(text: str) -> tuple[str, str]:
    """Return the state and the file of a port from `networkctl --json=short status`; each is empty if it is missing."""
    try:
        status = json.loads(text)
        return str(status.get("AdministrativeState") or ""), str(status.get("NetworkFile") or "")
    except (ValueError, AttributeError):
        return "", ""


def find_owner(facts: PortFacts, texts: Mapping[str, str]) -> Owner:
    """Return the stack that manages the port now, or else the stack that would manage it.

    :param texts: path -> text of the files in PLACES
    :raises BrambleError: when none of STACKS manages it
    """
    # "connected (externally)" means that another program has set the address.
    has_nm_connection = bool(facts.nm_uuid) and "externally" not in facts.nm_state
    is_networkd_port = facts.networkd_state not in ("", "unmanaged")
    is_in_netplan = any(netplan_ports(text, facts.interface) for path, text in texts.items() if belongs_to("netplan", path))
    if "NetworkManager" in facts.active and has_nm_connection:
        of_netplan = facts.nm_file.startswith("/run/NetworkManager/system-connections/netplan-")
        return Owner("netplan" if of_netplan else "networkmanager", "NetworkManager")
    if "systemd-networkd" in facts.active and is_networkd_port:
        return Owner("netplan" if "/run/systemd/network/10-netplan-" in facts.networkd_file else "networkd", "networkd")
    if facts.ifupdown:
        return Owner("ifupdown", "ifupdown")
    if "NetworkManager" in facts.active and not facts.nm_state.startswith("10 "):  # NM_DEVICE_STATE_UNMANAGED
        return Owner("netplan" if is_in_netplan else "networkmanager", "NetworkManager")
    if "systemd-networkd" in facts.active:
        return Owner("netplan" if is_in_netplan else "networkd", "networkd")
    raise BrambleError(
        f"No network stack that Bramble supports manages {facts.interface} ({facts.summary()}). Bramble supports NetworkManager, "
        "netplan, systemd-networkd and ifupdown. Let one of these manage the port, or flash another image (playbooks/cards.yml). "
        "Nothing was changed."
    )
