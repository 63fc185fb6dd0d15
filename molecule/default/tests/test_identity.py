"""The roles identity and card: what a node has from its card, before any other role."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from tests.support.nodes import scenario

STATE = scenario("default").state
testinfra_hosts = ["ssh://pi-client", "ssh://pi-01", "ssh://pi-02"]


def test_the_only_host_key_is_the_one_made_for_the_card(host: Any) -> None:
    name = host.check_output("hostname")
    known = (STATE / f"host_keys/{name}.pub").read_text().split()[1]
    address = host.check_output("hostname -I").split()[0]
    offered = subprocess.run(["ssh-keyscan", "-T", "10", address], capture_output=True, text=True, check=True).stdout
    assert {line.split()[2] for line in offered.splitlines()} == {known}
    assert len(offered.splitlines()) == 1


def test_no_secret_is_on_the_boot_partition(host: Any) -> None:
    assert host.file("/boot/firmware/user-data").contains("#cloud-config")
    assert host.run("grep -rl 'PRIVATE KEY' /boot/firmware").stdout == ""


def test_only_root_can_read_the_host_key(host: Any) -> None:
    with host.sudo():
        key = host.file("/etc/bramble/ssh/ssh_host_ed25519_key")
        assert (key.user, key.group, key.mode) == ("root", "root", 0o600)


def test_cloud_init_finished(host: Any) -> None:
    with host.sudo():
        status = host.run("cloud-init status --long")
    assert "status: done" in status.stdout, status.stdout
    assert "errors: []" in status.stdout


def test_instance_and_machine_ids_are_unique() -> None:
    ssh = ["ssh", "-F", str(STATE / "ssh/ssh_config")]
    for path in ("/etc/machine-id", "/var/lib/cloud/data/instance-id"):
        ids = [
            subprocess.run([*ssh, target[6:], "cat", path], capture_output=True, text=True, check=True).stdout
            for target in testinfra_hosts
        ]
        assert len(set(ids)) == len(testinfra_hosts), ids


def test_the_root_file_system_has_grown_to_the_card(host: Any) -> None:
    size = int(host.check_output("df --block-size=1 --output=size / | tail -n 1"))
    assert size > 28e9


@pytest.mark.parametrize("command", ["-o PreferredAuthentications=password", "-l root"])
def test_sshd_refuses_passwords_and_root(host: Any, command: str) -> None:
    name = host.check_output("hostname")
    refused = subprocess.run(
        ["ssh", "-F", str(STATE / "ssh/ssh_config"), "-o", "BatchMode=yes", *command.split(), name, "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 255
    assert "Permission denied" in refused.stderr
