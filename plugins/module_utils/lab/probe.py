"""What a host of the lab can reach: one function for each kind of probe, and the rows that call them.

A row is a mapping: `kind`, one of KINDS, and what that takes; every probe answers with whether it got through and with what was
seen, in words. A probe of a state (a default route, a radio) got through when the way it looks for is open. Needs root, and of
the system only iproute2, nft and apt.
"""

from __future__ import annotations

import glob
import ipaddress
import itertools
import json
import os
import secrets
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

Answer = tuple[bool, str]
Row = Mapping[str, Any]

TIMEOUT = 2.0  # seconds for an answer
TRIES = 2
ETH_P_IP, ETH_P_ARP = 0x0800, 0x0806
# NTP's client request, version 4 (RFC 5905, figure 8).
NTP = b"\x23" + bytes(47)
# Name servers that a host may have without a word in resolv.conf: Docker's, systemd-resolved's two, its own.
LOOPBACK_RESOLVERS = ("127.0.0.11", "127.0.0.53", "127.0.0.54", "127.0.0.1")


def ask(*command: str) -> str:
    """What a command says; nothing where it fails or does not exist."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _tries(attempt: Callable[[], str]) -> Answer:
    """Try more than once: a frame that was lost proves nothing. The attempt says what it saw, or raises OSError."""
    seen = ""
    for _ in range(TRIES):
        try:
            return True, attempt()
        except OSError as error:
            seen = error.strerror or str(error) or type(error).__name__
    return False, seen


# Traffic


def tcp(row: Row) -> Answer:
    """A connection to host and port. A refusal counts as well, since a packet went there and back; not with `service`."""

    def attempt() -> str:
        with socket.socket(_family(row["host"]), socket.SOCK_STREAM) as connection:
            connection.settimeout(TIMEOUT)
            try:
                connection.connect((row["host"], row["port"]))
            except ConnectionRefusedError:
                if row.get("service"):
                    raise
                return "refused by the host itself"
            return "connected"

    return _tries(attempt)


def udp(row: Row) -> Answer:
    """Any answer to a datagram to host and port, a refusal included."""

    def attempt() -> str:
        with socket.socket(_family(row["host"]), socket.SOCK_DGRAM) as wire:
            wire.settimeout(TIMEOUT)
            wire.connect((row["host"], row["port"]))
            wire.send(NTP)
            try:
                return f"{len(wire.recv(2048))} bytes came back"
            except ConnectionRefusedError:
                return "refused by the host itself"

    return _tries(attempt)


def icmp(row: Row) -> Answer:
    """An answer to an echo (RFC 792, RFC 4443)."""
    old = _family(row["host"]) == socket.AF_INET

    def attempt() -> str:
        number = secrets.randbelow(65536)
        kind = socket.IPPROTO_ICMP if old else socket.IPPROTO_ICMPV6
        with socket.socket(_family(row["host"]), socket.SOCK_RAW, kind) as wire:
            wire.connect((row["host"], 0))
            wire.send(echo_request(8 if old else 128, number))  # of IPv6 the kernel makes the checksum
            wanted = bytes([0 if old else 129]), struct.pack(">H", number)

            def answers(packet: bytes) -> bool:
                said = packet[20:] if old else packet
                return (said[:1], said[4:6]) == wanted

            _await(wire, answers)
        return "answered"

    return _tries(attempt)


def _await(wire: socket.socket, answers: Callable[[bytes], bool]) -> None:
    """Wait for the packet that is the answer. Raises OSError."""
    end = time.monotonic() + TIMEOUT
    while (left := end - time.monotonic()) > 0:
        wire.settimeout(left)
        if answers(wire.recv(2048)):
            return
    raise OSError("no answer")


def question(name: str, number: int) -> bytes:
    """A question for the address of a name (RFC 1035, section 4.1)."""
    labels = b"".join(bytes([len(label)]) + label.encode("ascii") for label in name.split("."))
    return struct.pack(">6H", number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)


def dns(row: Row) -> Answer:
    """An answer with an address, from the name server `host`; over TCP with `tcp`."""

    def attempt() -> str:
        kind = socket.SOCK_STREAM if row.get("tcp") else socket.SOCK_DGRAM
        with socket.socket(_family(row["host"]), kind) as wire:
            wire.settimeout(TIMEOUT)
            wire.connect((row["host"], 53))
            asked = question(row["name"], secrets.randbelow(65536))
            wire.sendall(struct.pack(">H", len(asked)) + asked if row.get("tcp") else asked)
            said = wire.recv(2048)[2 if row.get("tcp") else 0 :]
            if len(said) < 12 or said[:2] != asked[:2] or said[3] & 15 or not struct.unpack(">H", said[6:8])[0]:
                raise OSError("an answer without an address")
            return f"{row['host']} resolved {row['name']}"

    return _tries(attempt)


def resolvers(row: Row) -> Answer:
    """An answer of any name server that this host knows, or might have for itself."""
    known = itertools.chain(nameservers(), LOOPBACK_RESOLVERS)
    answers = [dns({"host": host, "name": row["name"]}) for host in known]
    return next((answer for answer in answers if answer[0]), (False, "nobody resolves"))


def lookup(row: Row) -> Answer:
    """The system's own way to an address."""
    # A process of its own: the C library reads resolv.conf when it starts, and may wait for long.
    found = ask("timeout", "10", "getent", "ahosts", row["name"]).split()
    return bool(found), f"{row['name']} is {found[0]}" if found else f"{row['name']} is unknown"


