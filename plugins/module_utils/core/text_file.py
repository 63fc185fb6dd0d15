"""Small text files, replaced in one step: after a power cut a file is the old one or the new one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def read(path: Path) -> str:
    """A file's text, of any encoding; empty if there is none. Raises OSError."""
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return ""


def stage(path: Path, text: str, mode: int | None = None, gid: int | None = None) -> str:
    """Write what a file is to be beside it, down to the card; returns the name for `place`. Raises OSError.

    Without a mode it keeps its own, likewise its group.
    """
    temporary = None
    try:
        if mode is None:
            mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix="bramble-", delete=False) as file:
            temporary = file.name
            file.write(text.encode("utf-8", "surrogateescape"))
            file.flush()
            with contextlib.suppress(PermissionError):  # FAT: its mode is that of the mount
                if gid is not None or path.exists():
                    os.fchown(file.fileno(), -1, path.stat().st_gid if gid is None else gid)
                os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
    except OSError as error:
        if temporary:
            os.unlink(temporary)
        raise OSError(error.errno, f"{error.strerror}, so it was left as it is", str(path)) from error
    return temporary


def place(temporary: str, path: Path) -> None:
    """Replace a file by what was staged, also on FAT. Raises OSError."""
    os.rename(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write(path: Path, text: str) -> None:
    """Replace a file. Raises OSError."""
    place(stage(path, text), path)


def shown(text: str) -> str:
    """A file's text as Ansible can show it."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
