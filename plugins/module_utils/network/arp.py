"""Ask the wire whether an IPv4 address is free, as RFC 5227 describes it: the frames to send, and what an answer means."""

from __future__ import annotations

import ipaddress

ETH_P_ARP = 0x0806


def arp_probe(mac: bytes, address: str) -> bytes:
    """Return an Ethernet frame that asks who has an IPv4 address, and claims none (RFC 5227, section 2.1.1).

    :param mac: the 6 bytes of the port's hardware address
    """
    packet = b"\x00\x01\x08\x00\x06\x04\x00\x01" + mac + bytes(4) + bytes(6) + ipaddress.IPv4Address(address).packed
    return b"\xff" * 6 + mac + ETH_P_ARP.to_bytes(2, "big") + packet


def arp_conflict(frame: bytes, mac: bytes, address: str) -> str:
    """Return the hardware address of whoever else has or claims the address, according to a frame; empty for nobody.

    Source: RFC 5227, section 2.1.1.
    """
    if len(frame) < 42 or frame[12:20] != b"\x08\x06\x00\x01\x08\x00\x06\x04" or frame[20:22] not in (b"\x00\x01", b"\x00\x02"):
        return ""
    sender, sender_address, target_address = frame[22:28], frame[28:32], frame[38:42]
    wanted_address = ipaddress.IPv4Address(address).packed
    has = sender_address == wanted_address
    wants = frame[20:22] == b"\x00\x01" and sender_address == bytes(4) and target_address == wanted_address
    return sender.hex(":") if sender != mac and (has or wants) else ""
