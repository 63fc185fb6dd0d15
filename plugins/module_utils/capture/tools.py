"""The programs that a capture runs on the control machine."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from ansible_collections.bramble.cluster.plugins.module_utils.core import process
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.tools import TOOL_ENV, missing_packages

TOOLS = ("debugfs", "dumpe2fs", "e2fsck", "resize2fs", "fatlabel", "fsck.vfat", "mkfs.vfat", "mcopy", "zstd", "xz")


def run_tool(*command: str | Path, input: str = "", accept: Collection[int] = (0,)) -> str:
    """Run a program, and return its standard output and standard error as one text; surrogates are bytes that are no UTF-8.

    Raises BrambleError with its first complaints when its exit code is not one of `accept`.
    """
    result = process.run(command, input=input, env=TOOL_ENV, merge=True, accept=accept, words=_first_complaints)
    return result.stdout.decode(errors="surrogateescape")


def _first_complaints(output: str) -> Sequence[str]:
    """Return the first six lines that are neither the title of a pass nor a program's version."""
    lines = output.splitlines()
    return [line.strip() for line in lines if not re.match(r"\s*$|Pass \d|\w+ \d+\.\d+\S* \(", line)][:6]


def check_tools(path: str = TOOL_ENV["PATH"]) -> None:
    """Check that all programs are installed. Raises BrambleError, naming the packages that bring the missing ones."""
    if missing := missing_packages(TOOLS, path):
        raise BrambleError(
            f"Missing on this machine: {', '.join(missing)}. Nothing was captured. Next: apt install {' '.join(missing)}"
        )
