"""Probe the state of a host of the lab: a function for each kind of probe that reads a setting and sends nothing.

Such a probe gets through when the setting leaves a way out of the lab open. Needs only iproute2, nft and apt.
"""

from __future__ import annotations

import glob
import json
import os
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

Answer = tuple[bool, str]
"""Whether the probe got through, and a description of what it saw."""
Row = Mapping[str, Any]
"""A probe: its `kind`, and the options of that kind."""


def command_output(*command: str) -> str:
    """Return the standard output of a command; empty when it does not exist or does not end."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def nameservers() -> list[str]:
    """Return the name servers in resolv.conf(5)."""
    try:
        with open("/etc/resolv.conf", encoding="utf-8", errors="replace") as file:
            lines = [line.split() for line in file]
    except OSError:
        return []
    return [words[1].split("%")[0] for words in lines if words[:1] == ["nameserver"] and len(words) > 1]


def probe_default_route(row: Row) -> Answer:
    """Look for a default route of IPv4 or, with `family` 6, IPv6, in any routing table."""
    found = command_output("ip", f"-{row['family']}", "route", "show", "default", "table", "all").strip()
    routes = [line for line in found.splitlines() if not line.startswith(("unreachable", "blackhole", "prohibit"))]
    return bool(routes), "; ".join(routes) or "none"


def probe_resolver(row: Row) -> Answer:
    """Look for a configured name server."""
    return bool(nameservers()), ", ".join(nameservers()) or "none"


def probe_ipv6(row: Row) -> Answer:
    """Look for an IPv6 address on any port, and for a port that would accept one from a router."""
    found = []
    for link in json.loads(command_output("ip", "-json", "-6", "address") or "[]"):
        found += [f"{entry['local']} on {link['ifname']}" for entry in link.get("addr_info", []) if link["ifname"] != "lo"]
    for path in glob.glob("/proc/sys/net/ipv6/conf/*/disable_ipv6"):
        name = path.split("/")[-2]
        with open(path, encoding="ascii") as file:
            if name in ("default", row["interface"]) and file.read().strip() == "0":
                found.append(f"enabled for {name}")
    return bool(found), ", ".join(found) or "off"


def probe_links(row: Row) -> Answer:
    """Look for a port that is up, other than the loopback and `interface`."""
    found = [
        link
        for link in json.loads(command_output("ip", "-json", "link") or "[]")
        if link["ifname"] not in ("lo", row["interface"])
    ]
    active_ports = [f"{link['ifname']} ({link['address']})" for link in found if "UP" in link["flags"]]
    inactive_ports = [
        link["ifname"]
        for link in found
        if "UP" not in link["flags"] and os.path.exists(f"/sys/class/net/{link['ifname']}/device")
    ]
    # A port that is down does not get through, but a hostile root could set it up.
    return bool(active_ports), ", ".join(active_ports) or (
        f"down, but unplug it: {', '.join(inactive_ports)}" if inactive_ports else "none"
    )


def probe_radios(row: Row) -> Answer:
    """Look for a radio that is not blocked, and for a config.txt without the lines in `overlays`, which disable the radios."""
    found = []
    for path in sorted(glob.glob("/sys/class/rfkill/*")):
        with open(f"{path}/soft", encoding="ascii") as soft_block_file, open(f"{path}/type", encoding="ascii") as type_file:
            if soft_block_file.read().strip() == "0":
                found.append(f"{type_file.read().strip()} is not blocked")
    found += [f"{os.path.basename(path)} exists" for path in sorted(glob.glob("/sys/class/bluetooth/hci*"))]
    for path in ("/boot/firmware/config.txt", "/boot/config.txt"):
        if os.path.exists(path):
            with open(path, encoding="utf-8", errors="replace") as file:
                lines = {line.strip() for line in file}
            found += [f"{path} has no {overlay}" for overlay in row["overlays"] if overlay not in lines]
            break
    return bool(found), ", ".join(found) or "off"


def probe_packages(row: Row) -> Answer:
    """Look for a source of packages other than the URL `mirror`."""
    sources = [
        line.split("'")[1] for line in command_output("apt-get", "--print-uris", "update").splitlines() if line.startswith("'")
    ]
    others = [source for source in sources if not row["mirror"] or not source.startswith(row["mirror"])]
    return bool(others), others[0] if others else "none"


def probe_firewall(row: Row) -> Answer:
    """Look for a hook in `hooks` that the nftables table `table` does not close, or a table that is not loaded."""
    try:
        listed = json.loads(command_output("nft", "--json", "list", "table", "inet", row["table"]) or "{}")
    except ValueError:
        listed = {}
    policies = {
        entry["chain"]["hook"]: entry["chain"]["policy"]
        for entry in listed.get("nftables", [])
        if "hook" in entry.get("chain", {})
    }
    open_hooks = [f"{hook} is {policies.get(hook, 'missing')}" for hook in row["hooks"] if policies.get(hook) != "drop"]
    return bool(open_hooks), ", ".join(open_hooks) or "drops"


def probe_forwarding(row: Row) -> Answer:
    """Look for IPv4 or IPv6 forwarding."""
    found = []
    for name in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
        try:
            with open(f"/proc/sys/{name}", encoding="ascii") as file:
                if file.read().strip() != "0":
                    found.append(name.replace("/", "."))
        except FileNotFoundError:  # a kernel without IPv6
            continue
    return bool(found), ", ".join(found) or "off"


KINDS: dict[str, Callable[[Row], Answer]] = {
    "default_route": probe_default_route,
    "resolver": probe_resolver,
    "ipv6": probe_ipv6,
    "links": probe_links,
    "radios": probe_radios,
    "packages": probe_packages,
    "firewall": probe_firewall,
    "forwarding": probe_forwarding,
}
