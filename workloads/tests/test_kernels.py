"""Kernels and formulas: known answers and properties. Most tests need no engine and no process."""

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bramble import ResultError, UsageError
from bramble.engine import config, places
from bramble.engine.base import Place
from bramble.engine.cluster import Cluster
from bramble.engine.local import Local
from bramble.engine.outcome import Outcome
from bramble.programs.compute.kernel import durations, shortest_makespan
from bramble.programs.pi import run
from bramble.programs.pi.montecarlo import (
    LANES,
    MAX_CHUNKS,
    MAX_POINTS,
    MIN_CHUNK,
    Chunk,
    chunks,
    count_inside,
    default_chunk,
    estimate,
    points,
)
from bramble.study import report, runs
from bramble.study.record import write_record

from .conftest import write_config


@given(points=st.integers(1, MAX_POINTS), chunk=st.integers(1, MAX_POINTS))
def test_chunks_cover_every_point_once(points: int, chunk: int) -> None:
    chunk = max(chunk, points // 1000)  # keep the list short
    all_chunks = chunks(points, chunk, seed=7)
    assert sum(part.points for part in all_chunks) == points
    assert [part.stream for part in all_chunks] == list(range(len(all_chunks)))
    assert all(part.points == chunk for part in all_chunks[:-1]) and 0 < all_chunks[-1].points <= chunk


@given(points=st.integers(1, MAX_POINTS))
def test_default_chunks_divide_evenly(points: int) -> None:
    all_chunks = chunks(points, default_chunk(points), seed=0)
    assert len(all_chunks) <= MAX_CHUNKS
    if points > 32 * MIN_CHUNK:
        assert len(all_chunks) % 32 == 0
        assert all_chunks[-1].points > 0.5 * all_chunks[0].points


def test_default_chunk_of_a_milliard() -> None:
    assert [chunk.points for chunk in chunks(10**9, default_chunk(10**9), 0)] == [31250000] * 32


def test_count_is_the_known_one() -> None:
    """Pins the random stream: another NumPy, another numba or another processor must not change the count."""
    assert count_inside(Chunk(seed=0, stream=0, points=10**6)) == PINNED


PINNED = 784870


def xoroshiro(a: int, b: int) -> Iterator[int]:
    """The generator in plain integers, from its authors' description."""

    def turn(word: int, by: int) -> int:
        return (word << by | word >> 64 - by) & 2**64 - 1

    while True:
        yield (a + b) & 2**64 - 1
        b ^= a
        a, b = turn(a, 24) ^ b ^ (b << 16 & 2**64 - 1), turn(b, 37)


@pytest.mark.parametrize("number", [1, LANES, 1000, 1003])
def test_count_agrees_with_plain_integers(number: int) -> None:
    state = np.random.SeedSequence(3).spawn(5)[4].generate_state(2 * LANES, np.uint64).tolist()
    lanes = [xoroshiro(state[lane], state[LANES + lane]) for lane in range(LANES)]
    drawn = [next(lanes[index % LANES]) for index in range(number)]
    places = [((bits >> 33 | 1) / 2**31, (bits >> 2 & 2**31 - 1 | 1) / 2**31) for bits in drawn]
    assert count_inside(Chunk(3, 4, number)) == sum(x * x + y * y < 1 for x, y in places)
    x, y = points(3, 4, -(-number // LANES))
    assert list(zip(x.tolist(), y.tolist(), strict=True))[:number] == places


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**64), points=st.integers(1, 300_000), chunk=st.integers(2_000, 100_000), salt=st.randoms())
def test_the_order_of_chunks_does_not_matter(seed: int, points: int, chunk: int, salt: random.Random) -> None:
    all_chunks = chunks(points, chunk, seed)
    total = sum(map(count_inside, all_chunks))
    shuffled = salt.sample(all_chunks, len(all_chunks))
    assert sum(map(count_inside, shuffled)) == total
    assert abs(estimate(total, points)[1]) < 6 * estimate(total, points)[2] or points < 100


def test_streams_differ() -> None:
    counts = {count_inside(Chunk(seed, stream, 10**5)) for seed in range(4) for stream in range(4)}
    assert len(counts) > 12


def test_estimate() -> None:
    pi, error, sigma = estimate(3, 4)
    assert pi == 3.0 and error == 3.0 - math.pi
    assert sigma * 2 == pytest.approx(1.642, abs=3e-4)


@pytest.mark.parametrize("exponent", [1.0, 1.002, 0.998])
def test_four_sigma_catches_a_biased_generator(exponent: float) -> None:
    points = 10**8
    share = math.pi / 4 * exponent
    inside = int(np.random.default_rng(5).binomial(points, share))
    pi, error, sigma = estimate(inside, points)
    record = {"method": "montecarlo", "pi": pi, "error": error, "sigma": sigma}
    if exponent == 1.0:
        run.check(record)
    else:
        with pytest.raises(ResultError, match="sigma off"):
            run.check(record)


class Flaky(Local):
    """An engine with two nodes; its second run counts one too many."""

    calls = 0

    def __init__(self, *_: object) -> None:
        super().__init__()
        self.nodes = ("pi-01", "pi-02")

    def map(self, kernel, arguments, nodes=None):  # type: ignore[no-untyped-def]
        self.calls += 1
        for index, argument in enumerate(arguments):
            yield Outcome(index, kernel(argument) + (self.calls == 2), "pi-01", 0.1, 0.1)


def test_runs_that_disagree_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "connect", Flaky)
    monkeypatch.setattr(places, "first_nodes", lambda engine, count: engine.nodes[:count])
    request = runs.Request(on="local", nodes=(1, 2))
    with pytest.raises(ResultError, match=r"the answers of local and local differ: \d+ and \d+"):
        runs.perform(run.montecarlo(1000, None, 0), request, report.Screen("-"))


