"""Cards of images that no demo uses, booted: each node is who its card says, and nothing on the FAT partition is a secret.

like-rpi-bookworm has no cloud-init and the traps of Raspberry Pi OS bookworm and Kali; debian-trixie with networkd is as Ubuntu.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, rehearsal
from tests.support.rehearsal import INVENTORY, play

from . import conftest

OVERLAY = Path(__file__).parent / "identity"
STATE = ROOT / ".state/h-identity"
# Of the password "identity-test".
HASH = "$6$bramble$sW/cWbQ7B/zOhdDGTvZUtMduKB7k4AxX3V.A/zvXXXr2ZEJZamSQYG4KIw3uHMccJEm9WLy2pBOJKgJw3nGPo1"
MIB = 1 << 20
# A long try would still wait for an answer to its first packet when the node is up.
BOOTING = ("-o", "ConnectTimeout=3")

playbook = partial(play, inventory=[*INVENTORY, OVERLAY])


def output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def ssh(node: str, command: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a command on a node that may be booting."""
    return rehearsal.ssh(STATE, node, command, *BOOTING, *options)


told = partial(conftest.told, STATE, options=BOOTING)


def shadow(text: str) -> dict[str, str]:
    """Name -> what is in the place of the password."""
    return {name: password for name, password, *_ in (line.split(":") for line in text.splitlines())}


class Card:
    """A virtual card, looked at from outside."""

    def __init__(self, node: str) -> None:
        self.path = STATE / f"cards/{node}.img"
        table = json.loads(output("sfdisk", "--json", self.path))["partitiontable"]["partitions"]
        (self.boot, self.boot_size), (self.root, _) = ((part["start"] * 512, part["size"] * 512) for part in table)

    def fat(self) -> bytes:
        """All of the FAT partition, also what is deleted there."""
        with self.path.open("rb") as file:
            file.seek(self.boot)
            return file.read(self.boot_size)

    def stat(self, path: str) -> tuple[str, str, str] | None:
        """Mode, owner and group of a file in the root file system; None if there is none."""
        said = output("debugfs", "-R", f"stat {path}", f"{self.path}?offset={self.root}")
        found = re.search(r"Mode:\s+(\d+).*?User:\s+(\d+)\s+Group:\s+(\d+)", said, re.DOTALL)
        return found.groups() if found else None  # type: ignore[return-value]

    def check(self, node: str) -> None:
        """Nothing that was ever on the FAT partition is a secret; the root file system is sound, its secrets root's."""
        fat = self.fat()
        keys = [(STATE / name).read_text() for name in ("ssh/id_ed25519", f"host_keys/{node}")]
        for secret in ["PRIVATE KEY", HASH, *(line for key in keys for line in key.splitlines()[1:-1])]:
            assert secret.encode() not in fat
        assert self.stat("/etc/bramble/ssh/ssh_host_ed25519_key") == ("0600", "0", "0")
        assert self.stat("/etc/hosts") == ("0644", "0", "0")
        output("e2fsck", "-fn", f"{self.path}?offset={self.root}")


@pytest.fixture(scope="module", autouse=True)
def powered_off() -> Iterator[None]:
    """Power off and remove the cards, however the tests ended."""
    yield
    playbook("rehearse", variables={"cluster_state": "absent"})
    shutil.rmtree(STATE, ignore_errors=True)


@pytest.fixture(scope="module")
def pi_01(bookworm: dict[str, Any]) -> Card:
    """pi-01's card, without cloud-init, not yet booted."""
    playbook("cards", variables={**bookworm, "identity_console_password_hash": HASH}, arguments="--limit pi-01")
    return Card("pi-01")


@pytest.fixture(scope="module")
def pi_02() -> Card:
    """pi-02's card, with cloud-init and networkd, and a way out of its network; not yet booted."""
    ubuntu = {"identity_network_renderer": "networkd", "cluster_gateway": "10.77.81.1", "cluster_dns": ["10.77.81.1"]}
    playbook("cards", variables={**ubuntu, "identity_console_password_hash": HASH}, arguments="--limit pi-02")
    return Card("pi-02")


@pytest.fixture(scope="module")
def nodes(pi_01: Card, pi_02: Card) -> None:
    """Both have booted from their cards as they came from the flasher, once."""
    playbook("rehearse", arguments="--limit pi-01,pi-02")


def test_the_cards_as_they_were_flashed(pi_01: Card, pi_02: Card) -> None:
    for node, card in (("pi-01", pi_01), ("pi-02", pi_02)):
        card.check(node)
        assert card.stat("/etc/bramble/console-password") == ("0600", "0", "0")
    assert pi_01.stat("/etc/NetworkManager/system-connections/bramble-eth0.nmconnection") == ("0600", "0", "0")
    assert pi_01.stat("/etc/sudoers.d/90-bramble") == ("0440", "0", "0")
    assert pi_01.stat("/etc/bramble/first-boot") == ("0700", "0", "0")


