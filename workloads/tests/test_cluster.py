"""A real cluster with processes, dask and mutual TLS, and what happens when parts of it die."""

import json
import os
import pickle
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import distributed
import pytest

from bramble import ClusterError, ResultError, UsageError
from bramble.engine import cluster_map, connection, places
from bramble.engine.base import Engine
from bramble.engine.cluster import Cluster
from bramble.engine.outcome import Outcome, call_on_worker
from bramble.programs.compute.kernel import sleep_and_report_host
from bramble.programs.pi.montecarlo import chunks, count_inside
from bramble.study import report

from .conftest import Bramble, LoopbackCluster, wait_until, write_config
from .faults import cause_fault

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def engine(cluster: LoopbackCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setenv("BRAMBLE_CONFIG", str(cluster.config))
    with places.connect("cluster") as engine:
        yield engine


@pytest.fixture
def breakable_engine(breakable_cluster: LoopbackCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setenv("BRAMBLE_CONFIG", str(breakable_cluster.config))
    monkeypatch.setattr(cluster_map, "NODE_CHECK_DELAY", 0.5)
    monkeypatch.setattr(connection, "ANSWER_TIMEOUT", 2.0)
    with places.connect("cluster") as engine:
        engine.warm_up(sleep_and_report_host)
        yield engine


def indices(outcomes: list[Outcome]) -> list[int]:
    return sorted(outcome.index for outcome in outcomes)


def collect_with_accident(outcomes: Iterator[Outcome], node: str, accident: Callable[[], None] | None) -> list[Outcome]:
    """Return the outcomes; call `accident` when the first outcome of this node comes."""
    seen = []
    for outcome in outcomes:
        seen.append(outcome)
        if accident and outcome.node == node:
            accident()
            accident = None
    return seen


def test_sixteen_jobs(bramble: Bramble, cluster: LoopbackCluster, tmp_path: Path) -> None:
    result = bramble("compute", "--scale", "0.02", "--compare", "--report", str(tmp_path))
    assert result.returncode == 0, result
    record = json.loads((tmp_path / "compute.json").read_text())
    assert {path.name for path in tmp_path.iterdir()} == {"compute.json", "compute.png", "compute-speedup.png"}
    assert [run["on"] for run in record["runs"]] == ["local", "workstation", "cluster"]
    assert record["lost"] == 0 and record["on"] == "cluster"
    assert record["per_node"].keys() == set(cluster.nodes) and sum(record["per_node"].values()) == 16
    assert sorted(row["job"] for row in record["results"]) == list(range(16))
    assert record["speedup"] > 3  # six jobs run at once


def test_pi_is_the_same_everywhere(bramble: Bramble) -> None:
    counts = set()
    for place, extra in [("local", []), ("workstation", []), ("cluster", []), ("cluster", ["--nodes", "1,3"])]:
        result = bramble("pi", "--points", "3e6", "--chunk", "70_001", "--on", place, "--json", "-", *extra)
        assert result.returncode == 0, result
        record = json.loads(result.stdout)
        counts.add(record["inside"])
    assert len(counts) == 1
    assert [run["nodes"] for run in record["runs"]] == [1, 3]
    assert record["runs"][0]["per_node"].keys() == {"pi-01"}
    assert record["runs"][1]["efficiency"] == pytest.approx(record["runs"][1]["speedup"] / 3)


def test_nodes_are_listed(bramble: Bramble, cluster: LoopbackCluster) -> None:
    record = json.loads(bramble("nodes", "--json", "-").stdout)
    assert record["nodes"].keys() == set(cluster.nodes)
    assert all(node["threads"] == 2 for node in record["nodes"].values())
    assert "pi-01  2 jobs at once" in bramble("nodes").stdout


def test_jobs_run_only_on_the_first_nodes(engine: Engine) -> None:
    with pytest.raises(UsageError, match=r"4 nodes .* 3 are connected: pi-01, pi-02, pi-03"):
        places.first_nodes(engine, 4)
    chosen = places.first_nodes(engine, 2)
    assert chosen == ("pi-01", "pi-02")
    outcomes = list(engine.map(sleep_and_report_host, [0.05] * 12, chosen))
    assert indices(outcomes) == list(range(12))
    assert {outcome.node for outcome in outcomes} == set(chosen)


def count_unfinished(dask_scheduler: distributed.Scheduler) -> int:
    """Return how many tasks of the scheduler have not ended."""
    states: list[str] = [task.state for task in dask_scheduler.tasks.values()]
    return sum(state not in ("memory", "released", "forgotten") for state in states)


def test_jobs_in_flight_are_limited(cluster: LoopbackCluster, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more than five jobs are on the cluster, all of them end, and without the limit there are more."""
    monkeypatch.setenv("BRAMBLE_CONFIG", str(cluster.config))

    def most_in_flight(engine: Engine) -> int:
        assert isinstance(engine, Cluster)
        there: list[int] = []
        for _ in engine.map(time.sleep, [0.02] * 40):
            there.append(engine.client.run_on_scheduler(count_unfinished))
        assert len(there) == 40
        return max(there)

    with places.connect("cluster", max_in_flight=5) as limited:
        assert most_in_flight(limited) <= 5
    assert most_in_flight(engine) > 5


def test_a_map_without_arguments_is_empty(engine: Engine) -> None:
    assert list(engine.map(sleep_and_report_host, [])) == []


def test_an_exception_in_a_job_is_reported(engine: Engine) -> None:
    with pytest.raises(ResultError, match=r"(?s)job 1 failed on pi-0\d with argument -1:.*Traceback.*in sleep_and_report_host"):
        list(engine.map(sleep_and_report_host, [0, -1]))
    assert len(list(engine.map(sleep_and_report_host, [0] * 4))) == 4  # the cluster still works


def test_a_kernel_that_nodes_cannot_import(engine: Engine) -> None:
    def kernel(argument: int) -> int:
        return argument

    kernel.__module__ = "bramble.not_there"
    with pytest.raises(ClusterError, match=r"pi-0\d cannot import bramble.not_there.*--tags worker --limit pi-0\d"):
        engine.warm_up(kernel)


def test_a_missing_node_is_reported(bramble: Bramble, cluster: LoopbackCluster) -> None:
    config = cluster.folder / "more.toml"
    write_config(config, cluster.address, [*cluster.nodes, "pi-04", "pi-05"])
    result = bramble("compute", "--scale", "0", "--timeout", "1", config=config)
    assert result.returncode == 0
    assert "pi-04,pi-05 did not report" in result.stdout and "--limit pi-04,pi-05" in result.stdout
    strict = bramble("compute", "--scale", "0", "--timeout", "1", "--require-all", config=config)
    assert strict.returncode == 3 and "pi-04,pi-05" in strict.stderr and "Traceback" not in strict.stderr


def test_a_connection_without_certificate_is_refused(cluster: LoopbackCluster) -> None:
    context = ssl.create_default_context(cafile=str(cluster.folder / "ca.pem"))
    context.check_hostname = False
    with (
        pytest.raises(ssl.SSLError),
        socket.create_connection(("127.0.0.1", cluster.port), timeout=5) as plain,
        context.wrap_socket(plain) as wrapped,
    ):
        wrapped.recv(1)


def test_ctrl_c_frees_the_cluster(cluster: LoopbackCluster, engine: Engine) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "bramble", "compute", "--scale", "0.2", "--jobs", "60"],
        env=cluster.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    while not process.stdout.readline().strip().startswith("job"):
        pass
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=15)
    assert process.returncode == 130 and "stopped" in errors and "Traceback" not in errors
    begin = time.monotonic()
    assert len(list(engine.map(sleep_and_report_host, [0] * 6))) == 6
    assert time.monotonic() - begin < 10  # the 50 jobs that had not started are gone


def test_no_job_is_lost_when_a_worker_is_killed(breakable_cluster: LoopbackCluster, breakable_engine: Engine) -> None:
    jobs = breakable_engine.map(sleep_and_report_host, [0.25] * 24)
    outcomes = collect_with_accident(jobs, "pi-02", lambda: breakable_cluster.kill("pi-02"))
    assert indices(outcomes) == list(range(24))
    assert all(outcome.lost is None for outcome in outcomes)
    assert {outcome.node for outcome in outcomes} == {"pi-01", "pi-02"}
    retried = report.retries_per_node(outcomes)
    assert retried.keys() == {"pi-02"} and 1 <= retried["pi-02"] <= 24  # the two that ran, and those in its queue


def test_jobs_finish_on_a_node_that_comes_back_at_another_port(
    breakable_cluster: LoopbackCluster, breakable_engine: Engine
) -> None:
    """All jobs are bound to one node; its worker dies and comes back on another port."""

    def restart() -> None:
        breakable_cluster.kill("pi-01")
        breakable_cluster.start("pi-01")

    outcomes = collect_with_accident(breakable_engine.map(sleep_and_report_host, [0.3] * 8, ["pi-01"]), "pi-01", restart)
    assert indices(outcomes) == list(range(8))
    assert {(outcome.node, outcome.lost) for outcome in outcomes} == {("pi-01", None)}


def test_jobs_without_a_node_are_named_as_lost(breakable_cluster: LoopbackCluster, breakable_engine: Engine) -> None:
    assert isinstance(breakable_engine, Cluster)
    breakable_engine.timeout = 1
    jobs = breakable_engine.map(sleep_and_report_host, [0.3] * 8, ["pi-01"])
    outcomes = collect_with_accident(jobs, "pi-01", lambda: breakable_cluster.kill("pi-01"))
    assert indices(outcomes) == list(range(8))
    lost = [outcome.lost for outcome in outcomes if outcome.lost]
    assert lost and all("pi-01" in reason for reason in lost)


def test_jobs_are_lost_when_the_scheduler_stays_away(breakable_cluster: LoopbackCluster, breakable_engine: Engine) -> None:
    assert isinstance(breakable_engine, Cluster)
    breakable_engine.timeout = 1
    outcomes = collect_with_accident(
        breakable_engine.map(sleep_and_report_host, [0.3] * 12), "pi-02", lambda: breakable_cluster.kill("scheduler")
    )
    assert indices(outcomes) == list(range(12))
    assert any(outcome.lost for outcome in outcomes)


def test_no_job_is_lost_when_the_scheduler_restarts(breakable_cluster: LoopbackCluster, breakable_engine: Engine) -> None:
    """The scheduler forgets all jobs; its workers are restarted, as systemd would."""
    assert isinstance(breakable_engine, Cluster)
    messages: list[str] = []
    breakable_engine.notify = messages.append

    def restart() -> None:
        for name in ("scheduler", "pi-01", "pi-02"):
            breakable_cluster.kill(name)
            breakable_cluster.start(name)

    outcomes = collect_with_accident(breakable_engine.map(sleep_and_report_host, [0.3] * 16), "pi-02", restart)
    assert indices(outcomes) == list(range(16))
    assert all(outcome.lost is None for outcome in outcomes)
    assert messages and re.fullmatch(
        r"the scheduler was lost and came back; \d+ unfinished jobs are submitted again", messages[0]
    )


@pytest.fixture
def watched_engine(watched_cluster: LoopbackCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("BRAMBLE_CONFIG", str(watched_cluster.config))
    monkeypatch.setattr(cluster_map, "NODE_CHECK_DELAY", 0.5)
    with places.connect("cluster", job_timeout=2) as engine:
        assert isinstance(engine, Cluster)
        wait_until(lambda: engine.jobs_at_once() == 4)
        yield engine


def test_only_the_job_that_uses_all_memory_is_lost(watched_engine: Cluster) -> None:
    """Each time it kills its process, the job beside it dies too, and must not be blamed."""
    arguments: list[float | str] = [0.3] * 16
    arguments[1] = "eat"
    watched_engine.job_timeout = None
    outcomes = list(watched_engine.map(cause_fault, arguments))
    assert indices(outcomes) == list(range(16))
    (lost,) = [outcome for outcome in outcomes if outcome.lost]
    assert lost.index == 1 and "every worker that ran it died, most recently on pi-01" in str(lost.lost)
    assert lost.retried.count("pi-01") >= 2


def test_only_the_job_that_never_ends_is_stopped_and_lost(watched_engine: Cluster) -> None:
    arguments: list[float | str] = [0.5] * 16
    arguments[5] = "hang"
    outcomes = list(watched_engine.map(cause_fault, arguments))
    assert indices(outcomes) == list(range(16))
    (lost,) = [outcome for outcome in outcomes if outcome.lost]
    assert lost.index == 5 and lost.lost == "it ran on pi-01 for more than 2 s (--job-timeout) and was stopped"
    wait_until(lambda: watched_engine.jobs_at_once() == 4)
    # The process was restarted, so four jobs can run at once again.
    begin = time.monotonic()
    assert len(list(watched_engine.map(cause_fault, [0.5] * 4))) == 4
    assert time.monotonic() - begin < 10


def test_a_process_that_loses_its_connection_is_restarted(watched_cluster: LoopbackCluster, watched_engine: Cluster) -> None:
    """Only this process restarts. But when one nanny ends, the other ends too, so that systemd restarts both of them."""

    def cut(dask_worker: distributed.Worker) -> int:
        stream = dask_worker.batched_stream
        assert stream is not None and stream.comm is not None
        dask_worker.loop.call_later(0.2, stream.comm.abort)
        return os.getpid()

    pids = watched_engine.client.run(os.getpid)
    first, second = sorted(pids)
    watched_engine.client.run(cut, workers=[first])
    wait_until(lambda: {*watched_engine.client.run(os.getpid).values()} - {pids[first], pids[second]} != set())
    assert pids[second] in watched_engine.client.run(os.getpid).values()
    assert watched_cluster.processes["pi-01"].poll() is None

    watched_engine.client.retire_workers(sorted(watched_engine.workers())[:1])
    watched_cluster.processes.pop("pi-01").wait(timeout=30)


def test_tasks_are_small(engine: Engine) -> None:
    """A kernel is sent by name: a task must not contain its code."""
    task = pickle.dumps((call_on_worker, pickle.dumps((count_inside, chunks(10**9, 10**7, 0)[3]))))
    assert len(task) < 250


def test_a_drained_node_ends_its_jobs_and_is_then_stopped(breakable_cluster: LoopbackCluster, breakable_engine: Engine) -> None:
    """None of the jobs is lost; those that it had not started run on the other node."""
    assert isinstance(breakable_engine, Cluster)
    (address,) = breakable_engine.workers(["pi-02"])

    def drain_and_stop() -> None:
        with places.connect_to_nodes([], 20) as cluster:
            assert cluster.heartbeats([address])[address][1] > 0
            assert cluster.drain("pi-02")
            assert cluster.heartbeats([address])[address][1] == 0
            assert cluster.drained() == {"pi-02"}
        breakable_cluster.kill("pi-02")

    outcomes = collect_with_accident(breakable_engine.map(sleep_and_report_host, [0.5] * 20), "pi-02", drain_and_stop)
    assert indices(outcomes) == list(range(20)) and all(outcome.lost is None for outcome in outcomes)


def test_drain_and_health_check(bramble: Bramble) -> None:
    checked = bramble("health-check", "pi-02")
    assert checked.returncode == 0 and checked.stdout.startswith("pi-02 computes: 784870 of"), checked
    missing = bramble("health-check", "pi-09", "--timeout", "1")
    assert missing.returncode == 3 and "pi-09 did not report" in missing.stderr
    absent = bramble("drain", "pi-09")
    assert absent.returncode == 0 and "nothing to do" in absent.stdout


def test_drain_reports_jobs_that_do_not_end_in_time(breakable_cluster: LoopbackCluster, breakable_engine: Engine) -> None:
    assert isinstance(breakable_engine, Cluster)
    jobs = breakable_engine.client.map(time.sleep, [3.0] * 4, pure=False)
    addresses = list(breakable_engine.workers(["pi-01"]))
    wait_until(lambda: any(busy for _, busy in breakable_engine.heartbeats(addresses).values()))
    with places.connect_to_nodes([], 0.5) as cluster, pytest.raises(ResultError, match=r"pi-01 still runs jobs after 0.5 s"):
        cluster.drain("pi-01")
    breakable_cluster.kill("pi-01")
    del jobs
