"""Translate the configuration of a wired port from the form of netplan into those of the other network stacks."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

# The supported settings. `optional` is used only for netplan: a keyfile has no such setting, and with networkd it would make
# systemd-networkd-wait-online wait until its timeout, because no port is required.
PORT_KEYS = {"dhcp4", "dhcp6", "accept-ra", "link-local", "optional", "addresses", "routes", "nameservers"}
ROUTE_KEYS = {"to", "via", "metric"}
NAMESERVERS_KEYS = {"addresses", "search"}
DEFAULT_ROUTES = {4: "0.0.0.0/0", 6: "::/0"}


def _check_keys(what: str, given: Mapping[str, Any], known: set[str]) -> None:
    """Check that a mapping has only known keys. Raises AnsibleFilterError."""
    if unknown := sorted(set(given) - known):
        raise AnsibleFilterError(
            f"{what} has settings that Bramble does not support: {', '.join(unknown)}. Use only {', '.join(sorted(known))}."
        )


def _addresses_of_version(version: int, addresses: Iterable[str]) -> list[str]:
    """Return the addresses of an IP version, 4 or 6."""
    return [str(address) for address in addresses if ipaddress.ip_interface(str(address)).version == version]


def _routes(version: int, port: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the routes of an IP version: target, gateway and metric, which is empty if there is none."""
    routes = []
    for route in port.get("routes") or []:
        _check_keys("A route", route, ROUTE_KEYS)
        if _addresses_of_version(version, [route["via"]]):
            target = DEFAULT_ROUTES[version] if route["to"] == "default" else str(route["to"])
            routes.append((target, str(route["via"]), str(route.get("metric", ""))))
    return routes


def _keyfile_section(version: int, port: Mapping[str, Any]) -> list[str]:
    """Return the lines of the section ipv4 or ipv6 of a keyfile."""
    addresses = _addresses_of_version(version, port.get("addresses") or [])
    automatic = bool(port.get(f"dhcp{version}")) or (version == 6 and bool(port.get("accept-ra")))
    # The method auto would accept the addresses that a router advertises.
    without_addresses = "link-local" if version == 6 and port.get("link-local") != [] else "disabled"
    method = "auto" if automatic else "manual" if addresses else without_addresses
    lines = [f"[ipv{version}]", f"method={method}"]
    lines += [f"address{number}={address}" for number, address in enumerate(addresses, 1)]
    routes = _routes(version, port)
    lines += [f"route{number}={','.join(filter(None, route))}" for number, route in enumerate(routes, 1)]
    if method == "manual" and not any(target in DEFAULT_ROUTES.values() for target, _, _ in routes):
        lines.append("never-default=true")
    names = port.get("nameservers") or {}
    _check_keys("nameservers", names, NAMESERVERS_KEYS)
    for key, values in (
        ("dns", _addresses_of_version(version, names.get("addresses") or [])),
        ("dns-search", names.get("search") or []),
    ):
        if values and method not in ("disabled", "link-local"):
            lines.append(f"{key}={''.join(f'{value};' for value in values)}")
    return lines


def keyfile(port: Mapping[str, Any], interface: str, uuid: str) -> str:
    """Return a NetworkManager connection in keyfile format (nm-settings-keyfile(5)).

    :param port: one of ``ethernets`` of netplan's network-config version 2
    :param interface: the name of the port, such as eth0
    :param uuid: the id of the connection
    :raises AnsibleFilterError: when the port has a setting that is not supported
    """
    _check_keys(interface, port, PORT_KEYS)
    lines = [
        "[connection]",
        f"id=bramble-{interface}",
        f"uuid={uuid}",
        "type=ethernet",
        f"interface-name={interface}",
        # This connection has priority over others of the port that the image may have.
        "autoconnect-priority=999",
    ]
    for version in (4, 6):
        lines += ["", *_keyfile_section(version, port)]
    return "\n".join([*lines, ""])


def networkd(port: Mapping[str, Any], interface: str) -> str:
    """Return the configuration of a port as a file of systemd-networkd (systemd.network(5)). Raises AnsibleFilterError."""
    _check_keys(interface, port, PORT_KEYS)
    names = port.get("nameservers") or {}
    _check_keys("nameservers", names, NAMESERVERS_KEYS)
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
    """Return the configuration of a port as stanzas of ifupdown (interfaces(5)). Raises AnsibleFilterError."""
    _check_keys(interface, port, PORT_KEYS)
    names = port.get("nameservers") or {}
    _check_keys("nameservers", names, NAMESERVERS_KEYS)
    lines = ["# From Bramble's inventory.", f"auto {interface}"]
    for version, family in ((4, "inet"), (6, "inet6")):
        addresses = _addresses_of_version(version, port.get("addresses") or [])
        if port.get(f"dhcp{version}"):
            lines += [f"iface {interface} {family} dhcp"]
        elif version == 6 and port.get("accept-ra"):
            lines += [f"iface {interface} inet6 auto"]
        elif version == 4 and not addresses:
            lines += [f"iface {interface} inet manual"]
        # Without a stanza the settings of the kernel apply (net.ipv6.conf).
        for address in addresses:
            lines += [f"iface {interface} {family} static", f"    address {address}"]
        if addresses:
            for target, gateway, metric in _routes(version, port):
                rest = f" metric {metric}" if metric else ""
                lines += [f"    up ip -{version} route replace {target} via {gateway} dev {interface}{rest}"]
            if servers := _addresses_of_version(version, names.get("addresses") or []):
                lines += [f"    dns-nameservers {' '.join(servers)}"]
            if version == 4 and names.get("search"):
                lines += [f"    dns-search {' '.join(names['search'])}"]
    return "\n".join([*lines, ""])


def port_files(port: Mapping[str, Any], interface: str, uuid: str) -> dict[str, str]:
    """Return the configuration of a port for each stack, as the module network_static takes them. Raises AnsibleFilterError."""
    return {
        "networkmanager": keyfile(port, interface, uuid),
        "netplan": json.dumps({"network": {"version": 2, "ethernets": {interface: port}}}),
        "networkd": networkd(port, interface),
        "ifupdown": ifupdown(port, interface),
    }


def rollback_outcome(old_addresses: str, rollback_result: Mapping[str, Any], login_result: Mapping[str, Any]) -> str:
    """Return a sentence that tells how a change that was not confirmed has ended.

    :param old_addresses: the addresses that the node had before
    :param rollback_result: the result of the module network_static with state rolled_back
    :param login_result: the result of waiting for the node at its old address, which has a message if the node did not answer
    """
    if "why" in rollback_result:
        return f"The change was rolled back ({rollback_result['why']}): the node has {old_addresses} again."
    if "msg" in login_result:
        return "The node does not answer at its old address yet. Restart the node, which also rolls back the change."
    return f"The node answers at its old address, but the outcome is unknown: {rollback_result.get('msg', 'no answer')}"


class FilterModule:
    """Filters for the network of a node."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"keyfile": keyfile, "port_files": port_files, "rollback_outcome": rollback_outcome}
