"""The roles certificate, package_bundle, scheduler, worker and workloads: the engine works, for members of the cluster only."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.nodes import SERVERS

testinfra_hosts = ["ssh://pi-client"]


def unit_of(host: Any) -> str:
    return "bramble-scheduler" if host.check_output("hostname") == "pi-client" else "bramble-worker"


@pytest.fixture(params=["ssh://pi-client", "ssh://pi-01", "ssh://pi-02"])
def node(request: pytest.FixtureRequest, host: Any) -> Any:
    return host.get_host(request.param, ssh_config=host.backend.ssh_config)


def test_the_service_runs_unprivileged(node: Any) -> None:
    service = node.service(unit_of(node))
    assert service.is_running, node.run(f"journalctl -n 30 -u {unit_of(node)}").stdout
    assert service.is_enabled
    with node.sudo():
        pid = node.check_output(f"systemctl show --value --property=MainPID {unit_of(node)}")
        status = node.file(f"/proc/{pid}/status").content_string
    assert "CapEff:\t0000000000000000" in status
    assert node.check_output(f"ps -o user= -p {pid}") == "bramble"


def test_all_services_are_hardened(node: Any) -> None:
    for unit in node.check_output("cd /etc/systemd/system && ls bramble-*.service").split():
        exposure = node.check_output(f"systemd-analyze security --no-pager {unit} | tail -n 1")
        assert float(exposure.split(":")[1].split()[0]) <= 2.5, exposure


def test_dask_pages_are_served_on_the_client_only(host: Any) -> None:
    listening = host.check_output("ss --no-header --listening --tcp --numeric 'sport = :8787' | awk '{print $4}'")
    assert listening == "127.0.0.1:8787"
    program = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8787/health', timeout=10).read().decode())"
    assert host.check_output("python3 -c %s", program) == "ok"


def test_numba_has_a_persistent_cache(host: Any) -> None:
    worker = host.get_host("ssh://pi-01", ssh_config=host.backend.ssh_config)
    with worker.sudo():
        folder = worker.file("/var/cache/bramble-worker")
        assert (folder.user, folder.mode) == ("bramble", 0o700)
        pid = worker.check_output("systemctl show --value --property=MainPID bramble-worker")
        assert "NUMBA_CACHE_DIR=/var/cache/bramble-worker" in worker.file(f"/proc/{pid}/environ").content_string


def test_only_root_and_the_engine_can_read_the_private_key(node: Any) -> None:
    with node.sudo():
        key = node.file("/etc/bramble/tls/node.key")
        assert (key.user, key.group, key.mode) == ("root", "bramble", 0o640)
        certificate = node.check_output(
            "python3 -c \"import ssl;print(ssl._ssl._test_decode_cert('/etc/bramble/tls/node.pem'))\""
        )
    assert node.check_output("hostname") in certificate


def test_the_packages_are_installed_without_internet(node: Any) -> None:
    assert node.check_output("ip route show default") == ""
    assert node.check_output("ls /opt/bramble | wc -l") == "1"
    assert node.run("/opt/bramble/*/bin/python -c 'import distributed, numpy, bramble'").rc == 0


def test_sixteen_jobs_run_on_all_servers(host: Any) -> None:
    report = json.loads(host.check_output("bramble compute --on cluster --scale 0.05 --json -"))
    assert (report["jobs"], report["lost"]) == (16, 0)
    assert sorted(report["per_node"]) == SERVERS


def test_a_connection_without_a_certificate_is_refused(host: Any) -> None:
    """TLS without a client certificate is refused by the scheduler and by a worker."""
    program = (
        "import socket, ssl, sys\n"
        "context = ssl.create_default_context(cafile='/etc/bramble/tls/ca.pem'); context.check_hostname = False\n"
        "for port in (8786, 8788):\n"
        "    host = '10.77.131.100' if port == 8786 else '10.77.131.101'\n"
        "    try:\n"
        "        with context.wrap_socket(socket.create_connection((host, port), 10)) as s:\n"
        "            s.settimeout(10); s.sendall(b'x' * 64); data = s.recv(64)\n"
        "        print('data' if data else 'closed')\n"
        "    except (ssl.SSLError, ConnectionError) as error:\n"
        "        print('refused')\n"
    )
    answers = host.run("python3 -c %s", program).stdout.split()
    assert answers and set(answers) <= {"refused", "closed"}, answers


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("factor 1000036000099", "1000033"),
        ("pi --method bbp --position 1000 --count 8", "349F1C09"),
        ("primes 0 1e6", 'count": 78498'),
        ("quantum ghz --shots 200", '"program": "ghz"'),
    ],
)
def test_workloads_run_on_the_nodes(host: Any, command: str, words: str) -> None:
    """Compiled kernels, a C library and a simulator work under the restrictions of the unit."""
    assert words in host.check_output(f"bramble {command} --json -")


OCTAPI = """
import socket

def compute(number):
    import socket
    return socket.gethostname(), number * number

if __name__ == "__main__":
    import dispy

    probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    probe.connect(("8.8.8.8", 80))
    address = probe.getsockname()[0]
    cluster = dispy.JobCluster(compute, ip_addr=address, nodes="192.168.1.*")
    jobs = [cluster.submit(number) for number in range(16)]
    print(address, sorted(job()[1] for job in jobs) == [number * number for number in range(16)], {job()[0] for job in jobs})
    cluster.print_status()
    cluster.close()
"""


@pytest.mark.parametrize("sudo", ["", "sudo "])
def test_a_script_for_dispy_runs_unmodified(host: Any, sudo: str) -> None:
    """The script runs with the system's Python, without a path or environment, and finds its address as OctaPi's scripts do."""
    host.check_output("cat > /tmp/octapi.py <<'END'\n" + OCTAPI + "\nEND")
    result = host.run(f"{sudo}python3 /tmp/octapi.py")
    assert result.rc == 0, result.stderr
    address = host.check_output("hostname -I").split()[0]
    assert f"{address} True " in result.stdout
    assert all(server in result.stdout for server in SERVERS)
