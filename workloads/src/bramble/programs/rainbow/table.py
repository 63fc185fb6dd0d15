"""Perfect rainbow tables: their theoretical properties, and their files.

A file is a header of 4096 bytes, JSON and then spaces, and two arrays, little-endian, one entry per chain:

    ends      uint64   the number of the string at the end, ascending, each once (so the table is *perfect*)
    starts    uint32   the number of the string at the start

The SHA-256 of each is in the header. Both are mapped into memory, so that a table may be larger than the memory.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bramble import ResultError, UsageError
from bramble.atomic import replaced
from bramble.programs.rainbow.kernel import Keys

FORMAT = "bramble rainbow table 1"
HEADER = 4096
ROW = 12
"""Bytes per chain."""
MAX_STARTS = 2**32
MAX_COLUMNS = 10**6


@dataclass(frozen=True)
class Plan:
    """One table: its strings, its number, the length of its chains, and how many chains are started."""

    charset: str
    length: int
    table: int
    columns: int
    starts: int

    @property
    def keys(self) -> Keys:
        """Return the strings of the table."""
        return Keys(self.charset.encode(), self.length)

    def strings(self) -> list[float]:
        """Return how many different strings are in each column and at the end: m' = N (1 - exp(-m / N)) (Oechslin, 2003)."""
        size, counts = self.keys.size, [float(self.starts)]
        for _ in range(self.columns):
            counts.append(-size * math.expm1(-counts[-1] / size))
        return counts

    def coverage(self, rows: float) -> float:
        """Return the probability that a string is in a perfect table with this number of chains, which never meet."""
        return -math.expm1(self.columns * math.log1p(-rows / self.keys.size)) if rows < self.keys.size else 1.0

    @property
    def name(self) -> str:
        """Return the name of the table's file, which is unique for each plan."""
        mark = hashlib.sha256(self.charset.encode()).hexdigest()[:6]
        return f"md5-{len(self.charset)}-{mark}-length{self.length}-chain{self.columns}-{self.starts}-table{self.table}.rainbow"


class Table:
    """A table in a file."""

    def __init__(self, path: Path) -> None:
        """Open a table and verify it. Raises ResultError, naming the file, when it is damaged."""
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
        """Return, for those of `ends` that are in the table, their index and the number at the start of their chain."""
        places = np.searchsorted(self.ends, ends)
        matches = np.flatnonzero(self.ends[np.minimum(places, len(self.ends) - 1)] == ends)
        return [(int(index), int(self.starts[places[index]])) for index in matches]


def write_table(path: Path, plan: Plan, ends: np.ndarray) -> str:
    """Sort the ends of all chains, keep one chain per end, write the table (completely or not at all); return its checksum."""
    unique, first = np.unique(ends, return_index=True)
    arrays = {"ends": unique.astype("<u8"), "starts": first.astype("<u4")}
    sums = {name: hashlib.sha256(array.data).hexdigest() for name, array in arrays.items()}
    header = json.dumps({"format": FORMAT, "plan": asdict(plan), "rows": len(unique), "sha256": sums})
    with replaced(path) as file:
        file.write(header.encode().ljust(HEADER))
        for array in arrays.values():
            file.write(array.data)
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


class UnfinishedBuild:
    """The ends of the chains that are computed so far, on disk, so that an interrupted build can continue."""

    def __init__(self, path: Path, plan: Plan, jobs: int) -> None:
        """Open or create the files beside the table's `path`; `jobs` is the number of jobs, the same in each build."""
        self.ends_path, self.done_path = (path.with_name(f".{path.name}.{name}") for name in ("ends", "done"))
        is_continued = self.ends_path.exists() and self.ends_path.stat().st_size == 8 * plan.starts
        is_continued = is_continued and self.done_path.exists() and self.done_path.stat().st_size == jobs
        self.ends = np.memmap(self.ends_path, "<u8", "r+" if is_continued else "w+", shape=(plan.starts,))
        self.done = np.memmap(self.done_path, "u1", "r+" if is_continued else "w+", shape=(jobs,))

    def save_job(self, job: int, begin: int, ends: np.ndarray) -> None:
        """Write the ends of a job, and only then mark the job as done, so that an interruption loses nothing."""
        self.ends[begin : begin + len(ends)] = ends
        self.ends.flush()
        self.done[job] = 1
        self.done.flush()

    def remove(self) -> None:
        """Remove the files."""
        self.ends_path.unlink()
        self.done_path.unlink()


def load_tables(folder: Path) -> list[Table]:
    """Return all tables of a folder. Raises UsageError when there is none, ResultError when one is damaged."""
    loaded = [Table(path) for path in sorted(folder.glob("*.rainbow"))]
    if not loaded:
        raise UsageError(f"there is no table in {folder}; build tables with `bramble rainbow build`, or choose another --folder")
    return loaded
