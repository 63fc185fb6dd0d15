"""The role base on two distributions: a dry run, two runs, runs with faults, a reboot, and the removal.

pi-01 is like Raspberry Pi OS bookworm, with OpenSSH 9.2 and dphys-swapfile; pi-02 is debian-trixie, with OpenSSH 10. The tests
depend on each other and run in their order.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, rehearsal
from tests.support.rehearsal import INVENTORY, Play, play

from . import conftest

OVERLAY = Path(__file__).parent / "base"
STATE = ROOT / ".state/h-base"
NODES = ["pi-01", "pi-02"]
LIMIT = "--limit pi-01,pi-02"

playbook = partial(play, inventory=[*INVENTORY, OVERLAY])
ssh = partial(rehearsal.ssh, STATE)
output = partial(conftest.node_output, STATE)

# A shell script that removes what the role base must configure. It installs a substitute of /sbin/dphys-swapfile.
UNCONFIGURE = """
set -e
sed -i 's/ fsck.repair=yes//' /boot/firmware/cmdline.txt
printf '#!/bin/sh\\ntouch /run/dphys-swapfile-was-here\\n' >/sbin/dphys-swapfile
chmod 755 /sbin/dphys-swapfile
cat >/usr/lib/systemd/system/dphys-swapfile.service <<END
[Service]
Type=oneshot
ExecStart=/sbin/dphys-swapfile
[Install]
WantedBy=multi-user.target
END
systemctl enable --quiet dphys-swapfile
sed -i 's/defaults,noatime  0 1/defaults 0 0/' /etc/fstab
echo '/var/swap none swap nofail 0 0' >>/etc/fstab
mount -o remount,relatime /
"""
# A command that shows all that a dry run must not change.
READ_STATE = (
    "sudo sh -c 'find /etc /boot /root -type f -exec sha256sum {} + | sort; findmnt -no OPTIONS /; systemctl show -P MainPID ssh'"
)
REBOOT_REQUIRED = "must reboot for the changes to take effect"
# A command that counts how often sshd was reloaded.
COUNT_RELOADS = "sudo journalctl -b -u ssh -o cat | grep -c '^Received SIGHUP'"


def base(variables: dict[str, Any] | None = None, arguments: str = "", check: bool = True) -> Play:
    return playbook("site", variables=variables, arguments=f"{LIMIT} --tags base {arguments}", check=check)


def messages(run: Play) -> str:
    """Return the messages and warnings of a playbook."""
    return "\n".join(event.get("stdout", "") for event in run.events)


@pytest.fixture(scope="module", autouse=True)
def nodes(bookworm: dict[str, Any]) -> Iterator[None]:
    """Boot both nodes from new cards; power them off and remove them, even if tests have failed."""
    try:
        playbook("cards", variables=bookworm, arguments="--limit pi-01")
        playbook("cards", arguments="--limit pi-02")
        playbook("rehearse", arguments=LIMIT)
        for node in NODES:
            output(node, f"sudo sh -c {shlex.quote(UNCONFIGURE)}")
        yield
    finally:
        playbook("rehearse", variables={"cluster_state": "absent"})
        shutil.rmtree(STATE, ignore_errors=True)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two key pairs of ada, `first` and `second`."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("first", "second"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    return folder


def user_variables(keys: Path, key: str, sudo: bool) -> dict[str, Any]:
    """Return the variables with which the role creates the user ada."""
    return {"base_users": [{"name": "ada", "sudo": sudo, "keys": [(keys / f"{key}.pub").read_text()]}]}


def login(keys: Path, key: str) -> subprocess.CompletedProcess[str]:
    return ssh("pi-01", "sudo --non-interactive id -un", "-l", "ada", "-i", str(keys / key))


def test_a_dry_run_shows_all_changes_and_makes_none(keys: Path) -> None:
    before = {node: output(node, READ_STATE) for node in NODES}
    run = base(user_variables(keys, "first", sudo=True), "--check --diff")
    tasks = {change.split(": ")[-1] for change in run.changes()}
    assert {"Reduce writes to the card", "Configure cmdline.txt and config.txt", "Create or remove the users"} <= tasks
    assert "rootwait fsck.repair=yes" in messages(run) and "+PermitRootLogin no" in messages(run)
    assert {node: output(node, READ_STATE) for node in NODES} == before


def test_the_first_run_changes_everything_and_the_second_nothing(keys: Path) -> None:
    command = rehearsal.ssh_command(STATE, "pi-01", "until [ -e /tmp/go ]; do sleep 0.2; done; echo alive")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as session:
        run = base(user_variables(keys, "first", sudo=True))
        assert f"pi-01, pi-02 {REBOOT_REQUIRED}" in messages(run)
        output("pi-01", "touch /tmp/go")
        # sshd was reloaded, and this session was not closed.
        assert session.communicate(timeout=30)[0] == "alive\n"
    assert output("pi-01", COUNT_RELOADS) == "1"
    again = base(user_variables(keys, "first", sudo=True))
    assert again.changes() == [] and f"pi-01, pi-02 {REBOOT_REQUIRED}" in messages(again)


@pytest.mark.parametrize("node", NODES)
def test_old_algorithms_are_refused(node: str) -> None:
    for option in ("KexAlgorithms=diffie-hellman-group14-sha256", "KexAlgorithms=ecdh-sha2-nistp256", "Ciphers=aes128-ctr"):
        refused = ssh(node, "true", "-o", option)
        assert refused.returncode == 255 and "no matching" in refused.stderr, option
    refused = ssh(node, "true", "-o", "Ciphers=aes256-ctr", "-o", "MACs=hmac-sha2-256")
    assert refused.returncode == 255 and "no matching MAC" in refused.stderr
    for option in ("KexAlgorithms=curve25519-sha256", "Ciphers=aes256-gcm@openssh.com"):
        assert ssh(node, "true", "-o", option).returncode == 0, option


def test_users_are_created_changed_and_removed(keys: Path) -> None:
    assert login(keys, "first").stdout == "root\n"
    base(user_variables(keys, "second", sudo=False))
    assert login(keys, "first").returncode == 255
    assert login(keys, "second").returncode == 1 and "password is required" in login(keys, "second").stderr
    bad = base({"base_users": [{"name": "pi"}]}, check=False)
    assert set(bad.failed) == set(NODES) and all("none may be root or pi" in text for text in bad.failed.values())
    base({"base_users": [{"name": "ada", "state": "absent"}]})
    assert login(keys, "second").returncode == 255
    assert "ada" not in output("pi-01", "ls /home; sudo ls /etc/sudoers.d")


BROKEN = {
    "pi-01": ("99-bad.conf", "Nonsense yes", "/etc/ssh/sshd_config.d/99-bad.conf"),
    "pi-02": ("01-open.conf", "PasswordAuthentication yes", "sshd -T would not report 'passwordauthentication no'"),
}


def test_a_broken_sshd_configuration_is_reported_and_nothing_is_reloaded() -> None:
    read_sshd_state = f"cat /etc/ssh/sshd_config.d/05-bramble.conf; {COUNT_RELOADS}"
    before = {node: output(node, read_sshd_state) for node in NODES}
    try:
        for node, (name, content, _) in BROKEN.items():
            output(node, f"echo {content} | sudo tee /etc/ssh/sshd_config.d/{name}")
        for arguments in ("--check", ""):
            run = base({"base_sshd_login_grace": 25}, arguments, check=False)
            for node, (_, _, message) in BROKEN.items():
                assert message in run.failed[node] and "nothing was changed" in run.failed[node]
                # sshd still works.
                assert output(node, read_sshd_state) == before[node]
    finally:
        for node, (name, _, _) in BROKEN.items():
            output(node, f"sudo rm -f /etc/ssh/sshd_config.d/{name}")
    base({"base_sshd_login_grace": 25})
    assert [output(node, "sudo sshd -T | grep logingrace") for node in NODES] == ["logingracetime 25"] * 2


def test_a_full_disk_stops_one_node_and_another_run_completes() -> None:
    read_grace = "sudo sshd -T | grep logingrace"
    before = output("pi-01", read_grace)
    # The journal is reduced first, since it would free space as soon as the disk is full. Then direct I/O fills the disk: writes
    # to the page cache would succeed beyond the free space, and leave some of it free in the end.
    room = "$(($(stat -fc '%f * %S' /) - 67108864))"
    fill = f"journalctl --quiet --rotate --vacuum-time=1s; fallocate -l {room} /fill; "
    fill += "dd if=/dev/zero of=/fill2 bs=1M oflag=direct; dd if=/dev/zero of=/fill3 bs=4k oflag=direct"
    ssh("pi-01", f"sudo sh -c {shlex.quote(fill)}")
    try:
        run = base({"base_sshd_login_grace": 30}, check=False)
        assert list(run.failed) == ["pi-01"] and "No space left" in run.failed["pi-01"], run.failed
        assert [output("pi-01", read_grace), output("pi-02", read_grace)] == [before, "logingracetime 30"]
    finally:
        output("pi-01", "sudo rm -f /fill /fill2 /fill3")
    base({"base_sshd_login_grace": 30})
    assert output("pi-01", read_grace) == "logingracetime 30"


def test_all_settings_are_in_effect_after_the_reboot() -> None:
    read_boot_id = "cat /proc/sys/kernel/random/boot_id"
    before = {node: output(node, read_boot_id) for node in NODES}
    run = base({"base_reboot": True})
    assert REBOOT_REQUIRED not in messages(run)
    for node in NODES:
        assert output(node, read_boot_id) != before[node]
        assert output(node, "systemctl is-system-running --wait") == "running"
        assert output(node, "cat /proc/cmdline").split().count("fsck.repair=yes") == 1
        assert "noatime" in output(node, "findmnt -no OPTIONS /").split(",")
        assert output(node, "systemctl show -P RuntimeWatchdogUSec") == "15s"
        assert "max 200" in output(node, "sudo journalctl -b -u systemd-journald -o cat | grep 'System Journal'")
        fstab = output(node, "cat /etc/fstab").splitlines()
        assert [line.split()[5] for line in fstab if line.startswith("PARTUUID")] == ["2", "1"]
        assert (
            output(node, "systemctl list-units --all --no-legend --type swap; ls /run | grep -e dphys -e reboot-required || true")
            == ""
        )
        assert output(node, "systemctl is-enabled dphys-swapfile || true") == "masked"
    after = {node: output(node, read_boot_id) for node in NODES}
    assert base({"base_reboot": True}).changes() == []
    assert {node: output(node, read_boot_id) for node in NODES} == after


INSTALLED = (
    "/etc/ssh/sshd_config.d/05-bramble.conf /etc/systemd/journald.conf.d/bramble.conf "
    "/etc/systemd/system.conf.d/bramble.conf /etc/systemd/system/dphys-swapfile.service"
)


def test_the_role_can_be_removed() -> None:
    output("pi-01", f"ls {INSTALLED}")
    run = playbook("../tests/e2e/base/absent", arguments=LIMIT)
    assert "These settings stay" in messages(run)
    for node in NODES:
        assert "fsck.repair" not in output(node, "cat /boot/firmware/cmdline.txt")
        assert "/var/swap none swap nofail 0 0" in output(node, "cat /etc/fstab").splitlines()
        assert output(node, f"ls {INSTALLED} 2>/dev/null || true") == ""
        assert output(node, "systemctl show -P RuntimeWatchdogUSec") in ("0", "infinity")
        assert ssh(node, "true", "-o", "Ciphers=aes128-ctr").returncode == 0
    assert playbook("../tests/e2e/base/absent", arguments=LIMIT).changes() == []
