"""The programs for rainbow tables: plan, build, crack, and brute force for comparison."""

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
"""Links of a job, half a second to a second; jobs are smaller or larger to keep their number within the next two limits."""
MIN_JOBS, MAX_JOBS = 64, 2048
MAX_TRIED = 10**15
"""The largest number of strings for brute force, for which eight Raspberry Pis need a month."""
START_FACTOR = 2.0
"""The default number of chains that are started, in units of 2 N / columns, the limit of a perfect table."""
BYTES_PER_START = 40
"""Memory on this machine while the ends of all chains are sorted."""
NOTE = (
    "Use this only for hashes of your own. A salt, a random string that is hashed with each password, defeats all tables:\n"
    "every salt would need a table of its own. Store passwords as a slow, salted hash: Argon2, scrypt or bcrypt."
)


def plans(keys: Keys, number: int, columns: int, starts: int | None) -> list[Plan]:
    """Return the plans of a number of tables. Raises UsageError when the columns or starts are out of range."""
    if not 1 <= columns <= files.MAX_COLUMNS:
        raise UsageError(f"--chain must be from 1 to {files.MAX_COLUMNS}, but is {columns}")
    chosen = starts or max(1, min(keys.size, round(START_FACTOR * 2 * keys.size / columns)))
    if chosen > min(keys.size, files.MAX_STARTS):
        most = min(keys.size, files.MAX_STARTS)
        raise UsageError(f"--starts can be at most {most}, but is {chosen}; with a longer --chain, fewer chains are needed")
    return [Plan(keys.charset.decode(), keys.length, table, columns, chosen) for table in range(number)]


