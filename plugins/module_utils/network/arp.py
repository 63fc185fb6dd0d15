"""Check by ARP whether an IPv4 address is in use (RFC 5227): build the probe, and read the answers."""

from __future__ import annotations

import ipaddress

ETH_P_ARP = 0x0806


def arp_probe(mac: bytes, address: str) -> bytes:
    """Return an Ethernet frame with an ARP probe for an IPv4 address (RFC 5227, section 2.1.1).

    :param mac: the 6 bytes of the port's hardware address
    """
    packet = b"\x00\x01\x08\x00\x06\x04\x00\x01" + mac + bytes(4) + bytes(6) + ipaddress.IPv4Address(address).packed
    return b"\xff" * 6 + mac + ETH_P_ARP.to_bytes(2, "big") + packet


def arp_conflict(frame: bytes, mac: bytes, address: str) -> str:
    """Return the hardware address of another host that, according to a frame, has or claims the address; empty for none.

    Source: RFC 5227, section 2.1.1.
    """
    if len(frame) < 42 or frame[12:20] != b"\x08\x06\x00\x01\x08\x00\x06\x04" or frame[20:22] not in (b"\x00\x01", b"\x00\x02"):
        return ""
    sender, sender_address, target_address = frame[22:28], frame[28:32], frame[38:42]
    wanted_address = ipaddress.IPv4Address(address).packed
    is_owner = sender_address == wanted_address
    is_probe = frame[20:22] == b"\x00\x01" and sender_address == bytes(4) and target_address == wanted_address
    return sender.hex(":") if sender != mac and (is_owner or is_probe) else ""
