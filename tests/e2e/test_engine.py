"""The engine on nodes of both layouts: no job is lost whatever happens to the nodes, and who does not belong gets nowhere."""

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
DOORS = {
    "scheduler": f"{NET}.100:8786",
    "worker of one process": f"{NET}.101:8788",
    "its nanny": f"{NET}.101:8808",
    "worker of four": f"{NET}.102:8791",
    "its nanny, too": f"{NET}.102:8811",
}

playbook = partial(play, inventory=[*INVENTORY, OVERLAY])
told = partial(conftest.told, STATE)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A client and two servers after site.yml: pi-01 has one process of four threads, pi-02 four of one."""
    with conftest.booted(playbook, STATE, SERVERS):
        yield


def begin(program: str) -> subprocess.Popen[str]:
    """Run a Python program on the client as who types `bramble`; jobs may use what workloads/tests/faults.py has."""
    command = rehearsal.ssh_words(STATE, "pi-client", "$(readlink -f /usr/local/bin/bramble | xargs dirname)/python -")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write((ROOT / "workloads/tests/faults.py").read_text() + program)
    process.stdin.close()
    return process


def jobs(arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Map `misbehave` over the arguments, a Python expression: a line of JSON for each job that ends, others as they are said."""
    return begin(f"""
import json, sys
from bramble.engine import places
with places.connect("cluster", say=lambda line: print(line, flush=True), **{options!r}) as engine:
    for outcome in engine.map(misbehave, {arguments}):
        print(json.dumps({{"job": outcome.index, "lost": outcome.lost, "retried": outcome.retried}}), flush=True)
""")


