"""The wrapper of the lab's tools refuses every command that could leave the lab."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.support import ROOT
from tests.support.load_plugin import load_script

SCRIPT = ROOT / "roles/lab_tools/files/lab.py"
lab = load_script(SCRIPT)
SUBNET = IPv4Network("10.77.124.0/24")
NAMES = {
    "pi-01": ["10.77.124.101"],
    "away": ["198.51.100.7"],
    "both": ["10.77.124.5", "198.51.100.7"],
    "six": ["10.77.124.5", "fd00::5"],
}


def resolver(name: str) -> list[str]:
    if name not in NAMES:
        raise socket.gaierror(-2, "Name or service not known")
    return NAMES[name]


LAB = lab.Lab(SUBNET, resolver)


def command_line(*words: str, folder: Path = Path("/nonexistent")) -> list[str]:
    return lab.command_line(words[0], words[1:], LAB, folder)


def test_targets_become_addresses() -> None:
    assert command_line("nmap", "-sV", "-p80,2222", "pi-01", "10.77.124.0/28") == [
        *("nmap", "-n", "-sV", "-p", "80,2222", "10.77.124.101", "10.77.124.0/28")
    ]
    assert (
        command_line("hydra", "-l", "intern", "-P", "words.txt", "-t", "4", "-f", "ssh://pi-01:2222")[-1]
        == "ssh://10.77.124.101:2222"
    )
    assert command_line("hydra", "-l", "a", "-p", "b", "pi-01", "ssh")[-2:] == ["10.77.124.101", "ssh"]
    attack = command_line("sqlmap", "-u", "http://pi-01:8080/search?q=tea*", "-T", "vault", "--dump")
    assert "http://10.77.124.101:8080/search?q=tea*" in attack
    assert {"--ignore-proxy", "--ignore-redirects", "--batch"} <= set(attack)
    assert command_line("masscan", "-p80", "10.77.124.1-10.77.124.9")[-1] == "10.77.124.1-10.77.124.9"
    assert command_line("gobuster", "dir", "-u", "http://10.77.124.9", "-w", "w")[:4] == [
        "gobuster",
        "dir",
        "-u",
        "http://10.77.124.9",
    ]
    assert command_line("ncrack", "-U", "u", "ssh://10.77.124.9:2222")[-1] == "ssh://10.77.124.9:2222"
    assert command_line("medusa", "-h", "pi-01", "-M", "ssh")[1:3] == ["-h", "10.77.124.101"]


@pytest.mark.parametrize(
    "target",
    [
        *(
            "198.51.100.7",
            "10.77.125.1",
            "10.77.124.0/23",
            "0.0.0.0/0",
            "10.77.124.5/8",
            "10.77.123-124.1",
            "10.77.124,125.9",
            "*.*.*.*",
        ),
        *("10.77.*.1", "10.77.-.1", "::1", "fd00::1", "2001:db8::/64", "away", "both", "six", "nobody", "10.77.124.5/0.0.0.255"),
        *(
            "010.077.124.005",
            "10.77.31749",
            "0x0a4d7c05",
            "172850181",
            "10.77.124.5@198.51.100.7",
            "localhost",
            "127.0.0.1",
            "",
            "/etc",
        ),
        *("10.77.124.5 198.51.100.7", "10.77.124.5\n198.51.100.7", "10.77.124.\u0665", "10.77.124.256", "10.77.124.5/33"),
    ],
)
def test_outside_and_malformed_targets_are_refused(target: str) -> None:
    for words in (
        ("nmap", target),
        ("nmap", "10.77.124.5", target),
        ("masscan", "-p1", target),
        ("hydra", "-l", "a", f"ssh://{target}"),
        ("medusa", "-h", target),
        ("sqlmap", "-u", f"http://{target}/"),
        ("sqlmap", f"--url=http://{target}/"),
        ("curl", f"http://{target}/"),
    ):
        if words[-1].startswith(
            ("http://10.77.124.0/", "http://10.77.124.5/", "--url=http://10.77.124.0/", "--url=http://10.77.124.5/")
        ):
            continue  # one host, and a path
        with pytest.raises(lab.Refused):
            command_line(*words)


@pytest.mark.parametrize(
    "words",
    [
        "nc 10.77.124.5 80",
        "nmap -iR 10",
        "nmap",
        "nmap -p 80",
        "nmap --proxies http://198.51.100.7 10.77.124.5",
        "nmap -proxies=x 10.77.124.5 -D 198.51.100.7",
        "nmap -S 198.51.100.7 10.77.124.5",
        "nmap --dns-servers 198.51.100.7 10.77.124.5",
        "nmap --script whois-ip 10.77.124.5",
        "nmap -p",
        "nmap -oN -iR 10.77.124.5",
        "nmap -sV=1 10.77.124.5",
        "hydra -R",
        "sqlmap -r request.txt",
        "sqlmap -u http://10.77.124.5/ -l log",
        "sqlmap -g inurl",
        "sqlmap -u http://10.77.124.5/ --tor",
        "sqlmap -u http://10.77.124.5/ --proxy=http://198.51.100.7",
        "sqlmap -u http://10.77.124.5/?u=http://198.51.100.7/",
        "sqlmap -u http://10.77.124.5/ --data u=http://[2001:db8::1]/",
        "sqlmap 10.77.124.5",
        "sqlmap -u http://a@10.77.124.5/",
        "sqlmap -u http://10.77.124.5\\@198.51.100.7/",
        "sqlmap -u ftp://10.77.124.5/",
        "curl -L http://10.77.124.5/",
        "curl -x 198.51.100.7 http://10.77.124.5/",
        "curl --resolve a:80:198.51.100.7 http://10.77.124.5/",
        "curl -K file http://10.77.124.5/",
        "curl http://10.77.124.{5,6}/",
        "masscan 10.77.124.1-20",
        "masscan 10.77.124.1-198.51.100.7",
        "masscan -c file 10.77.124.1",
        "gobuster dns -d 10.77.124.5",
        "nikto -h 10.77.124.5 -useproxy http://198.51.100.7",
        "hydra -l a -p b http-proxy-urlenum://10.77.124.5/http://198.51.100.7",
    ],
)
def test_unknown_option_is_refused(words: str) -> None:
    with pytest.raises(lab.Refused):
        command_line(*words.split(" "))


def test_file_of_targets_is_checked_and_replaced(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_text("10.77.124.1 pi-01  # two\n10.77.124.16/28\n")
    checked = command_line("nmap", "-iL", str(given), folder=tmp_path)[-1]
    assert Path(checked).read_text().split() == ["10.77.124.1", "10.77.124.101", "10.77.124.16/28"]
    for bad in ("10.77.124.1\n198.51.100.7\n", "away", "# 10.77.124.1", "-iR 9"):
        given.write_text(bad)
        with pytest.raises(lab.Refused):
            command_line("nmap", f"-iL{given}", folder=tmp_path)
    with pytest.raises(lab.Refused, match="cannot be read"):
        command_line("hydra", "-l", "a", "-p", "b", "-M", str(tmp_path / "none"), "ssh", folder=tmp_path)


octets = st.integers(0, 255)
parts = st.one_of(
    octets.map(str),
    st.tuples(octets, octets).map(lambda p: f"{p[0]}-{p[1]}"),
    st.just("*"),
    octets.map(lambda o: f"{o}-"),
    octets.map(lambda o: f"-{o}"),
)
near = st.sampled_from(["10", "77", "124", "124-124", "0-255", "120-127", "*"])
specs = st.lists(st.lists(st.one_of(near, parts), min_size=1, max_size=2).map(",".join), min_size=4, max_size=4).map(".".join)


def expand(octet: str) -> set[int]:
    """Return the values that nmap reads from an octet: ranges may be open, and a descending range is empty."""
    found: set[int] = set()
    for part in octet.split(","):
        first, dash, last = ("", "-", "") if part == "*" else part.partition("-")
        found |= set(range(int(first or 0), int(last or (255 if dash else first)) + 1))
    return found


@given(
    specs,
    st.one_of(
        st.just(SUBNET),
        st.sampled_from([IPv4Network("10.77.120.0/21"), IPv4Network("10.0.0.0/8"), IPv4Network("10.77.124.96/27")]),
    ),
)
def test_ranges_are_accepted_only_with_all_addresses_inside(spec: str, subnet: IPv4Network) -> None:
    assume(not spec.startswith("-"))
    octets = [expand(octet) for octet in spec.split(".")]
    low, high = subnet.network_address.packed, subnet.broadcast_address.packed
    # A network's octets are independent of each other, so the lowest and the highest address are enough.
    inside = all(
        min(values, default=-1) >= first and max(values, default=256) <= last
        for values, first, last in zip(octets, low, high, strict=True)
    )
    corners = [".".join(str(pick(values)) for values in octets) for pick in (min, max)] if all(octets) else []
    try:
        lab.Lab(subnet, resolver).resolve_hosts(spec)
    except lab.Refused:
        assert not inside or any("-" in part and expand(part) == set() for octet in spec.split(".") for part in octet.split(","))
    else:
        assert corners and all(IPv4Address(corner) in subnet for corner in corners)


@given(st.integers(0, 2**32 - 1), st.integers(0, 32), st.integers(8, 30))
def test_network_is_accepted_only_inside(address: int, prefix: int, own: int) -> None:
    subnet = IPv4Network((SUBNET.network_address, own), strict=False)
    for near in (address, int(subnet.network_address) + address % subnet.num_addresses):
        network = IPv4Network((near, prefix), strict=False)
        try:
            taken = lab.Lab(subnet, resolver).resolve_hosts(f"{IPv4Address(near)}/{prefix}")
        except lab.Refused:
            assert not (network.network_address in subnet and network.broadcast_address in subnet)
        else:
            assert IPv4Network(taken).subnet_of(subnet)


WORDS = st.one_of(
    st.sampled_from(
        [
            "10.77.124.5",
            "198.51.100.7",
            "10.77.124.0/24",
            "0/0",
            "away",
            "pi-01",
            "http://10.77.124.5/",
            "http://198.51.100.7/",
            "ssh://away",
            "::1",
        ]
    ),
    st.sampled_from(
        sorted(
            {
                option
                for tool in lab.TOOLS.values()
                for kind in ("flags", "values", "targets")
                for option in getattr(tool, kind).split()
            }
        )
    ),
    st.text(st.characters(codec="ascii"), max_size=12),
    st.ip_addresses().map(str),
)


@given(st.sampled_from(sorted(lab.TOOLS)), st.lists(WORDS, max_size=6))
def test_no_command_line_has_an_outside_address(name: str, words: list[str]) -> None:
    try:
        command = command_line(name, *words)
    except lab.Refused:
        return
    for word in command:
        for address in re.findall(r"[0-9]+(?:\.[0-9]+){3}", word):
            assert IPv4Address(address) in SUBNET
        # A plain word may be the value of an option; as a target a name is resolved, or refused.
        assert "//away" not in word and not re.search(r"[0-9a-f]*:[0-9a-f]*:[0-9a-f]", word.lower())


def test_environment_has_no_proxies_and_no_settings() -> None:
    given = {
        "http_proxy": "http://198.51.100.7",
        "HYDRA_PROXY": "x",
        "LD_PRELOAD": "x",
        "NMAPDIR": "x",
        "HOME": "/home/pi",
        "PATH": "/tmp",
    }
    kept = lab.tool_environment(given)
    assert (
        kept["HOME"] == "/home/pi/.lab"
        and "/tmp" not in kept["PATH"]
        and not {"http_proxy", "HYDRA_PROXY", "LD_PRELOAD", "NMAPDIR"} & set(kept)
    )


# The isolation proof

PASSED_PROOF = {
    "at": "2026-11-23T03:00:00Z",
    "subnet": "10.77.124.0/24",
    "forbidden": 30,
    "reached": 0,
    "allowed": 6,
    "failed": 0,
}
NOW = 1795402800.0  # 2026-11-23T03:00:00Z


def check_proof(path: Path, content: object, minutes: float = 60, now: float = NOW, mode: int = 0o644) -> None:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(mode)
    lab.check_proof(path, SUBNET, minutes, now, owner=os.getuid())


def test_passed_and_recent_proof_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "proof.json"
    check_proof(path, PASSED_PROOF)
    check_proof(path, PASSED_PROOF, now=NOW + 3599)
    check_proof(path, PASSED_PROOF, now=NOW - 30)
    check_proof(path, PASSED_PROOF | {"at": "2026-11-23T03:00:00.5+00:00", "more": "is ignored"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reached": 1}, "1 of 30 forbidden probes got through"),
        ({"failed": 2}, "2 of 6 allowed ones did not"),
        ({"forbidden": 0}, "failed"),
        ({"allowed": 0}, "failed"),
        ({"subnet": "10.77.0.0/16"}, "is for 10.77.0.0/16"),
        ({"at": "2026-11-23T01:59:59Z"}, "minutes old"),
        ({"at": "2026-11-23T03:05:00Z"}, "in the future"),
        ({"at": "yesterday"}, "is not an isolation proof"),
        ({"reached": False}, "is not an isolation proof"),
        ({"reached": "0"}, "is not an isolation proof"),
        ({"reached": None}, "is not an isolation proof"),
    ],
)
def test_other_proofs_are_refused(change: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(lab.Refused, match=words):
        check_proof(tmp_path / "proof.json", PASSED_PROOF | change)


def test_proof_that_others_can_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "proof.json"
    with pytest.raises(lab.Refused, match="there is no isolation proof"):
        lab.check_proof(path, SUBNET, 60, NOW)
    for mode in (0o666, 0o664):
        with pytest.raises(lab.Refused, match="others than root could"):
            check_proof(path, PASSED_PROOF, mode=mode)
    path.chmod(0o644)
    with pytest.raises(lab.Refused, match="others than root could"):
        lab.check_proof(path, SUBNET, 60, NOW, owner=os.getuid() + 1)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(lab.Refused, match="others than root could"):
        lab.check_proof(tmp_path / "link", SUBNET, 60, NOW, owner=os.getuid())
    for text in ("", "[]", "{}", "null", "{"):
        with pytest.raises(lab.Refused, match="is not an isolation proof"):
            check_proof(path, text)


def test_command_refuses_outside_a_lab(tmp_path: Path) -> None:
    """The command itself, on this machine, which is not in a lab."""
    assert not lab.SETTINGS.exists()
    done = subprocess.run(
        [SCRIPT, "nmap", "10.77.124.5"], capture_output=True, text=True, check=False, env={"PATH": "/nonexistent"}
    )
    assert done.returncode == os.EX_NOPERM and "does not define the lab" in done.stderr
    (tmp_path / "lab.json").write_text('{"subnet": "10.77.124.0/24", "minutes": 60}')
    assert lab.read_settings(tmp_path / "lab.json") == (SUBNET, 60)
