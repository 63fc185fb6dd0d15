"""Probe what a host of the lab can reach: a function for each kind of probe that sends something, and `run_probes`.

A row describes a probe: `kind`, one of KINDS, and the options of that kind. Every probe returns whether it got through, and a
description of what it saw. Needs root.
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
    NTP_REQUEST,
    arp_request,
    dns_query,
    icmp_echo_message,
    ipv4_echo_packet,
    mac_bytes,
)
from ansible_collections.bramble.cluster.plugins.module_utils.lab.states import Answer, Row, command_output, nameservers

TIMEOUT = 2.0  # seconds for an answer
ATTEMPTS = 2
# Name servers that a host may have without an entry in resolv.conf: Docker's, the two of systemd-resolved, and its own.
LOOPBACK_RESOLVERS = ("127.0.0.11", "127.0.0.53", "127.0.0.54", "127.0.0.1")


def _address_family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _retry(attempt: Callable[[], str]) -> Answer:
    """Make several attempts, because a frame may get lost. An attempt returns what it saw, or raises OSError."""
    seen = ""
    for _ in range(ATTEMPTS):
        try:
            return True, attempt()
        except OSError as error:
            seen = error.strerror or str(error) or type(error).__name__
    return False, seen


# Traffic


def probe_tcp(row: Row) -> Answer:
    """Connect to `host` and `port`. A refusal gets through as well, since a packet came back, unless the row has `service`."""

    def attempt() -> str:
        with socket.socket(_address_family(row["host"]), socket.SOCK_STREAM) as connection:
            connection.settimeout(TIMEOUT)
            try:
                connection.connect((row["host"], row["port"]))
            except ConnectionRefusedError:
                if row.get("service"):
                    raise
                return "refused by the host itself"
            return "connected"

    return _retry(attempt)


def probe_udp(row: Row) -> Answer:
    """Send a datagram to `host` and `port`. Any answer gets through, a refusal included."""

    def attempt() -> str:
        with socket.socket(_address_family(row["host"]), socket.SOCK_DGRAM) as sock:
            sock.settimeout(TIMEOUT)
            sock.connect((row["host"], row["port"]))
            sock.send(NTP_REQUEST)
            try:
                return f"{len(sock.recv(2048))} bytes came back"
            except ConnectionRefusedError:
                return "refused by the host itself"

    return _retry(attempt)


def probe_icmp(row: Row) -> Answer:
    """Send an echo request to `host` (RFC 792, RFC 4443)."""
    is_ipv4 = _address_family(row["host"]) == socket.AF_INET

    def attempt() -> str:
        number = secrets.randbelow(65536)
        kind = socket.IPPROTO_ICMP if is_ipv4 else socket.IPPROTO_ICMPV6
        with socket.socket(_address_family(row["host"]), socket.SOCK_RAW, kind) as sock:
            sock.connect((row["host"], 0))
            sock.send(icmp_echo_message(8 if is_ipv4 else 128, number))  # for IPv6 the kernel adds the checksum
            wanted = bytes([0 if is_ipv4 else 129]), struct.pack(">H", number)

            def is_reply(packet: bytes) -> bool:
                message = packet[20:] if is_ipv4 else packet
                return (message[:1], message[4:6]) == wanted

            _wait_for_answer(sock, is_reply)
        return "answered"

    return _retry(attempt)


def _wait_for_answer(sock: socket.socket, is_reply: Callable[[bytes], bool]) -> None:
    """Wait for the packet that is the answer. Raises OSError when none comes within TIMEOUT."""
    end = time.monotonic() + TIMEOUT
    while (left := end - time.monotonic()) > 0:
        sock.settimeout(left)
        if is_reply(sock.recv(2048)):
            return
    raise OSError("no answer")


def probe_dns(row: Row) -> Answer:
    """Query the name server `host` for the address of `name`, over TCP with `tcp`. Only an answer with an address counts."""

    def attempt() -> str:
        kind = socket.SOCK_STREAM if row.get("tcp") else socket.SOCK_DGRAM
        with socket.socket(_address_family(row["host"]), kind) as sock:
            sock.settimeout(TIMEOUT)
            sock.connect((row["host"], 53))
            query = dns_query(row["name"], secrets.randbelow(65536))
            sock.sendall(struct.pack(">H", len(query)) + query if row.get("tcp") else query)
            answer = sock.recv(2048)[2 if row.get("tcp") else 0 :]
            if len(answer) < 12 or answer[:2] != query[:2] or answer[3] & 15 or not struct.unpack(">H", answer[6:8])[0]:
                raise OSError("an answer without an address")
            return f"{row['host']} resolved {row['name']}"

    return _retry(attempt)


def probe_resolvers(row: Row) -> Answer:
    """Query all name servers of this host for `name`: those in resolv.conf, and those it may have on its loopback."""
    known = itertools.chain(nameservers(), LOOPBACK_RESOLVERS)
    answers = [probe_dns({"host": host, "name": row["name"]}) for host in known]
    return next((answer for answer in answers if answer[0]), (False, "no name server answers"))


def probe_lookup(row: Row) -> Answer:
    """Look up the address of `name` as programs do, with the C library."""
    # In a new process, because the C library reads resolv.conf when it starts, and with a time limit, because it may wait long.
    found = command_output("timeout", "10", "getent", "ahosts", row["name"]).split()
    return bool(found), f"{row['name']} is {found[0]}" if found else f"{row['name']} is unknown"


def probe_as_user(row: Row) -> Answer:
    """Connect to `host` and `port` as an unprivileged user, in a new process."""
    connect = f"import socket; socket.create_connection(({row['host']!r}, {row['port']}), {TIMEOUT})"

    def attempt() -> str:
        result = subprocess.run(["/usr/bin/python3", "-c", connect], user=65534, capture_output=True, check=False, text=True)
        if result.returncode:
            raise OSError((result.stderr.strip().splitlines() or ["failed"])[-1])
        return "connected"

    return _retry(attempt)


def probe_via(row: Row) -> Answer:
    """Connect to `host` and `port` with a host route over the gateway `via` on `interface`."""
    family = "-6" if ":" in row["host"] else "-4"
    route = [row["host"], "via", row["via"], "dev", row["interface"]]
    result = subprocess.run(["ip", family, "route", "replace", *route], capture_output=True, text=True, check=False)
    if result.returncode:
        return False, result.stderr.strip()
    try:
        return probe_tcp(row)
    finally:
        subprocess.run(["ip", family, "route", "delete", *route], capture_output=True, check=False)


# Frames. A host's own output rules do not filter frames from a packet socket (packet(7)).


def _exchange_frame(interface: str, protocol: int, frame: bytes, is_reply: Callable[[bytes], bool]) -> None:
    """Send a frame and wait for the answer. Raises OSError."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol)) as sock:
        sock.bind((interface, 0))
        sock.send(frame)
        _wait_for_answer(sock, lambda received: is_reply(received[14:]))


