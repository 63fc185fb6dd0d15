"""What a wired port has in the kernel, and what it should have."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, NamedTuple

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError


class Live(NamedTuple):
    """What the kernel has of a port."""

    ipv4: tuple[str, ...]  # as ADDRESS/LENGTH
    gateways: tuple[str, ...]
    dynamic_ipv6: tuple[str, ...]  # what came from a router or DHCP

    def words(self) -> str:
        """Return it for people."""
        return f"{', '.join(self.ipv4) or 'no address'}{f', gateway {self.gateways[0]}' if self.gateways else ''}"


def parse_live(address: Any, route: Any, interface: str) -> Live:
    """Return what a port has, from the parsed output of `ip -json address show` and `ip -json route show default`."""
    infos = [info for port in address if port.get("ifname") == interface for info in port.get("addr_info", [])]
    infos = [{**info, "address": f"{info['local']}/{info['prefixlen']}"} for info in infos if info.get("scope") == "global"]
    return Live(
        tuple(info["address"] for info in infos if info["family"] == "inet"),
        tuple(str(entry["gateway"]) for entry in route if entry.get("dev") == interface and entry.get("gateway")),
        tuple(info["address"] for info in infos if info["family"] == "inet6" and info.get("dynamic")),
    )


def ipv4_differences(port: Mapping[str, Any], now: Live) -> list[str]:
    """Return in which ways a port's IPv4 is not as it should be, for people.

    An address of one host only (/32), as a load balancer has, is no second one.

    :param port: one of ``ethernets`` of netplan's network-config version 2
    """
    wanted = sorted(str(ipaddress.ip_interface(address)) for address in port.get("addresses") or [] if ":" not in str(address))
    found = sorted(address for address in now.ipv4 if not address.endswith("/32") or address in wanted)
    routes = [route for route in port.get("routes") or [] if route["to"] == "default"]
    gateways = tuple(str(route["via"]) for route in routes if ":" not in str(route["via"]))
    wrong = []
    if found != wanted:
        wrong.append(f"it has {' and '.join(found) or 'no IPv4 address'} instead of {' and '.join(wanted) or 'none'}")
    if now.gateways != gateways:
        wrong.append(f"its gateway is {' and '.join(now.gateways) or 'none'} instead of {' and '.join(gateways) or 'none'}")
    return wrong


def ipv6_settings(port: Mapping[str, Any]) -> dict[str, str]:
    """Return the kernel's settings for a port's IPv6 (net.ipv6.conf.PORT.*), so that the policy holds whoever has the port.

    netplan, for example, tells NetworkManager to leave IPv6 to the kernel, which takes what a router advertises.
    """
    takes = "1" if port.get("accept-ra") or port.get("dhcp6") else "0"
    disabled = port.get("link-local") == [] and not any(":" in str(address) for address in port.get("addresses") or [])
    return {"disable_ipv6": "1" if disabled else "0", "accept_ra": takes, "autoconf": takes}


def check_gateways(port: Mapping[str, Any]) -> None:
    """Check that each gateway is in a network of the port. Raises BrambleError."""
    networks = [ipaddress.ip_interface(str(address)).network for address in port.get("addresses") or []]
    for route in port.get("routes") or []:
        if not any(ipaddress.ip_address(str(route["via"])) in network for network in networks):
            raise BrambleError(
                f"The gateway {route['via']} is in none of the port's networks ({', '.join(map(str, networks))}). Set "
                "cluster_gateway to an address in cluster_subnet, or leave it empty. Nothing was changed."
            )
