"""The `bramble` command.

Exit codes: 0 done and right; 1 no good result (a job raised, jobs were lost, a check failed); 2 wrong request,
configuration or certificate; 3 no scheduler, no node, or a node that is not fit; 130 stopped with Ctrl-C.
"""

import inspect
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bramble import BrambleError, UsageError
from bramble.driver import Place

if TYPE_CHECKING:
    from bramble.study import Program, Request

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

On = Annotated[Place, typer.Option(help="One core, every core of this machine, or the cluster.")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same numbers, wherever they are computed.")]
Json = Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON (-: standard output).")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the nodes of the cluster.")]
JobTimeout = Annotated[
    float | None, typer.Option(min=0.1, help="Seconds after which a job is ended, and named as lost (on the cluster).")
]
Drip = Annotated[int | None, typer.Option(min=1, metavar="N", help="Have at most N jobs on the cluster at a time.")]
Share = Annotated[str | None, typer.Option(metavar="I/N", help="Do only every N-th job, from the I-th on: see --merge.")]
Merge = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Compute nothing: put together the shares in this folder.")]
RequireAll = Annotated[bool, typer.Option("--require-all", help="Do not go on without a node that is missing.")]


def whole(option: str, text: str, least: int = 1) -> int:
    """A whole number as people write it: 1000000000, 1_000_000_000 or 1e9. Raises UsageError."""
    try:
        number = Decimal(text)
        if number != int(number) or number < least:
            raise ValueError
    except (ArithmeticError, ValueError):
        raise UsageError(f"{option}: {text!r} is not a whole number of at least {least}, such as 1_000_000_000 or 1e9") from None
    return int(number)


def optional(option: str, text: str | None) -> int | None:
    """The same for an option that need not be given. Raises UsageError."""
    return None if text is None else whole(option, text)


def part(text: str) -> tuple[int, int]:
    """Which share of how many: 2/8. Raises UsageError."""
    index, slash, count = text.partition("/")
    if not slash:
        raise UsageError(f"--share {text}: it must say which of how many, such as 2/8")
    numbers = (whole("--share", index), whole("--share", count))
    if numbers[0] > numbers[1]:
        raise UsageError(f"--share {text}: there are only {numbers[1]} shares")
    return numbers


def own_folder(name: str) -> Path:
    """Where a report goes that nobody gave a place."""
    return Path("reports", f"{time.strftime('%Y-%m-%dT%H%M%S')}-{name}")


WORKLOADS = ["compare"]
"""The commands that compute something; `workload` adds its own."""


