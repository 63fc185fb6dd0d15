"""The probes of the lab, run in two network namespaces with a cable between them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bramble.cluster.plugins.module_utils.lab import packets

from tests.support import ROOT
from tests.support.load_plugin import load_script

capture = load_script(ROOT / "roles/isolated_lab/files/capture.py")
IMPORT = "from ansible_collections.bramble.cluster.plugins.module_utils.lab.{} import"
LOCAL_IP, REMOTE_IP, REMOTE_IPV6 = "10.99.0.1", "10.99.0.2", "fd00:99::2"
OPEN = f"""
import asyncio
from scripts import outside
outside.INTERNET, outside.UPLINK_IPV4 = ({REMOTE_IP!r}, {REMOTE_IPV6!r}), ({REMOTE_IP!r},)
outside.advertise = asyncio.Event().wait
outside.UPLINK_IPV4 = ("127.0.0.5",)
asyncio.run(outside.serve())
"""
BLOCKING_TABLE = """table inet t {
  chain in { type filter hook input priority filter; policy drop; iifname lo accept; icmpv6 type { 135, 136 } accept; }
}"""


class Wire:
    """Two network namespaces with a cable between them: `near` probes, and `far` answers."""

    def __init__(self, near: str, far: str) -> None:
        self.near, self.far = near, far

    def ip(self, *words: str) -> None:
        subprocess.run(["ip", "-n", *words], check=True)

    def mac(self) -> str:
        link = subprocess.run(["ip", "-n", self.far, "-json", "link", "show", "eth0"], check=True, capture_output=True)
        return str(json.loads(link.stdout)[0]["address"])

    def nft(self, rules: str) -> None:
        subprocess.run(["ip", "netns", "exec", self.far, "nft", "-f", "-"], input=rules, text=True, check=True)

    def run(self, *rows: dict[str, Any]) -> list[dict[str, Any]]:
        """Run probes in the namespace `near`, and return their results."""
        code = f"import json, sys; {IMPORT.format('probe')} run_probes; json.dump(run_probes(json.load(sys.stdin)), sys.stdout)"
        words = ["ip", "netns", "exec", self.near, sys.executable, "-c", code]
        path = {"PYTHONPATH": str(ROOT / ".config"), "PATH": os.environ["PATH"]}
        done = subprocess.run(words, input=json.dumps(rows), capture_output=True, text=True, check=True, env=path)
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    if os.geteuid():
        pytest.skip("network namespaces need root")
    wire = Wire(f"lp-near-{os.getpid()}", f"lp-far-{os.getpid()}")
    try:
        for name in (wire.near, wire.far):
            subprocess.run(["ip", "netns", "add", name], check=True)
            wire.ip(name, "link", "set", "lo", "up")
        wire.ip(wire.near, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", wire.far)
        for name, last in ((wire.near, "1"), (wire.far, "2")):
            wire.ip(name, "address", "add", f"10.99.0.{last}/24", "dev", "eth0")
            wire.ip(name, "address", "add", f"fd00:99::{last}/64", "dev", "eth0", "nodad")
            wire.ip(name, "link", "set", "eth0", "up")
        server = subprocess.Popen(["ip", "netns", "exec", wire.far, sys.executable, "-c", OPEN])
        end = time.monotonic() + 30
        while not wire.run({"kind": "dns", "host": REMOTE_IP, "name": "a.example"})[0]["reached"]:
            assert time.monotonic() < end and server.poll() is None
        yield wire
        server.kill()
        server.wait()
    finally:
        for name in (wire.near, wire.far):
            subprocess.run(["ip", "netns", "delete", name], check=False)


@pytest.fixture
def rows(wire: Wire) -> list[dict[str, Any]]:
    """Return a probe of each kind that sends something."""
    raw = {"interface": "eth0", "source": LOCAL_IP, "host": REMOTE_IP}
    both = [
        row
        for host in (REMOTE_IP, REMOTE_IPV6)
        for row in (
            {"kind": "tcp", "host": host, "port": 80},
            {"kind": "tcp", "host": host, "port": 81},  # refused, so a packet came back
            {"kind": "udp", "host": host, "port": 123},
            {"kind": "udp", "host": host, "port": 124},
            {"kind": "icmp", "host": host},
            {"kind": "dns", "host": host, "name": "www.outside.example"},
            {"kind": "dns", "host": host, "name": "www.outside.example", "tcp": True},
        )
    ]
    return [*both, {"kind": "user", "host": REMOTE_IP, "port": 80}, {"kind": "frame", "mac": wire.mac(), **raw}]


def test_open_ports_are_reached_and_dropped_ones_are_not(wire: Wire, rows: list[dict[str, Any]]) -> None:
    found = wire.run(*rows)
    assert [row for row in found if not row["reached"]] == []
    assert {row["seen"] for row in found if row.get("port") in (81, 124)} == {"refused by the host itself"}
    try:
        wire.nft(BLOCKING_TABLE)
        found = wire.run(*rows)
    finally:
        wire.nft("flush ruleset")
    assert [row for row in found if row["reached"]] == []


def test_refused_service_is_not_reached(wire: Wire) -> None:
    found = wire.run(*({"kind": "tcp", "host": REMOTE_IP, "port": port, "service": True} for port in (80, 81)))
    assert [row["reached"] for row in found] == [True, False]


def test_arp_and_hand_made_frames_pass_output_rules(wire: Wire) -> None:
    raw = {"kind": "arp", "interface": "eth0", "source": LOCAL_IP}
    assert [row["reached"] for row in wire.run({**raw, "host": REMOTE_IP}, {**raw, "host": "10.99.0.77"})] == [True, False]
    # The output rules of the near host do not filter hand-made frames.
    out = "table inet t { chain o { type filter hook output priority filter; policy drop; }\n}"
    subprocess.run(["ip", "netns", "exec", wire.near, "nft", "-f", "-"], input=out, text=True, check=True)
    try:
        frame = {**raw, "kind": "frame", "host": REMOTE_IP, "mac": wire.mac()}
        found = wire.run(frame, {"kind": "tcp", "host": REMOTE_IP, "port": 80})
    finally:
        subprocess.run(["ip", "netns", "exec", wire.near, "nft", "flush", "ruleset"], check=True)
    assert [row["reached"] for row in found] == [True, False]


def test_route_over_a_gateway_is_removed_after_the_probe(wire: Wire) -> None:
    wire.ip(wire.far, "address", "add", "198.51.100.7/32", "dev", "lo")
    row = {"host": "198.51.100.7", "port": 9, "interface": "eth0"}
    found = wire.run(
        {"kind": "tcp", **row}, {"kind": "via", "via": REMOTE_IP, **row}, {"kind": "via", "via": "10.99.0.77", **row}
    )
    assert [row["reached"] for row in found] == [False, True, False]
    left = subprocess.run(["ip", "-n", wire.near, "route"], check=True, capture_output=True, text=True).stdout
    assert "198.51.100.7" not in left


def test_probes_of_states(wire: Wire, tmp_path: Path) -> None:
    states: list[dict[str, Any]] = [
        {"kind": "default_route", "family": 4},
        {"kind": "default_route", "family": 6},
        {"kind": "links", "interface": "eth0"},
        {"kind": "ipv6", "interface": "eth0"},
        {"kind": "firewall", "table": "bramble_lab", "hooks": ["input", "output"]},
        {"kind": "forwarding"},
    ]

    def reached() -> list[bool]:
        return [row["reached"] for row in wire.run(*states)]

    def inside(command: str) -> None:
        subprocess.run(["ip", "netns", "exec", wire.near, "sh", "-c", command], check=True)

    # A new namespace inherits forwarding from the machine.
    inside("for name in ipv4/ip_forward ipv6/conf/all/forwarding; do echo 0 >/proc/sys/net/$name; done")
    assert reached() == [False, False, False, True, True, False]
    inside(
        f"ip route add default via {REMOTE_IP}; ip -6 route add default via {REMOTE_IPV6};"
        "ip link add d0 type veth peer name d1; ip link set d0 up"
    )
    inside("echo 1 >/proc/sys/net/ipv4/ip_forward")
    assert reached() == [True, True, True, True, True, True]
    inside("ip route del default; ip link del d0; echo 0 >/proc/sys/net/ipv4/ip_forward")
    table = "table inet bramble_lab { chain %s { type filter hook %s priority filter; policy %s; }\n}"
    inside(f"nft '{table % ('a', 'input', 'drop')}; {table % ('b', 'output', 'accept')}'")
    assert reached()[4]
    inside(f"nft '{table % ('b', 'output', 'drop')}'")
    assert not reached()[4]
    inside("nft flush ruleset; for name in all default; do echo 1 >/proc/sys/net/ipv6/conf/$name/disable_ipv6; done")
    try:
        # The default route has gone together with the addresses.
        assert reached() == [False, False, False, False, True, False]
    finally:
        inside("echo 0 >/proc/sys/net/ipv6/conf/all/disable_ipv6; ip address add fd00:99::1/64 dev eth0 nodad")


def test_packets_have_the_documented_form() -> None:
    assert packets.dns_query("a.example", 7) == b"\0\7\1\0\0\1\0\0\0\0\0\0\1a\7example\0\0\1\0\1"
    assert (
        packets.internet_checksum(packets.ipv4_echo_packet(LOCAL_IP, REMOTE_IP, 7)[:20]) == 0
        and packets.internet_checksum(packets.ipv4_echo_packet(LOCAL_IP, REMOTE_IP, 7)[20:]) == 0
    )
    assert packets.link_local_address("dc:a6:32:00:00:01") == "fe80::dea6:32ff:fe00:1"


def test_host_facts_have_the_ports_that_listen(wire: Wire) -> None:
    code = f"import json; {IMPORT.format('host')} host_facts; print(json.dumps(host_facts('eth1', 'eth0')))"
    path = {"PYTHONPATH": str(ROOT / ".config"), "PATH": os.environ["PATH"]}
    words = ["ip", "netns", "exec", wire.far, sys.executable, "-c", code]
    facts = json.loads(subprocess.run(words, capture_output=True, check=True, env=path).stdout)
    assert facts["uplink"] == "eth0" and {REMOTE_IP, REMOTE_IPV6} <= set(facts["uplink_addresses"])
    assert facts["listening"] == [22, 53, 80, 443]


def test_capture_counts_the_frames_of_the_lab(wire: Wire, tmp_path: Path) -> None:
    result = tmp_path / "frames.json"
    words: list[str | Path] = [
        "ip",
        "netns",
        "exec",
        wire.near,
        sys.executable,
        ROOT / "roles/isolated_lab/files/capture.py",
        "eth0",
        result,
    ]
    with subprocess.Popen([*words, "198.51.100.0/24", "fd00:99::2"]) as counting:
        while not result.exists():
            time.sleep(0.05)
        wire.run({"kind": "icmp", "host": REMOTE_IP})
        wire.run({"kind": "icmp", "host": REMOTE_IPV6})
        counting.send_signal(signal.SIGTERM)
        assert counting.wait(timeout=10) == 0
    counts = json.loads(result.read_text())
    # An echo and its answer, and sometimes a neighbour solicitation.
    assert 2 <= counts["lab"] < counts["all"]


@pytest.mark.parametrize(
    "frame, found",
    [
        (bytes(12) + b"\x08\x00" + bytes(12) + bytes([10, 0, 0, 1, 10, 0, 0, 2]), ["10.0.0.1", "10.0.0.2"]),
        (bytes(12) + b"\x81\x00\0\5\x08\x00" + bytes(12) + bytes([10, 0, 0, 1, 10, 0, 0, 2]), ["10.0.0.1", "10.0.0.2"]),
        (bytes(12) + b"\x08\x06" + bytes(14) + bytes([10, 0, 0, 3]) + bytes(6) + bytes([10, 0, 0, 4]), ["10.0.0.3", "10.0.0.4"]),
        (bytes(12) + b"\x86\xdd" + bytes(8) + bytes(15) + b"\1" + bytes(15) + b"\2", ["::1", "::2"]),
        (bytes(12) + b"\x08\x00" + bytes(4), []),
        (bytes(12) + b"\x88\xcc" + bytes(60), []),
        (b"", []),
    ],
)
def test_addresses_in_a_frame(frame: bytes, found: list[str]) -> None:
    assert capture.frame_addresses(frame) == found
