"""Read small text files, and replace them in one step."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.bramble.cluster.plugins.module_utils.core.atomic import place_file, stage_file


def read_text(path: Path) -> str:
    """Return the text of a file; "" if it does not exist. Bytes that are not UTF-8 become surrogates. Raises OSError."""
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return ""


def stage_text(path: Path, text: str, mode: int | None = None, gid: int | None = None) -> str:
    """Write new text to a temporary file beside a file, and return its path, for `place_text`. Raises OSError.

    Without `mode` and `gid`, the file keeps its permissions and its group.
    """
    try:
        return str(stage_file(path, text, mode=mode, gid=gid))
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}, so the file was not changed", str(path)) from error


def place_text(temporary: str, path: Path) -> None:
    """Replace a file by its staged text, also on FAT. Raises OSError."""
    place_file(Path(temporary), path)


def write_text(path: Path, text: str) -> None:
    """Replace the text of a file in one step. Raises OSError."""
    place_text(stage_text(path, text), path)


def printable_text(text: str) -> str:
    """Return a file's text without surrogates, which Ansible cannot print."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