def workload(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that all workloads have. It gets them as one Request, its first argument.

    Without --json and --report the result goes to a folder of its own in reports/.
    """
    shared = {
        "on": (On, "cluster"),
        "compare": (
            Annotated[
                bool, typer.Option("--compare", help="One core, all cores here, and (--on cluster) the cluster; side by side.")
            ],
            False,
        ),
        "nodes": (Annotated[str | None, typer.Option(metavar="N,N,...", help="One timed run on the first N nodes each.")], None),
        "json": (Json, None),
        "report": (Annotated[Path | None, typer.Option(metavar="FOLDER", help="For the result and its pictures.")], None),
        "timeout": (Timeout, 30.0),
        "require_all": (RequireAll, False),
        "job_timeout": (JobTimeout, None),
        "drip": (Drip, None),
        "share": (Share, None),
        "merge": (Merge, None),
    }

    def run(**given: Any) -> None:
        from bramble.study import Request

        options = {name: given.pop(name) for name in shared}
        if options["nodes"]:
            options["nodes"] = tuple(whole("--nodes", part) for part in options["nodes"].split(","))
        if options["share"]:
            options["share"] = part(options["share"])
        if options["report"] is None and options["json"] is None:
            options["report"] = own_folder(command.__name__)
        command(Request(**options), **given)

    WORKLOADS.append(command.__name__.replace("_", " "))
    own = list(inspect.signature(command).parameters.values())[1:]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in shared.items()
    ]
    run.__signature__ = inspect.Signature([*(each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own), *options])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *options)}
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


def study(program: "Program", request: "Request", check: Callable[[dict[str, Any]], None] | None = None) -> Any:
    """Perform a program, write what it found, then check it (a result that fails its check can be looked into); the answer."""
    from bramble import study as studies
    from bramble.report import Screen
    from bramble.share import Done

    screen = Screen(request.json)
    try:
        with interruptible():
            answer, record = studies.perform(program, request, screen)
    except Done as done:
        studies.keep_share(program, request, done.record)
        raise typer.Exit from None
    studies.keep(program, request, answer, record)
    if request.report:
        screen.say(f"the report is in {request.report}")
    if check:
        check(record)
    return answer


@contextmanager
def interruptible() -> Iterator[None]:
    """Say what became of the jobs when somebody stops the program."""
    try:
        yield
    except KeyboardInterrupt:
        print("bramble: stopped; jobs that were running end by themselves, the others are cancelled", file=sys.stderr)
        raise  # typer makes it exit code 130


@app.command()
@workload
def compute(
    request: Any,
    jobs: Annotated[int, typer.Option(min=1, help="How many jobs.")] = 16,
    scale: Annotated[float, typer.Option(min=0, help="Times the 5 to 20 seconds that a job sleeps.")] = 1.0,
    seed: Seed = 0,
) -> None:
    """Sixteen jobs that sleep and tell where: which nodes work, and how much faster they are together."""
    from bramble.compute import run

    study(run.program(jobs, scale, seed), request, run.check)


@app.command()
@workload
def pi(
    request: Any,
    method: Annotated[
        str, typer.Option(help="montecarlo, chudnovsky (decimal digits) or bbp (hexadecimal digits).")
    ] = "montecarlo",
    points: Annotated[str, typer.Option(metavar="N", help="montecarlo: how many points.")] = "1e10",
    chunk: Annotated[str | None, typer.Option(metavar="N", help="montecarlo: points per job, if not the default.")] = None,
    digits: Annotated[str, typer.Option(metavar="N", help="chudnovsky: how many digits after the point.")] = "1e6",
    position: Annotated[str, typer.Option(metavar="N", help="bbp: the first digit; 1 is the first after the point.")] = "1e6",
    count: Annotated[int, typer.Option(min=1, max=16, help="bbp: how many digits.")] = 14,
    seed: Seed = 0,
) -> None:
    """Pi: from random points, by its digits, or a few digits far out; and how much faster it comes with more nodes."""
    from bramble.pi import run

    match method:
        case "montecarlo":
            program = run.montecarlo(whole("--points", points), optional("--chunk", chunk), seed)
        case "chudnovsky":
            program = run.chudnovsky(whole("--digits", digits))
        case "bbp":
            program = run.bbp(whole("--position", position), count)
        case _:
            raise UsageError(f"--method {method} is not known; there are montecarlo, chudnovsky and bbp")
    study(program, request, run.check)


@app.command(context_settings={"ignore_unknown_options": True})  # -8 is a wrong number, not an unknown option
@workload
def primes(
    request: Any,
    begin: Annotated[str, typer.Argument(metavar="A", help="From here on.")],
    end: Annotated[str, typer.Argument(metavar="B", help="Up to here, without it.")],
    listing: Annotated[Path | None, typer.Option("--list", metavar="FILE", help="Write the primes there, one a line.")] = None,
    twins: Annotated[bool, typer.Option("--twins", help="Count the pairs p, p + 2.")] = False,
    gaps: Annotated[bool, typer.Option("--gaps", help="How often each distance between neighbours occurs.")] = False,
) -> None:
    """Count the primes from A up to B."""
    from bramble.primes import run

    program = run.primes(whole("A", begin, 0), whole("B", end, 0), twins, gaps, listing is not None)
    _, parts = study(program, request, run.check)
    if listing is not None:
        run.write(parts, listing)


@app.command()
@workload
def quantum(
    request: Any,
    program: Annotated[
        str,
        typer.Argument(help="bell, ghz, teleport, deutsch-jozsa, grover, phase, shor, noise, correction or estimate."),
    ],
    qubits: Annotated[str | None, typer.Option(metavar="N", help="How many (ghz, deutsch-jozsa, grover, phase).")] = None,
    number: Annotated[str | None, typer.Option(metavar="N", help="What to factor (shor).")] = None,
    shots: Annotated[str | None, typer.Option(metavar="N", help="How often circuits are run, all together.")] = None,
    seed: Seed = 0,
) -> None:
    """Quantum programs in Q#, simulated, with theory beside what is measured."""
    from bramble.quantum import run

    given = {"qubits": qubits, "number": number, "shots": shots}
    options = {name: whole(f"--{name}", text) for name, text in given.items() if text is not None}
    study(run.program(program, options, seed), request, run.check)


@app.command()
def compare(
    only: Annotated[list[str] | None, typer.Argument(metavar="[WORKLOAD]...", help="Only these; without any, all.")] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="How long it may take, about.")] = 10.0,
    on: On = "cluster",
    report: Annotated[Path | None, typer.Option(metavar="FOLDER", help="For compare.html and all results.")] = None,
    json: Json = None,
    timeout: Timeout = 30.0,
    require_all: RequireAll = False,
) -> None:
    """All workloads on one core, on all cores here and (--on cluster) on the cluster, in one report for a browser."""
    from bramble.compare import run
    from bramble.report import Screen
    from bramble.study import Request

    folder = report or own_folder("compare")
    request = Request(on, True, None, folder, json, timeout, require_all)
    screen = Screen(json)
    with interruptible():
        record = run.run(minutes, only or [], request, screen)
    run.keep(record, request)
    screen.say(f"the report is in {folder / 'compare.html'}")
    run.check(record)


