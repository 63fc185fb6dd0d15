"""The engine with both layouts of workers: faults of nodes lose no job, and hosts without a valid certificate are refused."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, rehearsal
from tests.support.rehearsal import INVENTORY, play

from . import conftest

OVERLAY = Path(__file__).parent / "engine"
STATE = ROOT / ".state/h-engine"
NET = "10.77.110"
SERVERS = ["pi-01", "pi-02"]
PORTS = {
    "scheduler": f"{NET}.100:8786",
    "worker of one process": f"{NET}.101:8788",
    "nanny of one process": f"{NET}.101:8808",
    "worker of four processes": f"{NET}.102:8791",
    "nanny of four processes": f"{NET}.102:8811",
}

playbook = partial(play, inventory=[*INVENTORY, OVERLAY])
output = partial(conftest.told, STATE)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Set up a client and two servers with site.yml: pi-01 has one process of four threads, pi-02 has four of one thread."""
    with conftest.booted(playbook, STATE, SERVERS):
        yield


def start_program(program: str) -> subprocess.Popen[str]:
    """Start a Python program on the client with bramble's Python; its jobs may use the functions of workloads/tests/faults.py."""
    command = rehearsal.ssh_words(STATE, "pi-client", "$(readlink -f /usr/local/bin/bramble | xargs dirname)/python -")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write((ROOT / "workloads/tests/faults.py").read_text() + program)
    process.stdin.close()
    return process


