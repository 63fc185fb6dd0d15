"""Replace files and links in one step: after a power cut, the disk has either the old one or the new one, complete."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def stage_file(
    path: str | Path,
    content: bytes | str,
    *,
    mode: int | None = None,
    gid: int | None = None,
    folder_owner: bool = False,
    fsync: bool = True,
) -> Path:
    """Write new content to a temporary file beside a file, and return its path, for `place_file`. Raises OSError.

    The temporary file is called .NAME.new, so that programs that read a folder of configuration files ignore it. One that an
    earlier run left is removed. Text is written as UTF-8, with surrogates as the bytes that they stand for.

    :param mode: permissions; None keeps those of the file, or sets 0644 for a new file
    :param gid: group; None keeps that of the file, or of the process for a new file
    :param folder_owner: when run by root, take owner and group from the folder: with sudo, the file still belongs to the user
    :param fsync: wait until the content is on the disk
    """
    path = Path(path)
    before = path.stat() if path.exists() else None
    if mode is None:
        mode = before.st_mode & 0o7777 if before else 0o644
    if gid is None and before:
        gid = before.st_gid
    uid = -1
    if folder_owner and not os.geteuid():
        folder = path.parent.stat()
        uid, gid = folder.st_uid, folder.st_gid
    staged = path.with_name(f".{path.name}.new")
    staged.unlink(missing_ok=True)
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
            file.flush()
            with contextlib.suppress(PermissionError):  # On FAT, all files have the mode and owner of the mount.
                if gid is not None:
                    os.fchown(descriptor, uid, gid)
                os.fchmod(descriptor, mode)
            if fsync:
                os.fsync(descriptor)
    except BaseException:
        os.unlink(staged)
        raise
    return staged


def place_file(staged: Path, path: str | Path, *, fsync: bool = True) -> None:
    """Move a staged file to its final path, also on FAT. Raises OSError."""
    os.replace(staged, path)
    if fsync:
        sync_folder(Path(path).parent)


def replace_file(
    path: str | Path, content: bytes | str, *, mode: int | None = None, folder_owner: bool = False, fsync: bool = True
) -> None:
    """Replace a file, or create it in an existing folder. Raises OSError. The parameters are those of `stage_file`."""
    place_file(stage_file(path, content, mode=mode, folder_owner=folder_owner, fsync=fsync), path, fsync=fsync)


def replace_link(path: str | Path, target: str | Path) -> None:
    """Create a symbolic link to `target`, or replace it. Raises OSError."""
    path = Path(path)
    staged = path.with_name(f".{path.name}.new")
    staged.unlink(missing_ok=True)
    staged.symlink_to(target)
    os.replace(staged, path)


def sync_folder(folder: str | Path) -> None:
    """Wait until the changes of a folder (files created, renamed or removed in it) are on the disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
