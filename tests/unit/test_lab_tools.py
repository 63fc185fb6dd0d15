"""The checks before security tools are installed. The tests use the keyrings of Debian that are installed here."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from ansible_collections.bramble.cluster.plugins.filter.lab_tools import lab_difference
from ansible_collections.bramble.cluster.plugins.module_utils.lab import tool_sets

from tests.support import ROOT

KEYRINGS = Path("/usr/share/keyrings")
GROUPS = ["scanning", "web"]

DEBIAN = """
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: trixie trixie-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: trixie-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""
RASPBERRY = """
Types: deb
URIs: http://mirror.example/raspberry
Suites: trixie
Components: main
Signed-By: /usr/share/keyrings/raspberrypi-archive-keyring.pgp
"""


class Node:
    """The root file system of a node, with the files that apt reads."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write_file(self, path: str, content: str | bytes) -> Node:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())
        return self

    def set_release(self, id: str, codename: str, name: str = "") -> Node:
        return self.write_file("etc/os-release", f'PRETTY_NAME="x"\nNAME="{name or id}"\nVERSION_CODENAME={codename}\nID={id}\n')

    def problems(self, wanted: str, architecture: str = "aarch64") -> str:
        return " ".join(tool_sets.node_problems(wanted, self.root, architecture))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return (
        Node(tmp_path)
        .set_release("debian", "trixie", "Debian GNU/Linux")
        .write_file("etc/apt/sources.list.d/debian.sources", DEBIAN)
    )


def gpg_fingerprints(path: Path) -> list[str]:
    stdout = subprocess.run(["gpg", "--show-keys", "--with-colons", path], capture_output=True, text=True, check=True).stdout
    return re.findall(r"^pub:.*\n(?:rvk.*\n)*fpr:+([0-9A-F]{40}):", stdout, re.MULTILINE)


def test_fingerprints_are_those_that_gpg_prints(tmp_path: Path) -> None:
    keyring = KEYRINGS / "debian-archive-keyring.gpg"
    expected = gpg_fingerprints(keyring)
    assert len(expected) > 3 and tool_sets.key_fingerprints(keyring.read_bytes()) == expected
    home = {"GNUPGHOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    armored = subprocess.run(["gpg", "--enarmor"], input=keyring.read_bytes(), capture_output=True, check=True, env=home).stdout
    armored = armored.replace(b"PGP ARMORED FILE", b"PGP PUBLIC KEY BLOCK")
    assert tool_sets.key_fingerprints(armored) == expected
    assert tool_sets.key_fingerprints(b"") == []


def test_debian_and_raspberry_pi_os_can_have_debians_tools(node: Node) -> None:
    assert node.problems("debian") == ""
    node.write_file("etc/apt/sources.list.d/raspi.sources", RASPBERRY)
    node.write_file("etc/apt/sources.list", "# nothing\ndeb http://mirror.example/debian trixie-backports main\n")
    node.write_file("etc/apt/trusted.gpg.d/debian-archive-trixie-stable.asc", "").write_file(
        "etc/apt/trusted.gpg.d/raspberrypi-archive-stable.gpg", b""
    )
    node.write_file(
        "etc/apt/sources.list.d/off.sources", DEBIAN.replace("trixie", "sid").replace("Types:", "Enabled: no\nTypes:")
    )
    assert node.problems("debian") == ""


@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        ("sources.list", "deb http://mirror.example/kali kali-rolling main", "has the suite kali-rolling"),
        (
            "sources.list.d/x.list",
            "deb [arch=arm64 signed-by=/usr/share/keyrings/x.gpg] http://a trixie x",
            "apt trusts /usr/share/keyrings/x.gpg",
        ),
        ("sources.list.d/x.sources", DEBIAN.replace("Suites: trixie ", "Suites: sid "), "x.sources has the suite sid"),
        ("sources.list.d/x.sources", DEBIAN.replace("debian-archive", "parrot-archive"), "parrot-archive-keyring.gpg"),
        (
            "sources.list.d/x.sources",
            DEBIAN.replace(" /usr/share/keyrings/debian-archive-keyring.gpg", "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n ."),
            "a key inside the file",
        ),
    ],
)
def test_foreign_repository_is_refused(node: Node, path: str, text: str, words: str) -> None:
    problems = node.write_file(f"etc/apt/{path}", text + "\n").problems("debian")
    assert words in problems and "Remove these" in problems


def test_foreign_key_that_apt_trusts_for_all_sources_is_refused(node: Node) -> None:
    node.write_file("etc/apt/trusted.gpg.d/kali-archive-keyring.gpg", b"")
    assert node.problems("debian") == ""  # every source names its own keyring
    node.write_file("etc/apt/sources.list", "deb http://mirror.example/debian trixie main\n")
    assert "apt trusts /etc/apt/trusted.gpg.d/kali-archive-keyring.gpg" in node.problems("debian")


@pytest.mark.parametrize("wanted", ["kali", "parrot"])
def test_kali_and_parrot_tools_need_their_own_image(node: Node, wanted: str) -> None:
    problems = node.problems(wanted)
    assert f"{wanted}'s own image" in problems and "never mixed" in problems


def test_ubuntu_and_kali_cannot_have_debians_tools(node: Node) -> None:
    assert "lab_tools_set: kali" in node.set_release("kali", "kali-rolling").problems("debian")
    assert "is for Debian and Raspberry Pi OS" in node.set_release("ubuntu", "noble").problems("debian")


@pytest.fixture
def kali(tmp_path: Path) -> Node:
    """A node with Kali."""
    line = "deb [signed-by=/usr/share/keyrings/kali-archive-keyring.gpg] http://mirror.example/kali kali-rolling main\n"
    return Node(tmp_path / "kali").set_release("kali", "kali-rolling", "Kali GNU/Linux").write_file("etc/apt/sources.list", line)


def test_kali_needs_its_new_key_and_not_the_lost_one(kali: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    new, old = KEYRINGS / "debian-archive-trixie-stable.gpg", KEYRINGS / "debian-archive-bookworm-stable.gpg"
    monkeypatch.setattr(tool_sets, "KALI_KEY", gpg_fingerprints(new)[0])
    monkeypatch.setattr(tool_sets, "KALI_LOST_KEY", gpg_fingerprints(old)[0])
    keyring = "usr/share/keyrings/kali-archive-keyring.gpg"
    assert "(found: none)" in kali.problems("kali")
    assert kali.write_file(keyring, new.read_bytes()).problems("kali") == ""
    for content in (old.read_bytes(), old.read_bytes() + new.read_bytes()):
        assert f"--delete-keys {gpg_fingerprints(old)[0]}" in kali.write_file(keyring, content).problems("kali")
    kali.write_file(keyring, new.read_bytes()).write_file("etc/apt/sources.list.d/debian.sources", DEBIAN)
    assert "has the suite trixie" in kali.problems("kali")


def test_keys_are_full_fingerprints() -> None:
    for key in (tool_sets.KALI_KEY, tool_sets.KALI_LOST_KEY, tool_sets.PARROT_KEY, tool_sets.BLACKARCH_KEY):
        assert re.fullmatch(r"[0-9A-F]{40}", key)
    assert tool_sets.KALI_LOST_KEY.endswith("ED444FF07D8D0BF6")


def test_parrot_is_recognised_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = KEYRINGS / "debian-archive-trixie-stable.gpg"
    monkeypatch.setattr(tool_sets, "PARROT_KEY", gpg_fingerprints(key)[0])
    line = "deb [signed-by=/usr/share/keyrings/parrot-archive-keyring.gpg] http://mirror.example/parrot echo main\n"
    node = Node(tmp_path).set_release("debian", "echo", "Parrot Security").write_file("etc/apt/sources.list.d/parrot.list", line)
    assert "does not trust parrot's key" in node.problems("parrot")
    assert node.write_file("usr/share/keyrings/parrot-archive-keyring.gpg", key.read_bytes()).problems("parrot") == ""


def test_blackarch_needs_arch_linux_arm(node: Node, tmp_path: Path) -> None:
    assert "Arch Linux ARM" in node.problems("blackarch")
    arch = Node(tmp_path / "arch").set_release("archarm", "", "Arch Linux ARM")
    assert "no repository [blackarch]" in arch.problems("blackarch") and "does not trust" in arch.problems("blackarch")
    arch.write_file("etc/pacman.conf", "[core]\n[blackarch]\n").write_file(
        "usr/share/pacman/keyrings/blackarch-trusted", f"{tool_sets.BLACKARCH_KEY}:4:\n"
    )
    assert arch.problems("blackarch") == "" and "aarch64" in arch.problems("blackarch", "armv7l")


@pytest.mark.parametrize(
    ("wanted", "groups", "words"),
    [
        ("backbox", GROUPS, "no image for a Raspberry Pi.*lab_tools_set: debian"),
        ("cyborg-hawk", GROUPS, "of 2015.*lab_tools_set: debian"),
        ("metasploit", GROUPS, "there is no set 'metasploit'. Set lab_tools_set to one of debian, kali, parrot, blackarch"),
        ("debian", ["scanning", "wepp"], "there is no group of tools wepp. lab_tools_groups may name scanning, web"),
    ],
)
def test_unknown_and_unsupported_sets_are_refused(wanted: str, groups: list[str], words: str) -> None:
    assert re.search(words, " ".join(tool_sets.choice_problems(wanted, groups, GROUPS)))
    assert tool_sets.choice_problems("debian", GROUPS, GROUPS) == []


def test_module_refuses_and_changes_nothing(node: Node) -> None:
    def check(**arguments: object) -> tuple[int, str]:
        text = json.dumps({"groups": GROUPS, "known": GROUPS, "root": str(node.root), **arguments})
        done = subprocess.run(
            ["ansible", "localhost", "-c", "local", "-m", "bramble.cluster.lab_tools_check", "-a", text],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    assert check(set="debian")[0] == 0
    code, output = check(set="kali")
    assert code and "Nothing was changed" in output


def test_suggested_groups_exist() -> None:
    packages = yaml.safe_load((ROOT / "roles/lab_tools/defaults/main.yml").read_text())["lab_tools_packages"]
    for reason in tool_sets.UNSUPPORTED_SETS.values():
        (named,) = re.findall(r"lab_tools_groups: \[([a-z, ]+)\]", reason)
        assert set(named.split(", ")) <= set(packages)


def test_difference_tells_new_from_changed() -> None:
    before = "package a 1\npackage b 1\npackage gone 3\nuser pi\ngroup pi\n"
    now = "package a 1\npackage b 2\npackage new 1\npackage newer 1\nuser pi\nuser tool\ngroup pi\ngroup tool\n"
    assert lab_difference(before, now) == {
        "packages": ["new", "newer"],
        "users": ["tool"],
        "groups": ["tool"],
        "other": ["package gone was removed", "b is now 2, was 1"],
    }
    assert not any(lab_difference(now, now).values())
