"""Write the record of a run as JSON, and its pictures."""

from pathlib import Path
from typing import Any

from bramble.study import report
from bramble.study.program import Program
from bramble.study.runs import Request, run_label


def write_record(program: Program, request: Request, answer: Any, record: dict[str, Any]) -> None:
    """Write the record, and with a report folder also the pictures and files. Raises UsageError if that fails."""
    record = record | {"versions": report.versions()}
    if request.json is not None:
        report.write_json(record, request.json)
    if request.report is None:
        return
    with report.folder(request.report) as folder:
        report.write_json(record, str(folder / f"{program.name}.json"))
        if program.draw_picture:
            program.draw_picture(answer, folder / f"{program.name}.png")
        if program.write_files:
            program.write_files(answer, folder)
        if len(record["runs"]) > 1:
            draw_runs(record, folder / f"{program.name}-speedup.png")


def write_share(program: Program, request: Request, record: dict[str, Any]) -> None:
    """Write the record of a share. Raises UsageError if it cannot be written."""
    record = {"workload": program.name, **record}
    if request.json is not None:
        report.write_json(record, request.json)
    if request.report is not None:
        with report.folder(request.report) as folder:
            report.write_json(record, str(folder / f"{program.name}-share-{record['share']}-of-{record['of']}.json"))


def draw_runs(record: dict[str, Any], path: Path) -> None:
    """Draw the speed-up of the runs: as a curve over the number of nodes, or as a bar for each place."""
    runs = record["runs"]
    figure = report.figure(6.4, 4.2)
    axes = figure.subplots()
    speedups = [run["speedup"] for run in runs]
    if len({run["on"] for run in runs}) == 1:
        counts = [run["nodes"] for run in runs]
        ideal = [1, counts[-1] / counts[0]]
        axes.plot([counts[0], counts[-1]], ideal, "--", color="0.65", label="ideal")
        axes.plot(counts, speedups, "o-", color="#b5123e", label="measured")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_xlabel("nodes")
        axes.legend(frameon=False)
    else:
        names = [f"{run_label(run)}\n{run['slots']} at once\n{run['seconds']:.3g} s" for run in runs]
        axes.bar(names, speedups, color=["#2a6f97" if run["on"] != "cluster" else "#b5123e" for run in runs])
        for index, speedup in enumerate(speedups):
            axes.annotate(f"{speedup:.2f}×", (index, speedup), (0, 3), textcoords="offset points", ha="center")
    axes.set_ylim(0, 1.1 * max(speedups))
    axes.set_ylabel(f"speed-up over {run_label(runs[0])}")
    axes.set_title(record["workload"])
    axes.grid(alpha=0.25, axis="y")
    figure.savefig(path)
