"""Count the frames of the lab on a port. The module lab_probe runs this file as a program while the probes run:

    python3 capture.py PORT RESULT ADDRESS|NETWORK...

RESULT is a JSON file with the counts.
"""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Mapping, Sequence

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def frame_addresses(frame: bytes) -> list[str]:
    """Return the source and target address in an Ethernet frame with IPv4, IPv6 or ARP; empty for anything else."""
    kind, body = struct.unpack(">H", frame[12:14])[0] if len(frame) >= 14 else 0, frame[14:]
    if kind == 0x8100:  # the tag of a VLAN (IEEE 802.1Q)
        kind, body = struct.unpack(">H", frame[16:18])[0], frame[18:]
    offsets = {0x0800: (12, 16, 4), 0x0806: (14, 24, 4), 0x86DD: (8, 24, 16)}.get(kind)
    if not offsets or len(body) < offsets[1] + offsets[2]:
        return []
    return [str(ipaddress.ip_address(body[start : start + offsets[2]])) for start in offsets[:2]]


def is_frame_of(frame: bytes, networks: Sequence[Network]) -> bool:
    """Return whether a frame is from or to one of these networks."""
    return any(ipaddress.ip_address(address) in network for address in frame_addresses(frame) for network in networks)


def write_counts(path: str, counts: Mapping[str, int]) -> None:
    """Replace the file of counts in one step. Raises OSError."""
    with open(f"{path}.new", "w", encoding="ascii") as file:
        json.dump(counts, file)
    os.replace(f"{path}.new", path)


def count_frames(port: str, result: str, networks: Sequence[Network]) -> None:
    """Count frames until SIGTERM. Raises OSError.

    Writes the counts at the start, when it is ready, and at the end: `lab`, frames of these networks, and `all`.
    """
    counts = {"lab": 0, "all": 0}
    running = [True]
    signal.signal(signal.SIGTERM, lambda *_: running.clear())
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003)) as sock:  # ETH_P_ALL, which includes sent frames
        sock.bind((port, 0))
        sock.settimeout(0.1)
        write_counts(result, counts)
        while running:
            try:
                frame = sock.recv(65536)
            except TimeoutError:
                continue
            except OSError as error:  # the port has gone down
                print(error, file=sys.stderr)
                continue
            counts["all"] += 1
            counts["lab"] += is_frame_of(frame, networks)
    write_counts(result, counts)


if __name__ == "__main__":
    count_frames(sys.argv[1], sys.argv[2], [ipaddress.ip_network(text) for text in sys.argv[3:]])