def as_user(row: Row) -> Answer:
    """A connection by an unprivileged user, in a process of its own."""
    connect = f"import socket; socket.create_connection(({row['host']!r}, {row['port']}), {TIMEOUT})"

    def attempt() -> str:
        done = subprocess.run(["/usr/bin/python3", "-c", connect], user=65534, capture_output=True, check=False, text=True)
        if done.returncode:
            raise OSError((done.stderr.strip().splitlines() or ["failed"])[-1])
        return "connected"

    return _tries(attempt)


def via(row: Row) -> Answer:
    """A connection with a host route by the gateway `via`, on `interface`."""
    family = "-6" if ":" in row["host"] else "-4"
    route = [row["host"], "via", row["via"], "dev", row["interface"]]
    done = subprocess.run(["ip", family, "route", "replace", *route], capture_output=True, text=True, check=False)
    if done.returncode:
        return False, done.stderr.strip()
    try:
        return tcp(row)
    finally:
        subprocess.run(["ip", family, "route", "delete", *route], capture_output=True, check=False)


# Frames: what is made by hand passes a host's own output rules by (packet(7)).


def checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071)."""
    total = sum(struct.unpack(f">{len(data + b'0') // 2}H", data if len(data) % 2 == 0 else data + b"\0"))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def echo_request(kind: int, number: int) -> bytes:
    """A message of ICMP that asks for an echo."""
    body = struct.pack(">BBHHH", kind, 0, 0, number, 1) + b"bramble-"
    return body[:2] + struct.pack(">H", checksum(body)) + body[4:]


def echo(source: str, target: str, number: int) -> bytes:
    """An IPv4 packet that asks for an echo (RFC 791)."""
    body = echo_request(8, number)
    ends = socket.inet_aton(source), socket.inet_aton(target)
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 0, 0, 64, socket.IPPROTO_ICMP, 0, *ends)
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + body


def arp_question(mac: bytes, source: str, target: str) -> bytes:
    """Who has an address, as a frame to everybody (RFC 826)."""
    body = struct.pack(">HHBBH", 1, ETH_P_IP, 6, 4, 1) + mac + socket.inet_aton(source) + bytes(6) + socket.inet_aton(target)
    return b"\xff" * 6 + mac + struct.pack(">H", ETH_P_ARP) + body


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _wire(interface: str, protocol: int, frame: bytes, answers: Callable[[bytes], bool]) -> None:
    """Send a frame and wait for the answer. Raises OSError."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol)) as wire:
        wire.bind((interface, 0))
        wire.send(frame)
        _await(wire, lambda frame: answers(frame[14:]))


def _own_mac(interface: str) -> bytes:
    with open(f"/sys/class/net/{interface}/address", encoding="ascii") as file:
        return _mac(file.read().strip())


def frame(row: Row) -> Answer:
    """An answer to an echo for `host` in a frame made by hand, from the address `source` on `interface` to the MAC `mac`."""

    def attempt() -> str:
        number = secrets.randbelow(65536)
        head = _mac(row["mac"]) + _own_mac(row["interface"]) + struct.pack(">H", ETH_P_IP)
        sent = (socket.inet_aton(row["host"]), struct.pack(">H", number))
        _wire(
            row["interface"],
            ETH_P_IP,
            head + echo(row["source"], row["host"], number),
            lambda packet: packet[9:10] == b"\x01" and packet[20:21] == b"\0" and (packet[12:16], packet[24:26]) == sent,
        )
        return "answered"

    return _tries(attempt)


def arp(row: Row) -> Answer:
    """An answer on `interface` to the question who has `host`, from the address `source`."""

    def attempt() -> str:
        asked = arp_question(_own_mac(row["interface"]), row["source"], row["host"])
        reply = (struct.pack(">H", 2), socket.inet_aton(row["host"]))
        _wire(row["interface"], ETH_P_ARP, asked, lambda said: (said[6:8], said[14:18]) == reply)
        return "answered"

    return _tries(attempt)


# States


def default_route(row: Row) -> Answer:
    """A default route of IPv4 or, with `family` 6, IPv6, in any table."""
    found = ask("ip", f"-{row['family']}", "route", "show", "default", "table", "all").strip()
    ways = [line for line in found.splitlines() if not line.startswith(("unreachable", "blackhole", "prohibit"))]
    return bool(ways), "; ".join(ways) or "none"


def nameservers() -> list[str]:
    """The name servers in resolv.conf(5)."""
    try:
        with open("/etc/resolv.conf", encoding="utf-8", errors="replace") as file:
            lines = [line.split() for line in file]
    except OSError:
        return []
    return [words[1].split("%")[0] for words in lines if words[:1] == ["nameserver"] and len(words) > 1]


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
    "tcp": tcp,
    "udp": udp,
    "icmp": icmp,
    "dns": dns,
    "resolvers": resolvers,
    "lookup": lookup,
    "user": as_user,
    "via": via,
    "frame": frame,
    "arp": arp,
    "default_route": default_route,
    "resolver": resolver,
    "ipv6": ipv6,
    "links": links,
    "radios": radios,
    "packages": packages,
    "firewall": firewall,
    "forwarding": forwarding,
}


def run(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Run the probes, those that change a route after all others. Each row comes back with `reached` and `seen`."""

    def answer(row: Row) -> dict[str, Any]:
        reached, seen = KINDS[row["kind"]](row)
        return {**row, "reached": reached, "seen": seen}

    rows = list(rows)
    with ThreadPoolExecutor(64) as pool:
        together = list(pool.map(answer, [row for row in rows if row["kind"] != "via"]))
    return together + [answer(row) for row in rows if row["kind"] == "via"]


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


def eui64(mac: str) -> str:
    """The link-local address that a port's MAC gives (RFC 4291, appendix A): where a host has hidden its own."""
    if not mac:
        return ""
    octets = bytearray(_mac(mac))
    octets[0] ^= 2
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + bytes(octets[:3]) + b"\xff\xfe" + bytes(octets[3:])))