@app.command()
def workloads() -> None:
    """The names of the workloads, one a line."""
    print("\n".join(sorted(WORKLOADS)))


@app.command()
@workload
def primality(
    request: Any,
    lower: Annotated[str, typer.Option(metavar="N", help="The first number.")] = "1",
    upper: Annotated[str, typer.Option(metavar="N", help="The last number, below 2^64.")] = "1e7",
    method: Annotated[str, typer.Option(help="naive, fermat or miller-rabin.")] = "miller-rabin",
    chunk: Annotated[str | None, typer.Option(metavar="N", help="Numbers per job, if not the default.")] = None,
) -> None:
    """Test every number of a range for being prime, by one of three tests."""
    from bramble.primality import run

    size = optional("--chunk", chunk)
    study(run.program(method, whole("--lower", lower), whole("--upper", upper), size), request, run.check)


@app.command()
@workload
def factor(
    request: Any,
    number: Annotated[str, typer.Argument(metavar="NUMBER", help="Below 2^64.")],
    chunk: Annotated[str | None, typer.Option(metavar="N", help="Numbers per interval, if not the default.")] = None,
) -> None:
    """The prime factors of a number, downward from its square root; the first that is found stops the search."""
    from bramble.factor import run

    study(run.program(whole("NUMBER", number), optional("--chunk", chunk)), request, run.check)


@app.command()
@workload
def enigma(
    request: Any,
    cipher: Annotated[str, typer.Argument(metavar="CIPHER", help="The message.")],
    crib: Annotated[str, typer.Argument(metavar="CRIB", help="A piece of its text.")],
    at: Annotated[int, typer.Option(min=0, help="How many letters are before that piece.")] = 0,
    rings: Annotated[str, typer.Option(metavar="N N N", help="The rings, left to right; `all`: try all.")] = "1 1 1",
    plugs: Annotated[str, typer.Option(metavar="PAIRS", help="The plugs, such as 'AV BS CG'.")] = "",
    reflector: Annotated[str, typer.Option(help="A, B or C.")] = "B",
) -> None:
    """Find how an Enigma was set: all 60 rotor orders and all starts, against a piece of text that is known."""
    from bramble.enigma import run

    study(run.program(cipher, crib, at, rings, plugs, reflector), request, run.check)


@app.command()
def caesar(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to encipher or to read.")],
    key: Annotated[int | None, typer.Option(help="How far each letter moves on; negative: back. Without it: guess.")] = None,
) -> None:
    """Caesar's cipher, and how little it keeps: without a key, the most English of the 26 texts is shown."""
    from bramble.ciphers.teaching import guess, shift

    if key is not None:
        print(shift(text, key))
    else:
        found, plain = guess(text)
        print(f"{plain}\n(it was enciphered with key {found}, by the frequency of its letters)")


@app.command()
def rsa(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="A message.")] = "THIS IS WORKING",
    bits: Annotated[int, typer.Option(min=16, max=64, help="Size of the public key.")] = 48,
    seed: Seed = 0,
) -> None:
    """How public keys work, in numbers small enough to look at. Not secure: `bramble factor` breaks every such key."""
    from bramble.ciphers.teaching import explain

    print("\n".join(explain(text, bits, seed)))


