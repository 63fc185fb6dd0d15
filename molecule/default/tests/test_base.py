"""base: what every node has in common."""

from __future__ import annotations

testinfra_hosts = ["ssh://pi-client", "ssh://pi-01", "ssh://pi-02"]


def test_the_system_is_well(host) -> None:
    assert host.run("systemctl --failed --no-legend").stdout == ""
    assert host.check_output("systemctl is-system-running") == "running"


def test_sshd_takes_keys_only(host) -> None:
    with host.sudo():
        settings = host.check_output("sshd -T")
    for line in ("passwordauthentication no", "kbdinteractiveauthentication no", "permitrootlogin no", "maxauthtries 3"):
        assert line in settings.splitlines()


def test_only_the_clusters_key_gets_in(host) -> None:
    assert host.check_output("wc -l < ~/.ssh/authorized_keys") == "1"


def test_the_journal_is_bounded(host) -> None:
    assert "SystemMaxUse=200M" in host.check_output("systemd-analyze cat-config systemd/journald.conf")
