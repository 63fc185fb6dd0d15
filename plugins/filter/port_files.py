"""A wired port in the words of each program that may have it, from the way netplan writes it."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

# `optional` is for those who wait for the network at boot: a keyfile has no such thing, and systemd-networkd-wait-online waits in
# vain where networkd has no port to wait for.
PORT = {"dhcp4", "dhcp6", "accept-ra", "link-local", "optional", "addresses", "routes", "nameservers"}
ROUTE = {"to", "via", "metric"}
NAMESERVERS = {"addresses", "search"}
EVERYWHERE = {4: "0.0.0.0/0", 6: "::/0"}


def _known(what: str, given: Mapping[str, Any], known: set[str]) -> None:
    if odd := sorted(set(given) - known):
        raise AnsibleFilterError(f"{what}: {', '.join(odd)} can not be said by Bramble, only {', '.join(sorted(known))}.")


def _of(version: int, addresses: Iterable[str]) -> list[str]:
    return [str(address) for address in addresses if ipaddress.ip_interface(str(address)).version == version]


def _routes(version: int, port: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Target, gateway and metric, empty if there is none."""
    routes = []
    for route in port.get("routes") or []:
        _known("A route", route, ROUTE)
        if _of(version, [route["via"]]):
            target = EVERYWHERE[version] if route["to"] == "default" else str(route["to"])
            routes.append((target, str(route["via"]), str(route.get("metric", ""))))
    return routes


def _family(version: int, port: Mapping[str, Any]) -> list[str]:
    addresses = _of(version, port.get("addresses") or [])
    automatic = bool(port.get(f"dhcp{version}")) or (version == 6 and bool(port.get("accept-ra")))
    # Only link-local: without this, IPv6 would take what a router advertises.
    without = "link-local" if version == 6 and port.get("link-local") != [] else "disabled"
    method = "auto" if automatic else "manual" if addresses else without
    lines = [f"[ipv{version}]", f"method={method}"]
    lines += [f"address{number}={address}" for number, address in enumerate(addresses, 1)]
    routes = _routes(version, port)
    lines += [f"route{number}={','.join(filter(None, route))}" for number, route in enumerate(routes, 1)]
    if method == "manual" and not any(target in EVERYWHERE.values() for target, _, _ in routes):
        lines.append("never-default=true")
    names = port.get("nameservers") or {}
    _known("nameservers", names, NAMESERVERS)
    for key, values in (("dns", _of(version, names.get("addresses") or [])), ("dns-search", names.get("search") or [])):
        if values and method not in ("disabled", "link-local"):
            lines.append(f"{key}={''.join(f'{value};' for value in values)}")
    return lines


def keyfile(port: Mapping[str, Any], interface: str, uuid: str) -> str:
    """A NetworkManager connection in keyfile format (nm-settings-keyfile(5)).

    :param port: one of ``ethernets`` of netplan's network-config version 2
    :param interface: the name of the port, such as eth0
    :param uuid: identifies the connection
    :raises AnsibleFilterError: when the port has a setting that this does not know
    """
    _known(interface, port, PORT)
    lines = [
        "[connection]",
        f"id=bramble-{interface}",
        f"uuid={uuid}",
        "type=ethernet",
        f"interface-name={interface}",
        # Before any other connection of the port that the image may have.
        "autoconnect-priority=999",
    ]
    for version in (4, 6):
        lines += ["", *_family(version, port)]
    return "\n".join([*lines, ""])


def networkd(port: Mapping[str, Any], interface: str) -> str:
    """The same as a file of systemd-networkd (systemd.network(5)). Raises AnsibleFilterError."""
    _known(interface, port, PORT)
    names = port.get("nameservers") or {}
    _known("nameservers", names, NAMESERVERS)
    dhcp = {(True, True): "yes", (True, False): "ipv4", (False, True): "ipv6", (False, False): "no"}
    lines = [
        "# From Bramble's inventory.",
        "[Match]",
        f"Name={interface}",
        "",
        "[Network]",
        f"DHCP={dhcp[bool(port.get('dhcp4')), bool(port.get('dhcp6'))]}",
        f"LinkLocalAddressing={'no' if port.get('link-local') == [] else 'ipv6'}",
        f"IPv6AcceptRA={'yes' if port.get('accept-ra') else 'no'}",
        *(f"Address={address}" for address in port.get("addresses") or []),
        *(f"DNS={address}" for address in names.get("addresses") or []),
        *([f"Domains={' '.join(names['search'])}"] if names.get("search") else []),
    ]
    for target, gateway, metric in [*_routes(4, port), *_routes(6, port)]:
        lines += ["", "[Route]", f"Destination={target}", f"Gateway={gateway}", *([f"Metric={metric}"] if metric else [])]
    return "\n".join([*lines, ""])


def ifupdown(port: Mapping[str, Any], interface: str) -> str:
    """The same as stanzas of ifupdown (interfaces(5)). Raises AnsibleFilterError."""
    _known(interface, port, PORT)
    names = port.get("nameservers") or {}
    _known("nameservers", names, NAMESERVERS)
    lines = ["# From Bramble's inventory.", f"auto {interface}"]
    for version, family in ((4, "inet"), (6, "inet6")):
        addresses = _of(version, port.get("addresses") or [])
        if port.get(f"dhcp{version}"):
            lines += [f"iface {interface} {family} dhcp"]
        elif version == 6 and port.get("accept-ra"):
            lines += [f"iface {interface} inet6 auto"]
        elif version == 4 and not addresses:
            lines += [f"iface {interface} inet manual"]
        # Without a stanza the kernel does what it is told elsewhere (net.ipv6.conf).
        for address in addresses:
            lines += [f"iface {interface} {family} static", f"    address {address}"]
        if addresses:
            for target, gateway, metric in _routes(version, port):
                rest = f" metric {metric}" if metric else ""
                lines += [f"    up ip -{version} route replace {target} via {gateway} dev {interface}{rest}"]
            if servers := _of(version, names.get("addresses") or []):
                lines += [f"    dns-nameservers {' '.join(servers)}"]
            if version == 4 and names.get("search"):
                lines += [f"    dns-search {' '.join(names['search'])}"]
    return "\n".join([*lines, ""])


def port_files(port: Mapping[str, Any], interface: str, uuid: str) -> dict[str, str]:
    """A port in the words of each stack, as the module network_static takes them. Raises AnsibleFilterError."""
    return {
        "networkmanager": keyfile(port, interface, uuid),
        "netplan": json.dumps({"network": {"version": 2, "ethernets": {interface: port}}}),
        "networkd": networkd(port, interface),
        "ifupdown": ifupdown(port, interface),
    }


def rollback_outcome(before: str, undone: Mapping[str, Any], back: Mapping[str, Any]) -> str:
    """Return a sentence on how a change ended that was not confirmed.

    :param before: the addresses that the node had
    :param undone: the result of the module network_static with state undone
    :param back: the result of waiting for the node at its old address, which has a message if it did not answer
    """
    if "why" in undone:
        return f"It was undone ({undone['why']}): the node has {before} again."
    if "msg" in back:
        return "The node does not answer at its old address yet. Restart it: that undoes the change, too."
    return f"The node answers at its old address, but: {undone.get('msg', 'no answer')}"


class FilterModule:
    """Filters for the network of a node."""

    def filters(self) -> dict[str, Any]:
        return {"keyfile": keyfile, "port_files": port_files, "rollback_outcome": rollback_outcome}
