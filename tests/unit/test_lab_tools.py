"""Which tools a node may have, and what is refused, before anything is changed.

The keys are Debian's own, as this machine has them.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from ansible_collections.bramble.cluster.plugins.filter.lab import lab_difference as difference
from ansible_collections.bramble.cluster.plugins.module_utils.lab import tool_sets as lab_sets

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
    """A node's root file system, as far as apt is concerned."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, path: str, content: str | bytes) -> Node:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())
        return self

    def of(self, id: str, codename: str, name: str = "") -> Node:
        return self.put("etc/os-release", f'PRETTY_NAME="x"\nNAME="{name or id}"\nVERSION_CODENAME={codename}\nID={id}\n')

    def problems(self, wanted: str, architecture: str = "aarch64") -> str:
        return " ".join(lab_sets.node_problems(wanted, self.root, architecture))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path).of("debian", "trixie", "Debian GNU/Linux").put("etc/apt/sources.list.d/debian.sources", DEBIAN)


def gpg(path: Path) -> list[str]:
    said = subprocess.run(["gpg", "--show-keys", "--with-colons", path], capture_output=True, text=True, check=True).stdout
    return re.findall(r"^pub:.*\n(?:rvk.*\n)*fpr:+([0-9A-F]{40}):", said, re.MULTILINE)


