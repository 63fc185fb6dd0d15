"""Run a quantum program as a workload: its jobs, the comparison with theory, the picture and the check."""

import inspect
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bramble import ResultError, UsageError
from bramble.programs.quantum.programs import PROGRAMS, Counts, Experiment, Measure
from bramble.programs.quantum.simulator import BYTES_PER_AMPLITUDE, Job, estimate, sample
from bramble.study import report
from bramble.study.program import Program, Run

FALSE_ALARM_RATE = 1 / 16_000
"""The probability that a correct program fails its check: that of an error of four sigma."""
JOB_SECONDS = 0.7
MIN_JOBS = 64
"""The smallest number of jobs, so that eight nodes of four threads end at the same time."""
ESTIMATED = {
    **{f"Grover, {n} qubits": f"Search.Finds({n}, 1, {round(math.pi / 4 * 2 ** (n / 2))})" for n in (4, 6, 8, 10)},
    **{f"Shor, {number}": f"Fourier.Order(2, {number}, {number.bit_length()})" for number in (15, 21, 35, 51)},
}
"""The circuits whose resources `estimate` estimates."""


def program(name: str, options: dict[str, int], seed: int) -> Program:
    """Return a program by its name, with the given options. Raises UsageError."""
    if name != "estimate" and name not in PROGRAMS:
        raise UsageError(f"there is no quantum program {name!r}; choose from {', '.join(PROGRAMS)} and estimate")
    accepted = [] if name == "estimate" else [each for each in inspect.signature(PROGRAMS[name]).parameters if each != "seed"]
    for option in options:
        if option not in accepted:
            names = " and ".join(f"--{each}" for each in accepted) or "no options"
            raise UsageError(f"{name} does not accept --{option}; it accepts {names}")
    return estimation() if name == "estimate" else sampling(name, PROGRAMS[name](seed=seed, **options), seed)


