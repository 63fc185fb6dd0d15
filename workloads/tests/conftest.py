"""A real cluster on the loopback interface: scheduler and workers are processes that use mutual TLS."""

import datetime
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.process_state import unchanged_process

__all__ = ["unchanged_process"]

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "workloads/src"
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{SOURCE}:{ROOT}", "COLUMNS": "200"}
"""The environment of processes that tests start: they import this source tree and the kernels of `workloads.tests`."""
collect_ignore = ["template"]
"""A workload as a new contributor writes it: test_new_workload copies it into a copy of the package."""
SCHEDULER_SETTINGS = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}
"""As in the role scheduler, with the default of scheduler_tries."""


class Authority:
    """A certificate authority in a folder; `issue` makes `NAME.pem` and `NAME.key` there."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder, self.ca = folder, folder / f"{name}.pem"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Bramble test {name}")])
        certificate = self._build(self._name, self._key, authority=True)
        self.ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _build(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, authority: bool) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    def issue(self, name: str) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._build(subject, key, authority=False)
        (self.folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (self.folder / f"{name}.key").write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class LoopbackCluster:
    """A scheduler and its workers, by name, and the configuration with their addresses."""

    folder: Path
    port: int
    nodes: list[str]
    nannies: bool = False
    """As in the role worker: a node has two processes, and a nanny supervises each of them and its memory."""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        return self.folder / "cluster.toml"

    @property
    def address(self) -> str:
        return f"tls://127.0.0.1:{self.port}"

    def start(self, name: str) -> None:
        tls = ["--tls-ca-file", "ca.pem", "--tls-cert", f"{name}.pem", "--tls-key", f"{name}.key"]
        if name == "scheduler":
            arguments = ["distributed.cli.dask_scheduler", "--host", "tls://127.0.0.1", "--port", str(self.port)]
            arguments += ["--no-dashboard", "--no-show", "--dashboard-address", "127.0.0.1:0"]
        else:
            arguments = [
                "distributed.cli.dask_worker",
                self.address,
                "--name",
                name,
                "--no-dashboard",
                "--dashboard-address",
                "127.0.0.1:0",
            ]
            if self.nannies:
                arguments += ["--nworkers", "2", "--nthreads", "2", "--memory-limit", "400MB"]
                arguments += ["--worker-class", "bramble.engine.worker.Worker", "--preload-nanny", "bramble.engine.worker"]
            else:
                arguments += ["--no-nanny", "--nthreads", "2", "--memory-limit", "0"]
            arguments += ["--host", "127.0.0.1", "--protocol", "tls", "--local-directory", str(self.folder / f"{name}.tmp")]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", *arguments, *tls],
                cwd=self.folder, env=ENVIRONMENT | SCHEDULER_SETTINGS, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def kill(self, name: str) -> None:
        """Kill a process, as when its node loses power."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        for name in list(self.processes):
            self.kill(name)

    def environment(self) -> dict[str, str]:
        return ENVIRONMENT | {"BRAMBLE_CONFIG": str(self.config)}


def write_config(path: Path, scheduler: str, nodes: list[str], identity: str = "client", ca: str = "ca.pem") -> None:
    path.write_text(
        f'scheduler = "{scheduler}"\nca = "{ca}"\ncert = "{identity}.pem"\nkey = "{identity}.key"\nnodes = {nodes!r}\n'
    )


def start_cluster(folder: Path, nodes: list[str], nannies: bool = False) -> LoopbackCluster:
    authority = Authority(folder)
    for name in ["scheduler", "client", *nodes]:
        authority.issue(name)
    cluster = LoopbackCluster(folder, free_port(), nodes, nannies)
    write_config(cluster.config, cluster.address, nodes)
    for name in ["scheduler", *nodes]:
        cluster.start(name)
    wait_until(lambda: _listens(cluster.port))
    return cluster


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackCluster]:
    """Three nodes that every test may use, and that no test may break."""
    cluster = start_cluster(tmp_path_factory.mktemp("cluster"), ["pi-01", "pi-02", "pi-03"])
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def _shared_breakable_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackCluster]:
    cluster = start_cluster(tmp_path_factory.mktemp("breakable"), ["pi-01", "pi-02"])
    yield cluster
    cluster.stop()


@pytest.fixture
def breakable_cluster(_shared_breakable_cluster: LoopbackCluster) -> LoopbackCluster:
    """Two nodes that a test may break; what the test before has broken is started again."""
    for name in ["scheduler", *_shared_breakable_cluster.nodes]:
        if name not in _shared_breakable_cluster.processes or _shared_breakable_cluster.processes[name].poll() is not None:
            _shared_breakable_cluster.start(name)
            wait_until(lambda: _listens(_shared_breakable_cluster.port))
    return _shared_breakable_cluster


@pytest.fixture(scope="session")
def watched_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackCluster]:
    """One node of two processes, which jobs may kill: nannies restart them."""
    cluster = start_cluster(tmp_path_factory.mktemp("watched"), ["pi-01"], nannies=True)
    yield cluster
    cluster.stop()


Bramble = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def bramble(cluster: LoopbackCluster) -> Bramble:
    """Run the command: `bramble("pi", "--on", "local", config=...)`."""

    def run(*arguments: str, config: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = ENVIRONMENT | {"BRAMBLE_CONFIG": str(config or cluster.config)}
        return subprocess.run(
            [sys.executable, "-m", "bramble", *arguments],
            env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    return run


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition is not true after {seconds} s"
        time.sleep(0.05)
