"""The network stack that manages a port, the files that change, and their new texts.

To accept a change of the texts: EXPECTED=write pytest tests/unit/test_network_stack.py, and review the diff.
"""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.bramble.cluster.plugins.filter.port_files import port_files, rollback_outcome
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.network.arp import arp_conflict, arp_probe
from ansible_collections.bramble.cluster.plugins.module_utils.network.ifupdown import SOURCE_LINE
from ansible_collections.bramble.cluster.plugins.module_utils.network.owner import (
    Owner,
    PortFacts,
    find_owner,
    parse_networkctl,
    parse_nmcli,
)
from ansible_collections.bramble.cluster.plugins.module_utils.network.places import INTERFACES_FILE
from ansible_collections.bramble.cluster.plugins.module_utils.network.port import (
    PortState,
    check_gateways,
    ipv4_differences,
    ipv6_settings,
    parse_port_state,
)
from ansible_collections.bramble.cluster.plugins.module_utils.network.stack import changed_files, has_equal_settings, without_port
from hypothesis import given
from hypothesis import strategies as st

HERE = Path(__file__).parent / "network"
BASE: dict[str, Any] = {"dhcp4": False, "dhcp6": False, "accept-ra": False, "optional": True, "addresses": ["10.0.0.5/24"]}
PORTS: dict[str, dict[str, Any]] = {
    "isolated": BASE,
    "gateway": {
        **BASE,
        "routes": [{"to": "default", "via": "10.0.0.1"}],
        "nameservers": {"addresses": ["10.0.0.1", "9.9.9.9"], "search": ["lan"]},
    },
    "without-ipv6": {**BASE, "link-local": []},
    "accept-ra": {**BASE, "accept-ra": True},
}
NM = Owner("networkmanager", "NetworkManager")
NETPLAN = Owner("netplan", "NetworkManager")
UBUNTU = Owner("netplan", "networkd")
NETWORKD = Owner("networkd", "networkd")
IFUPDOWN = Owner("ifupdown", "ifupdown")
CLOUD = "/etc/netplan/50-cloud-init.yaml"
KEYFILE = "/etc/NetworkManager/system-connections/bramble-eth0.nmconnection"
MAC = "dc:a6:32:00:00:01"


def text(owner: Owner, port: dict[str, Any] = BASE) -> str:
    return port_files(port, "eth0", "0b5e0a35-0000-5000-8000-000000000000")[owner.stack]


def netplan(**ethernets: Any) -> str:
    return yaml.safe_dump({"network": {"version": 2, "ethernets": ethernets}})


@pytest.mark.parametrize("name", PORTS)
def test_files_of_each_stack(name: str) -> None:
    found = ""
    for owner in (NM, NETPLAN, UBUNTU, NETWORKD, IFUPDOWN):
        for path, content in changed_files(owner, "eth0", text(owner, PORTS[name]), {}).items():
            found += f"#### {owner.stack} by {owner.backend}: {path}\n{content}"
    expected_file = HERE / f"{name}.expected"
    if os.environ.get("EXPECTED") == "write":
        expected_file.write_text(found)
    assert found == expected_file.read_text()


@pytest.mark.skipif(not shutil.which("netplan"), reason="netplan is not installed here")
@pytest.mark.parametrize("owner", [NETPLAN, UBUNTU])
@pytest.mark.parametrize("name", PORTS)
def test_netplan_accepts_its_files(name: str, owner: Owner, tmp_path: Path) -> None:
    for path, content in changed_files(owner, "eth0", text(owner, PORTS[name]), {}).items():
        file = tmp_path / path[1:]
        file.parent.mkdir(parents=True)
        file.write_text(content or "")
        file.chmod(0o600)
    subprocess.run(["netplan", "generate", "--root-dir", tmp_path], check=True, capture_output=True)
    backend = "system-connections" if owner.backend == "NetworkManager" else "systemd/network"
    assert any("10.0.0.5/24" in file.read_text() for file in tmp_path.glob("run/**/*eth0*") if backend in str(file))


# The owner of the port

BY_NETPLAN = "/run/NetworkManager/system-connections/netplan-eth0.nmconnection"


def facts(*active: str, **known: Any) -> PortFacts:
    return PortFacts("eth0", frozenset(active), **known)


