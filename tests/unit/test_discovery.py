"""Who is on the network: what nmap, arp-scan and ssh-keyscan say, and the judgement of playbooks/discover.yml."""

from __future__ import annotations

import contextlib
from xml.etree import ElementTree

import pytest
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.network.discovery import (
    DUPLICATE,
    MISSING,
    NOT_ITSELF,
    SPARE,
    THIS_MACHINE,
    UNKNOWN,
    UP,
    WRONG_ADDRESS,
    Host,
    Node,
    judge,
    network,
    parse_arp_scan,
    parse_keys,
    parse_nmap,
    problems,
    table,
)
from ansible_collections.bramble.cluster.plugins.module_utils.network.discovery_picture import picture
from hypothesis import given
from hypothesis import strategies as st

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


def host(address: str, *macs: str, key: str = "", serial: str = "") -> Host:
    return Host(address, set(macs), {key} if key else set(), serial=serial)


def found(*hosts: Host, nodes: list[Node] = NODES, own: tuple[str, ...] = ()) -> list[tuple[str, str, str]]:
    findings = judge(nodes, {host.address: host for host in hosts}, own)
    assert len(table(findings).splitlines()) == len(findings) + 1
    ElementTree.fromstring(picture(findings, "a <title> & more", "now"))
    return [(finding.name, finding.verdict, finding.address) for finding in findings]


WELL = (host("10.0.0.101", MACS[0], key="ssh-ed25519 KEY1"), host("10.0.0.102", MACS[1], key="ssh-ed25519 KEY2"))


def test_nmap() -> None:
    hosts = parse_nmap(XML)
    assert hosts.keys() == {"10.0.0.101", "10.0.0.1"}
    assert hosts["10.0.0.101"] == Host("10.0.0.101", {MACS[0]}, vendor="Raspberry Pi Trading")


@pytest.mark.parametrize("text", ["", "nmap: not found", XML[:-20], "<!DOCTYPE x [<!ENTITY a 'b'>]><nmaprun>&a;</nmaprun>"])
def test_nmap_that_is_not(text: str) -> None:
    with pytest.raises(BrambleError):
        parse_nmap(text)


@given(st.text())
def test_any_text_is_nmaps_or_refused(text: str) -> None:
    with contextlib.suppress(BrambleError):
        assert parse_nmap(text) == {} or "<host" in text


def test_arp_scan_names_all_who_claim_an_address() -> None:
    text = f"10.0.0.101\t{MACS[0]}\n10.0.0.101\t{MACS[2].upper()}\n10.0.0.102\t{MACS[1]}\nwarning: something else\n"
    assert parse_arp_scan(text) == {"10.0.0.101": {MACS[0], MACS[2]}, "10.0.0.102": {MACS[1]}}


@given(st.text())
def test_any_text_is_read_as_keys_and_claims(text: str) -> None:
    for keys in parse_keys(text).values():
        assert all(len(key.split(" ", 1)) == 2 for key in keys)
    assert all(len(mac) == 17 for macs in parse_arp_scan(text).values() for mac in macs)


def test_keys() -> None:
    text = (
        "# 10.0.0.101:22 SSH-2.0-OpenSSH\n10.0.0.101 ssh-ed25519 AAAA\n10.0.0.101,pi-01 ecdsa BBBB comment\n|1|hash ssh-rsa CC\n"
    )
    assert parse_keys(text) == {"10.0.0.101": {"ssh-ed25519 AAAA", "ecdsa BBBB"}, "pi-01": {"ecdsa BBBB"}}


def test_a_subnet_that_is_too_large_is_refused_before_anything_is_sent() -> None:
    assert network("10.0.0.0/22", 1024).num_addresses == 1024
    with pytest.raises(BrambleError, match=r"10.0.0.0/21 has 2048 .* discover_max_addresses=2048"):
        network("10.0.0.0/21", 1024)
    with pytest.raises(BrambleError, match="Write it as"):
        network("10.0.0.1/24", 1024)


def test_all_well() -> None:
    assert found(*WELL) == [("pi-01", UP, "10.0.0.101"), ("pi-02", UP, "10.0.0.102")]
    assert problems(judge(NODES, {one.address: one for one in WELL})) == []


def test_each_verdict() -> None:
    assert found(WELL[0])[1] == ("pi-02", MISSING, "10.0.0.102")
    assert found(WELL[0], host("10.0.0.150", MACS[1], key="ssh-ed25519 KEY2"))[1] == ("pi-02", WRONG_ADDRESS, "10.0.0.150")
    assert found(WELL[0], host("10.0.0.102", MACS[2], key="ssh-ed25519 X"))[1] == ("pi-02", NOT_ITSELF, "10.0.0.102")
    assert found(WELL[0], host("10.0.0.102", MACS[1], MACS[2]))[1] == ("pi-02", DUPLICATE, "10.0.0.102")
    assert found(*WELL, host("10.0.0.7", MACS[2]))[2] == ("", UNKNOWN, "10.0.0.7")
    assert found(*WELL, host("10.0.0.1"), own=("10.0.0.1",))[2] == ("", THIS_MACHINE, "10.0.0.1")
    assert found(*WELL, host("10.0.0.1", MACS[2]), own=("10.0.0.1",))[2] == ("", DUPLICATE, "10.0.0.1")


def test_a_node_whose_ssh_does_not_answer_is_known_by_its_pi() -> None:
    assert found(WELL[0], host("10.0.0.102", MACS[1]))[1] == ("pi-02", UP, "10.0.0.102")


def test_two_hosts_with_one_card() -> None:
    assert found(*WELL, host("10.0.0.150", MACS[2], key="ssh-ed25519 KEY2"))[1:] == [
        ("pi-02", UP, "10.0.0.102"),
        ("pi-02", DUPLICATE, "10.0.0.150"),
    ]


def test_a_spare_node_is_not_missed() -> None:
    nodes = [NODES[0], Node("pi-02", "10.0.0.102", spare=True, key="ssh-ed25519 KEY2")]
    assert found(WELL[0], nodes=nodes) == [("pi-01", UP, "10.0.0.101")]
    assert found(*WELL, nodes=nodes)[1] == ("pi-02", SPARE, "10.0.0.102")


def test_cards_in_each_others_pis_are_noted_and_no_problem() -> None:
    swapped = {
        "10.0.0.101": host("10.0.0.101", MACS[1], key="ssh-ed25519 KEY1"),
        "10.0.0.102": host("10.0.0.102", key="ssh-ed25519 KEY2", serial="10001"),
    }
    findings = judge(NODES, swapped)
    assert [finding.note for finding in findings] == ["in the Pi that was pi-02's", "in the Pi that was pi-01's"]
    assert problems(findings) == []


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
def test_every_host_and_every_node_is_told_once_and_what_is_wrong_has_a_remedy(hosts: list[Host], own: set[str]) -> None:
    findings = judge(NODES, {host.address: host for host in hosts}, own)
    assert sorted(f.address for f in findings if f.verdict != MISSING) == sorted(host.address for host in hosts)
    named = {finding.name for finding in findings}
    assert {node.name for node in NODES} <= named
    wrong = {MISSING, WRONG_ADDRESS, DUPLICATE, NOT_ITSELF}
    assert len(problems(findings)) == sum(finding.verdict in wrong for finding in findings)
    ElementTree.fromstring(picture(findings, "t", "s"))
