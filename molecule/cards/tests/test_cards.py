"""Cards of two kinds of images, booted: each node is who its card says, and nothing on the FAT partition is a secret.

like-rpi-bookworm has no cloud-init and the traps of Raspberry Pi OS bookworm and Kali; debian-trixie with networkd is as Ubuntu.
The tests tell one story and run in their order.
"""

from __future__ import annotations

import hashlib
import json
import time

import pytest

from tests.support.card_content import CardContent, passwords
from tests.support.nodes import build_bookworm, scenario

# A long try would still wait for an answer to its first packet when the node is up.
CLUSTER = scenario("cards", connect_timeout=3)
STATE = CLUSTER.state
SUBNET = "10.77.134"
# Of the password "identity-test".
HASH = "$6$bramble$sW/cWbQ7B/zOhdDGTvZUtMduKB7k4AxX3V.A/zvXXXr2ZEJZamSQYG4KIw3uHMccJEm9WLy2pBOJKgJw3nGPo1"


def card(node: str) -> CardContent:
    return CardContent(STATE / f"cards/{node}.img")


def assert_no_secret_is_readable(node: str) -> None:
    """Nothing that was ever on the FAT partition is a secret; the root file system is sound, its secrets root's."""
    content = card(node)
    boot = content.boot_partition()
    keys = [(STATE / name).read_text() for name in ("ssh/id_ed25519", f"host_keys/{node}")]
    for secret in ["PRIVATE KEY", HASH, *(line for key in keys for line in key.splitlines()[1:-1])]:
        assert secret.encode() not in boot
    assert content.stat("/etc/bramble/ssh/ssh_host_ed25519_key") == ("0600", "0", "0")
    assert content.stat("/etc/hosts") == ("0644", "0", "0")
    content.check_root()


@pytest.fixture(scope="module")
def flashed() -> None:
    """pi-01 has a card without cloud-init, in the place of the one that it had; none has booted yet."""
    CLUSTER.playbook("cards", variables=build_bookworm(), arguments="--limit pi-01")


@pytest.fixture(scope="module")
def nodes(flashed: None) -> None:
    """Both have booted from their cards as they came from the flasher, once."""
    CLUSTER.playbook("rehearse", arguments="--limit pi-01,pi-02")


@pytest.mark.usefixtures("flashed")
def test_the_cards_as_they_were_flashed() -> None:
    for node in ("pi-01", "pi-02"):
        assert_no_secret_is_readable(node)
        assert card(node).stat("/etc/bramble/console-password") == ("0600", "0", "0")
    bookworm = card("pi-01")
    assert bookworm.stat("/etc/NetworkManager/system-connections/bramble-eth0.nmconnection") == ("0600", "0", "0")
    assert bookworm.stat("/etc/sudoers.d/90-bramble") == ("0440", "0", "0")
    assert bookworm.stat("/etc/bramble/first-boot") == ("0700", "0", "0")


def is_itself(node: str, address: str) -> None:
    """What must be so on every node after every boot."""
    assert CLUSTER.output(node, "hostname") == node
    assert CLUSTER.output(node, "systemctl is-system-running --wait") == "running"
    assert CLUSTER.output(node, "systemctl is-enabled ssh") == "enabled"
    ports = json.loads(CLUSTER.output(node, "ip -json address show eth0"))
    assert [(a["local"], a["prefixlen"]) for a in ports[0]["addr_info"] if a["scope"] == "global"] == [(address, 24)]
    found = passwords(CLUSTER.output(node, "sudo cat /etc/shadow"))
    assert found.pop("pi") == HASH
    assert all(password[:1] in ("!", "*") for password in found.values()), found
    # Neither a password nor root, and strictly with the key that was made for the card.
    for option in ("PreferredAuthentications=password", "User=root", "User=kali"):
        refused = CLUSTER.ssh(node, "true", "-o", option)
        assert refused.returncode == 255 and "Permission denied (publickey)" in refused.stderr
    home = CLUSTER.output(node, "stat --format='%U %G %a %n' .ssh .ssh/authorized_keys; wc -l <.ssh/authorized_keys").splitlines()
    assert home == ["pi pi 700 .ssh", "pi pi 600 .ssh/authorized_keys", "1"]


