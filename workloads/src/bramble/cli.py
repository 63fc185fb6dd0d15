"""The `bramble` command.

Exit codes: 0 success; 1 no valid result (a job raised an exception, jobs were lost, or a check failed); 2 wrong request,
configuration or certificate; 3 no scheduler, no node, or a node that cannot run the workload; 130 stopped with Ctrl-C.
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
    """Return the command with a message on standard error about the jobs, for when Ctrl-C stops it."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except KeyboardInterrupt:
            print("bramble: stopped; running jobs end by themselves, the others are cancelled", file=sys.stderr)
            raise  # typer turns this into exit code 130

    return run


def run_and_record(program: "Program", request: "Request") -> None:
    """Perform a program, write its record, then check it, so that a result that fails its check can be examined."""
    from bramble.study import record, runs
    from bramble.study.report import Screen
    from bramble.study.share import ShareComplete

    screen = Screen(request.json)
    try:
        answer, fields = runs.perform(program, request, screen)
    except ShareComplete as share:
        record.write_share(program, request, share.record)
        return
    record.write_record(program, request, answer, fields)
    if request.report:
        screen.print_line(f"the report is in {request.report}")
    if program.check:
        program.check(fields)
    if program.finish:
        program.finish(answer)


def with_common_options(make_program: "Callable[..., Program]") -> Callable[..., None]:
    """Return a command with the common options and those of a function that returns a program; it performs the program.

    Without --json and --report the result goes to a new folder in reports/.
    """

    def run(**arguments: Any) -> None:
        from bramble.study.report import default_folder
        from bramble.study.runs import Request

        options = {name: arguments.pop(name) for name in COMMON_OPTIONS}
        if options["nodes"]:
            options["nodes"] = tuple(whole_number("--nodes", part) for part in options["nodes"].split(","))
        if options["share"]:
            options["share"] = parse_share(options["share"])
        if options["report"] is None and options["json"] is None:
            options["report"] = default_folder(make_program.__name__)
        run_and_record(make_program(**arguments), Request(**options))

    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        *(parameter.replace(kind=kind) for parameter in inspect.signature(make_program).parameters.values()),
        *(
            inspect.Parameter(name, kind, default=default, annotation=option)
            for name, (option, default) in COMMON_OPTIONS.items()
        ),
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__name__, run.__doc__ = make_program.__name__, make_program.__doc__
    return run


def register() -> list[str]:
    """Add the commands of all workloads; return the sorted names of those that compute, which are those with --report."""
    names = []
    groups: dict[str, typer.Typer] = {}
    for workload in registry.workloads():
        settings = {"ignore_unknown_options": True} if workload.has_negative_arguments else {}
        for command in (*map(with_common_options, workload.programs), *workload.commands):
            *group, name = command.__name__.split("_")
            if "report" in inspect.signature(command).parameters:
                names.append(" ".join([*group, name]))
            target = app
            for word in group:
                if word not in groups:
                    groups[word] = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help=workload.group_help)
                    app.add_typer(groups[word], name=word)
                target = groups[word]
            target.command(name, context_settings=settings)(report_interrupt(command))
    return sorted(names)


WORKLOADS = register()


@app.command()
def workloads() -> None:
    """List the workloads, one per line."""
    print("\n".join(WORKLOADS))


@app.command()
@report_interrupt
def nodes(
    json: Json = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the nodes of the cluster.")] = 5.0,
) -> None:
    """List the nodes of the cluster, and how many jobs each runs at once."""
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
    node: Annotated[str, typer.Argument(metavar="NODE", help="The node's name, such as pi-05.")],
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the node's running jobs to end.")] = 600.0,
) -> None:
    """Let a node finish its jobs and give it no more, before it is powered off. This lasts until its worker restarts."""
    from bramble.engine import places

    with places.connect_to_nodes([], timeout) as cluster:
        print(f"{node} takes no more jobs" if cluster.drain(node) else f"{node} has no worker in the cluster: nothing to do")


@app.command()
def health_check(
    node: Annotated[str, typer.Argument(metavar="NODE", help="The node's name, such as pi-05.")],
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the node's worker.")] = 60.0,
) -> None:
    """Let a node compute a small job, and compare its result with this machine's."""
    from bramble import ResultError
    from bramble.engine import places
    from bramble.programs.pi.montecarlo import Chunk, count_inside

    job = Chunk(seed=0, stream=0, points=1_000_000)
    with places.connect_to_nodes([node], timeout) as cluster:
        (outcome,) = cluster.map(count_inside, [job], [node])
    if outcome.lost:
        raise ResultError(f"{node} did not finish its job: {outcome.lost}")
    if outcome.result != (expected := count_inside(job)):
        raise ResultError(
            f"{outcome.node} computes wrongly: it counted {outcome.result} of {job.points} points, this machine {expected}; "
            "check the node's memory and power supply, and do not use its results"
        )
    print(f"{outcome.node} computes: {outcome.result} of {job.points} points in {outcome.seconds:.2f} s, as on this machine")


def main() -> None:
    """Run the command; a BrambleError becomes a message on standard error and a stable exit code."""
    try:
        app()
    except BrambleError as error:
        print(f"bramble: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
