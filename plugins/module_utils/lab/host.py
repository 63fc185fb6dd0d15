"""Gather the facts of a host that the probes of other hosts need, to try to reach the internet through it."""

from __future__ import annotations

import json
from typing import Any

from ansible_collections.bramble.cluster.plugins.module_utils.lab.packets import link_local_address
from ansible_collections.bramble.cluster.plugins.module_utils.lab.states import command_output


def listening_ports() -> list[int]:
    """Return the TCP ports on which this host listens, except on its loopback (proc_net_tcp, docs.kernel.org)."""
    ports = set()
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/net/{name}", encoding="ascii") as file:
                fields = [line.split() for line in file][1:]
        except FileNotFoundError:
            continue
        for _, local_address, _, state, *_ in fields:
            address, _, port = local_address.partition(":")
            # Addresses are hexadecimal words in the byte order of the host: 127.0.0.0/8, and ::1.
            is_loopback = (len(address) == 8 and address.endswith("7F")) or address == "0" * 24 + "01000000"
            if state == "0A" and not is_loopback:
                ports.add(int(port, 16))
    return sorted(ports)


def host_facts(interface: str, uplink: str = "") -> dict[str, Any]:
    """Return what other hosts need to know of this host.

    :param interface: the port in the lab
    :param uplink: the port to the outside; by default that of the default route, unless it is `interface`
    :returns: mac and link_local (address) of the port in the lab; uplink, its gateway, uplink_addresses; listening (TCP ports)
    """
    links = {link["ifname"]: link for link in json.loads(command_output("ip", "-json", "address") or "[]")}
    port = links.get(interface, {"addr_info": []})
    link_local = [entry["local"] for entry in port["addr_info"] if entry["family"] == "inet6" and entry["scope"] == "link"]
    route: dict[str, str] = next(iter(json.loads(command_output("ip", "-json", "-4", "route", "show", "default") or "[]")), {})
    uplink = uplink or (route.get("dev", "") if route.get("dev") != interface else "")
    uplink_addresses = [
        entry["local"] for entry in links.get(uplink, {"addr_info": []})["addr_info"] if entry["scope"] == "global"
    ]
    return {
        "mac": port.get("address", ""),
        "link_local": (link_local or [link_local_address(port.get("address", ""))])[0],
        "uplink": uplink,
        "gateway": route.get("gateway", "") if route.get("dev") == uplink else "",
        "uplink_addresses": uplink_addresses,
        "listening": listening_ports(),
    }
