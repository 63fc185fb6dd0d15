#!/usr/bin/env python3
"""Simulate an internet for rehearsals of the isolated lab, behind a second port of the client. Run it as root:

    scripts/outside.py up --cluster rehearsal --subnet 10.77.77.0/24 [--client pi-client] [--leak pi-01]
    scripts/outside.py down --cluster rehearsal

The simulated internet, called the outside, is a network namespace of this machine without a connection to other networks. Its
addresses are reserved for documentation (RFC 5737, RFC 3849). The client stand-in gets a port eth1 to it and forwards packets,
like a client that shares its internet connection. The node of --leak gets a port, too, and a rogue router sends advertisements on
the switch.
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
UPLINK_IPV4 = ("203.0.113.1", "203.0.113.2")  # the client's gateway, and the client's address
UPLINK_IPV6 = ("2001:db8:51::1", "2001:db8:51::2")
LEAK_IPV4 = ("192.0.2.1", "192.0.2.2")
ADVERTISED = "2001:db8:77::"
UPLINK = "uplink"  # the port of the outside that is connected to the client
TCP, UDP = (22, 80, 443), (123, 443)


def run(*words: str, check: bool = True) -> str:
    """Run a command, and return its standard output. Raises subprocess.CalledProcessError."""
    return subprocess.run(words, check=check, stdout=subprocess.PIPE, text=True).stdout.strip()


class Outside:
    """The simulated internet of one cluster of stand-ins."""

    def __init__(self, cluster: str, subnet: str = "", client: str = "pi-client", leak: str = "") -> None:
        self.cluster, self.subnet, self.client, self.leak = cluster, subnet, client, leak
        self.name = f"{cluster}-outside"
        self.state_file = Path(f"/run/{self.name}")

    def in_namespace(self, *words: str) -> list[str]:
        """Return a command that runs `words` in the namespace of the outside."""
        return ["ip", "netns", "exec", self.name, *words]

    def _ip(self, words: str) -> None:
        run("ip", "-n", self.name, *words.split())

    def _run_on_node(self, node: str, *words: str, check: bool = True) -> None:
        """Run a command on a stand-in. Raises subprocess.CalledProcessError, unless `check` is false."""
        run("docker", "exec", f"{self.cluster}-{node}", "run-on-node", *words, check=check)

    def _connect_node(self, end: str, node: str) -> None:
        pid = run("docker", "inspect", "--format", "{{.State.Pid}}", f"{self.cluster}-{node}")
        self._ip(f"link add {end} type veth peer name eth1 netns {pid}")

    @property
    def bridge(self) -> str:
        """The name of the bridge that is the switch of the cluster."""
        return f"br-{run('docker', 'network', 'inspect', '--format', '{{.Id}}', self.cluster)[:12]}"

    def create(self) -> None:
        """Create the outside, and connect nodes to it. Raises subprocess.CalledProcessError."""
        run("ip", "netns", "add", self.name)
        self._connect_node(UPLINK, self.client)
        self._ip("link set lo up")
        for address in INTERNET:
            self._ip(f"address add {address}/{128 if ':' in address else 32} dev lo{' nodad' if ':' in address else ''}")
        for address in (f"{UPLINK_IPV4[0]}/24", f"{UPLINK_IPV6[0]}/64"):
            self._ip(f"address add {address} dev {UPLINK}{' nodad' if ':' in address else ''}")
        self._ip(f"link set {UPLINK} up")
        self._ip(f"route add {self.subnet} via {UPLINK_IPV4[1]}")
        # The rogue router.
        port = f"{self.cluster[:10]}-rtr"
        run("ip", "link", "add", port, "type", "veth", "peer", "name", "lab", "netns", self.name)
        run("ip", "link", "set", port, "master", self.bridge, "up")
        self._ip(f"address add {ADVERTISED}1/64 dev lab nodad")
        self._ip("link set lab up")
        run(*self.in_namespace("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding"))
        if self.leak:
            self._connect_node("leak", self.leak)
            self._ip(f"address add {LEAK_IPV4[0]}/24 dev leak")
            self._ip("link set leak up")
        # Docker drops packets of other subnets on its bridge, even between two nodes.
        change_bridge_rule("-I", self.bridge)
        server = subprocess.Popen(
            self.in_namespace(sys.executable, __file__, "serve"), start_new_session=True, stdin=subprocess.DEVNULL
        )
        self.state_file.write_text(f"{server.pid} {self.bridge}\n")
        self._configure_port(self.client, UPLINK_IPV4, UPLINK_IPV6)
        if self.leak:
            self._configure_port(self.leak, LEAK_IPV4)
        forward = "for name in ipv4/ip_forward ipv6/conf/all/forwarding; do echo 1 >/proc/sys/net/$name; done"
        self._run_on_node(self.client, "sh", "-c", forward)

    def _configure_port(self, node: str, *nets: tuple[str, str]) -> None:
        """Configure eth1 of a stand-in permanently, with pairs of gateway and own address for IPv4 and, optionally, IPv6."""
        words = ["ipv6.method", "disabled"] if len(nets) == 1 else []
        for gateway, own in nets:
            family, length = ("ipv6", 64) if ":" in own else ("ipv4", 24)
            words += [f"{family}.method", "manual", f"{family}.addresses", f"{own}/{length}", f"{family}.gateway", gateway]
            words += [f"{family}.route-metric", "5000"]
        self._run_on_node(node, *f"nmcli connection add type ethernet con-name outside ifname eth1 {' '.join(words)}".split())
        self._run_on_node(node, "nmcli", "connection", "up", "outside")

    def remove(self) -> None:
        """Remove the outside, as far as it exists."""
        if self.state_file.exists():
            pid, bridge = self.state_file.read_text().split()
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGTERM)
            change_bridge_rule("-D", bridge)
            self.state_file.unlink()
        for node in filter(None, (self.client, self.leak)):
            self._run_on_node(node, "nmcli", "connection", "delete", "outside", check=False)
        # This also removes the ports that connect to it.
        run("ip", "netns", "delete", self.name, check=False)


def change_bridge_rule(action: str, bridge: str) -> None:
    """Insert (-I) or delete (-D) the rule that lets packets pass from one port of a bridge to another."""
    run("iptables", action, "DOCKER-USER", "--in-interface", bridge, "--out-interface", bridge, "--jump", "ACCEPT")


class EchoProtocol(asyncio.DatagramProtocol):
    """Sends every packet back."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple) -> None:
        self.transport.sendto(data, address)  # type: ignore[attr-defined]


