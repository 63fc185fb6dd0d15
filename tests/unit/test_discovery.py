"""The discovery of hosts: the output of nmap, arp-scan and ssh-keyscan, and the verdicts of playbooks/discover.yml."""

from __future__ import annotations

import contextlib
from xml.etree import ElementTree

import jinja2
import pytest
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.network.discovery import (
    CONTROL_MACHINE,
    DUPLICATE,
    MISSING,
    SPARE,
    UNKNOWN,
    UP,
    WRONG_ADDRESS,
    WRONG_HOST_KEY,
    Finding,
    Host,
    Node,
    describe_problems,
    finding_as_dict,
    findings_table,
    match_hosts,
    parse_arp_scan,
    parse_keys,
    parse_nmap,
    parse_subnet,
)
from hypothesis import given
from hypothesis import strategies as st

from tests.support import ROOT

PICTURES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(ROOT / "playbooks/templates"), undefined=jinja2.StrictUndefined, trim_blocks=True
)
XML = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE nmaprun>
<nmaprun scanner="nmap"><verbose level="0"/>
<host><status state="up" reason="arp-response" reason_ttl="0"/>
<address addr="10.0.0.101" addrtype="ipv4"/><address addr="DC:A6:32:00:00:01" addrtype="mac" vendor="Raspberry Pi Trading"/>
<hostnames></hostnames></host>
<host><status state="down" reason="no-response" reason_ttl="0"/><address addr="10.0.0.102" addrtype="ipv4"/></host>
<host><status state="up" reason="localhost-response" reason_ttl="0"/><address addr="10.0.0.1" addrtype="ipv4"/></host>
<runstats><finished elapsed="2.0" exit="success"/></runstats></nmaprun>
"""
MACS = ["dc:a6:32:00:00:01", "dc:a6:32:00:00:02", "02:00:00:00:00:09"]
NODES = [
    Node(f"pi-0{n}", f"10.0.0.10{n}", key=f"ssh-ed25519 KEY{n}", mac=f"dc:a6:32:00:00:0{n}", serial=f"1000{n}") for n in (1, 2)
]


def picture(findings: list[Finding], title: str, subtitle: str) -> str:
    """Return the picture, rendered as playbooks/discover.yml renders it."""
    shown = [finding_as_dict(finding) for finding in findings]
    return PICTURES.get_template("discover.svg.j2").render(findings=shown, title=title, subtitle=subtitle)


def host(address: str, *macs: str, key: str = "", serial: str = "") -> Host:
    return Host(address, set(macs), {key} if key else set(), serial=serial)


def verdicts(*hosts: Host, nodes: list[Node] = NODES, own: tuple[str, ...] = ()) -> list[tuple[str, str, str]]:
    findings = match_hosts(nodes, {host.address: host for host in hosts}, own)
    assert len(findings_table(findings).splitlines()) == len(findings) + 1
    ElementTree.fromstring(picture(findings, "a <title> & more", "now"))
    return [(finding.name, finding.verdict, finding.address) for finding in findings]


HEALTHY = (host("10.0.0.101", MACS[0], key="ssh-ed25519 KEY1"), host("10.0.0.102", MACS[1], key="ssh-ed25519 KEY2"))


def test_output_of_nmap() -> None:
    hosts = parse_nmap(XML)
    assert hosts.keys() == {"10.0.0.101", "10.0.0.1"}
    assert hosts["10.0.0.101"] == Host("10.0.0.101", {MACS[0]}, vendor="Raspberry Pi Trading")


@pytest.mark.parametrize("text", ["", "nmap: not found", XML[:-20], "<!DOCTYPE x [<!ENTITY a 'b'>]><nmaprun>&a;</nmaprun>"])
def test_other_output_is_refused(text: str) -> None:
    with pytest.raises(BrambleError):
        parse_nmap(text)


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(BrambleError):
        assert parse_nmap(text) == {} or "<host" in text


def test_output_of_arp_scan_has_all_claims() -> None:
    text = f"10.0.0.101\t{MACS[0]}\n10.0.0.101\t{MACS[2].upper()}\n10.0.0.102\t{MACS[1]}\nwarning: something else\n"
    assert parse_arp_scan(text) == {"10.0.0.101": {MACS[0], MACS[2]}, "10.0.0.102": {MACS[1]}}


@given(st.text())
def test_any_text_is_parsed_as_keys_and_claims(text: str) -> None:
    for keys in parse_keys(text).values():
        assert all(len(key.split(" ", 1)) == 2 for key in keys)
    assert all(len(mac) == 17 for macs in parse_arp_scan(text).values() for mac in macs)


def test_output_of_ssh_keyscan() -> None:
    text = (
        "# 10.0.0.101:22 SSH-2.0-OpenSSH\n10.0.0.101 ssh-ed25519 AAAA\n10.0.0.101,pi-01 ecdsa BBBB comment\n|1|hash ssh-rsa CC\n"
    )
    assert parse_keys(text) == {"10.0.0.101": {"ssh-ed25519 AAAA", "ecdsa BBBB"}, "pi-01": {"ecdsa BBBB"}}


def test_too_large_and_invalid_subnets_are_refused() -> None:
    assert parse_subnet("10.0.0.0/22", 1024).num_addresses == 1024
    with pytest.raises(BrambleError, match=r"10.0.0.0/21 has 2048 .* discover_max_addresses=2048"):
        parse_subnet("10.0.0.0/21", 1024)
    with pytest.raises(BrambleError, match="Write it as"):
        parse_subnet("10.0.0.1/24", 1024)


def test_healthy_cluster() -> None:
    assert verdicts(*HEALTHY) == [("pi-01", UP, "10.0.0.101"), ("pi-02", UP, "10.0.0.102")]
    assert describe_problems(match_hosts(NODES, {host.address: host for host in HEALTHY})) == []


def test_each_verdict() -> None:
    assert verdicts(HEALTHY[0])[1] == ("pi-02", MISSING, "10.0.0.102")
    assert verdicts(HEALTHY[0], host("10.0.0.150", MACS[1], key="ssh-ed25519 KEY2"))[1] == ("pi-02", WRONG_ADDRESS, "10.0.0.150")
    assert verdicts(HEALTHY[0], host("10.0.0.102", MACS[2], key="ssh-ed25519 X"))[1] == ("pi-02", WRONG_HOST_KEY, "10.0.0.102")
    assert verdicts(HEALTHY[0], host("10.0.0.102", MACS[1], MACS[2]))[1] == ("pi-02", DUPLICATE, "10.0.0.102")
    assert verdicts(*HEALTHY, host("10.0.0.7", MACS[2]))[2] == ("", UNKNOWN, "10.0.0.7")
    assert verdicts(*HEALTHY, host("10.0.0.1"), own=("10.0.0.1",))[2] == ("", CONTROL_MACHINE, "10.0.0.1")
    assert verdicts(*HEALTHY, host("10.0.0.1", MACS[2]), own=("10.0.0.1",))[2] == ("", DUPLICATE, "10.0.0.1")


def test_node_without_ssh_is_identified_by_its_mac() -> None:
    assert verdicts(HEALTHY[0], host("10.0.0.102", MACS[1]))[1] == ("pi-02", UP, "10.0.0.102")


def test_two_hosts_with_the_same_card() -> None:
    assert verdicts(*HEALTHY, host("10.0.0.150", MACS[2], key="ssh-ed25519 KEY2"))[1:] == [
        ("pi-02", UP, "10.0.0.102"),
        ("pi-02", DUPLICATE, "10.0.0.150"),
    ]


def test_spare_node_is_never_missing() -> None:
    nodes = [NODES[0], Node("pi-02", "10.0.0.102", spare=True, key="ssh-ed25519 KEY2")]
    assert verdicts(HEALTHY[0], nodes=nodes) == [("pi-01", UP, "10.0.0.101")]
    assert verdicts(*HEALTHY, nodes=nodes)[1] == ("pi-02", SPARE, "10.0.0.102")


def test_exchanged_cards_are_noted_but_no_problem() -> None:
    swapped = {
        "10.0.0.101": host("10.0.0.101", MACS[1], key="ssh-ed25519 KEY1"),
        "10.0.0.102": host("10.0.0.102", key="ssh-ed25519 KEY2", serial="10001"),
    }
    findings = match_hosts(NODES, swapped)
    assert [finding.note for finding in findings] == ["in the Pi that was pi-02's", "in the Pi that was pi-01's"]
    assert describe_problems(findings) == []


@given(
    st.lists(
        st.builds(
            Host,
            st.integers(1, 254).map("10.0.0.{}".format),
            st.sets(st.sampled_from(MACS)),
            st.sets(st.sampled_from(["ssh-ed25519 KEY1", "ssh-ed25519 KEY2", "ssh-rsa X"])),
        ),
        unique_by=lambda host: host.address,
    ),
    st.sets(st.integers(1, 254).map("10.0.0.{}".format)),
)
def test_every_host_and_node_has_a_finding_and_every_problem_a_text(hosts: list[Host], own: set[str]) -> None:
    findings = match_hosts(NODES, {host.address: host for host in hosts}, own)
    assert sorted(f.address for f in findings if f.verdict != MISSING) == sorted(host.address for host in hosts)
    named = {finding.name for finding in findings}
    assert {node.name for node in NODES} <= named
    wrong = {MISSING, WRONG_ADDRESS, DUPLICATE, WRONG_HOST_KEY}
    assert len(describe_problems(findings)) == sum(finding.verdict in wrong for finding in findings)
    ElementTree.fromstring(picture(findings, "t", "s"))
