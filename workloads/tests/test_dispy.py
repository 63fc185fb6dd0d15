"""Scripts written for dispy, unmodified, on a real cluster: results, states, and no job lost when nodes fail."""

import ast
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy
import pytest

import dispy
from bramble.engine import connection
from dispy import DispyJob, DispyNode
from dispy import cluster as dispy_cluster

from .conftest import ENVIRONMENT, SOURCE, Authority, LoopbackCluster, free_port, wait_until, write_config

pytestmark = pytest.mark.timeout(90)
Make = Callable[..., dispy.JobCluster]
SCRIPTS = Path(__file__).parent / "octapi"


def run(cluster: LoopbackCluster, script: str, *arguments: str, given: str = "") -> str:
    """Run a script as a user would, and return what it printed."""
    done = subprocess.run(
        [sys.executable, SCRIPTS / script, *arguments],
        env=cluster.environment(), input=given, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done
    return done.stdout


def test_sixteen_jobs(cluster: LoopbackCluster) -> None:
    output = run(cluster, "sixteen.py")
    assert "no node is called 192.168.1.*; all 3 nodes are used" in output
    assert re.findall(r"did job (\d+) at \d+\.\d+ in \d+", output) == [str(number) for number in range(16)]
    table = {node: int(jobs) for node, jobs in re.findall(r"(\S+) +\| +2 \| +(\d+) \|", output)}
    assert table.keys() == set(cluster.nodes) and sum(table.values()) == 16 and all(table.values())
    assert "Jobs pending" not in output and re.search(r"Total job time: \d+\.\d{3} sec, wall time: .*, speedup: ", output)


def test_jobs_in_a_list_each_with_its_own_generator(cluster: LoopbackCluster) -> None:
    """Two jobs that run at once in a worker would disturb each other's random.seed() if they shared a process."""
    output = run(cluster, "dartboard.py", given="20000\n24\n")
    jobs = ast.literal_eval(next(line for line in output.splitlines() if line.startswith("[")))
    assert [number for number, _, _ in jobs] == list(range(1, 25))
    for _, seed, inside in jobs[:6]:
        generator = random.Random(seed)
        assert inside == sum(generator.random() ** 2 + generator.random() ** 2 <= 1 for _ in range(20000))


def test_none_of_a_thousand_limited_jobs_is_lost(cluster: LoopbackCluster) -> None:
    output = run(cluster, "limited.py", "1000")
    assert "1000 jobs, sum 333833500, at most 96 under way, 0 left" in output
    assert 'job "100" gave (100, 10000), ' in output


def test_the_first_result_cancels_the_other_jobs(cluster: LoopbackCluster) -> None:
    output = run(cluster, "factor.py", "10000849002457", "100000")
    assert "10000849002457 = 10000819 x 1000003" in output
    total, done, gone = (int(number) for number in re.findall(r"(\d+) jobs: (\d+) done, (\d+) cancelled", output)[0])
    assert total == done + gone


def add_one(number: int) -> int:
    return number + 1


class Pair:
    def __init__(self, left: int) -> None:
        self.left = left


READY = None


def prepare(value: str) -> int:
    global READY  # noqa: PLW0603  this is how dispy's setup passes objects to jobs
    READY = value
    return 0


def use_all_inputs(number: int, path: str = "data.txt") -> tuple[object, ...]:
    import companion  # type: ignore[import-not-found]

    with open(path) as file:
        return add_one(number), Pair(number).left, READY, companion.NAME, file.read()


def fail_as(kind: str) -> str:
    print("before")
    print("aside", file=sys.stderr)
    if kind == "raise":
        raise ValueError("no such luck")
    if kind == "exit":
        sys.exit("enough")
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "strange":
        return threading.Lock()  # type: ignore[return-value]
    return kind


def sleep(seconds: float, mark: str | None = None) -> int:
    if mark:
        with open(mark, "a") as file:
            file.write(f"{dispy_node_name}\n")  # type: ignore[name-defined]  # noqa: F821
    time.sleep(seconds)
    return os.getpid()


def report_progress() -> str:
    for share in (1, 2):
        dispy_provisional_result(share)  # type: ignore[name-defined]  # noqa: F821
    return dispy_node_name  # type: ignore[name-defined,no-any-return]  # noqa: F821


@pytest.fixture
def make(cluster: LoopbackCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Return a function that makes dispy clusters, which are closed after the test."""
    monkeypatch.setenv("BRAMBLE_CONFIG", str(cluster.config))
    made: list[dispy.JobCluster] = []

    def make(*arguments: object, **keywords: object) -> dispy.JobCluster:
        made.append(dispy.JobCluster(*arguments, **keywords))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.close(terminate=True)


def submit(cluster: dispy.JobCluster, *arguments: object, **keywords: object) -> DispyJob:
    job = cluster.submit(*arguments, **keywords)
    assert job is not None
    return job


def submit_as(cluster: dispy.JobCluster, job_id: str, *arguments: object) -> DispyJob:
    job = cluster.submit_job_id(job_id, *arguments)
    assert job is not None
    return job


def test_dependencies_are_sent_with_a_job(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "companion.py").write_text("NAME = 'companion'\n")
    (tmp_path / "data.txt").write_text("content")
    monkeypatch.syspath_prepend(str(tmp_path))
    import companion

    gone = tmp_path / "cleaned"
    with make(
        use_all_inputs,
        depends=[add_one, Pair, companion, str(tmp_path / "data.txt")],
        setup=partial(prepare, "ready"),
        cleanup=partial(Path.touch, gone),
    ) as cluster:
        assert [submit(cluster, number)() for number in range(8)] == [
            (number + 1, number, "ready", "companion", "content") for number in range(8)
        ]
    wait_until(gone.exists)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        make(use_all_inputs, depends=["nowhere.txt"])
    with pytest.raises(TypeError, match="start a program from within a function"):
        make("/bin/true")
    with pytest.raises(TypeError, match="'zeal'"):
        make(use_all_inputs, zeal=1)


def test_status_and_output_of_ended_jobs(make: Make) -> None:
    seen: list[tuple[object, int]] = []
    with make(fail_as, job_status=lambda job: seen.append((job.id, job.status))) as cluster:
        assert cluster.submit(threading.Lock()) is None
        jobs = {kind: submit_as(cluster, kind, kind) for kind in ("raise", "exit", "die", "strange", "fine")}
        assert cluster.wait(60) and cluster.status().jobs_pending == 0
    states = {kind: job.status for kind, job in jobs.items()}
    assert states == {kind: DispyJob.Terminated for kind in jobs} | {"fine": DispyJob.Finished}
    assert sorted(seen) == sorted(states.items())  # each exactly once
    fine, failed = jobs["fine"], jobs["raise"]
    assert (fine.result, fine.stdout, fine.stderr, fine.exception) == ("fine", "before\n", "aside\n", None)
    assert fine.start_time is not None and fine.end_time is not None
    assert fine.submit_time - 1 < fine.start_time <= fine.end_time and fine.ip_addr == "127.0.0.1"
    assert failed() is None and failed.stdout == "before\n"
    assert re.match(r"(?s)Traceback.*, in fail_as\n.*ValueError: no such luck\n$", str(failed.exception))
    assert "SystemExit: enough" in str(jobs["exit"].exception) and "its process died" in str(jobs["die"].exception)
    assert "pickle" in str(jobs["strange"].exception)


def test_a_failing_setup_is_reported(make: Make) -> None:
    job = submit(make(add_one, setup=partial(int, "x")), 1)
    assert job() is None and job.status == DispyJob.Terminated
    assert job.exception and "could not be set up" in job.exception and "invalid literal" in job.exception


def test_cancel(make: Make) -> None:
    cluster = make(sleep)
    jobs = [submit(cluster, 30) for _ in range(8)]  # two more than can run at once
    wait_until(lambda: [job.status for job in jobs].count(DispyJob.Running) == 6)
    waiting = next(job for job in jobs if job.status == DispyJob.Created)
    busy = next(job for job in jobs if job.status == DispyJob.Running)
    assert busy.ip_addr == "127.0.0.1" and busy.start_time is not None
    assert cluster.cancel(waiting) == 0 and cluster.cancel(busy) == 0
    assert waiting() is None and waiting.status == DispyJob.Cancelled
    assert busy() is None and busy.status == DispyJob.Terminated and "cancelled" in str(busy.exception)
    assert cluster.cancel(busy) == -1
    assert cluster.wait(0.1) is False and cluster.close(timeout=0.1) is False
    assert cluster.close(terminate=True) is True
    after = make(add_one)  # the nodes are free again, long before 30 s have passed
    assert submit(after, 1)() == 2


def test_provisional_results_and_cluster_status(make: Make) -> None:
    results: list[tuple[int, object]] = []
    events: list[int] = []
    with make(
        report_progress,
        job_status=lambda job: results.append((job.status, job.result)),
        cluster_status=lambda status, node, job: events.append(status),
    ) as cluster:
        job = cluster.submit_node("pi-02")
        assert job is not None and job() == "pi-02" and cluster.wait(20)
        assert cluster.submit_node("pi-77") is None
    assert results == [(DispyJob.ProvisionalResult, 1), (DispyJob.ProvisionalResult, 2), (DispyJob.Finished, "pi-02")]
    assert events[:3] == [DispyNode.Initialized] * 3 and events[-4:] == [DispyJob.Finished] + [DispyNode.Closed] * 3
    assert events[3:5] == [DispyJob.Created, DispyJob.Running]


@pytest.mark.parametrize("nodes", ["pi-0[12]", ["pi-01", "pi-02"], [("pi-01", 9700), dispy.NodeAllocate("pi-02")]])
def test_nodes_can_be_chosen(make: Make, nodes: object) -> None:
    with make(add_one, nodes=nodes) as cluster:
        assert {job() for job in [submit(cluster, number) for number in range(12)]} == set(range(1, 13))
    assert [(node.name, node.jobs_done > 0) for node in cluster.status().nodes] == [("pi-01", True), ("pi-02", True)]


def test_no_job_is_lost_when_a_worker_is_killed(
    breakable_cluster: LoopbackCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BRAMBLE_CONFIG", str(breakable_cluster.config))
    mark = tmp_path / "begun"
    mark.touch()
    with dispy.SharedJobCluster(sleep) as cluster:
        jobs = [submit(cluster, 1, str(mark)) for _ in range(12)]
        wait_until(lambda: "pi-01" in mark.read_text())
        breakable_cluster.kill("pi-01")
        assert all(isinstance(job(), int) and job.status == DispyJob.Finished for job in jobs)
    assert len(mark.read_text().split()) > 12  # some jobs started twice


def test_jobs_without_a_node_are_abandoned(breakable_cluster: LoopbackCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAMBLE_CONFIG", str(breakable_cluster.config))
    monkeypatch.setattr(dispy_cluster, "ABANDON_DELAY", 1.0)
    monkeypatch.setattr(dispy_cluster, "NODE_CHECK_DELAY", 0.5)
    with dispy.JobCluster(sleep) as cluster:
        bound = cluster.submit_node("pi-01", 20)
        assert bound is not None
        jobs = [*(submit(cluster, 20) for _ in range(3)), bound]
        wait_until(lambda: jobs[0].status == DispyJob.Running)
        for node in breakable_cluster.nodes:
            breakable_cluster.kill(node)
        assert [job() for job in jobs] == [None] * 4
        assert {job.status for job in jobs} == {DispyJob.Abandoned}
        # Its first node died, and the node of its second attempt may have died too.
        assert any(words in str(jobs[0].exception) for words in ("no node was available", "every node that ran it died"))


def test_jobs_finish_after_a_restart_of_the_scheduler(
    breakable_cluster: LoopbackCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRAMBLE_CONFIG", str(breakable_cluster.config))
    monkeypatch.setattr(dispy_cluster, "NODE_CHECK_DELAY", 0.5)
    monkeypatch.setattr(connection, "ANSWER_TIMEOUT", 2.0)
    with dispy.JobCluster(sleep) as cluster:
        jobs = [submit(cluster, 0.4) for _ in range(8)]
        assert isinstance(jobs[0](), int)
        for name in ("scheduler", *breakable_cluster.nodes):
            breakable_cluster.kill(name)
            breakable_cluster.start(name)
        assert all(isinstance(job(), int) and job.status == DispyJob.Finished for job in jobs)


def assert_error(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code and len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr, done
    assert all(word in done.stderr for word in words)


def test_a_missing_scheduler_is_reported_in_one_line(tmp_path: Path) -> None:
    Authority(tmp_path).issue("client")
    write_config(tmp_path / "cluster.toml", f"tls://127.0.0.1:{free_port()}", ["pi-01"])
    script = partial(
        subprocess.run, [sys.executable, SCRIPTS / "sixteen.py"], capture_output=True, text=True, timeout=60, check=False
    )
    assert_error(script(env=ENVIRONMENT | {"BRAMBLE_CONFIG": str(tmp_path / "cluster.toml")}), 3, "dispy: no scheduler at tls://")
    assert_error(script(env=ENVIRONMENT | {"BRAMBLE_CONFIG": "/nowhere"}), 2, "dispy: ", "/nowhere")


def test_ctrl_c(cluster: LoopbackCluster, make: Make, tmp_path: Path) -> None:
    script = tmp_path / "long.py"
    script.write_text("import dispy, time\ncluster = dispy.JobCluster(time.sleep)\n"
                      "jobs = [cluster.submit(30) for _ in range(9)]\n"
                      "print('going', flush=True)\nprint([job() for job in jobs])\n")  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, script], env=cluster.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "going\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT and errors == "dispy: stopped; the jobs are cancelled\n"
    assert submit(make(add_one), 1)() == 2  # the jobs of 30 s were cancelled


def test_the_system_python_finds_this_dispy_first(cluster: LoopbackCluster, tmp_path: Path) -> None:
    """As the role `workloads` installs it: a line in a .pth file, and a folder with a link to this package alone."""
    venv.create(tmp_path / "system", symlinks=True)
    (site,) = (tmp_path / "system/lib").glob("python3*/site-packages")
    (site / "dispy").mkdir()
    (site / "dispy/__init__.py").write_text("raise ImportError('the wrong one')\n")
    (site / "yaml.py").write_text("SYSTEM = True\n")  # dask's dependencies also have a module yaml
    link = tmp_path / "link"
    link.mkdir()
    packages = tmp_path / "bundle"
    packages.mkdir()
    for each in [*Path(numpy.__file__).parents[1].iterdir(), SOURCE / "bramble", SOURCE / "dispy"]:
        if not each.name.endswith(".pth"):
            (packages / each.name).symlink_to(each)
    # The files of the package are real, as in an installed wheel: it finds the packages beside it by their location.
    (packages / "dispy").unlink()
    (packages / "dispy").mkdir()
    for each in (SOURCE / "dispy").glob("*.py"):
        (packages / "dispy" / each.name).write_bytes(each.read_bytes())
    (link / "dispy").symlink_to(packages / "dispy")
    (site / "bramble-dispy.pth").write_text(f"import sys; sys.path.insert(0, {str(link)!r})\n")
    script = tmp_path / "script.py"
    script.write_text("import dispy, sys\ncluster = dispy.JobCluster(abs)\nprint(cluster.submit(-3)())\ncluster.close()\n"
                      "import yaml\nprint(hasattr(yaml, 'SYSTEM'), sys.path[0], sys.path[-1])\n")  # fmt: skip
    environment = {"BRAMBLE_CONFIG": str(cluster.config), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [tmp_path / "system/bin/python3", script], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0 and not done.stderr, done
    assert done.stdout.splitlines()[-2:] == ["3", f"False {tmp_path} {packages}"]
