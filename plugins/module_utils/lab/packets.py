"""Build the packets and frames of the lab's probes, as bytes. Nothing here sends them."""

from __future__ import annotations

import ipaddress
import socket
import struct

ETH_P_IP, ETH_P_ARP = 0x0800, 0x0806
# The request of an NTP client, version 4 (RFC 5905, figure 8).
NTP_REQUEST = b"\x23" + bytes(47)


def dns_query(name: str, number: int) -> bytes:
    """Return a DNS query for the IPv4 address of a name (RFC 1035, section 4.1).

    :param number: the id of the query, which the answer repeats
    """
    labels = b"".join(bytes([len(label)]) + label.encode("ascii") for label in name.split("."))
    return struct.pack(">6H", number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)


def internet_checksum(data: bytes) -> int:
    """Return the internet checksum (RFC 1071)."""
    total = sum(struct.unpack(f">{len(data + b'0') // 2}H", data if len(data) % 2 == 0 else data + b"\0"))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def icmp_echo_message(kind: int, number: int) -> bytes:
    """Return an ICMP message that asks for an echo.

    :param kind: 8 for ICMP, 128 for ICMPv6
    :param number: the identifier, which the answer repeats
    """
    body = struct.pack(">BBHHH", kind, 0, 0, number, 1) + b"bramble-"
    return body[:2] + struct.pack(">H", internet_checksum(body)) + body[4:]


def ipv4_echo_packet(source: str, target: str, number: int) -> bytes:
    """Return an IPv4 packet that asks for an echo (RFC 791)."""
    body = icmp_echo_message(8, number)
    ends = socket.inet_aton(source), socket.inet_aton(target)
    header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 0, 0, 64, socket.IPPROTO_ICMP, 0, *ends)
    return header[:10] + struct.pack(">H", internet_checksum(header)) + header[12:] + body


def arp_request(mac: bytes, source: str, target: str) -> bytes:
    """Return a broadcast frame that asks which host has an IPv4 address (RFC 826)."""
    body = struct.pack(">HHBBH", 1, ETH_P_IP, 6, 4, 1) + mac + socket.inet_aton(source) + bytes(6) + socket.inet_aton(target)
    return b"\xff" * 6 + mac + struct.pack(">H", ETH_P_ARP) + body


def mac_bytes(text: str) -> bytes:
    """Return the six bytes of a hardware address."""
    return bytes.fromhex(text.replace(":", ""))


def link_local_address(mac: str) -> str:
    """Return the link-local IPv6 address that is derived from a MAC (RFC 4291, appendix A); empty for an empty MAC."""
    if not mac:
        return ""
    octets = bytearray(mac_bytes(mac))
    octets[0] ^= 2
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + bytes(octets[:3]) + b"\xff\xfe" + bytes(octets[3:])))
