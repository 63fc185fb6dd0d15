"""Machines that know nothing of each other: each does every n-th job, and what they found is put together afterwards.

    bramble pi --points 1e9 --on workstation --share 2/8 --report FOLDER    # jobs 1, 9, 17...: FOLDER/pi-share-2-of-8.json
    bramble pi --points 1e9 --merge FOLDER                                  # from all eight files the same result as ever

For programs whose jobs are all known before the first one begins. In roles/kubernetes_workloads an Indexed Job does so.
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
    """A share is done: the record of it. Raised out of the program, which can not go on with a part of the results."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record


class _ResultUnpickler(pickle.Unpickler):
    """Reads what kernels return, and nothing that could run code: numbers, containers, arrays, dataclasses of this package."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" in NUMPY_NAMES:
            return super().find_class(module, name)
        if module.startswith("bramble.") and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type) and (dataclasses.is_dataclass(found) or issubclass(found, tuple)):
                return found
        raise UsageError(f"a share has {module}.{name} in it, which no kernel returns")


def request_hash(kernel: Kernel, arguments: Sequence[Any]) -> str:
    """A hash of what is to be done: shares of different requests must not be mixed."""
    return hashlib.sha256(repr((kernel.__module__, kernel.__name__, list(arguments))).encode()).hexdigest()


class Share(Engine):
    """One share of the jobs: numbers `index` - 1, `index` - 1 + `count`..., done by another engine."""

    def __init__(self, engine: Engine, index: int, count: int) -> None:
        self.engine, self.index, self.count = engine, index, count
        self.nodes, self.label = engine.nodes, f"{engine.label}, share {index} of {count}"

    def slots(self, nodes: Sequence[str] | None = None) -> int:
        return self.engine.slots(nodes)

    def warm_up(self, kernel: Kernel) -> None:
        self.engine.warm_up(kernel)

    def map(self, kernel: Kernel, arguments: Sequence[Any], nodes: Sequence[str] | None = None) -> Iterator[Outcome]:
        """Do the share, then raise ShareComplete. Raises ResultError when a job is lost."""
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
                "slots": self.slots(),
                "seconds": time.perf_counter() - begin,
                "results": base64.b64encode(pickle.dumps(ended)).decode(),
            }
        )

    def close(self) -> None:
        self.engine.close()


class MergedShares(Engine):
    """What all shares found, from the files in a folder."""

    def __init__(self, folder: Path) -> None:
        """Raises UsageError when a share is missing, twice there, or not one."""
        self.folder, self.is_mapped = folder, False
        found: dict[int, dict[str, Any]] = {}
        for path in sorted(folder.glob("*.json")):
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                record["results"] = _ResultUnpickler(io.BytesIO(base64.b64decode(record["results"]))).load()
                first = found.setdefault(record["share"], record)
                if first is not record:
                    raise UsageError(f"{path}: share {record['share']} is there twice")
            except (OSError, ValueError, LookupError, TypeError, pickle.UnpicklingError) as error:
                raise UsageError(f"{path} is no share: {error!r}; --share I/N writes them") from None
        if len({(record["of"], record["work"]) for record in found.values()}) > 1:
            raise UsageError(f"the shares in {folder} are of different requests; --merge takes those of one")
        count = next((record["of"] for record in found.values()), 1)
        if missing := sorted(set(range(1, count + 1)) - found.keys()):
            raise UsageError(f"{folder} lacks share {', '.join(map(str, missing))} of {count}; --share I/N writes them")
        self.shares = list(found.values())
        self.nodes = tuple(sorted({str(share["node"]) for share in self.shares}))
        self.label = f"{count} shares in {folder}"
        self.seconds = self.recorded_seconds = max(float(share["seconds"]) for share in self.shares)

    def slots(self, nodes: Sequence[str] | None = None) -> int:
        return sum(int(share["slots"]) for share in self.shares)

    def warm_up(self, kernel: Kernel) -> None:
        """Nothing is computed."""

    def map(self, kernel: Kernel, arguments: Sequence[Any], nodes: Sequence[str] | None = None) -> Iterator[Outcome]:
        """Raises UsageError when the shares are of another request, or the program wants more than they have."""
        if self.is_mapped:
            raise UsageError(
                "this program asks for more jobs when it has the first results, which no share can; use --on cluster"
            )
        self.is_mapped = True
        if any(share["work"] != request_hash(kernel, arguments) for share in self.shares):
            raise UsageError(f"the shares in {self.folder} are of another request than this one; --merge takes the same options")
        for share in self.shares:
            for index, result, seconds in share["results"]:
                yield Outcome(index, result, str(share["node"]), seconds, self.seconds)


def connect(place: Place, share: tuple[int, int]) -> Share:
    """The engine for a share. Raises UsageError."""
    if place == "cluster":
        raise UsageError("--share is for one machine: --on local or --on workstation")
    return Share(places.connect(place), *share)