@pytest.mark.parametrize(
    ("known", "texts", "owner"),
    [
        (facts("NetworkManager", nm_state="100 (connected)", nm_uuid="u", nm_file=KEYFILE), {CLOUD: netplan(eth0={})}, NM),
        (facts("NetworkManager", nm_state="100 (connected)", nm_uuid="u", nm_file=BY_NETPLAN), {}, NETPLAN),
        (facts("NetworkManager", nm_state="30 (disconnected)"), {}, NM),
        (facts("NetworkManager", nm_state="30 (disconnected)"), {CLOUD: netplan(eth0={})}, NETPLAN),
        (facts("systemd-networkd", networkd_state="configured", networkd_file="/etc/systemd/network/x.network"), {}, NETWORKD),
        (
            facts("systemd-networkd", networkd_state="configured", networkd_file="/run/systemd/network/10-netplan-eth0.network"),
            {},
            UBUNTU,
        ),
        # Both run, and NetworkManager does not manage the port.
        (
            facts(
                "NetworkManager",
                "systemd-networkd",
                nm_state="100 (connected (externally))",
                nm_uuid="u",
                networkd_state="configured",
                networkd_file="/etc/systemd/network/x.network",
            ),
            {},
            NETWORKD,
        ),
        # The port of ifupdown, which NetworkManager does not manage.
        (facts("NetworkManager", "networking", nm_state="10 (unmanaged)", ifupdown=True), {}, IFUPDOWN),
        (facts("systemd-networkd", networkd_state="unmanaged"), {}, NETWORKD),
        (facts("systemd-networkd", networkd_state="unmanaged"), {CLOUD: netplan(a={"match": {"name": "eth*"}})}, UBUNTU),
    ],
)
def test_owner_of_the_port(known: PortFacts, texts: dict[str, str], owner: Owner) -> None:
    assert find_owner(known, texts) == owner


@pytest.mark.parametrize("known", [facts(), facts("NetworkManager", nm_state="10 (unmanaged)"), facts("networking")])
def test_unsupported_stack_is_named(known: PortFacts) -> None:
    with pytest.raises(
        BrambleError, match=r"No network stack that Bramble supports manages eth0 \(running: .*Nothing was changed"
    ):
        find_owner(known, {})


def test_output_of_nmcli_and_networkctl() -> None:
    output = "GENERAL.STATE:100 (connected)\nGENERAL.CON-UUID:626dd384\nnoise\n"
    assert parse_nmcli(output) == {"GENERAL.STATE": "100 (connected)", "GENERAL.CON-UUID": "626dd384"}
    assert parse_nmcli("u:/run/a\\:b\\\\c\n") == {"u": "/run/a:b\\c"}
    assert parse_networkctl('{"AdministrativeState": "configured", "NetworkFile": "/x"}') == ("configured", "/x")
    assert parse_networkctl('{"AdministrativeState": "unmanaged", "NetworkFile": null}') == ("unmanaged", "")
    for nonsense in ("", "systemd-networkd is not running", "[]", "3"):
        assert parse_networkctl(nonsense) == ("", "")


# Only one stack manages the port


def test_file_of_cloud_init_is_replaced_without_a_change_of_the_network() -> None:
    port = {"optional": True, "addresses": ["10.0.0.5/24"], "dhcp4": False, "dhcp6": False, "accept-ra": False}
    for renderer in ({}, {"renderer": "networkd"}):
        texts = {CLOUD: yaml.safe_dump({"network": {"version": 2, **renderer, "ethernets": {"eth0": port}}})}
        changes = changed_files(NETPLAN, "eth0", text(NETPLAN), texts, MAC)
        assert list(changes) == [CLOUD] and has_equal_settings("netplan", texts, changes)
        new_port = yaml.safe_load(changes[CLOUD] or "")["network"]["ethernets"]["eth0"]
        assert new_port["networkmanager"] == {"passthrough": {"ipv6.method": "link-local"}}
        after: dict[str, str] = {**texts, **changes}  # type: ignore[dict-item]
        assert changed_files(NETPLAN, "eth0", text(NETPLAN), after, MAC) == {}
        assert not has_equal_settings(
            "netplan", texts, changed_files(NETPLAN, "eth0", text(NETPLAN, PORTS["gateway"]), texts, MAC)
        )