def sampling(name: str, experiment: Experiment, seed: int) -> Program:
    """Return a program that runs the points of an experiment in batches of shots, each batch with a seed of its own."""
    total = sum(point.shots for point in experiment.points)
    jobs: list[tuple[float, int, Job]] = []
    for index, point in enumerate(experiment.points):
        batch = max(1, min(round(point.rate * JOB_SECONDS), -(-total // MIN_JOBS)))
        for number, begin in enumerate(range(0, point.shots, batch)):
            batch_seed = int(np.random.SeedSequence(seed, spawn_key=(index, number)).generate_state(1)[0])
            shots = min(batch, point.shots - begin)
            jobs.append((shots / point.rate, index, Job(point.expression, shots, batch_seed, point.depolarizing)))
    jobs.sort(key=lambda each: -each[0])  # the longest first, so that all nodes end at about the same time

    def compute(run: Run) -> list[Counts]:
        needed, available = experiment.amplitudes * BYTES_PER_AMPLITUDE, run.memory
        if needed > available:
            raise UsageError(
                f"{name} with {experiment.qubits} qubits needs up to {format_bytes(needed)} of memory per job "
                f"(2^{math.log2(experiment.amplitudes):.0f} amplitudes of {BYTES_PER_AMPLITUDE} bytes), "
                f"but only {format_bytes(available)} per job are available; request fewer qubits"
            )
        found: list[Counter[str]] = [Counter() for _ in experiment.points]
        for (_, index, _), counts in zip(jobs, run.map(sample, [job for *_, job in jobs]), strict=True):
            found[index].update(counts)
        return [dict(sorted(counts.items())) for counts in found]

    def describe(found: Sequence[Counts]) -> dict[str, Any]:
        return {
            **experiment.facts(found),
            "measures": [measure_fields(measure) for measure in experiment.interpret_counts(found)],
        }

    def summarise(found: Sequence[Counts]) -> str:
        measures = experiment.interpret_counts(found)
        lines = [f"{experiment.title}: {total:,} shots"]
        if len(measures) <= 40:
            lines.append(f"{'':<28}{'at':>8}{'measured':>11}{'theory':>11}{'sigma off':>11}")
            for each in map(measure_fields, measures):
                off = "-" if each["sigmas"] is None else f"{each['sigmas']:+.2f}"
                lines.append(f"{each['series']:<28}{each['x']:>8.4g}{each['measured']:>11.5f}{each['theory']:>11.5f}{off:>11}")
        lines += [f"{key}: {value}" for key, value in experiment.facts(found).items()]
        return "\n".join(lines)

    def draw_picture(found: Sequence[Counts], path: Path) -> None:
        draw(experiment, experiment.interpret_counts(found), path)

    parameters = {"program": name, "qubits": experiment.qubits, "shots": total, "seed": seed, **experiment.parameters}
    return Program("quantum", [sample], compute, describe, summarise, draw_picture, parameters=parameters, check=check)


def format_bytes(count: float) -> str:
    """Return a number of bytes as text with a unit."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def measure_fields(measure: Measure) -> dict[str, Any]:
    """Return a measure for the record: with the measured share, and its error in sigmas (None if theory leaves no chance)."""
    share = measure.hits / measure.shots
    sigma = math.sqrt(measure.theory * (1 - measure.theory) / measure.shots)
    return {**measure._asdict(), "measured": share, "sigmas": (share - measure.theory) / sigma if sigma > 1e-12 else None}


def deviation_probability(hits: int, shots: int, theory: float) -> float:
    """Return an upper bound of the probability to be this far from theory or further: 2 exp(-n KL(hits/n || theory)).

    This is the bound of Chernoff and Hoeffding (1963). Unlike the normal approximation it also holds for rare outcomes, and for
    a mean of different probabilities.
    """
    share = hits / shots
    divergence = 0.0
    for seen, expected in ((share, theory), (1 - share, 1 - theory)):
        if seen > 0:
            if expected <= 1e-15:
                return 0.0
            divergence += seen * math.log(seen / expected)
    return min(1.0, 2 * math.exp(-shots * divergence))


def check(record: dict[str, Any]) -> None:
    """Raise ResultError when a measure differs from theory by more than chance allows, or a factor is wrong."""
    if record["program"] == "estimate":
        return check_estimate(record)
    measures = record["measures"]
    for each in measures:
        if deviation_probability(each["hits"], each["shots"], each["theory"]) * len(measures) < FALSE_ALARM_RATE:
            raise ResultError(
                f"{each['series']} at {each['x']:.4g}: {each['hits']} of {each['shots']} shots, and theory predicts "
                f"{each['theory']:.4%}; try another --seed, and if that fails too, a node computes wrongly: run "
                "`bramble health-check NODE` for each node"
            )
    if record["program"] == "bell" and abs(record["chsh"] - record["chsh_theory"]) > 5 * record["chsh_sigma"]:
        raise ResultError(
            f"CHSH is {record['chsh']:.4f}, and theory predicts {record['chsh_theory']:.4f}; try another --seed, and if that "
            "fails too, a node computes wrongly: run `bramble health-check NODE` for each node"
        )
    if record["program"] == "shor":
        if not record["factors"]:
            raise ResultError(
                f"by chance, {record['shots']} runs gave no factors of {record['number']}; use more --shots or another --seed"
            )
        if math.prod(record["factors"]) != record["number"]:
            raise ResultError(
                f"{record['factors']} are not factors of {record['number']}, so a node computes wrongly; "
                "run `bramble health-check NODE` for each node"
            )


def estimation() -> Program:
    """Return a program that estimates the resources of Grover's and Shor's algorithms on a machine with error correction."""

    def compute(run: Run) -> list[dict[str, Any]]:
        return run.map(estimate, list(ESTIMATED.values()))

    def describe(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {"estimates": [{"what": what, **each} for what, each in zip(ESTIMATED, found, strict=True)]}

    def summarise(found: Sequence[dict[str, Any]]) -> str:
        lines = [f"{'':<20}{'qubits':>8}{'T gates':>10}{'rotations':>11}{'physical qubits':>17}{'runtime s':>11}"]
        for what, each in zip(ESTIMATED, found, strict=True):
            logical, physical = each["logical"], each["physical"]
            lines.append(
                f"{what:<20}{logical['numQubits']:>8}{logical['tCount']:>10,}{logical['rotationCount']:>11,}"
                f"{physical['physicalQubits']:>17,}{physical['runtime'] / 1e9:>11.3g}"
            )
        return "\n".join(lines)

    def draw_picture(found: Sequence[dict[str, Any]], path: Path) -> None:
        figure, axes = new_figure("Resources of a fault-tolerant machine", ("", "physical qubits"))
        bars = axes.bar([what.replace(", ", "\n") for what in ESTIMATED], [each["physical"]["physicalQubits"] for each in found])
        axes.bar_label(bars, [f"{each['physical']['runtime'] / 1e9:.2g} s" for each in found], padding=2, fontsize=8)
        axes.tick_params(axis="x", labelsize=7)
        figure.savefig(path)

    return Program(
        "quantum", [estimate], compute, describe, summarise, draw_picture, parameters={"program": "estimate"}, check=check
    )


def check_estimate(record: dict[str, Any]) -> None:
    """Raise ResultError unless Shor's circuit has 2n + 3 qubits and 2n measurements.

    The estimator may use one more qubit for gates with two controls.
    """
    for each in record["estimates"]:
        name, _, number = each["what"].partition(", ")
        if name == "Shor":
            n, logical = int(number).bit_length(), each["logical"]
            if logical["measurementCount"] != 2 * n or logical["numQubits"] not in {2 * n + 3, 2 * n + 4}:
                raise ResultError(
                    f"{each['what']}: {logical} is not a circuit of {2 * n + 3} qubits and {2 * n} measurements; "
                    "this version of qdk counts differently, or a node computes wrongly"
                )


def new_figure(title: str, labels: tuple[str, str]) -> tuple[Any, Any]:
    """Return a figure and its axes, with a title and the labels of x and y."""
    figure = report.figure(6.4, 4.2)
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.grid(alpha=0.25, axis="y")
    return figure, axes


def draw(experiment: Experiment, measures: Sequence[Measure], path: Path) -> None:
    """Draw theory as lines or bars, and measures as points with error bars of two sigma. A series of one measure is left out."""
    figure, axes = new_figure(experiment.title, experiment.axes)
    names = [name for name, count in Counter(measure.series for measure in measures).items() if count > 1]
    for color, name in zip(["#b5123e", "#2a6f97", "#3a7d44", "#7a4ea3"], names, strict=False):
        series = sorted((measure for measure in measures if measure.series == name), key=lambda measure: measure.x)
        x = [measure.x for measure in series]
        theory = np.array([measure.theory for measure in series])
        share = np.array([measure.hits / measure.shots for measure in series])
        sigma = np.sqrt(theory * (1 - theory) / np.array([measure.shots for measure in series]))
        if experiment.bars:
            gap = min(np.diff(x))
            axes.bar(x, theory, width=0.8 * gap, color="0.8", label="theory")
        else:
            axes.plot(x, theory, "-", color=color, alpha=0.45)
        axes.errorbar(x, share, yerr=2 * sigma, fmt="o", markersize=4, color=color, capsize=2, label=name, clip_on=False)
    axes.set_ylim(0, None)
    axes.legend(frameon=False)
    figure.savefig(path)
