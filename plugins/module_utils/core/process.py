"""One way to run a program of the control machine, and to say in words what went wrong."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.tools import not_installed

Words = Callable[[str], Sequence[str]]
"""Picks from a program's output the lines that explain why it failed."""


def last_lines(output: str) -> Sequence[str]:
    """Return the last eight lines that are not empty."""
    return [line.strip() for line in output.splitlines() if line.strip()][-8:]


def run(
    command: Sequence[str | Path],
    *,
    input: str | bytes = b"",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float | None = None,
    pass_fds: Collection[int] = (),
    merge: bool = False,
    accept: Collection[int] | None = (0,),
    words: Words = last_lines,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end, and return its exit code, standard output and standard error.

    Raises BrambleError when it is not installed, when it does not end within `timeout` seconds, and when its exit code is not one
    of `accept`; None accepts every code.

    :param input: its standard input; surrogates in text are the bytes that they stand for
    :param merge: its standard error goes into its standard output, in the order in which both are written
    :param words: what of its standard error, or of its standard output if that is empty, the message quotes
    """
    name = os.path.basename(command[0])
    try:
        result = subprocess.run(
            command,
            input=input.encode(errors="surrogateescape") if isinstance(input, str) else input,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merge else subprocess.PIPE,
            check=False,
            env=env,
            cwd=cwd,
            timeout=timeout,
            pass_fds=pass_fds,
        )
    except FileNotFoundError:
        raise BrambleError(not_installed(name)) from None
    except subprocess.TimeoutExpired:
        raise BrambleError(f"{name} has not ended within {timeout:g} s") from None
    if accept is not None and result.returncode not in accept:
        output = ((result.stderr or b"").strip() or result.stdout.strip()).decode(errors="replace")
        raise BrambleError(f"{name} ended with {result.returncode}: {'; '.join(words(output))}")
    return result
