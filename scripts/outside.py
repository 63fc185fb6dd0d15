#!/usr/bin/env python3
"""A small outside for rehearsing the isolated lab: an "internet" that answers, behind a second port of the client. As root:

    scripts/outside.py up --cluster rehearsal --subnet 10.77.77.0/24 [--client pi-client] [--leak pi-01]
    scripts/outside.py down --cluster rehearsal

It is a network namespace of this machine that nothing leaves, with addresses kept for documentation (RFC 5737, RFC 3849). The
client stand-in gets a port eth1 into it and forwards, as one does that shares its internet; the node --leak gets one as well; and
a router that nobody asked for sends advertisements on the switch.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

INTERNET = ("198.51.100.80", "2001:db8:80::80")
HOME = ("203.0.113.1", "203.0.113.2")  # the client's gateway, the client
HOME6 = ("2001:db8:51::1", "2001:db8:51::2")
LEAK = ("192.0.2.1", "192.0.2.2")
ADVERTISED = "2001:db8:77::"
UPLINK = "uplink"  # the outside's end of the client's cable
TCP, UDP = (22, 80, 443), (123, 443)


def run(*words: str, check: bool = True) -> str:
    """What a command says. Raises subprocess.CalledProcessError."""
    return subprocess.run(words, check=check, stdout=subprocess.PIPE, text=True).stdout.strip()


class Outside:
    """The outside of one cluster of stand-ins."""

    def __init__(self, cluster: str, subnet: str = "", client: str = "pi-client", leak: str = "") -> None:
        self.cluster, self.subnet, self.client, self.leak = cluster, subnet, client, leak
        self.name = f"{cluster}-outside"
        self.note = Path(f"/run/{self.name}")

    def inside(self, *words: str) -> list[str]:
        """What to put before a command to run it in the outside."""
        return ["ip", "netns", "exec", self.name, *words]

    def _ip(self, words: str) -> None:
        run("ip", "-n", self.name, *words.split())

    def _run_on_node(self, node: str, *words: str, check: bool = True) -> None:
        """Run a command on a stand-in."""
        run("docker", "exec", f"{self.cluster}-{node}", "run-on-node", *words, check=check)

    def _cable(self, end: str, node: str) -> None:
        pid = run("docker", "inspect", "--format", "{{.State.Pid}}", f"{self.cluster}-{node}")
        self._ip(f"link add {end} type veth peer name eth1 netns {pid}")

    @property
    def bridge(self) -> str:
        """The cluster's switch."""
        return f"br-{run('docker', 'network', 'inspect', '--format', '{{.Id}}', self.cluster)[:12]}"

    def up(self) -> None:
        """Make it. Raises subprocess.CalledProcessError."""
        run("ip", "netns", "add", self.name)
        self._cable(UPLINK, self.client)
        self._ip("link set lo up")
        for address in INTERNET:
            self._ip(f"address add {address}/{128 if ':' in address else 32} dev lo{' nodad' if ':' in address else ''}")
        for address in (f"{HOME[0]}/24", f"{HOME6[0]}/64"):
            self._ip(f"address add {address} dev {UPLINK}{' nodad' if ':' in address else ''}")
        self._ip(f"link set {UPLINK} up")
        self._ip(f"route add {self.subnet} via {HOME[1]}")
        # The router that nobody asked for.
        port = f"{self.cluster[:10]}-rtr"
        run("ip", "link", "add", port, "type", "veth", "peer", "name", "lab", "netns", self.name)
        run("ip", "link", "set", port, "master", self.bridge, "up")
        self._ip(f"address add {ADVERTISED}1/64 dev lab nodad")
        self._ip("link set lab up")
        run(*self.inside("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding"))
        if self.leak:
            self._cable("leak", self.leak)
            self._ip(f"address add {LEAK[0]}/24 dev leak")
            self._ip("link set leak up")
        # Docker lets nothing through its switch that is of another subnet, not even from one node to another.
        passing("-I", self.bridge)
        serve = subprocess.Popen(self.inside(sys.executable, __file__, "serve"), start_new_session=True, stdin=subprocess.DEVNULL)
        self.note.write_text(f"{serve.pid} {self.bridge}\n")
        self._plug(self.client, HOME, HOME6)
        if self.leak:
            self._plug(self.leak, LEAK)
        forward = "for name in ipv4/ip_forward ipv6/conf/all/forwarding; do echo 1 >/proc/sys/net/$name; done"
        self._run_on_node(self.client, "sh", "-c", forward)

    def _plug(self, node: str, *nets: tuple[str, str]) -> None:
        """Have a stand-in set up eth1, now and after each reboot: gateway and own address, of IPv4 and perhaps IPv6."""
        words = ["ipv6.method", "disabled"] if len(nets) == 1 else []
        for gateway, own in nets:
            family, length = ("ipv6", 64) if ":" in own else ("ipv4", 24)
            words += [f"{family}.method", "manual", f"{family}.addresses", f"{own}/{length}", f"{family}.gateway", gateway]
            words += [f"{family}.route-metric", "5000"]
        self._run_on_node(node, *f"nmcli connection add type ethernet con-name outside ifname eth1 {' '.join(words)}".split())
        self._run_on_node(node, "nmcli", "connection", "up", "outside")

    def down(self) -> None:
        """Remove all of it, as far as it is there."""
        if self.note.exists():
            pid, bridge = self.note.read_text().split()
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGTERM)
            passing("-D", bridge)
            self.note.unlink()
        for node in filter(None, (self.client, self.leak)):
            self._run_on_node(node, "nmcli", "connection", "delete", "outside", check=False)
        # The ends of its cables go with it.
        run("ip", "netns", "delete", self.name, check=False)