def test_port_is_removed_from_other_files_of_netplan() -> None:
    wifi = {"network": {"version": 2, "wifis": {"wlan0": {"dhcp4": True}}, "ethernets": {"eth0": {"dhcp4": True}}}}
    texts = {
        "/etc/netplan/00-all.yaml": "network: {version: 2, renderer: NetworkManager}\n",
        "/etc/netplan/60-wifi.yaml": yaml.safe_dump(wifi),
        "/etc/netplan/70-any.yaml": netplan(all={"match": {"name": "e*"}, "dhcp4": True}),
        "/etc/netplan/80-mac.yaml": netplan(mine={"match": {"macaddress": MAC.upper()}}, other={"match": {"macaddress": "x"}}),
        "/etc/netplan/90-NM-1.yaml": netplan(
            **{"NM-1": {"match": {}, "networkmanager": {"passthrough": {"connection.interface-name": "eth0"}}}}
        ),
        CLOUD: netplan(eth0={"dhcp4": True}, eth1={"dhcp4": True}),
    }
    changes = changed_files(NETPLAN, "eth0", text(NETPLAN), texts, MAC)
    assert "/etc/netplan/00-all.yaml" not in changes
    assert yaml.safe_load(changes["/etc/netplan/60-wifi.yaml"] or "") == {
        "network": {"version": 2, "wifis": {"wlan0": {"dhcp4": True}}}
    }
    assert changes["/etc/netplan/70-any.yaml"] is None and changes["/etc/netplan/90-NM-1.yaml"] is None
    assert list(yaml.safe_load(changes["/etc/netplan/80-mac.yaml"] or "")["network"]["ethernets"]) == ["other"]
    assert yaml.safe_load(changes[CLOUD] or "")["network"]["ethernets"]["eth1"] == {"dhcp4": True}


@pytest.mark.parametrize("nonsense", ["network: [", "network: 3\n", "- 1\n"])
def test_invalid_file_of_netplan_is_named(nonsense: str) -> None:
    with pytest.raises(BrambleError, match=r"/etc/netplan/x\.yaml .*Nothing was changed"):
        changed_files(NM, "eth0", text(NM), {"/etc/netplan/x.yaml": nonsense})


def test_port_is_removed_from_the_files_of_other_stacks() -> None:
    texts = {
        CLOUD: netplan(eth0={"dhcp4": True}),
        "/etc/NetworkManager/system-connections/cloud-init-eth0.nmconnection": "[connection]\nid=x\ninterface-name = eth0\n",
        "/etc/NetworkManager/system-connections/any": "[connection]\nid=Wired\n[other]\ninterface-name=eth0\n",
        "/etc/systemd/network/10-cloud-init-eth0.network": "# x\n[Match]\nName=eth0\n[Network]\nDHCP=yes\n",
        "/etc/systemd/network/20-wired.network": "[Match]\nName=e*\n",
        "/etc/network/interfaces.d/50-cloud-init": "auto eth0\niface eth0 inet dhcp\n",
    }
    for owner, own in ((NM, KEYFILE), (NETWORKD, "/etc/systemd/network/05-bramble-eth0.network")):
        changes = changed_files(owner, "eth0", text(owner), texts)
        assert changes.pop(own) == text(owner)
        assert not any(changes.values()) and set(texts) - set(changes) == {
            "/etc/NetworkManager/system-connections/any",
            "/etc/systemd/network/20-wired.network",
        }
        assert not has_equal_settings(owner.stack, texts, changes)


INTERFACES = """\
# interfaces(5) file
source-directory /etc/network/interfaces.d

auto lo eth0 \\
  eth1
allow-hotplug eth0
iface lo inet loopback

# the wired port
iface eth0 inet static
    address 192.168.1.7
    # an old one
    netmask \\
      255.255.255.0
iface eth0 inet6 auto

iface eth1 inet dhcp
iface eth01 inet manual
"""


def test_ifupdown_keeps_other_ports() -> None:
    changes = changed_files(IFUPDOWN, "eth0", text(IFUPDOWN), {INTERFACES_FILE: INTERFACES})
    assert changes[INTERFACES_FILE] == (
        "# interfaces(5) file\nsource-directory /etc/network/interfaces.d\n\nauto lo eth1\niface lo inet loopback\n\n"
        "# the wired port\n    # an old one\n\niface eth1 inet dhcp\niface eth01 inet manual\n"
    )
    assert changes["/etc/network/interfaces.d/bramble-eth0"] == text(IFUPDOWN)


