"""Small text files, read and replaced in one step."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.bramble.cluster.plugins.module_utils.core.atomic import place_file, stage_file


def read(path: Path) -> str:
    """Return a file's text, of any encoding; empty if there is none. Raises OSError."""
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return ""


def stage(path: Path, text: str, mode: int | None = None, gid: int | None = None) -> str:
    """Write the new text of a file beside it, to the disk, and return the name of that, for `place`. Raises OSError.

    Without `mode` and `gid` it keeps its own.
    """
    try:
        return str(stage_file(path, text, mode=mode, gid=gid))
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}, so it was left as it is", str(path)) from error


def place(temporary: str, path: Path) -> None:
    """Replace a file by what was staged, also on FAT. Raises OSError."""
    place_file(Path(temporary), path)


def write(path: Path, text: str) -> None:
    """Replace a file. Raises OSError."""
    place(stage(path, text), path)


def shown(text: str) -> str:
    """Return a file's text as Ansible can show it."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
