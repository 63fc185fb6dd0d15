"""Cards of two kinds of images boot with the identity of their nodes, and have no secret on the FAT partition.

The image like-rpi-bookworm has no cloud-init, and the peculiarities of Raspberry Pi OS bookworm and Kali; debian-trixie with
networkd is like Ubuntu. The tests depend on each other and run in their order.
"""

from __future__ import annotations

import hashlib
import json
import time

import pytest

from tests.support.card_content import CardContent, passwords
from tests.support.nodes import build_bookworm, scenario

# The tries are short, because ssh could wait for the answer to a packet that it sent before the node was up.
CLUSTER = scenario("cards", connect_timeout=3)
STATE = CLUSTER.state
SUBNET = "10.77.134"
# The hash of the password "identity-test".
HASH = "$6$bramble$sW/cWbQ7B/zOhdDGTvZUtMduKB7k4AxX3V.A/zvXXXr2ZEJZamSQYG4KIw3uHMccJEm9WLy2pBOJKgJw3nGPo1"


def card(node: str) -> CardContent:
    return CardContent(STATE / f"cards/{node}.img")


def assert_no_secret_is_readable(node: str) -> None:
    """Fail if a secret was ever written to the FAT partition, or if other users than root can read one on the root partition."""
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
    """Replace the card of pi-01 by one without cloud-init. No node has booted yet."""
    CLUSTER.playbook("cards", variables=build_bookworm(), arguments="--limit pi-01")


@pytest.fixture(scope="module")
def nodes(flashed: None) -> None:
    """Boot both nodes from their new cards, for the first time."""
    CLUSTER.playbook("rehearse", arguments="--limit pi-01,pi-02")


@pytest.mark.usefixtures("flashed")
def test_flashed_cards_have_no_readable_secret() -> None:
    for node in ("pi-01", "pi-02"):
        assert_no_secret_is_readable(node)
        assert card(node).stat("/etc/bramble/console-password") == ("0600", "0", "0")
    bookworm = card("pi-01")
    assert bookworm.stat("/etc/NetworkManager/system-connections/bramble-eth0.nmconnection") == ("0600", "0", "0")
    assert bookworm.stat("/etc/sudoers.d/90-bramble") == ("0440", "0", "0")
    assert bookworm.stat("/etc/bramble/first-boot") == ("0700", "0", "0")


def assert_identity(node: str, address: str) -> None:
    """Fail if a node does not have its name, its address, its logins or its services."""
    assert CLUSTER.output(node, "hostname") == node
    assert CLUSTER.output(node, "systemctl is-system-running --wait") == "running"
    assert CLUSTER.output(node, "systemctl is-enabled ssh") == "enabled"
    ports = json.loads(CLUSTER.output(node, "ip -json address show eth0"))
    assert [(a["local"], a["prefixlen"]) for a in ports[0]["addr_info"] if a["scope"] == "global"] == [(address, 24)]
    found = passwords(CLUSTER.output(node, "sudo cat /etc/shadow"))
    assert found.pop("pi") == HASH
    assert all(password[:1] in ("!", "*") for password in found.values()), found
    # Neither a password nor another user can log in. Host keys are checked strictly, against the key created for the card.
    for option in ("PreferredAuthentications=password", "User=root", "User=kali"):
        refused = CLUSTER.ssh(node, "true", "-o", option)
        assert refused.returncode == 255 and "Permission denied (publickey)" in refused.stderr
    home = CLUSTER.output(node, "stat --format='%U %G %a %n' .ssh .ssh/authorized_keys; wc -l <.ssh/authorized_keys").splitlines()
    assert home == ["pi pi 700 .ssh", "pi pi 600 .ssh/authorized_keys", "1"]


def assert_node_without_cloud_init() -> None:
    assert_identity("pi-01", "10.77.134.101")
    assert CLUSTER.output("pi-01", "ip route show default") == ""
    assert CLUSTER.output("pi-01", "nmcli --get-values NAME,DEVICE connection show --active | grep -v lo$") == "bramble-eth0:eth0"
    assert CLUSTER.output("pi-01", "cat /var/lib/userconf") == "pi *"
    assert CLUSTER.output("pi-01", "systemctl is-enabled userconfig || true") == "masked"
    assert "sudo" in CLUSTER.output("pi-01", "id -nG").split()
    assert CLUSTER.output("pi-01", "ls /etc/bramble; ls -d /etc/systemd/system/*bramble* || true").splitlines() == ["ssh"]


def assert_node_with_networkd() -> None:
    assert_identity("pi-02", "10.77.134.102")
    assert CLUSTER.output("pi-02", "ip route show default").startswith("default via 10.77.134.1 dev eth0")
    assert "eth0" in CLUSTER.output("pi-02", "networkctl --no-legend list | grep configured")
    assert CLUSTER.output("pi-02", "sudo cloud-init status") == "status: done"
    assert CLUSTER.output("pi-02", "cat /var/lib/cloud/data/instance-id").startswith("pi-02-")
    assert CLUSTER.output("pi-02", "ls /etc/bramble") == "ssh"


@pytest.mark.usefixtures("nodes")
def test_cloud_init_accepts_all_of_its_configuration() -> None:
    result = CLUSTER.ssh("pi-02", "sudo cloud-init schema --system")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.usefixtures("nodes")
def test_nodes_have_their_identity_after_the_first_and_the_second_boot() -> None:
    boot = {}
    for node, check in (("pi-01", assert_node_without_cloud_init), ("pi-02", assert_node_with_networkd)):
        check()
        boot[node] = CLUSTER.output(node, "cat /proc/sys/kernel/random/boot_id")
        CLUSTER.ssh(node, "sudo systemctl reboot")
    for node, check in (("pi-01", assert_node_without_cloud_init), ("pi-02", assert_node_with_networkd)):
        end = time.monotonic() + 120
        while CLUSTER.ssh(node, "cat /proc/sys/kernel/random/boot_id").stdout.strip() in ("", boot[node]):
            assert time.monotonic() < end, f"{node} did not boot again within 120 s"
            time.sleep(0.5)
        check()


@pytest.mark.usefixtures("nodes")
def test_booted_cards_have_no_readable_secret() -> None:
    CLUSTER.playbook("rehearse", variables={"cluster_state": "absent"}, arguments="--limit pi-01,pi-02")
    assert_no_secret_is_readable("pi-01")
    assert_no_secret_is_readable("pi-02")


def test_a_captured_card_becomes_the_card_of_another_node() -> None:
    """The image of a used card is small, has no node's identity, and grows to the size of the card on which pi-01 boots it."""
    capture = {"capture_dir": str(STATE / "captured"), "capture_name": "captured"}
    CLUSTER.playbook("capture", variables=capture, arguments="--limit pi-02")
    image = STATE / "captured/captured.img"
    assert image.stat().st_size < 2e9
    captured = {"image_file": str(image), "image_sha256": hashlib.sha256(image.read_bytes()).hexdigest()}
    CLUSTER.playbook("cards", variables=captured, arguments="--limit pi-01")
    CLUSTER.playbook("rehearse", arguments="--limit pi-01")
    assert_identity("pi-01", "10.77.134.101")
    assert int(CLUSTER.output("pi-01", "df --block-size=1 --output=size / | tail -n 1")) > 28e9
    assert CLUSTER.output("pi-01", "sudo cloud-init status") == "status: done"
    assert CLUSTER.output("pi-01", "grep -rl pi-02 /etc /var/log 2>/dev/null || true") == ""
    CLUSTER.playbook("rehearse", variables={"cluster_state": "absent"}, arguments="--limit pi-01")
    assert_no_secret_is_readable("pi-01")
