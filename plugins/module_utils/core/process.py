"""Run a program of the control machine, and explain in a message why it failed."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import IO

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.tools import not_installed

LineSelector = Callable[[str], Sequence[str]]
"""Returns the lines of a program's output that explain why it failed."""


def last_lines(output: str) -> Sequence[str]:
    """Return the last eight lines that are not empty."""
    return [line.strip() for line in output.splitlines() if line.strip()][-8:]


def first_error_lines(output: str) -> Sequence[str]:
    """Return the first six lines of the output of e2fsprogs or dosfstools, without titles of passes and the program's version."""
    lines = output.splitlines()
    return [line.strip() for line in lines if not re.match(r"\s*$|Pass \d|\w+ \d+\.\d+\S* \(", line)][:6]


def run_program(
    command: Sequence[str | Path],
    *,
    input: str | bytes = b"",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float | None = None,
    pass_fds: Collection[int] = (),
    stdout: IO[str] | IO[bytes] | None = None,
    merge_stderr: bool = False,
    exit_codes: Collection[int] | None = (0,),
    select_lines: LineSelector = last_lines,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end, and return its exit code, standard output and standard error.

    :param input: the program's standard input; surrogates in text are the bytes that they stand for
    :param timeout: seconds
    :param stdout: a file that gets the standard output, which is then empty in the result
    :param merge_stderr: write standard error into standard output, in the order in which the program writes both
    :param exit_codes: the exit codes that are not an error; None for all
    :param select_lines: returns the lines that the error message quotes, from standard error, or from standard output if that is
        empty
    :raises BrambleError: when the program is not installed, does not end within `timeout`, or ends with another exit code
    """
    name = os.path.basename(command[0])
    try:
        result = subprocess.run(
            command,
            input=input.encode(errors="surrogateescape") if isinstance(input, str) else input,
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.STDOUT if merge_stderr else subprocess.PIPE,
            check=False,
            env=env,
            cwd=cwd,
            timeout=timeout,
            pass_fds=pass_fds,
        )
    except FileNotFoundError:
        raise BrambleError(not_installed(name)) from None
    except subprocess.TimeoutExpired:
        raise BrambleError(f"{name} did not end within {timeout:g} seconds") from None
    if exit_codes is not None and result.returncode not in exit_codes:
        output = ((result.stderr or b"").strip() or (result.stdout or b"").strip()).decode(errors="replace")
        raise BrambleError(f"{name} failed with exit code {result.returncode}: {'; '.join(select_lines(output))}")
    return result