def without_cloud_init() -> None:
    is_itself("pi-01", "10.77.134.101")
    assert CLUSTER.output("pi-01", "ip route show default") == ""
    assert CLUSTER.output("pi-01", "nmcli --get-values NAME,DEVICE connection show --active | grep -v lo$") == "bramble-eth0:eth0"
    assert CLUSTER.output("pi-01", "cat /var/lib/userconf") == "pi *"
    assert CLUSTER.output("pi-01", "systemctl is-enabled userconfig || true") == "masked"
    assert "sudo" in CLUSTER.output("pi-01", "id -nG").split()
    assert CLUSTER.output("pi-01", "ls /etc/bramble; ls -d /etc/systemd/system/*bramble* || true").splitlines() == ["ssh"]


def with_networkd() -> None:
    is_itself("pi-02", "10.77.134.102")
    assert CLUSTER.output("pi-02", "ip route show default").startswith("default via 10.77.134.1 dev eth0")
    assert "eth0" in CLUSTER.output("pi-02", "networkctl --no-legend list | grep configured")
    assert CLUSTER.output("pi-02", "sudo cloud-init status") == "status: done"
    assert CLUSTER.output("pi-02", "cat /var/lib/cloud/data/instance-id").startswith("pi-02-")
    assert CLUSTER.output("pi-02", "ls /etc/bramble") == "ssh"


@pytest.mark.usefixtures("nodes")
def test_the_image_s_cloud_init_knows_every_word() -> None:
    said = CLUSTER.ssh("pi-02", "sudo cloud-init schema --system")
    assert said.returncode == 0, said.stdout + said.stderr


@pytest.mark.usefixtures("nodes")
def test_after_the_first_boot_and_after_another() -> None:
    boot = {}
    for node, is_well in (("pi-01", without_cloud_init), ("pi-02", with_networkd)):
        is_well()
        boot[node] = CLUSTER.output(node, "cat /proc/sys/kernel/random/boot_id")
        CLUSTER.ssh(node, "sudo systemctl reboot")
    for node, is_well in (("pi-01", without_cloud_init), ("pi-02", with_networkd)):
        end = time.monotonic() + 120
        while CLUSTER.ssh(node, "cat /proc/sys/kernel/random/boot_id").stdout.strip() in ("", boot[node]):
            assert time.monotonic() < end, f"{node} did not come back"
            time.sleep(0.5)
        is_well()


@pytest.mark.usefixtures("nodes")
def test_the_cards_after_their_boots() -> None:
    CLUSTER.playbook("rehearse", variables={"cluster_state": "absent"}, arguments="--limit pi-01,pi-02")
    assert_no_secret_is_readable("pi-01")
    assert_no_secret_is_readable("pi-02")


def test_a_captured_card_makes_another_node() -> None:
    """From a card that was in use to one of its own for pi-01: small, nobody's on the way, and as large as its card again."""
    capture = {"capture_dir": str(STATE / "captured"), "capture_name": "captured"}
    CLUSTER.playbook("capture", variables=capture, arguments="--limit pi-02")
    image = STATE / "captured/captured.img"
    assert image.stat().st_size < 2e9
    captured = {"image_file": str(image), "image_sha256": hashlib.sha256(image.read_bytes()).hexdigest()}
    CLUSTER.playbook("cards", variables=captured, arguments="--limit pi-01")
    CLUSTER.playbook("rehearse", arguments="--limit pi-01")
    is_itself("pi-01", "10.77.134.101")
    assert int(CLUSTER.output("pi-01", "df --block-size=1 --output=size / | tail -n 1")) > 28e9
    assert CLUSTER.output("pi-01", "sudo cloud-init status") == "status: done"
    assert CLUSTER.output("pi-01", "grep -rl pi-02 /etc /var/log 2>/dev/null || true") == ""
    CLUSTER.playbook("rehearse", variables={"cluster_state": "absent"}, arguments="--limit pi-01")
    assert_no_secret_is_readable("pi-01")
