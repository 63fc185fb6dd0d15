"""The command from outside: exit codes, messages, configuration, JSON."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bramble import UsageError
from bramble.engine import config

from .conftest import ENVIRONMENT, Authority, Bramble, free_port, write_config

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A configuration folder with certificates, and the address of a scheduler that does not run."""
    Authority(tmp_path).issue("client")
    write_config(tmp_path / "cluster.toml", f"tls://127.0.0.1:{free_port()}", ["pi-01"])
    return tmp_path


def run(*arguments: str, config: Path | str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bramble", *arguments],
        env=ENVIRONMENT | {"BRAMBLE_CONFIG": str(config)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def assert_error(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Assert the exit code, and one line on standard error that has all the words and is no traceback."""
    assert result.returncode == code, result
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr


def test_help_imports_no_large_package(tmp_path: Path) -> None:
    program = (
        "import sys, bramble.cli as cli\n"
        "try: cli.app(['--help'])\n"
        "except SystemExit: print(sorted({'dask', 'distributed', 'numpy', 'rich', 'pydantic'} & sys.modules.keys()))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert "compute" in result.stdout and result.stdout.endswith("[]\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["pi", "--points", "1.5"], ["pi", "--points", "many"], ["pi", "--points", "0"], ["pi", "--points", "inf"],
        ["compute", "--job-timeout", "9"], ["pi", "--job-timeout", "9"],
        ["pi", "--points", "1e19"], ["pi", "--nodes", "1,,2"], ["pi", "--nodes", "1"], ["pi", "--method", "wishing"],
        ["pi", "--method", "chudnovsky", "--digits", "-3"], ["pi", "--method", "chudnovsky", "--digits", "1e15"],
        ["pi", "--method", "bbp", "--position", "0"], ["pi", "--method", "bbp", "--position", "1e13"],
        ["compute", "--nodes", "1"], ["primes", "7", "7"], ["primes", "7", "-8"], ["primes", "x", "8"], ["primes", "0", "1e30"],
        ["fibonacci", "--prices", "/nowhere.csv"], ["rainbow", "brute", "xyz"], ["rainbow", "crack", "12"],
    ],
)  # fmt: skip
def test_wrong_requests_exit_2(arguments: list[str]) -> None:
    assert_error(run(*arguments, "--on", "local", config="/nowhere"), 2, "bramble: ")


@pytest.mark.parametrize(
    "arguments", [["compute", "--jobs", "0"], ["pi", "--on", "moon"], ["nonsense"], ["pi", "--bad"], ["pi", "--count", "17"]]
)
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    assert run(*arguments, config="/nowhere").returncode == 2


def test_no_configuration() -> None:
    assert_error(run("pi", config="/nowhere/cluster.toml"), 2, "/nowhere/cluster.toml", "--tags workloads")


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("tls://", "tcp://", "`scheduler`"), ("tls://127.0.0.1:", "tls://127.0.0.1/", "`scheduler`"),
        ("['pi-01']", "[]", "`nodes`"), ("['pi-01']", "['a', 'a']", "`nodes`"), ("['pi-01']", "'pi-01'", "`nodes`"),
        ("nodes =", "knots =", "`nodes`"), ("nodes =", "zeal = 1\nnodes =", "`zeal`"), ('"client.pem"', "7", "`cert`"),
        ("nodes =", "nodes", "cannot be read"), ("client.key", "absent.key", "absent.key"),
    ],
)  # fmt: skip
def test_wrong_configuration(folder: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, word: str) -> None:
    path = folder / "cluster.toml"
    path.write_text(path.read_text().replace(old, new))
    monkeypatch.setenv("BRAMBLE_CONFIG", str(path))
    with pytest.raises(UsageError) as caught:
        config.load()
    assert all(text in str(caught.value) for text in (str(path), word, "ansible-playbook"))


def test_an_invalid_certificate(folder: Path) -> None:
    (folder / "client.pem").write_text("not a certificate")
    assert_error(run("compute", config=folder / "cluster.toml"), 2, "client.pem", "--tags scheduler")


def test_no_scheduler(folder: Path) -> None:
    begin = time.monotonic()
    result = run("compute", config=folder / "cluster.toml")
    assert_error(result, 3, "tls://127.0.0.1", "refused", "systemctl status bramble-scheduler", "--tags scheduler")
    assert time.monotonic() - begin < 10  # it does not wait for --timeout


def test_pi_on_one_core(tmp_path: Path) -> None:
    target = tmp_path / "pi.json"
    result = run("pi", "--on", "local", "--points", "2_000_000", "--json", str(target), config="/nowhere")
    assert result.returncode == 0, result
    assert "sigma" in result.stdout
    record = json.loads(target.read_text())
    assert record["points"] == 2_000_000 and record["inside"] / 500_000 == record["pi"]
    assert record.keys() == {
        "workload", "method", "on", "points", "chunks", "seed", "inside", "pi", "error", "sigma", "runs", "versions",
    }  # fmt: skip
    assert record["runs"][0]["karp_flatt"] is None and record["runs"][0]["speedup"] == 1


def test_compute_on_the_workstation_with_json_on_standard_output() -> None:
    result = run("compute", "--on", "workstation", "--scale", "0.001", "--json", "-", config="/nowhere")
    assert result.returncode == 0, result
    record = json.loads(result.stdout)
    assert record["lost"] == 0 and sorted(row["job"] for row in record["results"]) == list(range(16))
    assert "speed-up" in result.stderr


@pytest.mark.parametrize("place", ["local", "workstation"])
def test_ctrl_c(place: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "bramble", "compute", "--on", place, "--scale", "10"],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "stopped" in errors and "Traceback" not in errors


def test_a_certificate_of_another_authority_is_refused(bramble: Bramble, cluster, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The client has this cluster's CA, so it trusts the scheduler, but another authority signed its own certificate."""
    Authority(tmp_path, "other").issue("client")
    (tmp_path / "ca.pem").write_bytes((cluster.folder / "ca.pem").read_bytes())
    write_config(tmp_path / "cluster.toml", cluster.address, cluster.nodes)
    assert_error(bramble("compute", config=tmp_path / "cluster.toml"), 3, cluster.address, "alert")


def test_a_scheduler_of_another_authority_is_refused(bramble: Bramble, cluster, folder: Path) -> None:  # type: ignore[no-untyped-def]
    write_config(folder / "cluster.toml", cluster.address, cluster.nodes)
    assert_error(bramble("compute", config=folder / "cluster.toml"), 3, "certificate verify failed")
