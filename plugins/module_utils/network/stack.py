"""Which program has a node's wired port, which files say so, and what they must say so that it has the port alone.

All of it works on what was read; nothing here touches the node. NetworkManager: nm-settings-keyfile(5). netplan: netplan(5), by
NetworkManager or networkd. networkd: systemd.network(5). ifupdown: interfaces(5).
"""

from __future__ import annotations

import copy
import fnmatch
import ipaddress
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

STACKS = ("networkmanager", "netplan", "networkd", "ifupdown")
# Where each keeps what people and programs configure, as globs.
PLACES = {
    "networkmanager": "/etc/NetworkManager/system-connections/*",
    "netplan": "/etc/netplan/*.yaml",
    "networkd": "/etc/systemd/network/*.network",
    "ifupdown": "/etc/network/interfaces*",
    "ifupdown.d": "/etc/network/interfaces.d/*",
}
INTERFACES = "/etc/network/interfaces"
SOURCE = "source /etc/network/interfaces.d/*"
# cloud-init's: what it wrote at the first boot is taken over, so that nothing is there twice.
CLOUD_NETPLAN = "/etc/netplan/50-cloud-init.yaml"
# Words that begin a stanza of interfaces(5); what follows belongs to it.
STANZA = re.compile(r"(iface|mapping|auto|allow-\S+|no-auto-down|no-scripts|source|source-directory|template|rename)(\s|$)")


class Facts(NamedTuple):
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
        """For people."""
        return (
            f"running: {', '.join(sorted(self.active)) or 'none of NetworkManager, systemd-networkd and networking'}; "
            f"{self.interface} in NetworkManager: {self.nm_state or 'unknown'}, in networkd: {self.networkd_state or 'unknown'}, "
            f"in ifupdown: {'up' if self.ifupdown else 'not up'}"
        )


class Owner(NamedTuple):
    """Who has a port: one of STACKS, and who carries it out, the same or for netplan one of two."""

    stack: str
    backend: str


def nmcli(text: str) -> dict[str, str]:
    """What `nmcli --terse` shows, name by value: a backslash stands before a colon or backslash that is meant (nmcli(1))."""
    values = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            values[name] = re.sub(r"\\(.)", r"\1", value)
    return values


def networkctl(text: str) -> tuple[str, str]:
    """State and file of a port from `networkctl --json=short status`; empty where it says nothing."""
    try:
        said = json.loads(text)
        return str(said.get("AdministrativeState") or ""), str(said.get("NetworkFile") or "")
    except (ValueError, AttributeError):
        return "", ""


def owner(facts: Facts, texts: Mapping[str, str]) -> Owner:
    """Who has the port now; if nobody has, who would.

    :param texts: path -> text of what is in PLACES
    :raises BrambleError: when there is none that this knows
    """
    # "connected (externally)" is somebody else's address that NetworkManager has seen.
    nm = bool(facts.nm_uuid) and "externally" not in facts.nm_state
    networkd = facts.networkd_state not in ("", "unmanaged")
    netplan = any(_ports(text, facts.interface) for path, text in texts.items() if _is("netplan", path))
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


def own_path(stack: str, interface: str) -> tuple[str, int]:
    """Where our configuration of the port is, and the file's mode."""
    return {
        "networkmanager": (f"/etc/NetworkManager/system-connections/bramble-{interface}.nmconnection", 0o600),
        "netplan": (CLOUD_NETPLAN, 0o600),
        # Before any other: the first file that matches a port counts.
        "networkd": (f"/etc/systemd/network/05-bramble-{interface}.network", 0o644),
        # No dot: source-directory passes over names with one.
        "ifupdown": (f"/etc/network/interfaces.d/bramble-{interface}", 0o644),
    }[stack]


def wanted(who: Owner, interface: str, text: str, texts: Mapping[str, str], mac: str = "") -> dict[str, str | None]:
    """The files that must differ from what they are: path -> text, None to remove it. The port is ours and nobody else's.

    :param text: our configuration of the port, in the words of its stack; for netplan that of the whole node
    :param texts: path -> text of what is in PLACES
    :param mac: the port's hardware address, as aa:bb:cc:dd:ee:ff
    :raises BrambleError: when a file of netplan is none
    """
    ours = own_path(who.stack, interface)[0]
    after: dict[str, str | None] = {}
    for path, before in texts.items():
        if path != ours:
            after[path] = without(path, before, interface, mac)
    if who.stack == "netplan":
        text = _netplan(text, texts.get(ours, ""), who.backend, interface, mac)
    if who.stack == "ifupdown":
        main = after.get(INTERFACES) or texts.get(INTERFACES, "")
        if not _sources(main):
            after[INTERFACES] = f"{main.rstrip()}\n\n{SOURCE}\n".lstrip()
    after[ours] = text
    return {path: entry for path, entry in after.items() if entry != texts.get(path)}


