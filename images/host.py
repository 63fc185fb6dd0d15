"""Functions that the builders of images share: run programs, report steps, and hash the sources of an image."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

from ansible_collections.bramble.cluster.plugins.module_utils.core import process
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def report_step(message: str) -> None:
    """Write a line about the current step to standard error."""
    print(message, file=sys.stderr, flush=True)


def run(*command: str | Path) -> None:
    """Run a program. Raises BrambleError with the end of its output when it fails; otherwise, its output is not shown."""
    result = process.run_program(command, merge_stderr=True, exit_codes=None)
    if result.returncode:
        tail = "\n".join(result.stdout.decode(errors="replace").splitlines()[-20:])
        raise BrambleError(
            f"{' '.join(map(str, command))}\nfailed with exit code {result.returncode}. The end of its output:\n{tail}\n"
            "The incomplete image was removed. Correct the cause, then run the same command again."
        )


def native_architecture() -> str:
    """Return the Debian architecture of this machine."""
    return ARCHITECTURES.get(platform.machine(), platform.machine())


def fingerprint(paths: Iterable[Path], *words: str) -> str:
    """Return the SHA-256 of file trees (names, contents and links) and of words."""
    digest = hashlib.sha256()
    for word in words:
        digest.update(f"{len(word)} {word}\n".encode())
    for root in paths:
        for path in [root] if root.is_file() else sorted(root.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                continue
            content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
            digest.update(f"{path.relative_to(root.parent)} {len(content)}\n".encode() + content)
    return digest.hexdigest()
