"""What others need to know of a host in order to try their way through it."""

from __future__ import annotations

import json
from typing import Any

from ansible_collections.bramble.cluster.plugins.module_utils.lab.packets import eui64
from ansible_collections.bramble.cluster.plugins.module_utils.lab.states import ask


def listening() -> list[int]:
    """The TCP ports at which this host listens beyond its loopback (proc_net_tcp, docs.kernel.org)."""
    ports = set()
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/net/{name}", encoding="ascii") as file:
                fields = [line.split() for line in file][1:]
        except FileNotFoundError:
            continue
        for _, local, _, state, *_ in fields:
            address, _, port = local.partition(":")
            # Hexadecimal words in the host's order: 127.0.0.0/8, and ::1.
            loopback = (len(address) == 8 and address.endswith("7F")) or address == "0" * 24 + "01000000"
            if state == "0A" and not loopback:
                ports.add(int(port, 16))
    return sorted(ports)


def about(interface: str, uplink: str = "") -> dict[str, Any]:
    """What others need to know of a host in order to try their way through it.

    Returns mac and link_local of the port; uplink, the port given or that of the default route; its gateway; uplink_addresses;
    listening.
    """
    every = {link["ifname"]: link for link in json.loads(ask("ip", "-json", "address") or "[]")}
    own = every.get(interface, {"addr_info": []})
    local = [entry["local"] for entry in own["addr_info"] if entry["family"] == "inet6" and entry["scope"] == "link"]
    route: dict[str, str] = next(iter(json.loads(ask("ip", "-json", "-4", "route", "show", "default") or "[]")), {})
    uplink = uplink or (route.get("dev", "") if route.get("dev") != interface else "")
    there = [entry["local"] for entry in every.get(uplink, {"addr_info": []})["addr_info"] if entry["scope"] == "global"]
    return {
        "mac": own.get("address", ""),
        "link_local": (local or [eui64(own.get("address", ""))])[0],
        "uplink": uplink,
        "gateway": route.get("gateway", "") if route.get("dev") == uplink else "",
        "uplink_addresses": there,
        "listening": listening(),
    }
