"""`bramble quantum`."""

from typing import TYPE_CHECKING, Annotated

import typer

from bramble.study.options import Seed, whole_number
from bramble.study.workload import Workload

if TYPE_CHECKING:
    from bramble.study.program import Program


def quantum(
    program: Annotated[
        str,
        typer.Argument(help="bell, ghz, teleport, deutsch-jozsa, grover, phase, shor, noise, correction or estimate."),
    ],
    qubits: Annotated[str | None, typer.Option(metavar="N", help="Number of qubits (ghz, deutsch-jozsa, grover, phase).")] = None,
    number: Annotated[str | None, typer.Option(metavar="N", help="The number to factor (shor).")] = None,
    shots: Annotated[str | None, typer.Option(metavar="N", help="How many times all circuits together are run.")] = None,
    seed: Seed = 0,
) -> "Program":
    """Run a quantum program in Q# on a simulator, and compare the measurements with theory."""
    from bramble.programs.quantum import run

    given = {"qubits": qubits, "number": number, "shots": shots}
    options = {name: whole_number(f"--{name}", text) for name, text in given.items() if text is not None}
    return run.program(program, options, seed)


def bell(seconds: float) -> "Program":
    """Entangled pairs of qubits, simulated in Q#: they agree more often than any classical model allows."""
    from bramble.programs.quantum import run

    return run.program("bell", {"shots": max(2_000, round(15_000 * seconds))}, seed=0)


def grover(seconds: float) -> "Program":
    """Grover's search for one number among 64, simulated in Q#: it needs 6 queries instead of 32."""
    from bramble.programs.quantum import run

    return run.program("grover", {"shots": max(200, round(250 * seconds))}, seed=0)


WORKLOAD = Workload(programs=(quantum,), comparisons={"bell": bell, "grover": grover}, imports=("qdk",))
