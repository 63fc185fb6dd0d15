"""The engine on nodes with one and with four worker processes: every job ends once when nodes fail, and strangers are refused."""

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
LISTENERS = {
    "scheduler": f"{NET}.100:8786",
    "worker of one process": f"{NET}.101:8788",
    "its nanny": f"{NET}.101:8808",
    "worker of four": f"{NET}.102:8791",
    "its nanny, too": f"{NET}.102:8811",
}

playbook = partial(play, inventory=[*INVENTORY, OVERLAY])
output_of = partial(conftest.node_output, STATE)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A client and two servers after site.yml: pi-01 has one process with four threads, pi-02 four processes with one."""
    with conftest.running_cluster(playbook, STATE, SERVERS):
        yield


def start_program(program: str) -> subprocess.Popen[str]:
    """Start a Python program on the client, as the user who runs `bramble`; its jobs may use workloads/tests/faults.py."""
    command = rehearsal.ssh_command(STATE, "pi-client", "$(readlink -f /usr/local/bin/bramble | xargs dirname)/python -")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write((ROOT / "workloads/tests/faults.py").read_text() + program)
    process.stdin.close()
    return process


def start_jobs(arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Map `cause_fault` over a Python expression; the output has a line of JSON for each job, and the engine's messages."""
    return start_program(f"""
import json, sys
from bramble.engine import places
with places.connect("cluster", notify=lambda line: print(line, flush=True), **{options!r}) as engine:
    for outcome in engine.map(cause_fault, {arguments}):
        print(json.dumps({{"job": outcome.index, "lost": outcome.lost, "retried": outcome.retried}}), flush=True)
""")


