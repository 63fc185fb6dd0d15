"""Compare the addresses and gateways of a wired port with its configuration."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, NamedTuple

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError


class PortState(NamedTuple):
    """The state of a port in the kernel."""

    ipv4: tuple[str, ...]  # as ADDRESS/LENGTH
    gateways: tuple[str, ...]
    dynamic_ipv6: tuple[str, ...]  # the addresses from a router or from DHCP

    def summary(self) -> str:
        """Return address and gateway as a text."""
        return f"{', '.join(self.ipv4) or 'no address'}{f', gateway {self.gateways[0]}' if self.gateways else ''}"


def parse_port_state(address: Any, route: Any, interface: str) -> PortState:
    """Return the state of a port, from the parsed output of `ip -json address show` and `ip -json route show default`."""
    addresses = [entry for port in address if port.get("ifname") == interface for entry in port.get("addr_info", [])]
    addresses = [
        {**entry, "address": f"{entry['local']}/{entry['prefixlen']}"} for entry in addresses if entry.get("scope") == "global"
    ]
    return PortState(
        tuple(entry["address"] for entry in addresses if entry["family"] == "inet"),
        tuple(str(entry["gateway"]) for entry in route if entry.get("dev") == interface and entry.get("gateway")),
        tuple(entry["address"] for entry in addresses if entry["family"] == "inet6" and entry.get("dynamic")),
    )


def ipv4_differences(port: Mapping[str, Any], state: PortState) -> list[str]:
    """Return the differences between the IPv4 state of a port and its configuration, as phrases.

    Further addresses with the prefix /32, which load balancers add, do not count.

    :param port: one of ``ethernets`` of netplan's network-config version 2
    """
    wanted = sorted(str(ipaddress.ip_interface(address)) for address in port.get("addresses") or [] if ":" not in str(address))
    found = sorted(address for address in state.ipv4 if not address.endswith("/32") or address in wanted)
    routes = [route for route in port.get("routes") or [] if route["to"] == "default"]
    gateways = tuple(str(route["via"]) for route in routes if ":" not in str(route["via"]))
    differences = []
    if found != wanted:
        differences.append(f"it has {' and '.join(found) or 'no IPv4 address'} instead of {' and '.join(wanted) or 'none'}")
    if state.gateways != gateways:
        differences.append(
            f"its gateway is {' and '.join(state.gateways) or 'none'} instead of {' and '.join(gateways) or 'none'}"
        )
    return differences


def ipv6_settings(port: Mapping[str, Any]) -> dict[str, str]:
    """Return the kernel parameters for the IPv6 of a port (net.ipv6.conf.PORT.*).

    They enforce the configuration with every stack. For example, netplan makes NetworkManager leave IPv6 to the kernel, which
    accepts what a router advertises.
    """
    accepts = "1" if port.get("accept-ra") or port.get("dhcp6") else "0"
    disabled = port.get("link-local") == [] and not any(":" in str(address) for address in port.get("addresses") or [])
    return {"disable_ipv6": "1" if disabled else "0", "accept_ra": accepts, "autoconf": accepts}


def check_gateways(port: Mapping[str, Any]) -> None:
    """Check that each gateway is in a network of the port. Raises BrambleError otherwise."""
    networks = [ipaddress.ip_interface(str(address)).network for address in port.get("addresses") or []]
    for route in port.get("routes") or []:
        if not any(ipaddress.ip_address(str(route["via"])) in network for network in networks):
            raise BrambleError(
                f"The gateway {route['via']} is in none of the networks of the port ({', '.join(map(str, networks))}). Set "
                "cluster_gateway to an address in cluster_subnet, or leave it empty. Nothing was changed."
            )