def passing(how: str, bridge: str) -> None:
    """Have Docker let through what goes from one port of a switch to another (-I), or no more (-D)."""
    run("iptables", how, "DOCKER-USER", "--in-interface", bridge, "--out-interface", bridge, "--jump", "ACCEPT")


class Echo(asyncio.DatagramProtocol):
    """Answers whatever comes, in its own words."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple) -> None:
        self.transport.sendto(data, address)  # type: ignore[attr-defined]


def answer(question: bytes) -> bytes:
    """An answer of a name server: every name has the address INTERNET (RFC 1035)."""
    end = question.index(b"\0", 12) + 5
    kind = question[end - 4 : end - 2]
    address = socket.inet_pton(socket.AF_INET6, INTERNET[1]) if kind == b"\0\x1c" else socket.inet_aton(INTERNET[0])
    record = b"\xc0\x0c" + kind + b"\0\1" + struct.pack(">IH", 60, len(address)) + address
    return question[:2] + b"\x81\x80" + struct.pack(">4H", 1, 1, 0, 0) + question[12:end] + record


class Names(Echo):
    """A name server."""

    def datagram_received(self, data: bytes, address: tuple) -> None:
        self.transport.sendto(answer(data), address)  # type: ignore[attr-defined]


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say something at once, whatever is asked."""
    writer.write(b"HTTP/1.0 200 OK\r\n\r\nthe outside\n")
    await writer.drain()
    writer.close()


async def names(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A name server over TCP."""
    length = struct.unpack(">H", await reader.readexactly(2))[0]
    said = answer(await reader.readexactly(length))
    writer.write(struct.pack(">H", len(said)) + said)
    await writer.drain()
    writer.close()


async def advertise() -> None:
    """Say every two seconds that this is the way out for IPv6, with a prefix for addresses (RFC 4861, sections 4.2 and 4.6.2)."""
    prefix = struct.pack(">BBBBIII", 3, 4, 64, 0xC0, 86400, 14400, 0) + socket.inet_pton(socket.AF_INET6, ADVERTISED)
    message = struct.pack(">BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + prefix
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as wire:
        wire.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        target = ("ff02::1", 0, 0, socket.if_nametoindex("lab"))
        while True:
            try:
                wire.sendto(message, target)
            except OSError as error:  # the port is only just coming up
                print(error, file=sys.stderr)
            await asyncio.sleep(2)


async def serve() -> None:
    """What answers, until it is ended."""
    loop = asyncio.get_running_loop()
    for host in (*INTERNET, HOME[0]):
        for port in TCP:
            await asyncio.start_server(greet, host, port)
        await asyncio.start_server(names, host, 53)
        for port in UDP:
            await loop.create_datagram_endpoint(Echo, local_addr=(host, port))
        await loop.create_datagram_endpoint(Names, local_addr=(host, 53))
    await advertise()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["up", "down", "serve"])
    parser.add_argument("--cluster", default="rehearsal", help="cluster_name")
    parser.add_argument("--subnet", default="10.77.77.0/24", help="cluster_subnet")
    parser.add_argument("--client", default="pi-client", help="the client's name")
    parser.add_argument("--leak", default="", help="a node that gets a second port into the outside")
    options = parser.parse_args(arguments)
    if options.what == "serve":
        asyncio.run(serve())
        return
    outside = Outside(options.cluster, options.subnet, options.client, options.leak)
    {"up": outside.up, "down": outside.down}[options.what]()


if __name__ == "__main__":
    main()
