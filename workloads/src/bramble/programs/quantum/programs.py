"""The quantum programs: which Q# runs how often, and what quantum theory predicts.

Each is a function of its options (all with defaults) that returns an Experiment. A new one needs its Q# and a function here.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from bramble import UsageError
from bramble.programs.quantum import shor as shor_theory

Counts = dict[str, int]


class Point(NamedTuple):
    """One circuit and its number of shots. `rate`: about how many shots a core of a workstation runs per second, to size jobs."""

    expression: str
    shots: int
    rate: float
    depolarizing: float = 0.0


class Measure(NamedTuple):
    """How many of the shots had an outcome (`hits`), and its probability by theory. `x` is its position in the picture."""

    series: str
    x: float
    hits: int
    shots: int
    theory: float


@dataclass(frozen=True)
class Experiment:
    """The circuits to run, and how to interpret their results.

    `interpret_counts` and `facts` get the counts of each point, in order, and return the measures and further fields of the
    record. `amplitudes`: how many amplitudes may differ from zero, which determines the memory of a simulation. `axes`: the
    labels of the picture. `bars`: draw theory as bars, for a distribution.
    """

    title: str
    axes: tuple[str, str]
    points: Sequence[Point]
    interpret_counts: Callable[[Sequence[Counts]], list[Measure]]
    qubits: int
    amplitudes: int
    facts: Callable[[Sequence[Counts]], dict[str, Any]] = lambda counts: {}
    bars: bool = False
    parameters: dict[str, Any] = field(default_factory=dict)


def check_range(option: str, value: int, least: int, most: int) -> int:
    """Return the number. Raises UsageError if it is out of range."""
    if not least <= value <= most:
        raise UsageError(f"--{option} must be from {least} to {most}, but is {value}")
    return value


def hits(counts: Counts, outcome: Any = True) -> int:
    """Return how often an outcome was measured."""
    return counts.get(str(outcome), 0)


def shots_per_point(shots: int, parts: int) -> int:
    """Return the shots for each point when a number of shots is divided by a number of points, rounded up."""
    return -(-shots // parts)


def bell(shots: int = 400_000, seed: int = 0) -> Experiment:
    """Bell pairs: their measurements agree more often than any classical model allows (CHSH, 1969)."""
    angles = [i * math.pi / 12 for i in range(13)]
    chsh = [(a, b) for a in (0.0, math.pi / 2) for b in (math.pi / 4, -math.pi / 4)]
    n = shots_per_point(shots, len(angles) + len(chsh))
    pairs = [(0.0, angle) for angle in angles] + chsh
    theory = [math.cos((a - b) / 2) ** 2 for a, b in pairs]

    def interpret_counts(found: Sequence[Counts]) -> list[Measure]:
        names = ["agree"] * len(angles) + ["CHSH settings"] * len(chsh)
        return [
            Measure(name, math.degrees(abs(a - b)), hits(counts), n, p)
            for name, (a, b), counts, p in zip(names, pairs, found, theory, strict=True)
        ]

    def facts(found: Sequence[Counts]) -> dict[str, Any]:
        e = [2 * hits(counts) / n - 1 for counts in found[-4:]]
        sigma = math.sqrt(sum((1 - value**2) / n for value in e))
        return {"chsh": e[0] + e[1] + e[2] - e[3], "chsh_sigma": sigma, "chsh_theory": 2 * math.sqrt(2), "chsh_classical": 2.0}

    points = [Point(f"Pairs.Agree({a!r}, {b!r})", n, 60_000) for a, b in pairs]
    axes = ("angle between the two axes in degrees", "probability that both agree")
    return Experiment("Bell pairs", axes, points, interpret_counts, 2, 4, facts)


def ghz(qubits: int = 8, shots: int = 40_000, seed: int = 0) -> Experiment:
    """A GHZ state: all qubits are Zero or all are One, in a superposition and not a mixture."""
    check_range("qubits", qubits, 2, 1000)
    n = shots_per_point(shots, 2)

    def interpret_counts(found: Sequence[Counts]) -> list[Measure]:
        ones, even = found
        shown = sorted({0, qubits} | {int(key) for key in ones} | (set(range(qubits)) if qubits <= 32 else set()))
        distribution = [
            Measure("qubits that are One", count, hits(ones, count), n, 0.5 * (count in {0, qubits})) for count in shown
        ]
        return [*distribution, Measure("even parity along x", 0, hits(even), n, 1.0)]

    rate = 50_000 / qubits
    points = [Point(f"Pairs.GhzOnes({qubits})", n, rate), Point(f"Pairs.GhzEven({qubits})", n, rate)]
    # Measured along x, every qubit reduces the superposition again, so there are never more than four amplitudes.
    axes = ("qubits that are One", "probability")
    return Experiment(f"GHZ state of {qubits} qubits", axes, points, interpret_counts, qubits, 4, bars=True)


def teleport(shots: int = 200_000, seed: int = 0) -> Experiment:
    """Teleportation: the state of a qubit moves to another qubit through an entangled pair and two classical bits."""
    angles = [i * math.pi / 12 for i in range(13)]
    n = shots_per_point(shots, 2 * len(angles))
    phi = 0.7

    def interpret_counts(found: Sequence[Counts]) -> list[Measure]:
        measures = []
        for angle, received, restored in zip(angles, found[: len(angles)], found[len(angles) :], strict=True):
            measures.append(Measure("arrived", math.degrees(angle), hits(received), n, math.sin(angle / 2) ** 2))
            measures.append(Measure("preparation undone", math.degrees(angle), hits(restored), n, 0.0))
        return measures

    points = [Point(f"Pairs.Teleport({a!r}, {phi}, {undo})", n, 40_000) for undo in ("false", "true") for a in angles]
    axes = ("angle of the state that was sent, in degrees", "probability of One")
    return Experiment("Teleportation", axes, points, interpret_counts, 3, 8)


def deutsch_jozsa(qubits: int = 8, shots: int = 4_000, seed: int = 0) -> Experiment:
    """Deutsch-Jozsa: one query distinguishes a constant from a balanced function; classically up to 2^(n-1) + 1 are needed."""
    check_range("qubits", qubits, 1, 40)
    generator = np.random.default_rng(seed)
    masks = [0, 0, *(int(mask) for mask in generator.integers(1, 1 << qubits, size=8))]
    flips = [False, True, *(bool(flip) for flip in generator.integers(0, 2, size=8))]
    n = shots_per_point(shots, len(masks))

    def interpret_counts(found: Sequence[Counts]) -> list[Measure]:
        return [
            Measure("called constant", index, hits(counts), n, float(mask == 0))
            for index, (mask, counts) in enumerate(zip(masks, found, strict=True))
        ]

    def facts(found: Sequence[Counts]) -> dict[str, Any]:
        return {"questions": 1, "questions_classical": 2 ** (qubits - 1) + 1}

    points = [
        Point(f"Search.IsConstant({qubits}, {mask}, {str(flip).lower()})", n, 3e6 / 2**qubits / (1 + qubits))
        for mask, flip in zip(masks, flips, strict=True)
    ]
    axes = ("function (0 and 1 are constant, the others balanced)", "probability of the answer “constant”")
    return Experiment(
        f"Deutsch-Jozsa, {qubits} bits", axes, points, interpret_counts, qubits + 1, 2 ** (qubits + 1), facts, bars=True
    )


def grover(qubits: int = 6, shots: int = 4_000, seed: int = 0) -> Experiment:
    """Grover: finds one of 2^n numbers with about sqrt(2^n) queries; with more queries the probability falls again."""
    check_range("qubits", qubits, 2, 40)
    marked = int(np.random.default_rng(seed).integers(1 << qubits))
    theta = math.asin(2 ** (-qubits / 2))
    best = max(1, round(math.pi / 4 / theta - 0.5))
    iterations = sorted({round(i * 2.2 * best / 15) for i in range(16)} | {best})
    n = shots_per_point(shots, len(iterations))

    def interpret_counts(found: Sequence[Counts]) -> list[Measure]:
        return [
            Measure("found", k, hits(counts), n, math.sin((2 * k + 1) * theta) ** 2)
            for k, counts in zip(iterations, found, strict=True)
        ]

    def facts(found: Sequence[Counts]) -> dict[str, Any]:
        return {"marked": marked, "best_iterations": best, "questions_classical": (2**qubits + 1) / 2}

    points = [Point(f"Search.Finds({qubits}, {marked}, {k})", n, 2e6 / (k + 1) / 2**qubits / qubits) for k in iterations]
    axes = ("iterations", "probability that the number is found")
    return Experiment(f"Grover's search among {2**qubits:,}", axes, points, interpret_counts, qubits, 2**qubits, facts)


def phase(qubits: int = 5, shots: int = 20_000, seed: int = 0) -> Experiment:
    """Phase estimation: measures the phase of a gate, here a third of a turn, with the inverse quantum Fourier transform."""
    check_range("qubits", qubits, 1, 24)
    turns = 1 / 3
    theory = shor_theory.phase_probabilities(turns, qubits)

    def interpret_counts(found: Sequence[Counts]) -> list[Measure]:
        return [Measure("read", y / 2**qubits, hits(found[0], y), shots, float(p)) for y, p in enumerate(theory)]

    def facts(found: Sequence[Counts]) -> dict[str, Any]:
        return {"phase": turns, "read": int(max(found[0], key=lambda y: found[0][y])) / 2**qubits}

    points = [Point(f"Fourier.EstimatePhase({qubits}, {turns!r})", shots, 2e5 / 2**qubits)]
    axes = ("measured phase in turns", "probability")
    title = f"Phase estimation with {qubits} qubits"
    return Experiment(title, axes, points, interpret_counts, qubits + 1, 2**qubits, facts, bars=True)


def shor(number: int = 15, shots: int = 32, seed: int = 0) -> Experiment:
    """Shor: factors a number by the order of a random base, with 2n + 3 qubits (Beauregard, 2003)."""
    shor_theory.check_number(number)
    n = shor_theory.width(number)
    check_range("number", number, 15, (1 << 15) - 1)
    drawn = np.random.default_rng(seed).choice(shor_theory.bases(number), size=shots)
    bases, tries = (part.tolist() for part in np.unique(drawn, return_counts=True))

    def pairs(found: Sequence[Counts]) -> list[tuple[int, int]]:
        """Return each measured number with its base."""
        return [
            (base, int(y)) for base, counts in zip(bases, found, strict=True) for y, count in counts.items() for _ in range(count)
        ]

    def interpret_counts(found: Sequence[Counts]) -> list[Measure]:
        success_probabilities = [
            sum(p for y, p in enumerate(shor_theory.probabilities(base, number)) if shor_theory.factors(y, base, number))
            for base in bases
        ]
        mean = sum(p * count for p, count in zip(success_probabilities, tries, strict=True)) / shots
        done = sum(shor_theory.factors(y, base, number) is not None for base, y in pairs(found))
        # The distribution for all bases together is the mixture of their distributions.
        theory = sum(count * shor_theory.probabilities(base, number) for base, count in zip(bases, tries, strict=True)) / shots
        seen = np.bincount([y for _, y in pairs(found)], minlength=4**n)
        shown = np.flatnonzero((seen > 0) | (theory > 1e-3))
        measures = [Measure("measured", int(y) / 4**n, int(seen[y]), shots, float(min(1.0, theory[y]))) for y in shown]
        peaks = {base: shor_theory.peaks(base, number) for base in bases}
        near = sum(y in peaks[base] for base, y in pairs(found))
        likely = sum(
            count * shor_theory.probabilities(base, number)[list(peaks[base])].sum()
            for base, count in zip(bases, tries, strict=True)
        )
        measures.append(Measure("near s / r", 0, near, shots, min(1.0, float(likely) / shots)))
        return [*measures, Measure("runs that give factors", 0, done, shots, float(mean))]

    def facts(found: Sequence[Counts]) -> dict[str, Any]:
        answers = [answer for base, y in pairs(found) if (answer := shor_theory.factors(y, base, number))]
        return {"factors": list(answers[0]) if answers else None, "bases": bases, "success_probabilities": len(answers)}

    rate = 30 * (15 / number) ** 3 / 6
    points = [Point(f"Fourier.Order({base}, {number}, {n})", count, rate) for base, count in zip(bases, tries, strict=True)]
    axes = ("measured y / 2^2n, near s / r, where r is the order of the base", "probability")
    title = f"Shor: {number}, {2 * n + 3} qubits"
    return Experiment(
        title, axes, points, interpret_counts, 2 * n + 3, 2 ** (2 * n + 3), facts, bars=True, parameters={"number": number}
    )


def noise(shots: int = 200_000, seed: int = 0) -> Experiment:
    """Noise: how a qubit decays over many gates that depolarise it a little each."""
    lengths = [0, 5, 10, 20, 40, 60, 80, 100]
    errors = [0.002, 0.01, 0.05]
    n = shots_per_point(shots, len(lengths) * len(errors))
    settings = [(error, length) for error in errors for length in lengths]

    def interpret_counts(found: Sequence[Counts]) -> list[Measure]:
        # X, Y and Z have probability error / 3 each, and two of them flip the qubit. The measurement counts as one more gate.
        return [
            Measure(f"error {error:.1%} per gate", length, hits(counts), n, (1 - (1 - 4 * error / 3) ** (length + 1)) / 2)
            for (error, length), counts in zip(settings, found, strict=True)
        ]

    points = [Point(f"Noise.Decays({length})", n, 2e6 / (20 + length), error) for error, length in settings]
    axes = ("gates", "probability of the wrong value")
    return Experiment("Depolarising noise", axes, points, interpret_counts, 1, 2)


def correction(shots: int = 200_000, seed: int = 0) -> Experiment:
    """Error correction: three qubits preserve a state better than one if errors are rare, 3p^2 - 2p^3 instead of p."""
    rates = [0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5]
    n = shots_per_point(shots, 2 * len(rates))
    # The flip of Ry(1) |0> overlaps with it by sin(1), so a flip is detected with this probability.
    detected = math.cos(1.0) ** 2

    def interpret_counts(found: Sequence[Counts]) -> list[Measure]:
        measures = []
        for p, plain, coded in zip(rates, found[: len(rates)], found[len(rates) :], strict=True):
            measures.append(Measure("one qubit", p, hits(plain), n, p * detected))
            measures.append(Measure("three qubits", p, hits(coded), n, (3 * p**2 - 2 * p**3) * detected))
        return measures

    points = [Point(f"Noise.Stored({p}, {coded})", n, 25_000) for coded in ("false", "true") for p in rates]
    axes = ("probability of a bit flip, for each qubit", "probability that the state is found wrong")
    return Experiment("Error correction, three qubits", axes, points, interpret_counts, 6, 16)


PROGRAMS: dict[str, Callable[..., Experiment]] = {
    "bell": bell,
    "ghz": ghz,
    "teleport": teleport,
    "deutsch-jozsa": deutsch_jozsa,
    "grover": grover,
    "phase": phase,
    "shor": shor,
    "noise": noise,
    "correction": correction,
}
