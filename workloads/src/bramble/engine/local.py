"""The engine that computes on one core of this machine."""

import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

from bramble.engine.base import Engine
from bramble.engine.outcome import Kernel, Outcome, call_kernel


class Local(Engine):
    """One core: this process runs one job after the other."""

    def __init__(self) -> None:
        self.nodes = (socket.gethostname(),)
        self.label = f"one core of {self.nodes[0]}"

    def map(self, kernel: Kernel, arguments: Sequence[Any], nodes: Sequence[str] | None = None) -> Iterator[Outcome]:
        """Yield one Outcome per argument, in their order: see Engine.map."""
        begin, node = time.monotonic(), self.nodes[0]
        for index, argument in enumerate(arguments):
            yield call_kernel(kernel, argument, node).to_outcome(index, argument, node, time.monotonic() - begin)
