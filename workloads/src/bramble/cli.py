"""The `bramble` command.

Exit codes: 0 done and right; 1 no good result (a job raised, jobs were lost, a check failed); 2 wrong request,
configuration or certificate; 3 no scheduler, no node, or a node that is not fit; 130 stopped with Ctrl-C.
"""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bramble import BrambleError
from bramble.programs import registry
from bramble.study.options import COMMON_OPTIONS, Json, parse_share, whole_number

if TYPE_CHECKING:
    from bramble.study.program import Program
    from bramble.study.runs import Request

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


def report_interrupt(command: Callable[..., None]) -> Callable[..., None]:
    """Have a command say what became of the jobs when somebody stops it."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except KeyboardInterrupt:
            print("bramble: stopped; jobs that were running end by themselves, the others are cancelled", file=sys.stderr)
            raise  # typer makes it exit code 130

    return run


def run_and_record(program: "Program", request: "Request") -> None:
    """Perform a program, write what it found, then check it: a result that fails its check can be looked into."""
    from bramble.study import record, runs
    from bramble.study.report import Screen
    from bramble.study.share import ShareComplete

    screen = Screen(request.json)
    try:
        answer, found = runs.perform(program, request, screen)
    except ShareComplete as share:
        record.write_share(program, request, share.record)
        return
    record.write_record(program, request, answer, found)
    if request.report:
        screen.print_line(f"the report is in {request.report}")
    if program.check:
        program.check(found)
    if program.finish:
        program.finish(answer)


def with_common_options(make: "Callable[..., Program]") -> Callable[..., None]:
    """Make a command of what returns a program: it has the options of all, and performs the program.

    Without --json and --report the result goes to a folder of its own in reports/.
    """

    def run(**given: Any) -> None:
        from bramble.study.report import default_folder
        from bramble.study.runs import Request

        options = {name: given.pop(name) for name in COMMON_OPTIONS}
        if options["nodes"]:
            options["nodes"] = tuple(whole_number("--nodes", part) for part in options["nodes"].split(","))
        if options["share"]:
            options["share"] = parse_share(options["share"])
        if options["report"] is None and options["json"] is None:
            options["report"] = default_folder(make.__name__)
        run_and_record(make(**given), Request(**options))

    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        *(each.replace(kind=kind) for each in inspect.signature(make).parameters.values()),
        *(inspect.Parameter(name, kind, default=default, annotation=of) for name, (of, default) in COMMON_OPTIONS.items()),
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__name__, run.__doc__ = make.__name__, make.__doc__
    return run


def register() -> list[str]:
    """Add the commands of all workloads; return the names of those that compute, which take --report."""
    found = []
    groups: dict[str, typer.Typer] = {}
    for workload in registry.workloads():
        settings = {"ignore_unknown_options": True} if workload.has_negative_arguments else {}
        for command in (*map(with_common_options, workload.programs), *workload.commands):
            *group, name = command.__name__.split("_")
            if "report" in inspect.signature(command).parameters:
                found.append(" ".join([*group, name]))
            target = app
            for word in group:
                if word not in groups:
                    groups[word] = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help=workload.group_help)
                    app.add_typer(groups[word], name=word)
                target = groups[word]
            target.command(name, context_settings=settings)(report_interrupt(command))
    return sorted(found)


WORKLOADS = register()


@app.command()
def workloads() -> None:
    """The names of the workloads, one a line."""
    print("\n".join(WORKLOADS))


@app.command()
@report_interrupt
def nodes(
    json: Json = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the nodes of the cluster.")] = 5.0,
) -> None:
    """Which nodes are here, and how many jobs each does at once."""
    from bramble.engine import places
    from bramble.engine.cluster import Cluster
    from bramble.study import report

    screen = report.Screen(json)
    with places.connect("cluster", timeout, False, screen.print_line) as engine:
        assert isinstance(engine, Cluster)
        threads, drained = engine.threads(), engine.drained()
        for node, count in threads.items():
            screen.print_line(f"{node}  {'takes no jobs' if node in drained else f'{count} jobs at once'}")
        if json is not None:
            report.write_json(
                {"nodes": {node: {"threads": count, "drained": node in drained} for node, count in threads.items()}}, json
            )


@app.command()
def drain(
    node: Annotated[str, typer.Argument(metavar="NODE", help="Its name, such as pi-05.")],
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for the jobs that it runs to end.")] = 600.0,
) -> None:
    """Have a node end its jobs and take no more, before it is powered off; until its worker is started again."""
    from bramble.engine import places

    with places.connect_to_nodes([], timeout) as cluster:
        print(f"{node} takes no more jobs" if cluster.drain(node) else f"{node} has no worker here: nothing to do")


@app.command()
def prove(
    node: Annotated[str, typer.Argument(metavar="NODE", help="Its name, such as pi-05.")],
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for its worker.")] = 60.0,
) -> None:
    """Prove that a node computes: it does a small job, and the result is compared with this machine's."""
    from bramble import ResultError
    from bramble.engine import places
    from bramble.programs.pi.montecarlo import Chunk, count_inside

    job = Chunk(seed=0, stream=0, points=1_000_000)
    with places.connect_to_nodes([node], timeout) as cluster:
        (outcome,) = cluster.map(count_inside, [job], [node])
    if outcome.lost:
        raise ResultError(f"{node} did not do its job: {outcome.lost}")
    if outcome.result != (here := count_inside(job)):
        raise ResultError(f"{outcome.node} counted {outcome.result} of {job.points} points, here it is {here}; do not trust it")
    print(f"{outcome.node} computes: {outcome.result} of {job.points} points in {outcome.seconds:.2f} s, as here")


def main() -> None:
    """Run the command; a foreseen failure is a message on standard error and a stable exit code."""
    try:
        app()
    except BrambleError as error:
        print(f"bramble: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