def ended(process: subprocess.Popen[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Wait for all jobs: how each ended, and what was said."""
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    assert process.wait() == 0
    return [json.loads(line) for line in lines if line.startswith("{")], [line for line in lines if not line.startswith("{")]


def once(outcomes: list[dict[str, Any]], count: int) -> bool:
    return sorted(outcome["job"] for outcome in outcomes) == list(range(count))


def test_sixteen_jobs_and_how_long_they_take() -> None:
    record = json.loads(told("pi-client", "bramble compute --scale 0.2 --json -"))
    assert record["lost"] == 0 and sorted(row["job"] for row in record["results"]) == list(range(16))
    assert sorted(record["per_node"]) == SERVERS
    assert record["seconds"] >= record["seconds_at_best"] > 0
    assert json.loads(told("pi-client", "bramble nodes --json -"))["nodes"] == {
        node: {"threads": 4, "drained": False} for node in SERVERS
    }


def test_none_of_a_thousand_short_jobs_is_lost() -> None:
    outcomes, _ = ended(jobs("[0.01] * 1000"))
    assert once(outcomes, 1000) and not any(outcome["lost"] for outcome in outcomes)


def put(node: str, path: str, content: bytes) -> None:
    """Write a file on a node, as root."""
    subprocess.run(rehearsal.ssh_words(STATE, node, f"sudo install -D /dev/stdin {path}"), input=content, check=True, timeout=60)


def wait_for(node: str, command: str, seconds: float = 60) -> None:
    """Until a command on a node succeeds."""
    deadline = time.monotonic() + seconds
    while rehearsal.ssh(STATE, node, command).returncode:
        assert time.monotonic() < deadline, f"{node}: not within {seconds} s: {command}"
        time.sleep(1)


def test_a_worker_whose_clock_is_in_1970_joins_when_it_is_right() -> None:
    """A Pi's clock has no battery. No certificate is valid in 1970, in 2020 all are: no systemd starts a clock before that."""
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
    put("pi-01", "/usr/local/lib/libfaketime.so.1", library.read_bytes())
    fake = "LD_PRELOAD=/usr/local/lib/libfaketime.so.1 DONT_FAKE_MONOTONIC=1"
    joined = f"journalctl -u bramble-scheduler --since=@{{}} | grep -q 'Register worker.*{NET}.101'"
    settings = f"{fake} FAKETIME_NO_CACHE=1 FAKETIME_TIMESTAMP_FILE=/etc/faketime"
    put("pi-01", "/run/systemd/system/bramble-worker.service.d/fake.conf", f"[Service]\nEnvironment={settings}\n".encode())
    try:
        put("pi-01", "/etc/faketime", b"@1970-01-02 00:00:00\n")
        started = int(time.time())
        told("pi-01", "sudo systemctl daemon-reload && sudo systemctl restart bramble-worker")
        wait_for("pi-01", f"sudo journalctl -u bramble-worker --since=@{started} | grep -q 'not yet valid'")
        assert rehearsal.ssh(STATE, "pi-client", f"sudo {joined.format(started)}").returncode
        put("pi-01", "/etc/faketime", b"@2020-06-01 00:00:00\n")
        wait_for("pi-client", f"sudo {joined.format(started)}")
    finally:
        told("pi-01", "sudo rm -r /run/systemd/system/bramble-worker.service.d /etc/faketime /usr/local/lib/libfaketime.so.1")
        told("pi-01", "sudo systemctl daemon-reload && sudo systemctl restart bramble-worker")
    told("pi-client", "bramble prove pi-01")


def port_of(node: str) -> str:
    """The end of its cable in the switch."""
    index = subprocess.run(
        ["docker", "exec", f"h-engine-{node}", "cat", "/sys/class/net/eth0/iflink"], capture_output=True, text=True, check=True
    )
    links = json.loads(subprocess.run(["ip", "-json", "link"], capture_output=True, text=True, check=True).stdout)
    return next(link["ifname"] for link in links if link["ifindex"] == int(index.stdout))


def test_every_job_ends_once_whatever_happens_to_the_nodes() -> None:
    """Of 200 jobs one eats all memory and one never ends; meanwhile worker, node, network and scheduler fail in turn."""
    process = jobs('["eat" if n == 20 else "hang" if n == 40 else 3.5 for n in range(200)]', job_timeout=12.0)

    def accidents() -> None:
        time.sleep(4)
        # It may just have been taken down by the job that eats memory.
        told("pi-01", "until sudo sh -c 'kill -KILL $(pgrep -u bramble -f multiprocessing.spawn)'; do sleep 0.5; done")
        subprocess.run(["docker", "kill", "h-engine-pi-02"], check=True, capture_output=True)
        playbook("rehearse", arguments="--limit pi-02")
        port = port_of("pi-01")
        subprocess.run(["ip", "link", "set", port, "down"], check=True)
        try:
            time.sleep(30)
        finally:
            subprocess.run(["ip", "link", "set", port, "up"], check=True)
        told("pi-client", "sudo systemctl kill --signal KILL bramble-scheduler")

    with ThreadPoolExecutor() as pool:
        mishaps = pool.submit(accidents)
        outcomes, said = ended(process)
        assert mishaps.done(), "the jobs ended before all accidents had happened"
        mishaps.result()
    print(*said, sep="\n")
    assert once(outcomes, 200)
    lost = {outcome["job"]: outcome["lost"] for outcome in outcomes if outcome["lost"]}
    assert lost.keys() == {20, 40}, lost
    assert "every worker that ran it died" in lost[20] and "for more than 12 s" in lost[40]
    assert {node for outcome in outcomes for node in outcome["retried"]} == set(SERVERS)
    assert any("the scheduler went away and came back" in line for line in said)
    assert all(told(node, "systemctl is-active sshd bramble-worker || true") for node in SERVERS)
    # All processes of both nodes are back.
    told("pi-client", "bramble prove pi-01 && bramble prove pi-02")
    deadline = time.monotonic() + 60
    while (there := json.loads(told("pi-client", "bramble nodes --json -"))["nodes"]) and time.monotonic() < deadline:
        if {name: node["threads"] for name, node in there.items()} == {"pi-01": 4, "pi-02": 4}:
            break
        time.sleep(1)
    assert {name: node["threads"] for name, node in there.items()} == {"pi-01": 4, "pi-02": 4}


@pytest.fixture
def stranger() -> Iterator[list[str]]:
    """A host that is nobody's, on the switch: what to put before a command that it runs."""
    with conftest.stranger("hengine-s", conftest.switch("h-engine"), f"{NET}.77/24") as inside:
        yield inside


KNOCK = """
import asyncio, json, ssl, sys
from distributed.comm.core import connect

async def knock(address, pair):
    # It does not care who answers, and shows what it has.
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

async def main(doors, pairs):
    return {who: {door: await knock(address, pair) for door, address in doors.items()} for who, pair in pairs.items()}

print(json.dumps(asyncio.run(main(*json.loads(sys.argv[1])))))
"""


def knock(stranger: list[str], pairs: dict[str, list[str] | None]) -> dict[str, dict[str, str]]:
    """What each door says to each identity (certificate and key; no certificate: []; no TLS: None), asked in dask's own words."""
    command = [*stranger, sys.executable, "-c", KNOCK, json.dumps([DOORS, pairs])]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_who_does_not_belong_gets_nowhere(stranger: list[str], tmp_path: Path) -> None:
    from workloads.tests.conftest import Authority

    Authority(tmp_path).issue("pi-02")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-subj", "/CN=pi-02",
         "-keyout", tmp_path / "self.key", "-out", tmp_path / "self.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    ours, itself, other = (
        [f"{path}.{end}" for end in ("pem", "key")] for path in (STATE / "pki/nodes/pi-02", tmp_path / "self", tmp_path / "pi-02")
    )
    nobody = {"without TLS": None, "without a certificate": [], "self-signed": itself, "of another cluster": other}

    answers = knock(stranger, {"ours": ours, **nobody})
    assert list(answers.pop("ours").values()) == ["Scheduler", "Worker", "Nanny", "Worker", "Nanny"]  # so the doors are these
    assert all(said.startswith("refused") for door in answers.values() for said in door.values()), answers


def test_a_revoked_certificate_is_worth_nothing(stranger: list[str], tmp_path: Path) -> None:
    """A new authority, as swap.yml -e swap_new_key=true makes for a node whose card was stolen."""
    stolen = [str(shutil.copy(STATE / f"pki/nodes/pi-02.{end}", tmp_path)) for end in ("pem", "key")]
    shutil.rmtree(STATE / "pki")
    playbook("site", arguments="--tags scheduler,worker,workloads")
    told("pi-client", "bramble prove pi-01 && bramble prove pi-02")
    new = [str(STATE / f"pki/nodes/pi-02.{end}") for end in ("pem", "key")]
    answers = knock(stranger, {"new": new, "revoked": stolen})
    assert answers.pop("new")["scheduler"] == "Scheduler"
    assert all(said.startswith("refused") for said in answers["revoked"].values()), answers


def test_nothing_else_listens() -> None:
    """Pages and metrics are on the nodes' own 127.0.0.1; on the switch there are SSH, packages and the doors above."""
    known = {22, 8785, 8786, *range(8788, 8792), *range(8808, 8812)}
    for node in ("pi-client", *SERVERS):
        sockets = [line.split()[3].rpartition(":") for line in told(node, "ss -Hltn").splitlines()]
        ports = {int(port) for address, _, port in sockets if not address.startswith("127.")}
        assert 22 in ports and ports <= known, (node, ports)


def test_the_real_dispy_does_jobs_for_who_knows_its_secret_and_goes_without_a_trace() -> None:
    """Role dispy, off by default."""
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
    # From a file: dispy sends the function's source.
    told("pi-client", f"echo {shlex.quote(program)} >/tmp/real_dispy.py")
    run = "/opt/bramble-dispy/bin/python3 /tmp/real_dispy.py"
    assert told("pi-client", f"sudo cat /etc/bramble/dispy.secret | {run} 60").endswith("True\nTrue")
    assert told("pi-client", f"echo guessed | {run} 8").endswith("nobody")
    exposure = told("pi-01", "systemd-analyze security --no-pager bramble-dispy | tail -n 1")
    assert float(re.findall(r"[0-9]+[.][0-9]", exposure)[0]) <= 2.5
    both("dispy", variables={"cluster_state": "absent"})
    places = "/opt/bramble-dispy /etc/bramble/dispy.* /etc/systemd/system/bramble-dispy.service"
    for node in ("pi-client", *SERVERS):
        assert told(node, f"sudo sh -c 'ls -d {places} 2>/dev/null; getent passwd bramble-dispy; true'") == ""