def start_jobs(arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start a program that maps `misbehave` over the arguments, a Python expression.

    It writes the engine's messages, and a line of JSON for each job that has ended.
    """
    return start_program(f"""
import json, sys
from bramble.engine import places
with places.connect("cluster", say=lambda line: print(line, flush=True), **{options!r}) as engine:
    for outcome in engine.map(misbehave, {arguments}):
        print(json.dumps({{"job": outcome.index, "lost": outcome.lost, "retried": outcome.retried}}), flush=True)
""")


def wait_for_jobs(process: subprocess.Popen[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Wait for all jobs; return the outcome of each, and the engine's messages."""
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    assert process.wait() == 0
    return [json.loads(line) for line in lines if line.startswith("{")], [line for line in lines if not line.startswith("{")]


def each_job_ended_once(outcomes: list[dict[str, Any]], count: int) -> bool:
    """Return whether each of `count` jobs has exactly one outcome."""
    return sorted(outcome["job"] for outcome in outcomes) == list(range(count))


def test_sixteen_jobs_run_on_all_servers_and_are_timed() -> None:
    record = json.loads(output("pi-client", "bramble compute --scale 0.2 --json -"))
    assert record["lost"] == 0 and sorted(row["job"] for row in record["results"]) == list(range(16))
    assert sorted(record["per_node"]) == SERVERS
    assert record["seconds"] >= record["seconds_at_best"] > 0
    assert json.loads(output("pi-client", "bramble nodes --json -"))["nodes"] == {
        node: {"threads": 4, "drained": False} for node in SERVERS
    }


def test_none_of_a_thousand_short_jobs_is_lost() -> None:
    outcomes, _ = wait_for_jobs(start_jobs("[0.01] * 1000"))
    assert each_job_ended_once(outcomes, 1000) and not any(outcome["lost"] for outcome in outcomes)


def write_file(node: str, path: str, content: bytes) -> None:
    """Write a file on a node, as root."""
    subprocess.run(rehearsal.ssh_words(STATE, node, f"sudo install -D /dev/stdin {path}"), input=content, check=True, timeout=60)


def wait_for(node: str, command: str, seconds: float = 60) -> None:
    """Wait until a command on a node succeeds."""
    deadline = time.monotonic() + seconds
    while rehearsal.ssh(STATE, node, command).returncode:
        assert time.monotonic() < deadline, f"On {node} this command did not succeed within {seconds} s: {command}"
        time.sleep(1)


def test_a_worker_whose_clock_is_in_1970_joins_when_the_clock_is_right() -> None:
    """A Raspberry Pi has no clock battery. Certificates are valid from 2020, and systemd sets no clock to a time before that."""
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
    write_file("pi-01", "/usr/local/lib/libfaketime.so.1", library.read_bytes())
    fake = "LD_PRELOAD=/usr/local/lib/libfaketime.so.1 DONT_FAKE_MONOTONIC=1"
    joined = f"journalctl -u bramble-scheduler --since=@{{}} | grep -q 'Register worker.*{NET}.101'"
    settings = f"{fake} FAKETIME_NO_CACHE=1 FAKETIME_TIMESTAMP_FILE=/etc/faketime"
    write_file("pi-01", "/run/systemd/system/bramble-worker.service.d/fake.conf", f"[Service]\nEnvironment={settings}\n".encode())
    try:
        write_file("pi-01", "/etc/faketime", b"@1970-01-02 00:00:00\n")
        started = int(time.time())
        output("pi-01", "sudo systemctl daemon-reload && sudo systemctl restart bramble-worker")
        wait_for("pi-01", f"sudo journalctl -u bramble-worker --since=@{started} | grep -q 'not yet valid'")
        assert rehearsal.ssh(STATE, "pi-client", f"sudo {joined.format(started)}").returncode
        write_file("pi-01", "/etc/faketime", b"@2020-06-01 00:00:00\n")
        wait_for("pi-client", f"sudo {joined.format(started)}")
    finally:
        output("pi-01", "sudo rm -r /run/systemd/system/bramble-worker.service.d /etc/faketime /usr/local/lib/libfaketime.so.1")
        output("pi-01", "sudo systemctl daemon-reload && sudo systemctl restart bramble-worker")
    output("pi-client", "bramble prove pi-01")


def switch_port(node: str) -> str:
    """Return the name of the switch's port to which a node is connected."""
    index = subprocess.run(
        ["docker", "exec", f"h-engine-{node}", "cat", "/sys/class/net/eth0/iflink"], capture_output=True, text=True, check=True
    )
    links = json.loads(subprocess.run(["ip", "-json", "link"], capture_output=True, text=True, check=True).stdout)
    return next(link["ifname"] for link in links if link["ifindex"] == int(index.stdout))


def test_every_job_ends_once_while_nodes_network_and_scheduler_fail() -> None:
    """Of 200 jobs one uses up all memory and one never ends; meanwhile worker, node, network and scheduler fail in turn."""
    process = start_jobs('["eat" if n == 20 else "hang" if n == 40 else 3.5 for n in range(200)]', job_timeout=12.0)

    def accidents() -> None:
        time.sleep(4)
        # The worker may just have been killed because of the job that uses up all memory.
        output("pi-01", "until sudo sh -c 'kill -KILL $(pgrep -u bramble -f multiprocessing.spawn)'; do sleep 0.5; done")
        subprocess.run(["docker", "kill", "h-engine-pi-02"], check=True, capture_output=True)
        playbook("rehearse", arguments="--limit pi-02")
        port = switch_port("pi-01")
        subprocess.run(["ip", "link", "set", port, "down"], check=True)
        try:
            time.sleep(30)
        finally:
            subprocess.run(["ip", "link", "set", port, "up"], check=True)
        output("pi-client", "sudo systemctl kill --signal KILL bramble-scheduler")

    with ThreadPoolExecutor() as pool:
        accidents_result = pool.submit(accidents)
        outcomes, messages = wait_for_jobs(process)
        assert accidents_result.done(), "The jobs ended before all accidents had happened."
        accidents_result.result()
    print(*messages, sep="\n")
    assert each_job_ended_once(outcomes, 200)
    lost = {outcome["job"]: outcome["lost"] for outcome in outcomes if outcome["lost"]}
    assert lost.keys() == {20, 40}, lost
    assert "every worker that ran it died" in lost[20] and "for more than 12 s" in lost[40]
    assert {node for outcome in outcomes for node in outcome["retried"]} == set(SERVERS)
    assert any("the scheduler went away and came back" in line for line in messages)
    assert all(output(node, "systemctl is-active sshd bramble-worker || true") for node in SERVERS)
    # All processes of both nodes run again.
    output("pi-client", "bramble prove pi-01 && bramble prove pi-02")
    deadline = time.monotonic() + 60
    while (joined := json.loads(output("pi-client", "bramble nodes --json -"))["nodes"]) and time.monotonic() < deadline:
        if {name: node["threads"] for name, node in joined.items()} == {"pi-01": 4, "pi-02": 4}:
            break
        time.sleep(1)
    assert {name: node["threads"] for name, node in joined.items()} == {"pi-01": 4, "pi-02": 4}


@pytest.fixture
def stranger() -> Iterator[list[str]]:
    """Connect a host that is no node to the switch, and yield what to put before a command that it runs."""
    with conftest.stranger("hengine-s", conftest.switch("h-engine"), f"{NET}.77/24") as command_prefix:
        yield command_prefix


IDENTIFY_PROGRAM = """
import asyncio, json, ssl, sys
from distributed.comm.core import connect

async def identify(address, pair):
    # The server's certificate is not checked, since only the server's answer matters.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if pair:
        context.load_cert_chain(*pair)
    scheme, options = ("tcp", {}) if pair is None else ("tls", {"ssl_context": context, "require_encryption": True})
    try:
        comm = await connect(f"{scheme}://{address}", timeout=5, **options)
        await comm.write({"op": "identity", "reply": True})
        return (await asyncio.wait_for(comm.read(), 5))["type"]
    except Exception as error:
        return f"refused: {error!r}"

async def main(ports, pairs):
    return {name: {port: await identify(address, pair) for port, address in ports.items()} for name, pair in pairs.items()}

print(json.dumps(asyncio.run(main(*json.loads(sys.argv[1])))))
"""


def identify_ports(stranger: list[str], pairs: dict[str, list[str] | None]) -> dict[str, dict[str, str]]:
    """Return what each port answers to dask's request `identity`, for each pair of certificate and key.

    :param pairs: names with the files of certificate and key; an empty list for no certificate, None for no TLS
    """
    command = [*stranger, sys.executable, "-c", IDENTIFY_PROGRAM, json.dumps([PORTS, pairs])]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_a_host_without_a_valid_certificate_is_refused(stranger: list[str], tmp_path: Path) -> None:
    from workloads.tests.conftest import Authority

    Authority(tmp_path).issue("pi-02")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-subj", "/CN=pi-02",
         "-keyout", tmp_path / "self.key", "-out", tmp_path / "self.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    valid, self_signed, foreign = (
        [f"{path}.{end}" for end in ("pem", "key")] for path in (STATE / "pki/nodes/pi-02", tmp_path / "self", tmp_path / "pi-02")
    )
    invalid = {"without TLS": None, "without a certificate": [], "self-signed": self_signed, "of another cluster": foreign}

    answers = identify_ports(stranger, {"valid": valid, **invalid})
    assert list(answers.pop("valid").values()) == ["Scheduler", "Worker", "Nanny", "Worker", "Nanny"]
    assert all(answer.startswith("refused") for ports in answers.values() for answer in ports.values()), answers