def test_fingerprints_are_those_that_gpg_says(tmp_path: Path) -> None:
    keyring = KEYRINGS / "debian-archive-keyring.gpg"
    expected = gpg(keyring)
    assert len(expected) > 3 and lab_sets.fingerprints(keyring.read_bytes()) == expected
    home = {"GNUPGHOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    armored = subprocess.run(["gpg", "--enarmor"], input=keyring.read_bytes(), capture_output=True, check=True, env=home).stdout
    armored = armored.replace(b"PGP ARMORED FILE", b"PGP PUBLIC KEY BLOCK")
    assert lab_sets.fingerprints(armored) == expected
    assert lab_sets.fingerprints(b"") == []


def test_debian_and_raspberry_pi_os_get_debians_tools(node: Node) -> None:
    assert node.problems("debian") == ""
    node.put("etc/apt/sources.list.d/raspi.sources", RASPBERRY)
    node.put("etc/apt/sources.list", "# nothing\ndeb http://mirror.example/debian trixie-backports main\n")
    node.put("etc/apt/trusted.gpg.d/debian-archive-trixie-stable.asc", "").put(
        "etc/apt/trusted.gpg.d/raspberrypi-archive-stable.gpg", b""
    )
    node.put("etc/apt/sources.list.d/off.sources", DEBIAN.replace("trixie", "sid").replace("Types:", "Enabled: no\nTypes:"))
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
def test_a_foreign_repository_is_refused(node: Node, path: str, text: str, words: str) -> None:
    said = node.put(f"etc/apt/{path}", text + "\n").problems("debian")
    assert words in said and "remove these" in said


def test_a_foreign_key_that_apt_trusts_for_all_is_refused(node: Node) -> None:
    node.put("etc/apt/trusted.gpg.d/kali-archive-keyring.gpg", b"")
    assert node.problems("debian") == ""  # every source names its own keyring
    node.put("etc/apt/sources.list", "deb http://mirror.example/debian trixie main\n")
    assert "apt trusts /etc/apt/trusted.gpg.d/kali-archive-keyring.gpg" in node.problems("debian")


@pytest.mark.parametrize("wanted", ["kali", "parrot"])
def test_other_distributions_tools_are_for_their_own_images(node: Node, wanted: str) -> None:
    said = node.problems(wanted)
    assert f"{wanted}'s own image" in said and "never mixed" in said


def test_ubuntu_and_kali_do_not_get_debians(node: Node) -> None:
    assert "lab_tools_set: kali" in node.of("kali", "kali-rolling").problems("debian")
    assert "is for Debian and Raspberry Pi OS" in node.of("ubuntu", "noble").problems("debian")


@pytest.fixture
def kali(tmp_path: Path) -> Node:
    """Kali, whose archive has Debian's key for stable."""
    line = "deb [signed-by=/usr/share/keyrings/kali-archive-keyring.gpg] http://mirror.example/kali kali-rolling main\n"
    return Node(tmp_path / "kali").of("kali", "kali-rolling", "Kali GNU/Linux").put("etc/apt/sources.list", line)


def test_kali_needs_its_new_key_and_must_not_have_the_lost_one(kali: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    new, old = KEYRINGS / "debian-archive-trixie-stable.gpg", KEYRINGS / "debian-archive-bookworm-stable.gpg"
    monkeypatch.setattr(lab_sets, "KALI_KEY", gpg(new)[0])
    monkeypatch.setattr(lab_sets, "KALI_LOST", gpg(old)[0])
    keyring = "usr/share/keyrings/kali-archive-keyring.gpg"
    assert "(found: none)" in kali.problems("kali")
    assert kali.put(keyring, new.read_bytes()).problems("kali") == ""
    for content in (old.read_bytes(), old.read_bytes() + new.read_bytes()):
        assert f"--delete-keys {gpg(old)[0]}" in kali.put(keyring, content).problems("kali")
    kali.put(keyring, new.read_bytes()).put("etc/apt/sources.list.d/debian.sources", DEBIAN)
    assert "has the suite trixie" in kali.problems("kali")


def test_the_keys_are_whole_fingerprints() -> None:
    for key in (lab_sets.KALI_KEY, lab_sets.KALI_LOST, lab_sets.PARROT_KEY, lab_sets.BLACKARCH_KEY):
        assert re.fullmatch(r"[0-9A-F]{40}", key)
    assert lab_sets.KALI_LOST.endswith("ED444FF07D8D0BF6")


def test_parrot_says_who_it_is_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = KEYRINGS / "debian-archive-trixie-stable.gpg"
    monkeypatch.setattr(lab_sets, "PARROT_KEY", gpg(key)[0])
    line = "deb [signed-by=/usr/share/keyrings/parrot-archive-keyring.gpg] http://mirror.example/parrot echo main\n"
    node = Node(tmp_path).of("debian", "echo", "Parrot Security").put("etc/apt/sources.list.d/parrot.list", line)
    assert "does not trust parrot's key" in node.problems("parrot")
    assert node.put("usr/share/keyrings/parrot-archive-keyring.gpg", key.read_bytes()).problems("parrot") == ""


def test_blackarch_is_checked_on_arch_linux_arm(node: Node, tmp_path: Path) -> None:
    assert "Arch Linux ARM" in node.problems("blackarch")
    arch = Node(tmp_path / "arch").of("archarm", "", "Arch Linux ARM")
    assert "no repository [blackarch]" in arch.problems("blackarch") and "does not trust" in arch.problems("blackarch")
    arch.put("etc/pacman.conf", "[core]\n[blackarch]\n").put(
        "usr/share/pacman/keyrings/blackarch-trusted", f"{lab_sets.BLACKARCH_KEY}:4:\n"
    )
    assert arch.problems("blackarch") == "" and "aarch64" in arch.problems("blackarch", "armv7l")


@pytest.mark.parametrize(
    ("wanted", "groups", "words"),
    [
        ("backbox", GROUPS, "no image for a Raspberry Pi.*lab_tools_set: debian"),
        ("cyborg-hawk", GROUPS, "of 2015.*lab_tools_set: debian"),
        ("metasploit", GROUPS, "there is no set 'metasploit': lab_tools_set is one of debian, kali, parrot, blackarch"),
        ("debian", ["scanning", "wepp"], "there is no group wepp of tools: lab_tools_groups may name scanning, web"),
    ],
)
def test_what_there_is_not_is_refused(wanted: str, groups: list[str], words: str) -> None:
    assert re.search(words, " ".join(lab_sets.choice_problems(wanted, groups, GROUPS)))
    assert lab_sets.choice_problems("debian", GROUPS, GROUPS) == []


def test_the_module_refuses_and_changes_nothing(node: Node) -> None:
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
    code, said = check(set="kali")
    assert code and "Nothing was changed" in said


def test_the_nearest_groups_exist() -> None:
    packages = yaml.safe_load((ROOT / "roles/lab_tools/defaults/main.yml").read_text())["lab_tools_packages"]
    for reason in lab_sets.REFUSED.values():
        (named,) = re.findall(r"lab_tools_groups: \[([a-z, ]+)\]", reason)
        assert set(named.split(", ")) <= set(packages)


def test_what_came_since_is_told_apart_from_what_changed() -> None:
    before = "package a 1\npackage b 1\npackage gone 3\nuser pi\ngroup pi\n"
    now = "package a 1\npackage b 2\npackage new 1\npackage newer 1\nuser pi\nuser tool\ngroup pi\ngroup tool\n"
    assert difference(before, now) == {
        "packages": ["new", "newer"],
        "users": ["tool"],
        "groups": ["tool"],
        "other": ["package gone is gone", "b is now 2, was 1"],
    }
    assert not any(difference(now, now).values())