def without(path: str, text: str, interface: str, mac: str = "") -> str | None:
    """A file of any stack without what it says of a port; None when nothing is left. What is of other ports stays as it is."""
    if _is("netplan", path):
        return _netplan_without(path, text, interface, mac)
    if _is("networkmanager", path):
        return None if _value(text, "connection", "interface-name") == interface else text
    if _is("networkd", path):
        return None if _value(text, "Match", "Name") == interface else text
    stays = _interfaces_without(text, interface)
    return stays if path == INTERFACES or stays == text or _meaning(stays) else None


def same(stack: str, texts: Mapping[str, str], changes: Mapping[str, str | None]) -> bool:
    """Whether changed files say the same to their programs, but for IPv6 by NetworkManager: a port that is up stays up."""
    if any(not _is(stack, path) for path in changes if _stack(path)):
        return False
    if stack == "netplan":
        return _ipv4(_merged(texts)) == _ipv4(_merged({**texts, **changes}))
    return all(_meaning(texts.get(path) or "") == _meaning(text or "") for path, text in changes.items() if _stack(path))


def _stack(path: str) -> str | None:
    return next((stack for stack in STACKS if _is(stack, path)), None)


def _is(stack: str, path: str) -> bool:
    return any(fnmatch.fnmatchcase(path, glob) for name, glob in PLACES.items() if name.split(".", maxsplit=1)[0] == stack)


def _meaning(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith(("#", ";"))]


def _value(text: str, section: str, key: str) -> str:
    """A value of a file in sections, empty if there is none; the last one counts."""
    here, found = "", ""
    for line in _meaning(text):
        if line.startswith("["):
            here = line.strip("[]")
        name, equals, value = line.partition("=")
        if equals and here == section and name.strip() == key:
            found = value.strip()
    return found


# netplan


def _load(path: str, text: str) -> dict[str, Any]:
    import yaml  # netplan brings it

    try:
        data = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        where = str(error).replace("\n", " ")
        raise BrambleError(f"{path} is not YAML: {where}. Mend or remove it. Nothing was changed.") from error
    network = data.get("network") if isinstance(data, dict) else 0
    if not isinstance(network, dict | None):
        raise BrambleError(f"{path} is no file of netplan: network is not a mapping. Mend or remove it. Nothing was changed.")
    return data if network else {}


def _dump(data: Mapping[str, Any]) -> str:
    import yaml

    text: str = yaml.safe_dump(data, default_flow_style=False, indent=2)
    return text


def _ports(text: str, interface: str, mac: str = "", path: str = "netplan") -> list[str]:
    """The names under which a file defines the port."""
    ethernets = _load(path, text).get("network", {}).get("ethernets") or {}
    found = []
    for name, port in ethernets.items() if isinstance(ethernets, dict) else ():
        match = port.get("match") if isinstance(port, dict) else None
        settings = ((port.get("networkmanager") or {}).get("passthrough") or {}) if isinstance(port, dict) else {}
        if match is None:
            is_it = name == interface
        elif settings.get("connection.interface-name"):
            is_it = settings["connection.interface-name"] == interface
        else:
            is_it = _matches(match, interface, mac)
        if is_it:
            found.append(name)
    return found


def _matches(match: Any, interface: str, mac: str) -> bool:
    """Whether a match of netplan(5) has this port: by the driver alone nobody can tell here."""
    if not isinstance(match, dict) or not (match.get("name") or match.get("macaddress")):
        return False
    by_name = "name" not in match or fnmatch.fnmatchcase(interface, str(match["name"]))
    return by_name and ("macaddress" not in match or str(match["macaddress"]).lower() == mac.lower())


def _netplan_without(path: str, text: str, interface: str, mac: str) -> str | None:
    names = _ports(text, interface, mac, path)
    if not names:
        return text
    data = _load(path, text)
    network = dict(data["network"])
    network["ethernets"] = {name: port for name, port in network["ethernets"].items() if name not in names}
    if not network["ethernets"]:
        del network["ethernets"]
    return _dump({**data, "network": network}) if set(network) - {"version", "renderer"} else None