@pytest.mark.parametrize("main", ["", "auto lo\niface lo inet loopback\n", "source /etc/network/other/*\n"])
def test_ifupdown_reads_the_new_file(main: str) -> None:
    changes = changed_files(IFUPDOWN, "eth0", text(IFUPDOWN), {INTERFACES_FILE: main})
    after = changes[INTERFACES_FILE] or ""
    assert after.startswith(main.rstrip()) and after.endswith(f"{SOURCE_LINE}\n")
    again = {INTERFACES_FILE: after, "/etc/network/interfaces.d/bramble-eth0": text(IFUPDOWN)}
    assert changed_files(IFUPDOWN, "eth0", text(IFUPDOWN), again) == {}


WORDS = st.sampled_from(
    ["auto", "iface", "eth0", "eth1", "lo", "inet", "static", "#", "address", "allow-hotplug", "mapping", "\\"]
)
LINES = st.lists(st.lists(WORDS, max_size=5).map(" ".join), max_size=12).map("\n".join)


@given(LINES)
def test_removing_a_port_from_interfaces_is_idempotent_and_keeps_others(before: str) -> None:
    after = without_port(INTERFACES_FILE, before, "eth0")
    assert after is not None and without_port(INTERFACES_FILE, after, "eth0") == after
    stanzas = [line.split() for line in after.replace("\\\n", " ").splitlines()]
    assert not any(words[:2] == ["iface", "eth0"] for words in stanzas)
    assert not any(words[:1] in (["auto"], ["allow-hotplug"]) and "eth0" in words[1:] for words in stanzas)
    assert without_port(INTERFACES_FILE, before, "wlan9") == before


YAML = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["eth0", "e*", "name", "match", "ethernets", "network"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["network", "ethernets", "eth0", "match", "name", "networkmanager", "passthrough"]), inner
        )
    ),
    max_leaves=12,
)


@given(YAML)
def test_any_file_of_netplan_is_read_or_named(data: Any) -> None:
    path = "/etc/netplan/x.yaml"
    try:
        changes = changed_files(NM, "eth0", text(NM), {path: yaml.safe_dump(data)}, MAC)
    except BrambleError as error:
        assert path in str(error)
    else:
        assert path not in changes or without_port(path, changes[path] or "", "eth0", MAC) in (changes[path], None)


# The state of the port

IP_ADDRESS = json.loads(
    """[{"ifname": "eth0", "addr_info": [
    {"family": "inet", "local": "10.0.0.5", "prefixlen": 24, "scope": "global"},
    {"family": "inet", "local": "10.0.0.9", "prefixlen": 32, "scope": "global"},
    {"family": "inet", "local": "169.254.3.4", "prefixlen": 16, "scope": "link"},
    {"family": "inet6", "local": "2001:db8::5", "prefixlen": 64, "scope": "global", "dynamic": true},
    {"family": "inet6", "local": "fe80::1", "prefixlen": 64, "scope": "link"}]}]"""
)


def test_state_of_a_port() -> None:
    route = [{"dst": "default", "gateway": "10.0.0.1", "dev": "eth0"}, {"dst": "default", "gateway": "10.9.0.1", "dev": "wlan0"}]
    found = parse_port_state(IP_ADDRESS, route, "eth0")
    assert found == PortState(("10.0.0.5/24", "10.0.0.9/32"), ("10.0.0.1",), ("2001:db8::5/64",))
    assert parse_port_state([], [], "eth0") == PortState((), (), ())


@pytest.mark.parametrize(
    ("port", "state", "words"),
    [
        (BASE, PortState(("10.0.0.5/24", "10.0.0.9/32"), (), ()), []),
        (BASE, PortState(("10.0.0.5/16",), (), ()), ["10.0.0.5/16 instead of 10.0.0.5/24"]),
        (BASE, PortState(("10.0.0.5/24", "10.0.1.5/24"), (), ()), ["10.0.0.5/24 and 10.0.1.5/24 instead of 10.0.0.5/24"]),
        (BASE, PortState((), ("10.0.0.1",), ()), ["no IPv4 address instead of", "10.0.0.1 instead of none"]),
        (PORTS["gateway"], PortState(("10.0.0.5/24",), ("10.0.0.1",), ()), []),
        (PORTS["gateway"], PortState(("10.0.0.5/24",), (), ()), ["none instead of 10.0.0.1"]),
    ],
)
def test_differences_of_ipv4(port: dict[str, Any], state: PortState, words: list[str]) -> None:
    found = ipv4_differences(port, state)
    assert len(found) == len(words) and all(word in line for word, line in zip(words, found, strict=True))


