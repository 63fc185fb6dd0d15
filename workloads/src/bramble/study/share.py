"""Shares: independent machines compute every n-th job each, and their results are merged afterwards.

    bramble pi --points 1e9 --on workstation --share 2/8 --report FOLDER    # jobs 1, 9, 17...: FOLDER/pi-share-2-of-8.json
    bramble pi --points 1e9 --merge FOLDER                                  # from all eight files, the result of one run

This works for programs whose jobs are all known before the first one begins. The role kubernetes_workloads uses it in an
Indexed Job.
"""

import base64
import dataclasses
import hashlib
import io
import json
import pickle
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bramble import ResultError, UsageError
from bramble.engine import places
from bramble.engine.base import Engine, Place
from bramble.engine.outcome import Kernel, Outcome

NUMPY_NAMES = {"numpy.ndarray", "numpy.dtype", "numpy._core.multiarray._reconstruct", "numpy._core.multiarray.scalar"}


class ShareComplete(Exception):
    """A share is complete; `record` is its record. It ends the program, which cannot continue with some of the results."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record


class _ResultUnpickler(pickle.Unpickler):
    """Unpickles what kernels return (numbers, containers, arrays, dataclasses of this package) and nothing that can run code."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a type that kernels return. Raises UsageError for all others."""
        if f"{module}.{name}" in NUMPY_NAMES:
            return super().find_class(module, name)
        if module.startswith("bramble.") and "." not in name:
            result_type = super().find_class(module, name)
            if isinstance(result_type, type) and (dataclasses.is_dataclass(result_type) or issubclass(result_type, tuple)):
                return result_type
        raise UsageError(f"a share contains {module}.{name}, which no kernel returns; do not use this file")


def request_hash(kernel: Kernel, arguments: Sequence[Any]) -> str:
    """Return a hash of kernel and arguments, by which shares of different requests are told apart."""
    return hashlib.sha256(repr((kernel.__module__, kernel.__name__, list(arguments))).encode()).hexdigest()


class Share(Engine):
    """One share of the jobs, those with the numbers `index` - 1, `index` - 1 + `count`..., on another engine."""

    def __init__(self, engine: Engine, index: int, count: int) -> None:
        self.engine, self.index, self.count = engine, index, count
        self.nodes, self.label = engine.nodes, f"{engine.label}, share {index} of {count}"

    def jobs_at_once(self, nodes: Sequence[str] | None = None) -> int:
        """Return how many jobs run at once: see Engine."""
        return self.engine.jobs_at_once(nodes)

    def warm_up(self, kernel: Kernel) -> None:
        """Import the kernel in every worker: see Engine."""
        self.engine.warm_up(kernel)

    def map(self, kernel: Kernel, arguments: Sequence[Any], nodes: Sequence[str] | None = None) -> Iterator[Outcome]:
        """Yield the outcomes of the share, then raise ShareComplete. Raises ResultError when a job is lost."""
        indices = range(self.index - 1, len(arguments), self.count)
        begin, ended = time.perf_counter(), []
        for outcome in self.engine.map(kernel, [arguments[index] for index in indices]):
            if outcome.lost is not None:
                raise ResultError(f"job {indices[outcome.index]} was lost: {outcome.lost}")
            ended.append((indices[outcome.index], outcome.result, outcome.seconds))
            yield outcome
        raise ShareComplete(
            {
                "share": self.index,
                "of": self.count,
                "work": request_hash(kernel, arguments),
                "node": self.nodes[0],
                "slots": self.jobs_at_once(),
                "seconds": time.perf_counter() - begin,
                "results": base64.b64encode(pickle.dumps(ended)).decode(),
            }
        )

    def close(self) -> None:
        """End the engine below."""
        self.engine.close()


class MergedShares(Engine):
    """The results of all shares, from the files in a folder."""

    def __init__(self, folder: Path) -> None:
        """Read the shares. Raises UsageError when a share is missing or present twice, or a file is not a share."""
        self.folder, self.is_mapped = folder, False
        records: dict[int, dict[str, Any]] = {}
        for path in sorted(folder.glob("*.json")):
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                record["results"] = _ResultUnpickler(io.BytesIO(base64.b64decode(record["results"]))).load()
                first = records.setdefault(record["share"], record)
                if first is not record:
                    raise UsageError(f"{path}: share {record['share']} is present twice; remove one of the files")
            except (OSError, ValueError, LookupError, TypeError, pickle.UnpicklingError) as error:
                raise UsageError(
                    f"{path} is not a share: {error!r}; remove it from the folder; --share I/N writes shares"
                ) from None
        if len({(record["of"], record["work"]) for record in records.values()}) > 1:
            raise UsageError(f"the shares in {folder} are of different requests; keep those of one request in the folder")
        count = next((record["of"] for record in records.values()), 1)
        if missing := sorted(set(range(1, count + 1)) - records.keys()):
            names = ", ".join(map(str, missing))
            raise UsageError(f"{folder} does not contain share {names} of {count}; run the program with --share I/{count} for it")
        self.shares = list(records.values())
        self.nodes = tuple(sorted({str(share["node"]) for share in self.shares}))
        self.label = f"{count} shares in {folder}"
        self.seconds = self.recorded_seconds = max(float(share["seconds"]) for share in self.shares)

    def jobs_at_once(self, nodes: Sequence[str] | None = None) -> int:
        """Return how many jobs ran at once when the shares were computed."""
        return sum(int(share["slots"]) for share in self.shares)

    def warm_up(self, kernel: Kernel) -> None:
        """Do nothing, since nothing is computed."""

    def map(self, kernel: Kernel, arguments: Sequence[Any], nodes: Sequence[str] | None = None) -> Iterator[Outcome]:
        """Yield the outcomes of all shares.

        Raises UsageError when the shares are of another request, or the program needs more jobs than they have.
        """
        if self.is_mapped:
            raise UsageError("this program starts more jobs after the first results, so it cannot be shared; use --on cluster")
        self.is_mapped = True
        if any(share["work"] != request_hash(kernel, arguments) for share in self.shares):
            raise UsageError(
                f"the shares in {self.folder} are of another request than this one; use --merge with the options that --share had"
            )
        for share in self.shares:
            for index, result, seconds in share["results"]:
                yield Outcome(index, result, str(share["node"]), seconds, self.seconds)


def connect(place: Place, share: tuple[int, int]) -> Share:
    """Return the engine for a share. Raises UsageError for the cluster."""
    if place == "cluster":
        raise UsageError("--share runs on one machine: add --on local or --on workstation")
    return Share(places.connect(place), *share)
