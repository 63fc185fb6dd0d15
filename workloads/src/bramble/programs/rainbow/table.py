"""Perfect rainbow tables: what theory promises of them, and the files that hold them.

A file is a header of 4096 bytes, JSON and then spaces, and two arrays, little-endian, one entry per chain:

    ends      uint64   the number of the string at the end, ascending, each once (so the table is *perfect*)
    starts    uint32   the number of the string at the start

Their SHA-256 is in the header. Both are mapped into memory, so that a table may be larger than it.
"""

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bramble import ResultError, UsageError
from bramble.programs.rainbow.kernel import Keys

FORMAT = "bramble rainbow table 1"
HEADER = 4096
ROW = 12
"""Bytes of a chain."""
MAX_STARTS = 2**32
MAX_COLUMNS = 10**6


@dataclass(frozen=True)
class Plan:
    """One table: its strings, its number, the length of its chains, and how many are begun."""

    charset: str
    length: int
    table: int
    columns: int
    starts: int

    @property
    def keys(self) -> Keys:
        return Keys(self.charset.encode(), self.length)

    def strings(self) -> list[float]:
        """How many different strings there are in each column, and at the end: m' = N (1 - exp(-m / N)) (Oechslin, 2003)."""
        size, found = self.keys.size, [float(self.starts)]
        for _ in range(self.columns):
            found.append(-size * math.expm1(-found[-1] / size))
        return found

    def coverage(self, rows: float) -> float:
        """The probability that a string is in a perfect table of so many chains: no two of them meet in any column."""
        return -math.expm1(self.columns * math.log1p(-rows / self.keys.size)) if rows < self.keys.size else 1.0

    @property
    def name(self) -> str:
        """Of its file: what is in it, and no two alike."""
        mark = hashlib.sha256(self.charset.encode()).hexdigest()[:6]
        return f"md5-{len(self.charset)}-{mark}-length{self.length}-chain{self.columns}-{self.starts}-table{self.table}.rainbow"


class Table:
    """A table in a file. Raises ResultError, naming the file, when it is not as it was written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                header = json.loads(file.read(HEADER))
            if header["format"] != FORMAT:
                raise ValueError(f"its format is {header['format']!r}")
            self.plan = Plan(**header["plan"])
            rows = int(header["rows"])
            self.ends = np.memmap(path, "<u8", "r", HEADER, (rows,))
            self.starts = np.memmap(path, "<u4", "r", HEADER + 8 * rows, (rows,))
            if path.stat().st_size != HEADER + ROW * rows:
                raise ValueError("its size is wrong")
            for name in ("ends", "starts"):
                if hashlib.sha256(getattr(self, name).data).hexdigest() != header["sha256"][name]:
                    raise ValueError(f"the checksum of its {name} is wrong")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResultError(f"{path} is damaged and is not used: {error}; remove it and build it again") from None

    def find_starts(self, ends: np.ndarray) -> list[tuple[int, int]]:
        """Of some ends the index, and the number at the start of the chain that ends so, if there is one."""
        places = np.searchsorted(self.ends, ends)
        there = np.flatnonzero(self.ends[np.minimum(places, len(self.ends) - 1)] == ends)
        return [(int(index), int(self.starts[places[index]])) for index in there]


def write_table(path: Path, plan: Plan, ends: np.ndarray) -> str:
    """Sort the ends of all chains, keep one chain for each, and write the table, whole or not at all; tell its checksum."""
    unique, first = np.unique(ends, return_index=True)
    arrays = {"ends": unique.astype("<u8"), "starts": first.astype("<u4")}
    sums = {name: hashlib.sha256(array.data).hexdigest() for name, array in arrays.items()}
    header = json.dumps({"format": FORMAT, "plan": asdict(plan), "rows": len(unique), "sha256": sums})
    draft = path.with_name(f".{path.name}.part")
    with draft.open("wb") as file:
        file.write(header.encode().ljust(HEADER))
        for array in arrays.values():
            array.tofile(file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


class UnfinishedBuild:
    """The ends of the chains that are done so far, on disk, so that a build that was interrupted goes on."""

    def __init__(self, path: Path, plan: Plan, jobs: int) -> None:
        """`path` is that of the table; the jobs are those of one table, always cut the same."""
        self.ends_path, self.done_path = (path.with_name(f".{path.name}.{what}") for what in ("ends", "done"))
        old = self.ends_path.exists() and self.ends_path.stat().st_size == 8 * plan.starts
        old = old and self.done_path.exists() and self.done_path.stat().st_size == jobs
        self.ends = np.memmap(self.ends_path, "<u8", "r+" if old else "w+", shape=(plan.starts,))
        self.done = np.memmap(self.done_path, "u1", "r+" if old else "w+", shape=(jobs,))

    def save_job(self, job: int, begin: int, ends: np.ndarray) -> None:
        """First the ends, then that they are there."""
        self.ends[begin : begin + len(ends)] = ends
        self.ends.flush()
        self.done[job] = 1
        self.done.flush()

    def remove(self) -> None:
        self.ends_path.unlink()
        self.done_path.unlink()


def load_tables(folder: Path) -> list[Table]:
    """All tables of a folder. Raises UsageError when there is none, ResultError when one is damaged."""
    found = [Table(path) for path in sorted(folder.glob("*.rainbow"))]
    if not found:
        raise UsageError(f"there is no table in {folder}; `bramble rainbow build` makes them")
    return found