def _netplan(text: str, before: str, backend: str, interface: str, mac: str) -> str:
    """Our file: what there is of other ports stays, and who carries it out."""
    ours = _load("netplan", text)
    network = _load(CLOUD_NETPLAN, before).get("network", {})
    names = _ports(before, interface, mac, CLOUD_NETPLAN)
    others = {name: port for name, port in (network.get("ethernets") or {}).items() if name not in names}
    port = dict(ours["network"]["ethernets"][interface])
    if backend == "NetworkManager":
        port |= _ipv6_by_networkmanager(port)
    kept = {key: value for key, value in network.items() if key not in ("ethernets", "version")}
    network = {**kept, "version": 2, "ethernets": {**others, interface: port}}
    return "# From Bramble's inventory.\n" + _dump({"network": network})


def _ipv6_by_networkmanager(port: Mapping[str, Any]) -> dict[str, Any]:
    """What netplan does not tell NetworkManager, which then leaves IPv6 to the kernel, which takes what a router advertises."""
    settings: dict[str, Any] = {"renderer": "NetworkManager"}
    if (
        not port.get("accept-ra")
        and not port.get("dhcp6")
        and not any(":" in str(entry) for entry in port.get("addresses") or [])
    ):
        method = "disabled" if port.get("link-local") == [] else "link-local"
        settings["networkmanager"] = {"passthrough": {"ipv6.method": method}}
    return settings


def _merged(texts: Mapping[str, str | None]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for path in sorted(texts):
        if _is("netplan", path) and (text := texts[path]):
            _merge(merged, _load(path, text))
    return merged


def _ipv4(merged: dict[str, Any]) -> dict[str, Any]:
    """Without what _ipv6_by_networkmanager says."""
    for port in ((merged.get("network") or {}).get("ethernets") or {}).values():
        for key in ("renderer", "networkmanager") if isinstance(port, dict) else ():
            port.pop(key, None)
    return merged


def _merge(into: dict[str, Any], data: Mapping[str, Any]) -> None:
    for key, value in data.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)


# ifupdown


def _logical(text: str) -> list[list[str]]:
    """The lines of interfaces(5), each with those that a backslash joins to it."""
    lines: list[list[str]] = []
    joined = False
    for line in text.splitlines(keepends=True):
        if joined:
            lines[-1].append(line)
        else:
            lines.append([line])
        # A comment can not be continued.
        joined = line.rstrip("\n").endswith("\\") and not lines[-1][0].lstrip().startswith("#")
    return lines


def _interfaces_without(text: str, interface: str) -> str:
    """interfaces(5) without a port: its stanzas go, and its name where ports are listed."""
    kept: list[str] = []
    gone = False
    for line in _logical(text):
        words = "".join(line).replace("\\\n", " ").split()
        if words and STANZA.match(f"{words[0]} "):
            gone = words[0] == "iface" and words[1:2] == [interface]
            if (words[0] in ("auto", "no-auto-down", "no-scripts") or words[0].startswith("allow-")) and interface in words[1:]:
                rest = [word for word in words[1:] if word != interface]
                if rest:
                    kept.append(f"{words[0]} {' '.join(rest)}\n")
                continue
        # A comment between stanzas is not ours to judge.
        if not gone or not words or words[0].startswith("#"):
            kept += line
    return "".join(kept)


def _sources(text: str) -> bool:
    """Whether a file of interfaces(5) has the folder interfaces.d read."""
    for line in _logical(text):
        words = "".join(line).replace("\\\n", " ").split()
        if words[:1] == ["source-directory"] and any(word.rstrip("/").endswith("/interfaces.d") for word in words[1:]):
            return True
        if words[:1] == ["source"] and any(word.endswith(("/interfaces.d/*", "interfaces.d/bramble-*")) for word in words[1:]):
            return True
    return False


# What is on the wire


class Live(NamedTuple):
    """What the kernel has of a port."""

    ipv4: tuple[str, ...]  # as ADDRESS/LENGTH
    gateways: tuple[str, ...]
    dynamic_ipv6: tuple[str, ...]  # what came from a router or DHCP

    def words(self) -> str:
        """For people."""
        return f"{', '.join(self.ipv4) or 'no address'}{f', gateway {self.gateways[0]}' if self.gateways else ''}"


def live(address: Any, route: Any, interface: str) -> Live:
    """From `ip -json address show` and `ip -json route show default`, parsed."""
    infos = [info for port in address if port.get("ifname") == interface for info in port.get("addr_info", [])]
    infos = [{**info, "address": f"{info['local']}/{info['prefixlen']}"} for info in infos if info.get("scope") == "global"]
    return Live(
        tuple(info["address"] for info in infos if info["family"] == "inet"),
        tuple(str(entry["gateway"]) for entry in route if entry.get("dev") == interface and entry.get("gateway")),
        tuple(info["address"] for info in infos if info["family"] == "inet6" and info.get("dynamic")),
    )


