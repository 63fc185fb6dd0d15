"""The role base: what every node has in common."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest

testinfra_hosts = ["ssh://pi-client", "ssh://pi-01", "ssh://pi-02"]


@pytest.fixture
def login(host: Any, request: pytest.FixtureRequest) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a command on the host, with further options of ssh, and returns the completed process."""

    def login(*options: str, command: str = "id -un") -> subprocess.CompletedProcess[str]:
        ssh = ["ssh", "-F", request.config.getoption("ssh_config"), "-o", "BatchMode=yes", "-o", "ControlPath=none", *options]
        return subprocess.run([*ssh, host.backend.host.name, command], capture_output=True, text=True, check=False)

    return login


def test_no_unit_has_failed(host: Any) -> None:
    assert host.run("systemctl --failed --no-legend").stdout == ""
    assert host.check_output("systemctl is-system-running") == "running"


def test_sshd_accepts_keys_only(host: Any, login: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    assert login().stdout == "pi\n"
    for options in (["-o", "PreferredAuthentications=password,keyboard-interactive"], ["-l", "root"]):
        refused = login(*options)
        assert refused.returncode == 255 and "Permission denied (publickey)" in refused.stderr, options
    with host.sudo():
        settings = host.check_output("sshd -T")
    for line in ("permitemptypasswords no", "maxauthtries 3", "x11forwarding no"):
        assert line in settings.splitlines()


@pytest.mark.parametrize(
    "option", ["KexAlgorithms=diffie-hellman-group14-sha256", "KexAlgorithms=ecdh-sha2-nistp256", "Ciphers=aes128-ctr"]
)
def test_sshd_refuses_old_algorithms(login: Callable[..., subprocess.CompletedProcess[str]], option: str) -> None:
    refused = login("-o", option)
    assert refused.returncode == 255 and "no matching" in refused.stderr
    assert login("-o", "KexAlgorithms=curve25519-sha256", "-o", "Ciphers=aes256-gcm@openssh.com").returncode == 0


def test_only_the_clusters_key_can_log_in(host: Any) -> None:
    assert host.check_output("wc -l < ~/.ssh/authorized_keys") == "1"


def test_a_further_user_can_log_in_and_has_no_sudo(login: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    assert login("-l", "guest").stdout == "guest\n"
    assert login("-l", "guest", command="id -nG").stdout.split() == ["guest", "adm"]
    assert login("-l", "guest", command="sudo --non-interactive true").returncode == 1


def test_the_journal_is_bounded(host: Any) -> None:
    with host.sudo():
        # journald logs its limit when it starts, and the role has restarted it.
        lines = host.check_output("journalctl -u systemd-journald --output cat").splitlines()
    assert "max 200M" in [line for line in lines if line.startswith("System Journal")][-1]


def test_the_card_is_checked_at_boot_and_written_less(host: Any) -> None:
    assert "noatime" in host.mount_point("/").options
    table = [line.split() for line in host.file("/etc/fstab").content_string.splitlines() if line.startswith("PARTUUID")]
    assert {(line[1], line[5]) for line in table} == {("/", "1"), ("/boot/firmware", "2")}
    assert host.check_output("cat /proc/cmdline").split().count("fsck.repair=yes") == 1
    assert host.check_output("systemctl list-units --no-legend --type swap") == ""


def test_the_watchdog_and_the_locale_are_set(host: Any, login: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    assert host.check_output("systemctl show -P RuntimeWatchdogUSec") == "15s"
    # The option keeps ssh from sending the locale of the control machine.
    assert login("-o", "SendEnv=-*", command="echo $LANG").stdout == "C.UTF-8\n"


def test_no_reboot_is_required(host: Any) -> None:
    assert not host.file("/run/reboot-required").exists
