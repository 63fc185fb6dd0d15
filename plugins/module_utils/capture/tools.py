"""Run the programs that a capture needs on the control machine."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ansible_collections.bramble.cluster.plugins.module_utils.core import process
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.tools import TOOL_ENV, missing_packages

TOOLS = ("blkid", "debugfs", "dumpe2fs", "e2fsck", "resize2fs", "fsck.vfat", "zstd", "xz")


def run_tool(*command: str | Path, input: str = "", exit_codes: Collection[int] = (0,), pass_fds: Collection[int] = ()) -> str:
    """Run a program, and return its standard output and standard error as one text. Bytes that are not UTF-8 become surrogates.

    A Path in the command becomes a name in its folder, as e2fsprogs take the text after a question mark in a path for options.

    Raises BrambleError, with the first lines of its errors, when its exit code is not one of `exit_codes`.
    """
    result = process.run_program(
        [f"./{word.name}" if isinstance(word, Path) else word for word in command],
        input=input,
        env=TOOL_ENV,
        cwd=next((word.parent for word in command if isinstance(word, Path)), None),
        pass_fds=pass_fds,
        merge_stderr=True,
        exit_codes=exit_codes,
        select_lines=process.first_error_lines,
    )
    return result.stdout.decode(errors="surrogateescape")


def check_tools(path: str = TOOL_ENV["PATH"]) -> None:
    """Check that all programs are installed. Raises BrambleError with the packages of the missing ones."""
    if missing := missing_packages(TOOLS, path):
        raise BrambleError(
            f"This machine lacks the packages {', '.join(missing)}. Nothing was captured. Next: apt install {' '.join(missing)}"
        )
