"""Rainbow tables as programs: plan, build, crack, and brute force to compare with."""

import shutil
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bramble import ResultError, UsageError
from bramble.engine import memory
from bramble.programs.rainbow import table as files
from bramble.programs.rainbow.kernel import (
    Alarms,
    Candidates,
    Chains,
    Keys,
    Lookup,
    chain_ends,
    check_alarms,
    digest,
    first_64_bits,
    lookup_ends,
    search,
)
from bramble.programs.rainbow.md5 import LANES
from bramble.programs.rainbow.table import Plan, Table
from bramble.study import report
from bramble.study.program import Program, Run

LINKS_PER_JOB, MIN_LINKS_PER_JOB = 20_000_000, 1_000_000
"""Links of a job: half a second to a second; less where there would not be MIN_JOBS jobs, more where there would be too MAX_JOBS."""
MIN_JOBS, MAX_JOBS = 64, 2048
MAX_TRIED = 10**15
START_FACTOR = 2.0
"""Default number of chains begun, in units of 2 N / columns, which no perfect table can exceed."""
BYTES_PER_START = 40
"""Of memory here, while the ends of all chains are sorted."""
NOTE = (
    "This is for hashes of your own. A salt, a random string hashed along with each password, makes every table useless:\n"
    "there would have to be one for each salt. Passwords belong into a slow, salted hash: Argon2, scrypt, bcrypt."
)


def plans(keys: Keys, number: int, columns: int, starts: int | None) -> list[Plan]:
    """So many tables. Raises UsageError when there is no such table."""
    if not 1 <= columns <= files.MAX_COLUMNS:
        raise UsageError(f"--chain must be from 1 to {files.MAX_COLUMNS}, is {columns}")
    chosen = starts or max(1, min(keys.size, round(START_FACTOR * 2 * keys.size / columns)))
    if chosen > min(keys.size, files.MAX_STARTS):
        most = min(keys.size, files.MAX_STARTS)
        raise UsageError(f"--starts can be at most {most}, is {chosen}; a longer --chain needs fewer chains")
    return [Plan(keys.charset.decode(), keys.length, table, columns, chosen) for table in range(number)]


