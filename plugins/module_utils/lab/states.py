"""What a host of the lab is set to: one function for each kind of probe that looks at the host itself and sends nothing.

Such a probe got through when the way that it looks for is open. Needs, of the system, only iproute2, nft and apt.
"""

from __future__ import annotations

import glob
import json
import os
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

Answer = tuple[bool, str]
"""Whether the probe got through, and what it saw, in words."""
Row = Mapping[str, Any]


def ask(*command: str) -> str:
    """Return what a command prints; nothing where it fails or does not exist."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def nameservers() -> list[str]:
    """The name servers in resolv.conf(5)."""
    try:
        with open("/etc/resolv.conf", encoding="utf-8", errors="replace") as file:
            lines = [line.split() for line in file]
    except OSError:
        return []
    return [words[1].split("%")[0] for words in lines if words[:1] == ["nameserver"] and len(words) > 1]


def default_route(row: Row) -> Answer:
    """A default route of IPv4 or, with `family` 6, IPv6, in any table."""
    found = ask("ip", f"-{row['family']}", "route", "show", "default", "table", "all").strip()
    ways = [line for line in found.splitlines() if not line.startswith(("unreachable", "blackhole", "prohibit"))]
    return bool(ways), "; ".join(ways) or "none"


def resolver(row: Row) -> Answer:
    """A name server that is configured."""
    return bool(nameservers()), ", ".join(nameservers()) or "none"


def ipv6(row: Row) -> Answer:
    """An IPv6 address on any port, or a port on which a router could give one."""
    found = []
    for link in json.loads(ask("ip", "-json", "-6", "address") or "[]"):
        found += [f"{entry['local']} on {link['ifname']}" for entry in link.get("addr_info", []) if link["ifname"] != "lo"]
    for path in glob.glob("/proc/sys/net/ipv6/conf/*/disable_ipv6"):
        name = path.split("/")[-2]
        with open(path, encoding="ascii") as file:
            if name in ("default", row["interface"]) and file.read().strip() == "0":
                found.append(f"enabled for {name}")
    return bool(found), ", ".join(found) or "off"


def links(row: Row) -> Answer:
    """A port that is up and is not the loopback or `interface`."""
    found = [link for link in json.loads(ask("ip", "-json", "link") or "[]") if link["ifname"] not in ("lo", row["interface"])]
    up = [f"{link['ifname']} ({link['address']})" for link in found if "UP" in link["flags"]]
    down = [
        link["ifname"]
        for link in found
        if "UP" not in link["flags"] and os.path.exists(f"/sys/class/net/{link['ifname']}/device")
    ]
    # A root who is hostile could set it up.
    return bool(up), ", ".join(up) or (f"down, but unplug it: {', '.join(down)}" if down else "none")


def radios(row: Row) -> Answer:
    """A radio that may send, or a config.txt without the lines in `overlays`, which switch them off."""
    found = []
    for path in sorted(glob.glob("/sys/class/rfkill/*")):
        with open(f"{path}/soft", encoding="ascii") as soft, open(f"{path}/type", encoding="ascii") as kind:
            if soft.read().strip() == "0":
                found.append(f"{kind.read().strip()} is not blocked")
    found += [f"{os.path.basename(path)} is there" for path in sorted(glob.glob("/sys/class/bluetooth/hci*"))]
    for path in ("/boot/firmware/config.txt", "/boot/config.txt"):
        if os.path.exists(path):
            with open(path, encoding="utf-8", errors="replace") as file:
                lines = {line.strip() for line in file}
            found += [f"{path} has no {overlay}" for overlay in row["overlays"] if overlay not in lines]
            break
    return bool(found), ", ".join(found) or "off"


def packages(row: Row) -> Answer:
    """A source of packages that is not `mirror`, a URL; of several, the first."""
    sources = [line.split("'")[1] for line in ask("apt-get", "--print-uris", "update").splitlines() if line.startswith("'")]
    others = [source for source in sources if not row["mirror"] or not source.startswith(row["mirror"])]
    return bool(others), others[0] if others else "none"


def firewall(row: Row) -> Answer:
    """A table that is not in force, or a hook in `hooks` that it does not close."""
    try:
        listed = json.loads(ask("nft", "--json", "list", "table", "inet", row["table"]) or "{}")
    except ValueError:
        listed = {}
    policies = {
        entry["chain"]["hook"]: entry["chain"]["policy"]
        for entry in listed.get("nftables", [])
        if "hook" in entry.get("chain", {})
    }
    open_hooks = [f"{hook} is {policies.get(hook, 'not there')}" for hook in row["hooks"] if policies.get(hook) != "drop"]
    return bool(open_hooks), ", ".join(open_hooks) or "drops"


def forwarding(row: Row) -> Answer:
    """A host that forwards."""
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
    "default_route": default_route,
    "resolver": resolver,
    "ipv6": ipv6,
    "links": links,
    "radios": radios,
    "packages": packages,
    "firewall": firewall,
    "forwarding": forwarding,
}
