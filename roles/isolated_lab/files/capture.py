"""Count the frames on a port that are of the lab. This file is also a program, which runs while the probes do.

python3 capture.py PORT RESULT ADDRESS|NETWORK...
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


def addresses(frame: bytes) -> list[str]:
    """Source and target of what is in a frame of Ethernet: IPv4, IPv6 or ARP; empty for anything else."""
    kind, body = struct.unpack(">H", frame[12:14])[0] if len(frame) >= 14 else 0, frame[14:]
    if kind == 0x8100:  # a tag of a virtual network
        kind, body = struct.unpack(">H", frame[16:18])[0], frame[18:]
    where = {0x0800: (12, 16, 4), 0x0806: (14, 24, 4), 0x86DD: (8, 24, 16)}.get(kind)
    if not where or len(body) < where[1] + where[2]:
        return []
    return [str(ipaddress.ip_address(body[start : start + where[2]])) for start in where[:2]]


def concerns(frame: bytes, networks: Sequence[Network]) -> bool:
    """Whether a frame is from or to one of these networks."""
    return any(ipaddress.ip_address(address) in network for address in addresses(frame) for network in networks)


def write(path: str, counts: Mapping[str, int]) -> None:
    """In one step. Raises OSError."""
    with open(f"{path}.new", "w", encoding="ascii") as file:
        json.dump(counts, file)
    os.replace(f"{path}.new", path)


def count(port: str, result: str, networks: Sequence[Network]) -> None:
    """Count until SIGTERM. The counts are in the file when it begins and when it ends: `lab`, of these networks, and `all`.

    Raises OSError.
    """
    counts = {"lab": 0, "all": 0}
    running = [True]
    signal.signal(signal.SIGTERM, lambda *_: running.clear())
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003)) as wire:  # ETH_P_ALL: sent ones, too
        wire.bind((port, 0))
        wire.settimeout(0.1)
        write(result, counts)
        while running:
            try:
                frame = wire.recv(65536)
            except TimeoutError:
                continue
            except OSError as error:  # the port goes up and down
                print(error, file=sys.stderr)
                continue
            counts["all"] += 1
            counts["lab"] += concerns(frame, networks)
    write(result, counts)


if __name__ == "__main__":
    count(sys.argv[1], sys.argv[2], [ipaddress.ip_network(text) for text in sys.argv[3:]])
