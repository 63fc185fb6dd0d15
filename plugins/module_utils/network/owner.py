"""Find which network stack has a wired port, from what its programs say and the files that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.network.netplan import netplan_ports
from ansible_collections.bramble.cluster.plugins.module_utils.network.places import belongs_to


class PortFacts(NamedTuple):
    """What a node says of its wired port."""

    interface: str
    active: frozenset[str]  # of NetworkManager, systemd-networkd and networking, the services that run
    nm_state: str = ""  # `nmcli device show`: 100 (connected)
    nm_uuid: str = ""  # the connection that is active on the port
    nm_file: str = ""  # and its file
    networkd_state: str = ""  # `networkctl status`: configured, configuring, failed, unmanaged …
    networkd_file: str = ""
    ifupdown: bool = False  # ifup has brought it up

    def words(self) -> str:
        """Return it for people."""
        return (
            f"running: {', '.join(sorted(self.active)) or 'none of NetworkManager, systemd-networkd and networking'}; "
            f"{self.interface} in NetworkManager: {self.nm_state or 'unknown'}, in networkd: {self.networkd_state or 'unknown'}, "
            f"in ifupdown: {'up' if self.ifupdown else 'not up'}"
        )


class Owner(NamedTuple):
    """What has a port: one of STACKS, and the program that carries it out, the same or for netplan one of two."""

    stack: str
    backend: str


def parse_nmcli(text: str) -> dict[str, str]:
    """Return what `nmcli --terse` shows, value by name; a backslash escapes a colon or a backslash (nmcli(1))."""
    values = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            values[name] = re.sub(r"\\(.)", r"\1", value)
    return values


def parse_networkctl(text: str) -> tuple[str, str]:
    """Return state and file of a port from `networkctl --json=short status`; empty where it shows none."""
    try:
        status = json.loads(text)
        return str(status.get("AdministrativeState") or ""), str(status.get("NetworkFile") or "")
    except (ValueError, AttributeError):
        return "", ""


def find_owner(facts: PortFacts, texts: Mapping[str, str]) -> Owner:
    """Return the stack that has the port now; if none has, the one that would take it.

    :param texts: path -> text of what is in PLACES
    :raises BrambleError: when no stack that Bramble knows has it
    """
    # "connected (externally)" is somebody else's address that NetworkManager has seen.
    nm = bool(facts.nm_uuid) and "externally" not in facts.nm_state
    networkd = facts.networkd_state not in ("", "unmanaged")
    netplan = any(netplan_ports(text, facts.interface) for path, text in texts.items() if belongs_to("netplan", path))
    if "NetworkManager" in facts.active and nm:
        of_netplan = facts.nm_file.startswith("/run/NetworkManager/system-connections/netplan-")
        return Owner("netplan" if of_netplan else "networkmanager", "NetworkManager")
    if "systemd-networkd" in facts.active and networkd:
        return Owner("netplan" if "/run/systemd/network/10-netplan-" in facts.networkd_file else "networkd", "networkd")
    if facts.ifupdown:
        return Owner("ifupdown", "ifupdown")
    if "NetworkManager" in facts.active and not facts.nm_state.startswith("10 "):  # NM_DEVICE_STATE_UNMANAGED
        return Owner("netplan" if netplan else "networkmanager", "NetworkManager")
    if "systemd-networkd" in facts.active:
        return Owner("netplan" if netplan else "networkd", "networkd")
    raise BrambleError(
        f"Nothing that Bramble knows has {facts.interface} ({facts.words()}). It knows NetworkManager, netplan, systemd-networkd "
        "and ifupdown. Give the port to one of these, or flash another image (playbooks/cards.yml). Nothing was changed."
    )