def differences(port: Mapping[str, Any], now: Live) -> list[str]:
    """In which ways the port's IPv4 is not as it should be, for people.

    An address of one host only (/32) is no second one: such as a load balancer's.

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
    """What the kernel is told of a port's IPv6 (net.ipv6.conf.PORT.*), so that the policy holds whoever has the port.

    netplan, for example, tells NetworkManager to leave IPv6 to the kernel, which takes what a router advertises.
    """
    takes = "1" if port.get("accept-ra") or port.get("dhcp6") else "0"
    disabled = port.get("link-local") == [] and not any(":" in str(address) for address in port.get("addresses") or [])
    return {"disable_ipv6": "1" if disabled else "0", "accept_ra": takes, "autoconf": takes}


# RFC 5227: is an address free?

ETH_P_ARP = 0x0806


def arp_probe(mac: bytes, address: str) -> bytes:
    """An Ethernet frame that asks who has an IPv4 address, and claims none (RFC 5227, section 2.1.1).

    :param mac: the 6 bytes of the port's hardware address
    """
    packet = b"\x00\x01\x08\x00\x06\x04\x00\x01" + mac + bytes(4) + bytes(6) + ipaddress.IPv4Address(address).packed
    return b"\xff" * 6 + mac + ETH_P_ARP.to_bytes(2, "big") + packet


def arp_conflict(frame: bytes, mac: bytes, address: str) -> str:
    """Who else has or wants the address, according to a frame (RFC 5227, section 2.1.1): a hardware address, empty if nobody."""
    if len(frame) < 42 or frame[12:20] != b"\x08\x06\x00\x01\x08\x00\x06\x04" or frame[20:22] not in (b"\x00\x01", b"\x00\x02"):
        return ""
    sender, sender_address, target_address = frame[22:28], frame[28:32], frame[38:42]
    wanted_address = ipaddress.IPv4Address(address).packed
    has = sender_address == wanted_address
    wants = frame[20:22] == b"\x00\x01" and sender_address == bytes(4) and target_address == wanted_address
    return sender.hex(":") if sender != mac and (has or wants) else ""


def check(port: Mapping[str, Any]) -> None:
    """Check that the port reaches its gateways by itself. Raises BrambleError."""
    networks = [ipaddress.ip_interface(str(address)).network for address in port.get("addresses") or []]
    for route in port.get("routes") or []:
        if not any(ipaddress.ip_address(str(route["via"])) in network for network in networks):
            raise BrambleError(
                f"The gateway {route['via']} is in none of the port's networks ({', '.join(map(str, networks))}). Set "
                "cluster_gateway to an address in cluster_subnet, or leave it empty. Nothing was changed."
            )


class Commands(NamedTuple):
    """How a stack is told of changed files."""

    same: list[list[str]]  # when they say the same, but for IPv6 by NetworkManager
    down: list[list[str]]  # before they change; errors do not count
    new: list[list[str]]  # to apply the new ones
    old: list[list[str]]  # to apply the old ones again
    boot: list[list[str]]  # when the old ones are put back before the network comes up
    last: list[list[str]]  # when `old` fails


def commands(who: Owner, interface: str, ours: str, before: str) -> Commands:
    """The commands of a stack. `netplan apply` is none of them: it stops NetworkManager, and then may fail at something else.

    :param ours: the uuid of our connection in NetworkManager
    :param before: the uuid of the one that is active, empty if there is none
    """
    generate = [["netplan", "generate"]] if who.stack == "netplan" else []
    if who.backend == "NetworkManager":
        reload = [*generate, ["nmcli", "connection", "reload"]]
        name = ["id", f"netplan-{interface}"] if who.stack == "netplan" else ["uuid", ours]
        new = ["nmcli", "--wait", "30", "connection", "up", *name, "ifname", interface]
        old = ["nmcli", "--wait", "30", "connection", "up", "uuid", before, "ifname", interface]
        last = [["systemctl", "restart", "NetworkManager"]]
        same = [*reload, ["nmcli", "device", "reapply", interface]] if who.stack == "netplan" else []
        return Commands(same, [], [*reload, new], [*reload, old] if before else reload, generate, last)
    if who.backend == "networkd":
        again = [*generate, ["networkctl", "reload"], ["networkctl", "reconfigure", interface]]
        return Commands([], [], again, again, generate, [["systemctl", "restart", "systemd-networkd"]])
    down = [["ifdown", "--force", interface], ["ip", "address", "flush", "dev", interface]]
    return Commands([], down, [["ifup", interface]], [["ifup", interface]], [], [["systemctl", "restart", "networking"]])