def test_a_revoked_certificate_is_refused(stranger: list[str], tmp_path: Path) -> None:
    """The authority is replaced, as by swap.yml -e swap_new_key=true for a node whose card was stolen."""
    stolen = [str(shutil.copy(STATE / f"pki/nodes/pi-02.{end}", tmp_path)) for end in ("pem", "key")]
    shutil.rmtree(STATE / "pki")
    playbook("site", arguments="--tags scheduler,worker,workloads")
    output("pi-client", "bramble prove pi-01 && bramble prove pi-02")
    new = [str(STATE / f"pki/nodes/pi-02.{end}") for end in ("pem", "key")]
    answers = identify_ports(stranger, {"new": new, "revoked": stolen})
    assert answers.pop("new")["scheduler"] == "Scheduler"
    assert all(answer.startswith("refused") for answer in answers["revoked"].values()), answers


def test_no_other_port_listens() -> None:
    """Pages and metrics listen at 127.0.0.1 only; in the cluster there are SSH, the bundle server and the engine's ports."""
    known = {22, 8785, 8786, *range(8788, 8792), *range(8808, 8812)}
    for node in ("pi-client", *SERVERS):
        sockets = [line.split()[3].rpartition(":") for line in output(node, "ss -Hltn").splitlines()]
        ports = {int(port) for address, _, port in sockets if not address.startswith("127.")}
        assert 22 in ports and ports <= known, (node, ports)


def test_the_real_dispy_runs_jobs_with_its_secret_only_and_is_removed_completely() -> None:
    """The role dispy is optional."""
    both = partial(play, inventory=[*INVENTORY, OVERLAY, OVERLAY.with_name("engine_dispy")])
    both("dispy")
    assert both("dispy").changes() == []
    program = f"""
import sys, dispy
def double(number):
    import getpass, time
    time.sleep(1)
    return 2 * number, getpass.getuser()
nodes = ["{NET}.101", "{NET}.102"]
with dispy.JobCluster(double, nodes=nodes, host="{NET}.100", secret=sys.stdin.readline().strip()) as cluster:
    jobs = [cluster.submit(number) for number in range(16)]
    if cluster.wait(float(sys.argv[1])):
        print({{job() for job in jobs}} == {{(2 * number, "bramble-dispy") for number in range(16)}})
        print({{job.ip_addr for job in jobs}} == {{*nodes}})
    else:
        print("nobody", flush=True)
        import os
        os._exit(0)
"""
    # The program is a file, because dispy sends the source of the function.
    output("pi-client", f"echo {shlex.quote(program)} >/tmp/real_dispy.py")
    run = "/opt/bramble-dispy/bin/python3 /tmp/real_dispy.py"
    assert output("pi-client", f"sudo cat /etc/bramble/dispy.secret | {run} 60").endswith("True\nTrue")
    assert output("pi-client", f"echo guessed | {run} 8").endswith("nobody")
    exposure = output("pi-01", "systemd-analyze security --no-pager bramble-dispy | tail -n 1")
    assert float(re.findall(r"[0-9]+[.][0-9]", exposure)[0]) <= 2.5
    both("dispy", variables={"cluster_state": "absent"})
    places = "/opt/bramble-dispy /etc/bramble/dispy.* /etc/systemd/system/bramble-dispy.service"
    for node in ("pi-client", *SERVERS):
        assert output(node, f"sudo sh -c 'ls -d {places} 2>/dev/null; getent passwd bramble-dispy; true'") == ""
