"""Shares: merged, they equal one run, wherever they were computed; missing and invalid shares are refused."""

import base64
import io
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tarfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from bramble import UsageError, cli, pod
from bramble.study import share

from .conftest import ENVIRONMENT

PI = ["pi", "--points", "3e6", "--chunk", "3e5", "--seed", "7"]


def bramble(*words: str | Path, code: int = 0) -> str:
    """Run the command in this process and return what it printed."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(output):
        patch.setattr(sys, "argv", ["bramble", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert (ended.value.code or 0) == code, output.getvalue()
    return output.getvalue()


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three shares of a request; the second was computed on all cores."""
    folder = tmp_path_factory.mktemp("shares")
    for index, place in enumerate(("local", "workstation", "local"), 1):
        bramble(*PI, "--on", place, "--share", f"{index}/3", "--report", folder)
    return folder


def test_merged_shares_equal_one_run(shares: Path, tmp_path: Path) -> None:
    assert sorted(path.name for path in shares.iterdir()) == [f"pi-share-{index}-of-3.json" for index in (1, 2, 3)]
    bramble(*PI, "--merge", shares, "--json", tmp_path / "merged.json")
    bramble(*PI, "--on", "local", "--json", tmp_path / "whole.json")
    merged, whole = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("merged", "whole"))
    assert merged["inside"] == whole["inside"]
    (run,) = merged["runs"]
    assert (run["on"], run["jobs"]) == ("shares", 10)
    # The time is that of the slowest share, not of merging.
    assert run["seconds"] == max(json.loads(path.read_text())["seconds"] for path in shares.iterdir())


def test_dataclasses_of_this_package_can_be_shared(tmp_path: Path) -> None:
    words = ["primes", "0", "3e6", "--twins", "--gaps"]
    for index in (1, 2):
        bramble(*words, "--on", "local", "--share", f"{index}/2", "--report", tmp_path)
    bramble(*words, "--merge", tmp_path, "--json", tmp_path / "merged.txt")
    assert json.loads((tmp_path / "merged.txt").read_text())["count"] == 216816


def test_wrong_missing_and_repeated_shares_are_refused(shares: Path, tmp_path: Path) -> None:
    assert "of another request" in bramble(*PI[:-1], "8", "--merge", shares, code=2)
    for path in list(shares.iterdir())[:2]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    missing = next(number for number in "123" if f"-{number}-" not in "".join(path.name for path in tmp_path.iterdir()))
    assert f"does not contain share {missing} of 3" in bramble(*PI, "--merge", tmp_path, code=2)
    (tmp_path / "again.json").write_bytes(path.read_bytes())
    assert "is present twice" in bramble(*PI, "--merge", tmp_path, code=2)
    (tmp_path / "again.json").write_text('{"share": 3}')
    assert "again.json is not a share" in bramble(*PI, "--merge", tmp_path, code=2)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--share", "1/2"], "--on local or --on workstation"),
        (["--share", "3/2", "--on", "local"], "there are only 2 shares"),
        (["--share", "2", "--on", "local"], "such as 2/8"),
        (["--share", "1/2", "--on", "local", "--compare"], "--compare"),
        (["--merge", "/nowhere"], "does not contain share 1 of 1"),
        (["--method", "chudnovsky", "--digits", "1e3", "--on", "local", "--share", "2/2", "--json", "-"], '"share": 2'),
    ],
)
def test_options_that_cannot_be_combined(words: list[str], says: str) -> None:
    assert says in bramble("pi", *words, code=0 if says.startswith('"') else 2)


def test_a_program_with_later_jobs_cannot_be_merged(tmp_path: Path) -> None:
    words = ["pi", "--method", "chudnovsky", "--digits", "2e5"]
    for index in (1, 2):
        bramble(*words, "--on", "local", "--share", f"{index}/2", "--report", tmp_path)
    assert "use --on cluster" in bramble(*words, "--merge", tmp_path, code=2)


