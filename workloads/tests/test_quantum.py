"""Quantum programs: against theory, against another simulator (qiskit-aer), and against the same simulator in F#."""

import json
import math
import random
import subprocess
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.circuit.library import QFTGate
from qiskit.quantum_info import Statevector
from qiskit_aer import AerSimulator

from bramble import ResultError, UsageError
from bramble.programs.quantum import run, shor, simulator
from bramble.programs.quantum.programs import PROGRAMS
from bramble.programs.quantum.simulator import Job, sample, state
from bramble.study import report, runs

from .conftest import Bramble
from .test_cli import assert_error
from .test_cli import run as command

pytestmark = pytest.mark.timeout(120)
ROOT = Path(__file__).parents[2]


def perform(name: str, seed: int = 3, **options: int) -> tuple[Any, dict[str, Any]]:
    """Run a program on one core, and check it."""
    answer, record = runs.perform(run.program(name, options, seed), runs.Request(on="local"), report.Screen("-"))
    run.check(record)
    return answer, record


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bell", {"shots": 20_000}),
        ("ghz", {"qubits": 5, "shots": 1_000}),
        ("teleport", {"shots": 20_000}),
        ("deutsch-jozsa", {"qubits": 4, "shots": 400}),
        ("grover", {"qubits": 3, "shots": 2_000}),
        ("phase", {"qubits": 3, "shots": 2_000}),
        ("shor", {"number": 15, "shots": 8}),
        ("noise", {"shots": 20_000}),
        ("correction", {"shots": 20_000}),
    ],
)
def test_programs_agree_with_theory(name: str, options: dict[str, int], tmp_path: Path) -> None:
    answer, record = perform(name, **options)
    assert record["measures"] and json.dumps(record)
    # The check fails when the counts differ from theory.
    for measure in record["measures"]:
        if 0.2 < measure["theory"] < 0.8 and measure["shots"] >= 100:
            wrong = {**measure, "hits": round(measure["shots"] * (measure["theory"] - 0.19))}
            with pytest.raises(ResultError, match="theory predicts"):
                run.check({**record, "measures": [wrong]})
            break
    program = run.program(name, options, seed=3)
    assert program.summarise and program.draw_picture
    assert "shots" in program.summarise(answer)
    program.draw_picture(answer, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_bell_pairs_exceed_the_classical_limit() -> None:
    _, record = perform("bell", shots=20_000)
    assert record["chsh"] > 2 + 5 * record["chsh_sigma"]
    with pytest.raises(ResultError, match="CHSH"):
        run.check({**record, "chsh": 2.0})


@pytest.mark.parametrize(("number", "expected"), [(15, [3, 5]), (21, [3, 7])])
def test_shor_finds_factors(number: int, expected: list[int]) -> None:
    _, record = perform("shor", seed=1, number=number, shots=5)
    assert record["factors"] == expected
    assert record["qubits"] == 2 * number.bit_length() + 3
    with pytest.raises(ResultError, match="not factors"):
        run.check({**record, "factors": [3, 6]})
    with pytest.raises(ResultError, match="gave no factors"):
        run.check({**record, "factors": None})


def test_the_circuit_measures_multiples_of_the_order() -> None:
    """The order of 3 modulo 7 is 6, with a circuit of 9 qubits. (15 has only the orders 2 and 4, which hide a wrong phase.)"""
    shots = 100
    counts = sample(Job("Fourier.Order(3, 7, 3)", shots, seed=5))
    theory, top = shor.probabilities(3, 7), shor.peaks(3, 7)
    near = sum(count for y, count in counts.items() if int(y) in top)
    assert run.deviation_probability(near, shots, sum(theory[y] for y in top)) > run.FALSE_ALARM_RATE
    assert all(run.deviation_probability(counts.get(str(y), 0), shots, theory[y]) > run.FALSE_ALARM_RATE for y in range(64))


def test_shor_with_35() -> None:
    """One circuit of 15 qubits. For every number that it could measure, the classical half finds the factors or nothing."""
    (y,) = map(int, sample(Job("Fourier.Order(2, 35, 6)", 1, seed=5)))
    assert shor.probabilities(2, 35)[y] > 1e-4
    assert {shor.factors(y, 2, 35) for y in range(4**6)} == {None, (5, 7)}


@pytest.mark.parametrize(("base", "number", "expected"), [(7, 15, 4), (2, 21, 6), (2, 35, 12), (4, 15, 2)])
def test_orders_and_the_theory_of_measuring_them(base: int, number: int, expected: int) -> None:
    """The distribution is also the squared Fourier transform of the periodic states."""
    assert shor.order(base, number) == expected
    size = 4 ** shor.width(number)
    powers = np.array([pow(base, x, number) for x in range(size)])
    total = sum(abs(np.fft.fft(powers == value)) ** 2 for value in set(powers.tolist())) / size**2
    assert np.allclose(shor.probabilities(base, number), total, atol=1e-9)


@pytest.mark.parametrize(("number", "word"), [(12, "15"), (16, "even"), (27, r"3\^3"), (97, "prime"), (25, r"5\^2")])
def test_numbers_that_need_no_quantum_computer(number: int, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        shor.check_number(number)


def test_jobs_are_the_same_for_any_number_of_workers(bramble: Bramble, tmp_path: Path) -> None:
    """On one core, and on three nodes with two threads each, although a qdk interpreter does not support threads."""
    records = []
    for place in ("local", "cluster"):
        target = tmp_path / f"{place}.json"
        done = bramble("quantum", "grover", "--qubits", "3", "--shots", "300", "--on", place, "--json", str(target))
        assert done.returncode == 0, done
        records.append(json.loads(target.read_text()))
    assert records[0]["measures"] == records[1]["measures"]
    assert len(records[1]["runs"][0]["per_node"]) == 3


def test_threads_share_a_server_that_is_restarted_when_it_dies() -> None:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(sample(Job("Pairs.GhzOnes(3)", 50, 1)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(each == found[0] for each in found)
    assert simulator._server.process
    simulator._server.process.kill()
    simulator._server.process.wait()
    assert sample(Job("Pairs.GhzOnes(3)", 50, 1)) == found[0]


def test_errors_of_q_sharp_are_reported() -> None:
    with pytest.raises(ResultError, match="Nowhere"):
        sample(Job("Nowhere.Nothing()", 1, 0))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nope"], ["bell", "estimate"]),
        (["bell", "--qubits", "3"], ["--qubits", "--shots"]),
        (["grover", "--qubits", "40"], ["281 TB", "2^40"]),
        (["shor", "--number", "17"], ["prime"]),
        (["phase", "--qubits", "0"], ["--qubits"]),
    ],
)
def test_wrong_requests(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    assert_error(command("quantum", *arguments, "--on", "local", "--report", str(tmp_path), config="/nowhere"), 2, *words)


def test_resource_estimate() -> None:
    _, record = perform("estimate")
    record["estimates"][-1]["logical"]["measurementCount"] += 1
    with pytest.raises(ResultError, match="Shor, 51"):
        run.check(record)


@pytest.mark.parametrize("theory", [0.0, 1e-4, 0.3, 1.0])
def test_chance_bounds_the_binomial_distribution(theory: float) -> None:
    """The bound is never below the exact probability to be this far from theory."""
    shots = 200
    exact = [math.comb(shots, hits) * theory**hits * (1 - theory) ** (shots - hits) for hits in range(shots + 1)]
    for hits in range(shots + 1):
        assert run.deviation_probability(hits, shots, theory) >= min(sum(exact[: hits + 1]), sum(exact[hits:])) * (1 - 1e-9)
    assert run.deviation_probability(round(theory * shots), shots, theory) > 0.9


# Another simulator.


def aer(circuit: QuantumCircuit, shots: int) -> Counter[str]:
    circuit.measure_all()
    simulator = AerSimulator(seed_simulator=7, max_parallel_threads=1)
    return Counter(simulator.run(circuit, shots=shots).result().get_counts())


def test_bell_as_in_aer() -> None:
    a, b, shots = 0.3, 1.7, 40_000
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.ry(-a, 0)
    circuit.ry(-b, 1)
    theirs = aer(circuit, shots)
    ours = sample(Job(f"Pairs.Agree({a}, {b})", shots, 1))
    assert abs(theirs["00"] + theirs["11"] - ours["True"]) < 5 * math.sqrt(shots / 2)


def test_grover_as_in_aer() -> None:
    marked, shots = 5, 20_000
    circuit = QuantumCircuit(3)
    circuit.h(range(3))
    circuit.x(1)
    circuit.ccz(0, 1, 2)
    circuit.x(1)
    circuit.h(range(3))
    circuit.x(range(3))
    circuit.ccz(0, 1, 2)
    circuit.x(range(3))
    circuit.h(range(3))
    theirs = aer(circuit, shots)[f"{marked:03b}"]
    ours = sample(Job(f"Search.Finds(3, {marked}, 1)", shots, 1))["True"]
    assert abs(theirs - ours) < 5 * math.sqrt(shots / 4)


def test_fourier_as_in_qiskit() -> None:
    """Our transform leaves out the swaps: its qubit j is qubit n-1-j of qiskit's."""
    n, number = 4, 11
    circuit = QuantumCircuit(n)
    circuit.append(QFTGate(n), range(n))
    theirs = Statevector.from_int(number, 2**n).evolve(circuit).data
    ours = state(f"use q = Qubit[{n}]; ApplyXorInPlace({number}, q); Fourier.Fourier(q);")
    # In Q# the first qubit is the highest bit; without the swaps that is qiskit's order.
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-12


# The same simulator in F#.


@pytest.fixture(scope="module")
def fsharp(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Build the F# simulator, and return a function that runs it and returns the amplitudes."""
    folder = tmp_path_factory.mktemp("fsharp")
    built = subprocess.run([ROOT / "workloads/fsharp/build", folder], capture_output=True, text=True, check=False)
    if built.returncode == 2:
        pytest.skip(built.stderr)  # neither the .NET SDK nor Node is installed
    assert built.returncode == 0, built

    def amplitudes(*arguments: object) -> list[complex]:
        done = subprocess.run([folder / "quantum", *map(str, arguments)], capture_output=True, text=True, check=True)
        return [complex(*pair) for pair in json.loads(done.stdout)]

    amplitudes.program = folder / "quantum"  # type: ignore[attr-defined]
    return amplitudes


def equal(ours: list[complex], theirs: list[complex]) -> None:
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-12


def test_fsharp_has_the_amplitudes_of_q_sharp(fsharp: Any) -> None:
    equal(fsharp("bell"), state("use q = Qubit[2]; Pairs.Entangle(q[0], q[1]);"))
    equal(fsharp("ghz", 5), state("use q = Qubit[5]; Pairs.Ghz(q);"))
    for marked, iterations in ((0, 0), (21, 1), (63, 6)):
        # In Q# the lowest bit of the number is also the first qubit.
        equal(fsharp("grover", 6, marked, iterations), state(f"use q = Qubit[6]; Search.Grover(q, {marked}, {iterations});"))


@pytest.mark.parametrize("seed", range(5))
def test_fsharp_has_the_amplitudes_of_q_sharp_in_any_circuit(fsharp: Any, seed: int) -> None:
    draw = random.Random(seed)
    gates, statements = [], ["use q = Qubit[4];"]
    for _ in range(40):
        a, b, c = draw.sample(range(4), 3)
        angle = draw.uniform(-7, 7)
        gate, statement = draw.choice(
            [
                (f"h:{a}", f"H(q[{a}]);"),
                (f"x:{a}", f"X(q[{a}]);"),
                (f"z:{a}", f"Z(q[{a}]);"),
                (f"ry:{a}:{angle!r}", f"Ry({angle!r}, q[{a}]);"),
                (f"rz:{a}:{angle!r}", f"Rz({angle!r}, q[{a}]);"),
                (f"r1:{a}:{angle!r}", f"R1({angle!r}, q[{a}]);"),
                (f"cx:{a}:{b}", f"CNOT(q[{a}], q[{b}]);"),
                (f"ccx:{a}:{b}:{c}", f"CCNOT(q[{a}], q[{b}], q[{c}]);"),
            ]
        )
        gates.append(gate)
        statements.append(statement)
    equal(fsharp("circuit", 4, *gates), state(" ".join(statements)))


@pytest.mark.parametrize("arguments", [[], ["circuit", "2", "rw:0:1"], ["grover", "two", "1", "1"]])
def test_fsharp_refuses_what_it_does_not_know(fsharp: Any, arguments: list[str]) -> None:
    done = subprocess.run([fsharp.program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "GATE" in done.stderr and not done.stdout


def test_every_program_is_in_the_help() -> None:
    text = command("quantum", "--help", config="/nowhere").stdout
    assert all(name in text for name in [*PROGRAMS, "estimate"])