def job_size(links: int) -> int:
    """Links of a job, of so many in all."""
    return max(MIN_LINKS_PER_JOB, min(LINKS_PER_JOB, links // MIN_JOBS), links // MAX_JOBS)


def links_per_second() -> float:
    """How many links a core of this machine does, tried for a tenth of a second or so."""
    keys = Keys(b"abcdefghijklmnopqrstuvwxyz", 6)
    begin = time.perf_counter()
    chain_ends(Chains(keys, 0, 4000, 0, 1024))
    return 4000 * 1024 / (time.perf_counter() - begin)


def predict(chosen: list[Plan]) -> dict[str, Any]:
    """What tables will cover, take and cost."""
    plan = chosen[0]
    rows = plan.strings()[-1]
    one = plan.coverage(rows)
    links = plan.starts * plan.columns * len(chosen)
    return {
        "keys": plan.keys.size,
        "tables": len(chosen),
        "chain": plan.columns,
        "starts": plan.starts,
        "rows": round(rows),
        "coverage_of_one": one,
        "coverage": 1 - (1 - one) ** len(chosen),
        "bytes": len(chosen) * (files.HEADER + files.ROW * round(rows)),
        "links": links,
        "core_seconds": links / links_per_second(),
        "lookup_links": len(chosen) * plan.columns * (plan.columns - 1) // 2,
    }


def describe_plan(prediction: dict[str, Any]) -> str:
    return (
        f"{prediction['keys']:,} strings; {prediction['tables']} tables of about {prediction['rows']:,} chains of {prediction['chain']:,} links: "
        f"{prediction['bytes'] / 1e6:,.1f} MB\n"
        f"they will find {prediction['coverage']:.2%} of all strings (one table {prediction['coverage_of_one']:.1%})\n"
        f"to build: {prediction['links']:.2e} hashes, about {prediction['core_seconds']:,.0f} s of one core like this one; "
        f"to look one up: {prediction['lookup_links']:.1e}; by brute force: {prediction['keys']:.1e}\n{NOTE}"
    )


def build(chosen: list[Plan], folder: Path) -> Program:
    """Tables in files of a folder; what an earlier, interrupted build has done is not done again.

    Raises UsageError when they are there, or do not fit.
    """
    plan, prediction = chosen[0], predict(chosen)
    paths = [folder / each.name for each in chosen]
    if there := [path for path in paths if path.exists()]:
        raise UsageError(f"{there[0]} is there already; remove it to build it anew")
    memory.require(plan.starts * BYTES_PER_START, f"a table of {plan.starts:,} chains")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UsageError(f"{folder} cannot be used: {error.strerror}") from None
    if (need := prediction["bytes"] + 9 * plan.starts) > free:
        raise UsageError(f"{folder} needs {need / 1e6:,.0f} MB, has {free / 1e6:,.0f} MB free")
    size = -(-job_size(plan.starts * plan.columns) // plan.columns // LANES) * LANES
    cuts = [(begin, min(begin + size, plan.starts)) for begin in range(0, plan.starts, size)]

    def compute(run: Run) -> list[str]:
        run.screen.print_line(describe_plan(prediction))
        run.screen.print_line(f"about {prediction['core_seconds'] / run.slots:,.0f} s for {run.slots} such cores")
        sums = []
        for each, path in zip(chosen, paths, strict=True):
            state = files.UnfinishedBuild(path, each, len(cuts))
            left = [job for job in range(len(cuts)) if not state.done[job]]
            if len(left) < len(cuts):
                run.screen.print_line(f"{path.name}: going on, {len(cuts) - len(left)} of {len(cuts)} parts are done")
            work = [Chains(each.keys, each.table, each.columns, *cuts[job]) for job in left]
            for outcome in run.outcomes(chain_ends, work, f"table {each.table}"):
                job = left[outcome.index]
                state.save_job(job, cuts[job][0], np.frombuffer(outcome.result, "<u8"))
            sums.append(files.write_table(path, each, state.ends))
            state.remove()
        return sums

    def describe(sums: list[str]) -> dict[str, Any]:
        rows = [len(Table(path).ends) for path in paths]
        missed = float(np.prod([1 - each.coverage(count) for each, count in zip(chosen, rows, strict=True)]))
        return {"predicted": prediction, "rows": rows, "coverage": 1 - missed, "tables": [str(path) for path in paths], "sha256": sums}

    def summarise(sums: list[str]) -> str:
        found = describe(sums)
        return f"{len(sums)} tables in {folder}, {sum(found['rows']):,} chains; they find {found['coverage']:.2%} of all strings"

    def draw_picture(sums: list[str], path: Path) -> None:
        figure = report.figure(6.4, 4)
        axes = figure.subplots()
        axes.plot(plan.strings(), color="#2a6f97", label="different strings in a column, by theory")
        axes.plot([plan.columns] * len(paths), describe(sums)["rows"], "o", color="#b5123e", label="chains of the tables")
        axes.set(xlabel="column", ylabel="strings", ylim=(0, None), title="chains that meet go on together")
        axes.legend(frameon=False)
        figure.savefig(path)

    parameters = {"charset": plan.charset, "length": plan.length}
    return Program("rainbow", [chain_ends], compute, describe, summarise, draw_picture, parameters=parameters)


def parse_digest(text: str) -> str:
    """A hash as the user gives it, in lower case. Raises UsageError when it is none."""
    try:
        if len(bytes.fromhex(text)) != 16:
            raise ValueError
    except ValueError:
        raise UsageError(f"{text!r} is not an MD5 hash: 32 hexadecimal digits") from None
    return text.lower()


def column_ranges(plan: Plan) -> list[tuple[int, int]]:
    """All columns, cut so that looking a hash up in each part costs about the same: a column costs what lies behind it."""
    parts = max(1, min(64, plan.columns**2 // 2 // LINKS_PER_JOB))
    cuts = [plan.columns - round(plan.columns * (1 - part / parts) ** 0.5) for part in range(parts + 1)]
    return [(first, last) for first, last in pairwise(cuts) if first < last]


def alarm_jobs(plan: Plan, text: str, pairs: list[tuple[int, int]]) -> list[Alarms]:
    """Chains (column, start) to look at for a hash, the longest way first; each job has about as many links as another."""
    pairs = sorted(pairs, reverse=True)
    size = max(LANES, LINKS_PER_JOB // plan.columns)
    parts = [np.array(pairs[begin : begin + size], "<i8") for begin in range(0, len(pairs), size)]
    return [Alarms(plan.keys, text, plan.table, part[:, 1].tobytes(), part[:, 0].tobytes()) for part in parts]


def crack(digests: list[str], folder: Path) -> Program:
    """The strings with some hashes, by the tables in a folder. Raises UsageError, or ResultError when a table is damaged."""
    wanted = [parse_digest(text) for text in digests]
    loaded = files.load_tables(folder)

    def compute(run: Run) -> dict[str, str | None]:
        found: dict[str, str | None] = dict.fromkeys(wanted)
        run.notes["alarms"] = 0
        for table in loaded:
            plan = table.plan
            jobs = [(text, cut) for text, known in found.items() if known is None for cut in column_ranges(plan)]
            work = [Lookup(plan.keys, first_64_bits(text), plan.table, plan.columns, *cut) for text, cut in jobs]
            suspects: dict[str, list[tuple[int, int]]] = {}
            for (text, (first, _)), ends in zip(jobs, run.map(lookup_ends, work, f"table {plan.table}"), strict=True):
                pairs = [(first + index, start) for index, start in table.find_starts(np.frombuffer(ends, "<u8"))]
                suspects.setdefault(text, []).extend(pairs)
            alarms = [job for text, pairs in suspects.items() for job in alarm_jobs(plan, text, pairs)]
            run.notes["alarms"] += sum(map(len, suspects.values()))
            for alarm, text in zip(alarms, run.map(check_alarms, alarms, f"table {plan.table} alarms"), strict=True):
                found[alarm.digest] = found[alarm.digest] or text
        return found

    def summarise(found: dict[str, str | None]) -> str:
        return "\n".join(f"{text}  {'not in the tables' if known is None else repr(known)}" for text, known in found.items())

    def draw_picture(found: dict[str, str | None], path: Path) -> None:
        draw_found(found, f"{len(loaded)} tables", path)

    return Program("rainbow", [lookup_ends, check_alarms], compute, lambda found: {"found": found}, summarise, draw_picture, check=check)


def brute(wanted: str, keys: Keys) -> Program:
    """The string with a hash, by trying all of a charset and length. Raises UsageError when there are too many."""
    hashed = parse_digest(wanted)
    if keys.size > MAX_TRIED:
        raise UsageError(
            f"{keys.size:.1e} strings are too many to try, {MAX_TRIED:.0e} are a month of eight Pis; see rainbow plan"
        )
    size = job_size(keys.size)
    work = [Candidates(keys, first_64_bits(hashed), begin, min(begin + size, keys.size)) for begin in range(0, keys.size, size)]

    def compute(run: Run) -> dict[str, str | None]:
        for outcome in run.outcomes(search, work):
            if outcome.result is not None and digest(outcome.result) == hashed:
                return {hashed: outcome.result}
        return {hashed: None}

    def summarise(found: dict[str, str | None]) -> str:
        return f"{hashed}  {'none of these strings' if found[hashed] is None else repr(found[hashed])}"

    parameters = {"charset": keys.charset.decode(), "length": keys.length, "keys": keys.size}
    return Program(
        "rainbow",
        [search],
        compute,
        lambda found: {"found": found},
        summarise,
        lambda found, path: draw_found(found, "brute force", path),
        parameters=parameters,
        check=check,
    )


def draw_found(found: dict[str, str | None], how: str, path: Path) -> None:
    """Hashes and what was found, as a table."""
    shown = list(found.items())[:30]
    figure = report.figure(6.4, 0.8 + 0.3 * len(shown))
    axes = figure.subplots()
    axes.axis("off")
    axes.set_title(f"{sum(text is not None for text in found.values())} of {len(found)} found by {how}", fontsize=10)
    axes.table([[hashed, "-" if text is None else text] for hashed, text in shown], colLabels=["MD5", "string"], loc="center")
    figure.savefig(path)


def check(record: dict[str, Any]) -> None:
    """Raise ResultError when a hash was not found."""
    if missing := [hashed for hashed, text in record.get("found", {}).items() if text is None]:
        raise ResultError(f"not found: {', '.join(missing)}; other tables, or another charset or length, might")