class MaliciousPickle:
    """An object that runs code when it is unpickled."""

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return os.system, ("touch /tmp/evil",)


@pytest.mark.parametrize(
    "name", ["posix system", "bramble.engine.places os.system", "bramble.engine.places load", "builtins eval"]
)
def test_a_share_runs_no_code(name: str, tmp_path: Path) -> None:
    module, _, attribute = name.partition(" ")
    data = f"c{module}\n{attribute}\n.".encode() if module != "posix" else pickle.dumps(MaliciousPickle())
    record = {"share": 1, "of": 1, "work": "", "node": "", "slots": 1, "seconds": 1, "results": base64.b64encode(data).decode()}
    (tmp_path / "share.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match="no kernel returns"):
        share.MergedShares(tmp_path)


def start(folder: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    """Start what the container of a pod runs."""
    (folder / "tmp").mkdir()
    (folder / "report").mkdir()
    paths = {"BRAMBLE_REPORT": str(folder / "report"), "TMPDIR": str(folder / "tmp")}
    command = [sys.executable, "-m", "bramble.pod", *words]
    return subprocess.Popen(command, env=ENVIRONMENT | paths | environment, stderr=subprocess.PIPE, text=True)


def fetch(folder: Path) -> tuple[str, dict[str, bytes]]:
    """Run what `kubectl exec` runs; return its standard error, and the files of the report."""
    paths = {"BRAMBLE_REPORT": str(folder / "report"), "TMPDIR": str(folder / "tmp")}
    command = [sys.executable, "-m", "bramble.pod", "fetch"]
    done = subprocess.run(command, env=ENVIRONMENT | paths, capture_output=True, check=True, timeout=60)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        return done.stderr.decode(), {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]


def end(process: subprocess.Popen[str]) -> int:
    """End a process as when its pod is deleted, and return the exit code."""
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) is not None
    return process.returncode


def test_a_pod_waits_until_its_report_was_fetched(tmp_path: Path) -> None:
    process = start(tmp_path, "run", f"pi --points 3e6 --on 'local' --report {tmp_path}/report")
    output, files = fetch(tmp_path)
    assert output == "bramble ended with 0\n" and sorted(files) == ["pi.json", "pi.png"]
    assert json.loads(files["pi.json"])["points"] == 3_000_000
    assert process.poll() is None
    # The report can be fetched again, as after a lost connection.
    assert fetch(tmp_path)[1] == files
    assert end(process) == 0


def test_a_pod_has_the_exit_code_of_the_command(tmp_path: Path) -> None:
    process = start(tmp_path, "run", f"quantum shor --number 17 --on local --report {tmp_path}/report")
    assert fetch(tmp_path) == ("bramble ended with 2\n", {})
    assert end(process) == 2


def test_deleting_a_pod_interrupts_the_command(tmp_path: Path) -> None:
    process = start(tmp_path, "run", "compute --on local --jobs 1 --scale 100")
    # Wait until the program handles signals.
    time.sleep(3)
    assert end(process) == 130


def test_a_pod_computes_the_share_of_its_index(tmp_path: Path) -> None:
    process = start(tmp_path, "share", "4", f"pi --points 3e6 --on local --report {tmp_path}/report", JOB_COMPLETION_INDEX="2")
    assert list(fetch(tmp_path)[1]) == ["pi-share-3-of-4.json"]
    end(process)


@pytest.mark.parametrize(
    ("name", "given", "index"), [("run-5-12", None, 12), ("run-5-12", "0", 0), ("run-x7k", None, None), ("run-5-1", "x", None)]
)
def test_the_index_of_a_pod(monkeypatch: pytest.MonkeyPatch, name: str, given: str | None, index: int | None) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    monkeypatch.delenv("JOB_COMPLETION_INDEX", raising=False)
    if given is not None:
        monkeypatch.setenv("JOB_COMPLETION_INDEX", given)
    if index is None:
        with pytest.raises(UsageError, match=f"{name} is not a pod"):
            pod.pod_index()
    else:
        assert pod.pod_index() == index