def test_gateway_outside_the_networks_is_refused() -> None:
    check_gateways(BASE)
    check_gateways(PORTS["gateway"])
    with pytest.raises(BrambleError, match=r"10\.0\.1\.1 is in none .*10\.0\.0\.0/24.* cluster_gateway"):
        check_gateways({**BASE, "routes": [{"to": "default", "via": "10.0.1.1"}]})


def test_kernel_parameters_of_ipv6() -> None:
    assert ipv6_settings(BASE) == {"disable_ipv6": "0", "accept_ra": "0", "autoconf": "0"}
    assert ipv6_settings(PORTS["without-ipv6"])["disable_ipv6"] == "1"
    assert ipv6_settings(PORTS["accept-ra"]) == {"disable_ipv6": "0", "accept_ra": "1", "autoconf": "1"}


# RFC 5227

OWN_MAC, OTHER_MAC = bytes.fromhex("dca632000001"), bytes.fromhex("dca632000002")
NO_ADDRESS = ipaddress.IPv4Address("0.0.0.0")
OWN_ADDRESS, OTHER_ADDRESS = ipaddress.IPv4Address("10.0.0.5"), ipaddress.IPv4Address("10.0.0.6")


def arp(operation: int, sender: bytes, sender_address: ipaddress.IPv4Address, target_address: ipaddress.IPv4Address) -> bytes:
    header = b"\xff" * 6 + sender + b"\x08\x06\x00\x01\x08\x00\x06\x04" + operation.to_bytes(2, "big")
    return header + sender + sender_address.packed + bytes(6) + target_address.packed + bytes(18)


def test_arp_probe_has_the_documented_form() -> None:
    assert arp(1, OWN_MAC, NO_ADDRESS, OWN_ADDRESS).startswith(arp_probe(OWN_MAC, "10.0.0.5"))


@pytest.mark.parametrize(
    ("frame", "owner"),
    [
        (arp(2, OTHER_MAC, OWN_ADDRESS, NO_ADDRESS), "dc:a6:32:00:00:02"),  # answers
        (
            arp(1, OTHER_MAC, OWN_ADDRESS, OTHER_ADDRESS),
            "dc:a6:32:00:00:02",
        ),  # asks for another, with this one as its own
        (arp(1, OTHER_MAC, NO_ADDRESS, OWN_ADDRESS), "dc:a6:32:00:00:02"),  # probes for the same address
        (arp(1, OTHER_MAC, OTHER_ADDRESS, OWN_ADDRESS), ""),  # asks which host has the address
        (arp(2, OTHER_MAC, OTHER_ADDRESS, NO_ADDRESS), ""),
        (arp(2, OWN_MAC, OWN_ADDRESS, NO_ADDRESS), ""),  # our own
        (arp(3, OTHER_MAC, OWN_ADDRESS, NO_ADDRESS), ""),
        (arp(2, OTHER_MAC, OWN_ADDRESS, NO_ADDRESS)[:41], ""),
    ],
)
def test_arp_conflict(frame: bytes, owner: str) -> None:
    assert arp_conflict(frame, OWN_MAC, "10.0.0.5") == owner


@given(st.binary(max_size=64))
def test_any_frame_is_parsed(frame: bytes) -> None:
    assert arp_conflict(frame, OWN_MAC, "10.0.0.5") in ("", frame[22:28].hex(":"))


def test_outcome_of_a_change_that_was_not_confirmed() -> None:
    assert (
        rollback_outcome("10.0.0.1/24", {"why": "reboot"}, {})
        == "The change was rolled back (reboot): the node has 10.0.0.1/24 again."
    )
    assert "Restart the node" in rollback_outcome("10.0.0.1/24", {"skipped": True}, {"msg": "timed out"})
    assert rollback_outcome("10.0.0.1/24", {}, {}).endswith("is unknown: no answer")