def test_places_are_compared_and_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runs, "PLACES", ("local", "workstation"))
    request = runs.Request(compare=True, report=tmp_path / "report")
    program = run.montecarlo(10**6, None, 0)
    answer, record = runs.perform(program, request, report.Screen("-"))
    assert [entry["on"] for entry in record["runs"]] == ["local", "workstation"]
    first, second = record["runs"]
    assert second["speedup"] == first["seconds"] / second["seconds"]
    assert second["efficiency"] == second["speedup"] / second["slots"]
    write_record(program, request, answer, record)
    assert json.loads((tmp_path / "report/pi.json").read_text())["inside"] == answer
    assert (tmp_path / "report/pi-speedup.png").read_bytes().startswith(b"\x89PNG")


def test_metrics_by_hand() -> None:
    assert report.speedup(100.0, 25.0) == 4.0
    assert report.efficiency(4.0, 8) == 0.5
    assert report.karp_flatt(4.0, 8) == pytest.approx(1 / 7)  # (1/4 - 1/8) / (7/8)
    assert report.karp_flatt(8.0, 8) == 0.0
    assert report.karp_flatt(1.0, 1) is None


@given(serial=st.floats(0, 1), nodes=st.integers(2, 64))
def test_karp_flatt_finds_the_serial_fraction_of_amdahl(serial: float, nodes: int) -> None:
    speedup = 1 / (serial + (1 - serial) / nodes)
    assert report.karp_flatt(speedup, nodes) == pytest.approx(serial, abs=1e-9)


def test_durations_are_octapis_and_reproducible() -> None:
    drawn = durations(1000, 1.0, seed=4)
    assert set(drawn) == set(range(5, 21))
    assert drawn == durations(1000, 1.0, seed=4) != durations(1000, 1.0, seed=5)
    assert durations(1000, 0.5, seed=4) == [seconds / 2 for seconds in drawn]


def test_json_is_whole_or_not_there(tmp_path) -> None:  # type: ignore[no-untyped-def]
    target = tmp_path / "result.json"
    report.write_json({"a": 1}, str(target))
    with pytest.raises(TypeError):
        report.write_json({"a": object()}, str(target))
    assert target.read_text() == '{\n  "a": 1\n}\n'
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(UsageError, match="cannot be written"):
        report.write_json({}, str(tmp_path / "nowhere" / "result.json"))


@pytest.mark.parametrize(
    ("worker", "node"),
    [("pi-01", "pi-01"), ("pi-01-0", "pi-01"), ("pi-01-12", "pi-01"), ("pi-03", "pi-03"), ("pi-03-1", "pi-03-1"),
     ("tls://10.0.0.1:4000", "tls://10.0.0.1:4000"), ("pi-01-x", "pi-01-x"), ("0", "0")],
)  # fmt: skip
def test_node_of_a_worker(worker: str, node: str, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    for name in ("ca.pem", "client.pem", "client.key"):
        (tmp_path / name).touch()
    write_config(tmp_path / "cluster.toml", "tls://127.0.0.1:1", ["pi-01", "pi-02"])
    monkeypatch.setenv("BRAMBLE_CONFIG", str(tmp_path / "cluster.toml"))
    cluster = object.__new__(Cluster)
    cluster.config = config.load()
    assert cluster.node_of(worker) == node


@pytest.mark.timeout(60)
@pytest.mark.parametrize("place", ["local", "workstation"])
def test_every_job_ends_once_on_this_machine(place: Place) -> None:
    all_chunks = chunks(10**6, 10**5, seed=1)
    with places.connect(place) as engine:
        engine.warm_up(count_inside)
        outcomes = list(engine.map(count_inside, all_chunks))
    assert sorted(outcome.index for outcome in outcomes) == list(range(10))
    assert all(outcome.result == count_inside(all_chunks[outcome.index]) for outcome in outcomes)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("place", ["local", "workstation"])
def test_a_raising_job_shows_its_own_traceback(place: Place) -> None:
    with (
        places.connect(place) as engine,
        pytest.raises(ResultError, match=r"(?s)argument 'x'.*math\.sqrt|must be real"),
    ):
        engine.warm_up(math.sqrt)
        list(engine.map(math.sqrt, ["x"]))


@pytest.mark.timeout(60)
def test_jobs_of_a_process_that_dies_are_named_as_lost() -> None:
    import os

    with places.connect("workstation") as engine:
        outcomes = list(engine.map(os._exit, [3, 3]))
    assert sorted(outcome.index for outcome in outcomes) == [0, 1]
    assert all("was killed during a job" in (outcome.lost or "") for outcome in outcomes)


def test_shortest_makespan_by_hand() -> None:
    assert shortest_makespan([5, 1, 1], 8) == 5
    assert shortest_makespan([2, 2, 2, 2], 2) == 4
    assert shortest_makespan([3, 3, 3], 2) == 6  # two of three run one after the other
    assert shortest_makespan([4, 1, 1, 1], 1) == 7


def test_the_screen_shows_done_retried_and_lost_per_node(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = [
        Outcome(0, 1, "pi-01"),
        Outcome(1, 1, "pi-02", retried=("pi-01", "pi-01")),
        Outcome(2, node="pi-02", lost="x"),
        Outcome(3, lost="x"),
    ]
    assert len(report.Screen(None).collect_outcomes(iter(outcomes), 4, "test")) == 4
    assert capsys.readouterr().out.rstrip().endswith("pi-01 1 (2 retried)  pi-02 1 (1 lost)  lost 2")
    assert report.retries_per_node(outcomes) == {"pi-01": 2}
