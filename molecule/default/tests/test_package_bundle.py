"""The role package_bundle: nodes without internet have their packages from the client."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.nodes import CLIENT, SERVERS

testinfra_hosts = [f"ssh://{name}" for name in (CLIENT, *SERVERS)]
PORT = 8785


def installed_packages(host: Any) -> set[str]:
    """Return the names of the Debian packages that are installed."""
    return set(host.check_output("dpkg-query --show --showformat='${Package}\n'").split())


def test_every_node_has_the_debian_packages(host: Any) -> None:
    assert {"chrony", "libprimesieve-dev"} <= installed_packages(host)
    assert ("nmap" in installed_packages(host)) == (host.check_output("hostname") == CLIENT)
    # No package is half-installed or has an unmet dependency.
    assert host.check_output("dpkg --audit") == ""
    assert host.run("apt-get --simulate --quiet check").rc == 0


def test_the_node_has_no_internet_and_its_apt_sources_are_unchanged(host: Any) -> None:
    assert host.check_output("ip route show default") == ""
    assert host.run("grep -rE 'bramble|8785' /etc/apt").rc == 1
    assert host.run("ls /var/lib/apt/lists | grep -i bramble").rc == 1
    assert host.run("ls -d /var/lib/bramble/fetched-*").rc != 0


def test_the_environment_records_the_manifest_that_is_served(host: Any) -> None:
    (mark,) = host.check_output("ls /opt/bramble/*/installed").split()
    bundle = mark.split("/")[3]
    served = host.check_output(
        f"python3 -c 'import hashlib, urllib.request as r; "
        f'print(hashlib.sha256(r.urlopen("http://{CLIENT}:{PORT}/{bundle}/manifest.json").read()).hexdigest())\''
    )
    assert host.file(mark).content_string.strip() == served


@pytest.fixture
def client(host: Any) -> Any:
    return host.get_host(f"ssh://{CLIENT}", ssh_config=host.backend.ssh_config)


def test_the_bundle_server_listens_in_the_cluster_only_and_is_unprivileged(client: Any) -> None:
    listening = client.check_output(f"ss -Hltn 'sport = :{PORT}'").split()
    assert listening[3] == f"{client.interface('eth0').addresses[0]}:{PORT}"
    pid = client.check_output("systemctl show --value --property=MainPID bramble-bundle")
    # systemd's dynamic users (systemd.exec(5), DynamicUser=)
    assert 61184 <= int(client.check_output(f"ps -o uid= -p {pid}")) <= 65519
    exposure = client.check_output("systemd-analyze security --no-pager bramble-bundle | tail -n 1")
    assert float(exposure.split(":")[1].split()[0]) <= 2.0, exposure


def test_the_served_files_match_the_signed_manifest(client: Any) -> None:
    folder = client.check_output("ls -d /var/lib/bramble-bundle/*/").split()[0]
    manifest = json.loads(client.file(f"{folder}manifest.json").content_string)
    sums = client.check_output(f"cd {folder} && sha256sum */*").splitlines()
    assert {line.split(maxsplit=1)[1]: line.split()[0] for line in sums} == {
        name: entry["sha256"] for name, entry in manifest["files"].items()
    }
