"""A wired port as NetworkManager keeps it, from the way netplan writes it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

# `optional` is for those who wait for the network at boot; a keyfile has no such thing.
PORT = {"dhcp4", "dhcp6", "accept-ra", "optional", "addresses", "routes", "nameservers"}
ROUTE = {"to", "via", "metric"}
NAMESERVERS = {"addresses", "search"}


def _known(what: str, given: Mapping[str, Any], known: set[str]) -> None:
    if odd := sorted(set(given) - known):
        raise AnsibleFilterError(
            f"{what}: {', '.join(odd)} can not be said in a NetworkManager keyfile by Bramble, only {', '.join(sorted(known))}."
        )


def _of(version: int, addresses: Iterable[str]) -> list[str]:
    return [str(address) for address in addresses if ipaddress.ip_interface(str(address)).version == version]


def _family(version: int, port: Mapping[str, Any]) -> list[str]:
    addresses = _of(version, port.get("addresses") or [])
    automatic = bool(port.get(f"dhcp{version}")) or (version == 6 and bool(port.get("accept-ra")))
    # Only link-local: without this, IPv6 would take what a router advertises.
    method = "auto" if automatic else "manual" if addresses else "link-local" if version == 6 else "disabled"
    lines = [f"[ipv{version}]", f"method={method}"]
    lines += [f"address{number}={address}" for number, address in enumerate(addresses, 1)]
    routes = []
    for route in port.get("routes") or []:
        _known("A route", route, ROUTE)
        if _of(version, [route["via"]]):
            target = ("0.0.0.0/0" if version == 4 else "::/0") if route["to"] == "default" else str(route["to"])
            routes.append(",".join([target, str(route["via"]), *([str(route["metric"])] if "metric" in route else [])]))
    lines += [f"route{number}={route}" for number, route in enumerate(routes, 1)]
    if method == "manual" and not any(route.startswith(("0.0.0.0/0,", "::/0,")) for route in routes):
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


class FilterModule:
    """Filters for the network of a node."""

    def filters(self) -> dict[str, Any]:
        return {"keyfile": keyfile}