def dns_answer(question: bytes) -> bytes:
    """Return the answer of a name server to a question: every name has the address INTERNET (RFC 1035)."""
    end = question.index(b"\0", 12) + 5
    kind = question[end - 4 : end - 2]
    address = socket.inet_pton(socket.AF_INET6, INTERNET[1]) if kind == b"\0\x1c" else socket.inet_aton(INTERNET[0])
    record = b"\xc0\x0c" + kind + b"\0\1" + struct.pack(">IH", 60, len(address)) + address
    return question[:2] + b"\x81\x80" + struct.pack(">4H", 1, 1, 0, 0) + question[12:end] + record


class DnsProtocol(EchoProtocol):
    """Answers DNS questions over UDP."""

    def datagram_received(self, data: bytes, address: tuple) -> None:
        self.transport.sendto(dns_answer(data), address)  # type: ignore[attr-defined]


async def answer_tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send an HTTP response at once, whatever the request is."""
    writer.write(b"HTTP/1.0 200 OK\r\n\r\nthe outside\n")
    await writer.drain()
    writer.close()


async def answer_dns_tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer a DNS question over TCP."""
    length = struct.unpack(">H", await reader.readexactly(2))[0]
    response = dns_answer(await reader.readexactly(length))
    writer.write(struct.pack(">H", len(response)) + response)
    await writer.drain()
    writer.close()


async def advertise() -> None:
    """Send a router advertisement for IPv6 with a prefix every two seconds (RFC 4861, sections 4.2 and 4.6.2)."""
    prefix = struct.pack(">BBBBIII", 3, 4, 64, 0xC0, 86400, 14400, 0) + socket.inet_pton(socket.AF_INET6, ADVERTISED)
    message = struct.pack(">BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + prefix
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw_socket:
        raw_socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        target = ("ff02::1", 0, 0, socket.if_nametoindex("lab"))
        while True:
            try:
                raw_socket.sendto(message, target)
            except OSError as error:  # the port is not up yet
                print(error, file=sys.stderr)
            await asyncio.sleep(2)


async def serve() -> None:
    """Run all servers of the outside until the process is terminated."""
    loop = asyncio.get_running_loop()
    for host in (*INTERNET, UPLINK_IPV4[0]):
        for port in TCP:
            await asyncio.start_server(answer_tcp, host, port)
        await asyncio.start_server(answer_dns_tcp, host, 53)
        for port in UDP:
            await loop.create_datagram_endpoint(EchoProtocol, local_addr=(host, port))
        await loop.create_datagram_endpoint(DnsProtocol, local_addr=(host, 53))
    await advertise()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "action", choices=["up", "down", "serve"], help="create, remove, or (inside the namespace) run the servers"
    )
    parser.add_argument("--cluster", default="rehearsal", help="cluster_name of the stand-ins")
    parser.add_argument("--subnet", default="10.77.77.0/24", help="cluster_subnet of the stand-ins")
    parser.add_argument("--client", default="pi-client", help="name of the client")
    parser.add_argument("--leak", default="", help="name of a node that gets a port to the outside")
    options = parser.parse_args(arguments)
    if options.action == "serve":
        asyncio.run(serve())
        return
    outside = Outside(options.cluster, options.subnet, options.client, options.leak)
    {"up": outside.create, "down": outside.remove}[options.action]()


if __name__ == "__main__":
    main()
