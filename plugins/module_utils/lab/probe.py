"""What a host of the lab can reach: one function for each kind of probe that sends something, and `run`, which calls them all.

A row is a mapping: `kind`, one of KINDS, and the options of that kind. Every probe returns whether it got through, and what it
saw, in words. Needs root.
"""

from __future__ import annotations

import itertools
import secrets
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible_collections.bramble.cluster.plugins.module_utils.lab import states
from ansible_collections.bramble.cluster.plugins.module_utils.lab.packets import (
    ETH_P_ARP,
    ETH_P_IP,
    NTP,
    arp_question,
    echo,
    echo_request,
    mac_bytes,
    question,
)
from ansible_collections.bramble.cluster.plugins.module_utils.lab.states import Answer, Row, ask, nameservers

TIMEOUT = 2.0  # seconds for an answer
TRIES = 2
# Name servers that a host may have without a word in resolv.conf: Docker's, systemd-resolved's two, its own.
LOOPBACK_RESOLVERS = ("127.0.0.11", "127.0.0.53", "127.0.0.54", "127.0.0.1")


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


def _wire(interface: str, protocol: int, frame: bytes, answers: Callable[[bytes], bool]) -> None:
    """Send a frame and wait for the answer. Raises OSError."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol)) as wire:
        wire.bind((interface, 0))
        wire.send(frame)
        _await(wire, lambda frame: answers(frame[14:]))


def _own_mac(interface: str) -> bytes:
    with open(f"/sys/class/net/{interface}/address", encoding="ascii") as file:
        return mac_bytes(file.read().strip())


def frame(row: Row) -> Answer:
    """An answer to an echo for `host` in a frame made by hand, from the address `source` on `interface` to the MAC `mac`."""

    def attempt() -> str:
        number = secrets.randbelow(65536)
        head = mac_bytes(row["mac"]) + _own_mac(row["interface"]) + struct.pack(">H", ETH_P_IP)
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
    **states.KINDS,
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