@app.command()
@workload
def fibonacci(
    request: Any,
    prices: Annotated[str, typer.Option(metavar="NAME|FILE", help="AAPL, GOOG, IBM, MSFT, or a CSV file.")] = "IBM",
    surrogates: Annotated[str, typer.Option(metavar="N", help="How many times chance is asked.")] = "1e4",
    controls: Annotated[bool, typer.Option(help="Test a random walk and a planted effect as well.")] = True,
    seed: Seed = 0,
) -> None:
    """Are Fibonacci ratios more frequent in price swings than chance has them?"""
    from bramble.fibonacci import run

    study(run.fibonacci(prices, whole("--surrogates", surrogates), seed, controls), request)


rainbow = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="MD5 and rainbow tables, for hashes of your own; a salt ends it."
)
app.add_typer(rainbow, name="rainbow")

Charset = Annotated[str, typer.Option(help="digits, hex, lower, upper, lower-digits, letters, alnum, printable or chars:...")]
Length = Annotated[int, typer.Option(help="Characters of the strings.")]
Tables = Annotated[int, typer.Option(min=1, max=64, help="How many tables; each finds more.")]
Chain = Annotated[str, typer.Option(metavar="N", help="Links of a chain: longer, smaller tables and slower lookups.")]
Starts = Annotated[str | None, typer.Option(metavar="N", help="Chains begun per table, if not the default.")]
Folder = Annotated[Path, typer.Option(metavar="FOLDER", help="Where the tables are.")]


@rainbow.command("hash")
def rainbow_hash(text: Annotated[str, typer.Argument(metavar="TEXT")]) -> None:
    """The MD5 hash of a text."""
    from bramble.rainbow import run

    print(run.digest(text))


@rainbow.command("plan")
def rainbow_plan(
    charset: Charset = "lower", length: Length = 6, tables: Tables = 4, chain: Chain = "1000", starts: Starts = None
) -> None:
    """What tables would find, and what they would cost."""
    from bramble.rainbow import kernel, run

    number = optional("--starts", starts)
    print(run.tell_plan(run.predict(run.plans(kernel.keys(charset, length), tables, whole("--chain", chain), number))))


@rainbow.command("build")
@workload
def rainbow_build(
    request: Any,
    charset: Charset = "lower",
    length: Length = 6,
    tables: Tables = 4,
    chain: Chain = "1000",
    starts: Starts = None,
    folder: Folder = Path("rainbow"),
) -> None:
    """Build tables; interrupted, it goes on where it was when it is run again."""
    from bramble.rainbow import kernel, run

    number = optional("--starts", starts)
    study(run.build(run.plans(kernel.keys(charset, length), tables, whole("--chain", chain), number), folder), request)


@rainbow.command("crack")
@workload
def rainbow_crack(
    request: Any,
    digests: Annotated[list[str], typer.Argument(metavar="MD5...", help="Hashes of your own.")],
    folder: Folder = Path("rainbow"),
) -> None:
    """Find the strings with some hashes, by tables."""
    from bramble.rainbow import run

    study(run.crack(digests, folder), request, run.check)


@rainbow.command("brute")
@workload
def rainbow_brute(
    request: Any,
    digest: Annotated[str, typer.Argument(metavar="MD5", help="A hash of your own.")],
    charset: Charset = "lower",
    length: Length = 6,
) -> None:
    """Find the string with a hash by trying all: what tables are compared with."""
    from bramble.rainbow import kernel, run

    study(run.brute(digest, kernel.keys(charset, length)), request, run.check)


@app.command()
def nodes(
    json: Json = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the nodes of the cluster.")] = 5.0,
) -> None:
    """Which nodes are here, and how many jobs each does at once."""
    from bramble import driver, report

    screen = report.Screen(json)
    with interruptible(), driver.connect("cluster", timeout, False, screen.say) as engine:
        assert isinstance(engine, driver.Cluster)
        threads, drained = engine.threads(), engine.drained()
        for node, count in threads.items():
            screen.say(f"{node}  {'takes no jobs' if node in drained else f'{count} jobs at once'}")
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
    from bramble import driver

    with driver.connect_to([], timeout) as cluster:
        print(f"{node} takes no more jobs" if cluster.drain(node) else f"{node} has no worker here: nothing to do")


@app.command()
def prove(
    node: Annotated[str, typer.Argument(metavar="NODE", help="Its name, such as pi-05.")],
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for its worker.")] = 60.0,
) -> None:
    """Prove that a node computes: it does a small job, and the result is compared with this machine's."""
    from bramble import ResultError, driver
    from bramble.pi.montecarlo import Chunk, count_inside

    job = Chunk(seed=0, stream=0, points=1_000_000)
    with driver.connect_to([node], timeout) as cluster:
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
