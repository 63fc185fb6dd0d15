"""Packets and frames of the lab's probes, as bytes; nothing is sent here."""

from __future__ import annotations

import ipaddress
import socket
import struct

ETH_P_IP, ETH_P_ARP = 0x0800, 0x0806
# NTP's client request, version 4 (RFC 5905, figure 8).
NTP = b"\x23" + bytes(47)


def question(name: str, number: int) -> bytes:
    """A question for the address of a name (RFC 1035, section 4.1)."""
    labels = b"".join(bytes([len(label)]) + label.encode("ascii") for label in name.split("."))
    return struct.pack(">6H", number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)


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


def mac_bytes(text: str) -> bytes:
    """Return the six bytes of a hardware address."""
    return bytes.fromhex(text.replace(":", ""))


def eui64(mac: str) -> str:
    """The link-local address that a port's MAC gives (RFC 4291, appendix A): where a host has hidden its own."""
    if not mac:
        return ""
    octets = bytearray(mac_bytes(mac))
    octets[0] ^= 2
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + bytes(octets[:3]) + b"\xff\xfe" + bytes(octets[3:])))