def wait_for_jobs(process: subprocess.Popen[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Wait for all jobs; return the outcome of each, and the engine's messages."""
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    assert process.wait() == 0
    return [json.loads(line) for line in lines if line.startswith("{")], [line for line in lines if not line.startswith("{")]


def each_has_ended_once(outcomes: list[dict[str, Any]], count: int) -> bool:
    """Return whether there is one outcome for each of `count` jobs."""
    return sorted(outcome["job"] for outcome in outcomes) == list(range(count))


def test_sixteen_jobs_run_on_both_nodes() -> None:
    record = json.loads(output_of("pi-client", "bramble compute --scale 0.2 --json -"))
    assert record["lost"] == 0 and sorted(row["job"] for row in record["results"]) == list(range(16))
    assert sorted(record["per_node"]) == SERVERS
    assert record["seconds"] >= record["seconds_at_best"] > 0
    assert json.loads(output_of("pi-client", "bramble nodes --json -"))["nodes"] == {
        node: {"threads": 4, "drained": False} for node in SERVERS
    }


def test_none_of_a_thousand_short_jobs_is_lost() -> None:
    outcomes, _ = wait_for_jobs(start_jobs("[0.01] * 1000"))
    assert each_has_ended_once(outcomes, 1000) and not any(outcome["lost"] for outcome in outcomes)


def wait_for(node: str, command: str, seconds: float = 60) -> None:
    """Wait until a command on a node succeeds."""
    deadline = time.monotonic() + seconds
    while rehearsal.ssh(STATE, node, command).returncode:
        assert time.monotonic() < deadline, f"{node}: the command did not succeed within {seconds} s: {command}"
        time.sleep(1)


def test_a_worker_joins_when_its_clock_is_corrected() -> None:
    """A Pi's clock has no battery. No certificate is valid in 1970; all are valid in 2020, and systemd never starts earlier."""
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
    rehearsal.write_file(STATE, "pi-01", "/usr/local/lib/libfaketime.so.1", library.read_bytes())
    fake = "LD_PRELOAD=/usr/local/lib/libfaketime.so.1 DONT_FAKE_MONOTONIC=1"
    joined = f"journalctl -u bramble-scheduler --since=@{{}} | grep -q 'Register worker.*{NET}.101'"
    settings = f"{fake} FAKETIME_NO_CACHE=1 FAKETIME_TIMESTAMP_FILE=/etc/faketime"
    rehearsal.write_file(
        STATE, "pi-01", "/run/systemd/system/bramble-worker.service.d/fake.conf", f"[Service]\nEnvironment={settings}\n".encode()
    )
    try:
        rehearsal.write_file(STATE, "pi-01", "/etc/faketime", b"@1970-01-02 00:00:00\n")
        started = int(time.time())
        output_of("pi-01", "sudo systemctl daemon-reload && sudo systemctl restart bramble-worker")
        wait_for("pi-01", f"sudo journalctl -u bramble-worker --since=@{started} | grep -q 'not yet valid'")
        assert rehearsal.ssh(STATE, "pi-client", f"sudo {joined.format(started)}").returncode
        rehearsal.write_file(STATE, "pi-01", "/etc/faketime", b"@2020-06-01 00:00:00\n")
        wait_for("pi-client", f"sudo {joined.format(started)}")
    finally:
        output_of(
            "pi-01", "sudo rm -r /run/systemd/system/bramble-worker.service.d /etc/faketime /usr/local/lib/libfaketime.so.1"
        )
        output_of("pi-01", "sudo systemctl daemon-reload && sudo systemctl restart bramble-worker")
    output_of("pi-client", "bramble health-check pi-01")


def switch_port(node: str) -> str:
    """Return the interface of the virtual switch that the node is connected to."""
    index = subprocess.run(
        ["docker", "exec", f"h-engine-{node}", "cat", "/sys/class/net/eth0/iflink"], capture_output=True, text=True, check=True
    )
    links = json.loads(subprocess.run(["ip", "-json", "link"], capture_output=True, text=True, check=True).stdout)
    return next(link["ifname"] for link in links if link["ifindex"] == int(index.stdout))


def test_every_job_ends_once_when_nodes_fail() -> None:
    """Of 200 jobs one uses all memory and one never ends; meanwhile worker, node, network and scheduler fail in turn."""
    process = start_jobs('["eat" if n == 20 else "hang" if n == 40 else 3.5 for n in range(200)]', job_timeout=12.0)

    def cause_failures() -> None:
        time.sleep(4)
        # The job that uses all memory may just have killed the worker.
        output_of("pi-01", "until sudo sh -c 'kill -KILL $(pgrep -u bramble -f multiprocessing.spawn)'; do sleep 0.5; done")
        subprocess.run(["docker", "kill", "h-engine-pi-02"], check=True, capture_output=True)
        playbook("rehearse", arguments="--limit pi-02")
        port = switch_port("pi-01")
        subprocess.run(["ip", "link", "set", port, "down"], check=True)
        try:
            time.sleep(30)
        finally:
            subprocess.run(["ip", "link", "set", port, "up"], check=True)
        output_of("pi-client", "sudo systemctl kill --signal KILL bramble-scheduler")

    with ThreadPoolExecutor() as pool:
        failures_future = pool.submit(cause_failures)
        outcomes, messages = wait_for_jobs(process)
        assert failures_future.done(), "the jobs ended before all failures had happened"
        failures_future.result()
    print(*messages, sep="\n")
    assert each_has_ended_once(outcomes, 200)
    lost = {outcome["job"]: outcome["lost"] for outcome in outcomes if outcome["lost"]}
    assert lost.keys() == {20, 40}, lost
    assert "every worker that ran it died" in lost[20] and "for more than 12 s" in lost[40]
    assert {node for outcome in outcomes for node in outcome["retried"]} == set(SERVERS)
    assert any("the scheduler was lost and came back" in line for line in messages)
    assert all(output_of(node, "systemctl is-active sshd bramble-worker || true") for node in SERVERS)
    # All worker processes of both nodes come back.
    output_of("pi-client", "bramble health-check pi-01 && bramble health-check pi-02")
    deadline = time.monotonic() + 60
    while (present := json.loads(output_of("pi-client", "bramble nodes --json -"))["nodes"]) and time.monotonic() < deadline:
        if {name: node["threads"] for name, node in present.items()} == {"pi-01": 4, "pi-02": 4}:
            break
        time.sleep(1)
    assert {name: node["threads"] for name, node in present.items()} == {"pi-01": 4, "pi-02": 4}


@pytest.fixture
def foreign_host() -> Iterator[list[str]]:
    """A host that is not part of the cluster, on the switch: the words that run a command on it."""
    with conftest.foreign_host("hengine-s", conftest.switch("h-engine"), f"{NET}.77/24") as inside:
        yield inside


IDENTIFY_PROGRAM = """
import asyncio, json, ssl, sys
from distributed.comm.core import connect

async def identify(address, identity):
    # Accepts any server certificate, and presents its own.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if identity:
        context.load_cert_chain(*identity)
    scheme, options = ("tcp", {}) if identity is None else ("tls", {"ssl_context": context, "require_encryption": True})
    try:
        comm = await connect(f"{scheme}://{address}", timeout=5, **options)
        await comm.write({"op": "identity", "reply": True})
        return (await asyncio.wait_for(comm.read(), 5))["type"]
    except Exception as error:
        return f"refused: {error!r}"

async def main(listeners, identities):
    return {
        name: {listener: await identify(address, identity) for listener, address in listeners.items()}
        for name, identity in identities.items()
    }

print(json.dumps(asyncio.run(main(*json.loads(sys.argv[1])))))
"""


def identify(foreign_host: list[str], identities: dict[str, list[str] | None]) -> dict[str, dict[str, str]]:
    """Return the answer of each listener to each identity, by dask's request `identity`.

    An identity is a certificate and a key, [] for no certificate, or None for no TLS.
    """
    command = [*foreign_host, sys.executable, "-c", IDENTIFY_PROGRAM, json.dumps([LISTENERS, identities])]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_connections_without_a_certificate_of_the_cluster_are_refused(foreign_host: list[str], tmp_path: Path) -> None:
    from workloads.tests.conftest import Authority

    Authority(tmp_path).issue("pi-02")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-subj", "/CN=pi-02",
         "-keyout", tmp_path / "self.key", "-out", tmp_path / "self.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    ours, self_signed, other = (
        [f"{path}.{end}" for end in ("pem", "key")] for path in (STATE / "pki/nodes/pi-02", tmp_path / "self", tmp_path / "pi-02")
    )
    foreign = {
        "without TLS": None,
        "without a certificate": [],
        "self-signed": self_signed,
        "of another cluster": other,
    }

    answers = identify(foreign_host, {"ours": ours, **foreign})
    assert list(answers.pop("ours").values()) == ["Scheduler", "Worker", "Nanny", "Worker", "Nanny"]  # the addresses are right
    assert all(answer.startswith("refused") for listener in answers.values() for answer in listener.values()), answers


def test_a_revoked_certificate_is_refused(foreign_host: list[str], tmp_path: Path) -> None:
    """A new authority replaces the old one, as swap.yml -e swap_new_key=true does for a node whose card was stolen."""
    stolen = [str(shutil.copy(STATE / f"pki/nodes/pi-02.{end}", tmp_path)) for end in ("pem", "key")]
    shutil.rmtree(STATE / "pki")
    playbook("site", arguments="--tags scheduler,worker,workloads")
    output_of("pi-client", "bramble health-check pi-01 && bramble health-check pi-02")
    new = [str(STATE / f"pki/nodes/pi-02.{end}") for end in ("pem", "key")]
    answers = identify(foreign_host, {"new": new, "revoked": stolen})
    assert answers.pop("new")["scheduler"] == "Scheduler"
    assert all(answer.startswith("refused") for answer in answers["revoked"].values()), answers


def test_no_other_port_is_open() -> None:
    """Web pages and metrics are on 127.0.0.1 of each node; the network reaches only SSH, the bundle server and LISTENERS."""
    known = {22, 8785, 8786, *range(8788, 8792), *range(8808, 8812)}
    for node in ("pi-client", *SERVERS):
        sockets = [line.split()[3].rpartition(":") for line in output_of(node, "ss -Hltn").splitlines()]
        ports = {int(port) for address, _, port in sockets if not address.startswith("127.")}
        assert 22 in ports and ports <= known, (node, ports)


def test_the_real_dispy_runs_jobs_with_its_secret_only_and_is_removed() -> None:
    """The role dispy, whose group is empty by default."""
    play_dispy = partial(play, inventory=[*INVENTORY, OVERLAY, OVERLAY.with_name("engine_dispy")])
    play_dispy("dispy")
    assert play_dispy("dispy").changes() == []
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
        print("no result", flush=True)
        import os
        os._exit(0)
"""
    # The program is a file, because dispy sends the source of its function.
    output_of("pi-client", f"echo {shlex.quote(program)} >/tmp/real_dispy.py")
    run = "/opt/bramble-dispy/bin/python3 /tmp/real_dispy.py"
    assert output_of("pi-client", f"sudo cat /etc/bramble/dispy.secret | {run} 60").endswith("True\nTrue")
    assert output_of("pi-client", f"echo guessed | {run} 8").endswith("no result")
    exposure = output_of("pi-01", "systemd-analyze security --no-pager bramble-dispy | tail -n 1")
    assert float(re.findall(r"[0-9]+[.][0-9]", exposure)[0]) <= 2.5
    play_dispy("dispy", variables={"cluster_state": "absent"})
    places = "/opt/bramble-dispy /etc/bramble/dispy.* /etc/systemd/system/bramble-dispy.service"
    for node in ("pi-client", *SERVERS):
        assert output_of(node, f"sudo sh -c 'ls -d {places} 2>/dev/null; getent passwd bramble-dispy; true'") == ""