def job_size(links: int) -> int:
    """Return the number of links per job for a total number of links."""
    return max(MIN_LINKS_PER_JOB, min(LINKS_PER_JOB, links // MIN_JOBS), links // MAX_JOBS)


def links_per_second() -> float:
    """Return how many links a core of this machine computes per second, measured for about a tenth of a second."""
    keys = Keys(b"abcdefghijklmnopqrstuvwxyz", 6)
    begin = time.perf_counter()
    chain_ends(Chains(keys, 0, 4000, 0, 1024))
    return 4000 * 1024 / (time.perf_counter() - begin)


def predict(chosen: list[Plan]) -> dict[str, Any]:
    """Return the predicted coverage, size and cost of tables."""
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
    """Return a prediction as text."""
    return (
        f"{prediction['keys']:,} strings; {prediction['tables']} tables of about {prediction['rows']:,} chains of "
        f"{prediction['chain']:,} links: {prediction['bytes'] / 1e6:,.1f} MB\n"
        f"they will find {prediction['coverage']:.2%} of all strings (one table {prediction['coverage_of_one']:.1%})\n"
        f"building takes {prediction['links']:.2e} hashes, about {prediction['core_seconds']:,.0f} s on a core of this machine; "
        f"one lookup takes {prediction['lookup_links']:.1e} hashes, brute force {prediction['keys']:.1e}\n{NOTE}"
    )


def build(chosen: list[Plan], folder: Path) -> Program:
    """Return a program that builds tables in a folder; it continues an earlier build that was interrupted.

    Raises UsageError when a table exists already, or when the tables do not fit into memory or on the disk.
    """
    plan, prediction = chosen[0], predict(chosen)
    paths = [folder / each.name for each in chosen]
    if existing := [path for path in paths if path.exists()]:
        raise UsageError(f"{existing[0]} exists already; remove it to build it again")
    memory.require(plan.starts * BYTES_PER_START, f"a table of {plan.starts:,} chains")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UsageError(f"{folder} cannot be created: {error.strerror}; choose another --folder") from None
    if (needed := prediction["bytes"] + 9 * plan.starts) > free:
        raise UsageError(
            f"the tables need {needed / 1e6:,.0f} MB in {folder}, and {free / 1e6:,.0f} MB are free there; "
            "choose another --folder, or fewer --starts"
        )
    size = -(-job_size(plan.starts * plan.columns) // plan.columns // LANES) * LANES
    cuts = [(begin, min(begin + size, plan.starts)) for begin in range(0, plan.starts, size)]

    def compute(run: Run) -> list[str]:
        run.screen.print_line(describe_plan(prediction))
        run.screen.print_line(f"about {prediction['core_seconds'] / run.jobs_at_once:,.0f} s on {run.jobs_at_once} such cores")
        sums = []
        for each, path in zip(chosen, paths, strict=True):
            state = files.UnfinishedBuild(path, each, len(cuts))
            remaining = [job for job in range(len(cuts)) if not state.done[job]]
            if len(remaining) < len(cuts):
                run.screen.print_line(
                    f"{path.name}: continuing the earlier build, {len(cuts) - len(remaining)} of {len(cuts)} parts are done"
                )
            jobs = [Chains(each.keys, each.table, each.columns, *cuts[job]) for job in remaining]
            for outcome in run.outcomes(chain_ends, jobs, f"table {each.table}"):
                job = remaining[outcome.index]
                state.save_job(job, cuts[job][0], np.frombuffer(outcome.result, "<u8"))
            sums.append(files.write_table(path, each, state.ends))
            state.remove()
        return sums

    def describe(sums: list[str]) -> dict[str, Any]:
        rows = [len(Table(path).ends) for path in paths]
        missed = float(np.prod([1 - each.coverage(count) for each, count in zip(chosen, rows, strict=True)]))
        return {
            "predicted": prediction,
            "rows": rows,
            "coverage": 1 - missed,
            "tables": [str(path) for path in paths],
            "sha256": sums,
        }

    def summarise(sums: list[str]) -> str:
        fields = describe(sums)
        return (
            f"{len(sums)} tables in {folder}, {sum(fields['rows']):,} chains; they find {fields['coverage']:.2%} of all strings"
        )

    def draw_picture(sums: list[str], path: Path) -> None:
        figure = report.figure(6.4, 4)
        axes = figure.subplots()
        axes.plot(plan.strings(), color="#2a6f97", label="different strings in a column, by theory")
        axes.plot([plan.columns] * len(paths), describe(sums)["rows"], "o", color="#b5123e", label="chains of the tables")
        axes.set(xlabel="column", ylabel="strings", ylim=(0, None), title="chains that meet merge")
        axes.legend(frameon=False)
        figure.savefig(path)

    parameters = {"charset": plan.charset, "length": plan.length}
    return Program("rainbow", [chain_ends], compute, describe, summarise, draw_picture, parameters=parameters)


def parse_digest(text: str) -> str:
    """Return a hash in lower case. Raises UsageError when it is not an MD5 hash."""
    try:
        if len(bytes.fromhex(text)) != 16:
            raise ValueError
    except ValueError:
        raise UsageError(f"{text!r} is not an MD5 hash, which has 32 hexadecimal digits") from None
    return text.lower()


def column_ranges(plan: Plan) -> list[tuple[int, int]]:
    """Return ranges of all columns with about the same cost of a lookup: a column costs the links from it to the end."""
    parts = max(1, min(64, plan.columns**2 // 2 // LINKS_PER_JOB))
    cuts = [plan.columns - round(plan.columns * (1 - part / parts) ** 0.5) for part in range(parts + 1)]
    return [(first, last) for first, last in pairwise(cuts) if first < last]


def alarm_jobs(plan: Plan, text: str, pairs: list[tuple[int, int]]) -> list[Alarms]:
    """Return jobs of about the same number of links that check chains (column, start) for a hash, the longest first."""
    pairs = sorted(pairs, reverse=True)
    size = max(LANES, LINKS_PER_JOB // plan.columns)
    parts = [np.array(pairs[begin : begin + size], "<i8") for begin in range(0, len(pairs), size)]
    return [Alarms(plan.keys, text, plan.table, part[:, 1].tobytes(), part[:, 0].tobytes()) for part in parts]


def crack(digests: list[str], folder: Path) -> Program:
    """Return a program that finds the strings of hashes by the tables in a folder.

    Raises UsageError, and ResultError when a table is damaged.
    """
    wanted = [parse_digest(text) for text in digests]
    loaded = files.load_tables(folder)

    def compute(run: Run) -> dict[str, str | None]:
        found: dict[str, str | None] = dict.fromkeys(wanted)
        run.notes["alarms"] = 0
        for table in loaded:
            plan = table.plan
            jobs = [(text, cut) for text, known in found.items() if known is None for cut in column_ranges(plan)]
            lookups = [Lookup(plan.keys, first_64_bits(text), plan.table, plan.columns, *cut) for text, cut in jobs]
            chains: dict[str, list[tuple[int, int]]] = {}
            for (text, (first, _)), ends in zip(jobs, run.map(lookup_ends, lookups, f"table {plan.table}"), strict=True):
                pairs = [(first + index, start) for index, start in table.find_starts(np.frombuffer(ends, "<u8"))]
                chains.setdefault(text, []).extend(pairs)
            alarms = [job for text, pairs in chains.items() for job in alarm_jobs(plan, text, pairs)]
            run.notes["alarms"] += sum(map(len, chains.values()))
            for alarm, text in zip(alarms, run.map(check_alarms, alarms, f"table {plan.table} alarms"), strict=True):
                found[alarm.digest] = found[alarm.digest] or text
        return found

    def summarise(found: dict[str, str | None]) -> str:
        return "\n".join(f"{text}  {'not in the tables' if known is None else repr(known)}" for text, known in found.items())

    def draw_picture(found: dict[str, str | None], path: Path) -> None:
        draw_found(found, f"{len(loaded)} tables", path)

    return Program(
        "rainbow", [lookup_ends, check_alarms], compute, lambda found: {"found": found}, summarise, draw_picture, check=check
    )


def brute(wanted: str, keys: Keys) -> Program:
    """Return a program that finds the string of a hash by trying all. Raises UsageError when there are too many strings."""
    hashed = parse_digest(wanted)
    if keys.size > MAX_TRIED:
        raise UsageError(
            f"{keys.size:.1e} strings are too many to try: {MAX_TRIED:.0e} take eight Raspberry Pis a month; "
            "`bramble rainbow plan` shows what tables need"
        )
    size = job_size(keys.size)
    jobs = [Candidates(keys, first_64_bits(hashed), begin, min(begin + size, keys.size)) for begin in range(0, keys.size, size)]

    def compute(run: Run) -> dict[str, str | None]:
        for outcome in run.outcomes(search, jobs):
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
    """Draw the hashes and the strings that were found, as a table."""
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
        raise ResultError(f"not found: {', '.join(missing)}; try more tables, or another charset or length")