@pytest.mark.parametrize("user", ["pi", "octa"])
def test_a_power_cut_in_the_first_boot_does_no_harm(pi_01: Card, tmp_path: Path, user: str) -> None:
    """What the unit runs, killed a few times at any moment; for a user who is there, and one who is not."""
    chance = random.Random(user)
    cuts = [f"{chance.uniform(0, 0.3):.3f}" for _ in range(12)]
    said = output("unshare", "--mount", "sh", OVERLAY / "power_cuts", pi_01.path, str(pi_01.root), tmp_path, user, *cuts)
    *passwords, home, key = said.splitlines()
    found = shadow("\n".join(passwords))
    assert found.pop(user) == HASH
    assert all(password[:1] in ("!", "*") for password in found.values()), found
    assert home.split() == [user, user, "700", f"/home/{user}/.ssh"]
    assert key.split() == [user, user, "600", f"/home/{user}/.ssh/authorized_keys"]


def is_itself(node: str, address: str) -> None:
    """What must be so on every node after every boot."""
    assert told(node, "hostname") == node
    assert told(node, "systemctl is-system-running --wait") == "running"
    assert told(node, "systemctl is-enabled ssh") == "enabled"
    ports = json.loads(told(node, "ip -json address show eth0"))
    assert [(a["local"], a["prefixlen"]) for a in ports[0]["addr_info"] if a["scope"] == "global"] == [(address, 24)]
    passwords = shadow(told(node, "sudo cat /etc/shadow"))
    assert passwords.pop("pi") == HASH
    assert all(password[:1] in ("!", "*") for password in passwords.values()), passwords
    # Neither a password nor root, and strictly with the key that was made for the card.
    for option in ("PreferredAuthentications=password", "User=root", "User=kali"):
        refused = ssh(node, "true", "-o", option)
        assert refused.returncode == 255 and "Permission denied (publickey)" in refused.stderr
    home = told(node, "stat --format='%U %G %a %n' .ssh .ssh/authorized_keys; wc -l <.ssh/authorized_keys").splitlines()
    assert home == ["pi pi 700 .ssh", "pi pi 600 .ssh/authorized_keys", "1"]


def without_cloud_init() -> None:
    is_itself("pi-01", "10.77.81.101")
    assert told("pi-01", "ip route show default") == ""
    assert told("pi-01", "nmcli --get-values NAME,DEVICE connection show --active | grep -v lo$") == "bramble-eth0:eth0"
    assert told("pi-01", "cat /var/lib/userconf") == "pi *"
    assert told("pi-01", "systemctl is-enabled userconfig || true") == "masked"
    assert "sudo" in told("pi-01", "id -nG").split()
    assert told("pi-01", "ls /etc/bramble; ls -d /etc/systemd/system/*bramble* || true").splitlines() == ["ssh"]


def with_networkd() -> None:
    is_itself("pi-02", "10.77.81.102")
    assert told("pi-02", "ip route show default").startswith("default via 10.77.81.1 dev eth0")
    assert "eth0" in told("pi-02", "networkctl --no-legend list | grep configured")
    assert told("pi-02", "sudo cloud-init status") == "status: done"
    assert told("pi-02", "cat /var/lib/cloud/data/instance-id").startswith("pi-02-")
    assert told("pi-02", "ls /etc/bramble") == "ssh"


@pytest.mark.usefixtures("nodes")
def test_the_image_s_cloud_init_knows_every_word() -> None:
    said = ssh("pi-02", "sudo cloud-init schema --system")
    assert said.returncode == 0, said.stdout + said.stderr


@pytest.mark.usefixtures("nodes")
def test_after_the_first_boot_and_after_another() -> None:
    boot = {}
    for node, is_well in (("pi-01", without_cloud_init), ("pi-02", with_networkd)):
        is_well()
        boot[node] = told(node, "cat /proc/sys/kernel/random/boot_id")
        ssh(node, "sudo systemctl reboot")
    for node, is_well in (("pi-01", without_cloud_init), ("pi-02", with_networkd)):
        end = time.monotonic() + 120
        while ssh(node, "cat /proc/sys/kernel/random/boot_id").stdout.strip() in ("", boot[node]):
            assert time.monotonic() < end, f"{node} did not come back"
            time.sleep(0.5)
        is_well()


@pytest.mark.usefixtures("nodes")
def test_the_cards_after_their_boots(pi_01: Card, pi_02: Card) -> None:
    playbook("rehearse", variables={"cluster_state": "absent"}, arguments="--limit pi-01,pi-02")
    pi_01.check("pi-01")
    pi_02.check("pi-02")


def test_a_captured_card_makes_another_node(pi_02: Card) -> None:
    """From a card that was in use to one of its own for pi-01: small, nobody's on the way, and as large as its card again."""
    capture = {"capture_dir": str(STATE / "captured"), "capture_name": "golden"}
    playbook("capture", variables=capture, arguments="--limit pi-02")
    image = STATE / "captured/golden.img"
    assert image.stat().st_size < 2e9
    golden = {"image_file": str(image), "image_sha256": hashlib.sha256(image.read_bytes()).hexdigest()}
    playbook("cards", variables={**golden, "identity_console_password_hash": HASH}, arguments="--limit pi-01")
    playbook("rehearse", arguments="--limit pi-01")
    is_itself("pi-01", "10.77.81.101")
    assert int(told("pi-01", "df --block-size=1 --output=size / | tail -n 1")) > 28e9
    assert told("pi-01", "sudo cloud-init status") == "status: done"
    assert told("pi-01", "grep -rl pi-02 /etc /var/log 2>/dev/null || true") == ""
    playbook("rehearse", variables={"cluster_state": "absent"}, arguments="--limit pi-01")
    Card("pi-01").check("pi-01")