def _interface_mac(interface: str) -> bytes:
    """Return the hardware address of a port of this host. Raises OSError."""
    with open(f"/sys/class/net/{interface}/address", encoding="ascii") as file:
        return mac_bytes(file.read().strip())


def probe_frame(row: Row) -> Answer:
    """Send an echo request for `host` in a hand-made frame, from the address `source` on `interface` to the MAC `mac`."""

    def attempt() -> str:
        number = secrets.randbelow(65536)
        header = mac_bytes(row["mac"]) + _interface_mac(row["interface"]) + struct.pack(">H", ETH_P_IP)
        sent = (socket.inet_aton(row["host"]), struct.pack(">H", number))
        _exchange_frame(
            row["interface"],
            ETH_P_IP,
            header + ipv4_echo_packet(row["source"], row["host"], number),
            lambda packet: packet[9:10] == b"\x01" and packet[20:21] == b"\0" and (packet[12:16], packet[24:26]) == sent,
        )
        return "answered"

    return _retry(attempt)


def probe_arp(row: Row) -> Answer:
    """Ask on `interface` which host has the address `host`, from the address `source`."""

    def attempt() -> str:
        query = arp_request(_interface_mac(row["interface"]), row["source"], row["host"])
        reply = (struct.pack(">H", 2), socket.inet_aton(row["host"]))
        _exchange_frame(row["interface"], ETH_P_ARP, query, lambda packet: (packet[6:8], packet[14:18]) == reply)
        return "answered"

    return _retry(attempt)


KINDS: dict[str, Callable[[Row], Answer]] = {
    "tcp": probe_tcp,
    "udp": probe_udp,
    "icmp": probe_icmp,
    "dns": probe_dns,
    "resolvers": probe_resolvers,
    "lookup": probe_lookup,
    "user": probe_as_user,
    "via": probe_via,
    "frame": probe_frame,
    "arp": probe_arp,
    **states.KINDS,
}


def run_probes(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Run the probes, those that change a route after all others. Return each row with `reached` and `seen` added."""

    def answer(row: Row) -> dict[str, Any]:
        reached, seen = KINDS[row["kind"]](row)
        return {**row, "reached": reached, "seen": seen}

    rows = list(rows)
    with ThreadPoolExecutor(64) as pool:
        parallel = list(pool.map(answer, [row for row in rows if row["kind"] != "via"]))
    return parallel + [answer(row) for row in rows if row["kind"] == "via"]
