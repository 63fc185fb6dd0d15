"""Files and links replaced in one step: after a power cut there is the old one or the new one, and it is on the disk."""

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
    """Write the new content of a file beside it, and return the path of that, for `place_file`. Raises OSError.

    The name, .NAME.new, is one that no reader of a folder of settings takes for a setting; what an earlier run left under it is
    removed. Text is written in UTF-8, with surrogates as the bytes that they stand for.

    :param mode: permissions; None for those that the file has, or 0644
    :param gid: group; None for the one that the file has, or the process's
    :param folder_owner: for root, owner and group are those of the folder: with sudo the file is the user's all the same
    :param fsync: whether the content is on the disk when this returns
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
            with contextlib.suppress(PermissionError):  # FAT: its files have the mode and owner of the mount
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
    """Put a staged file in the place of a file, also on FAT. Raises OSError."""
    os.replace(staged, path)
    if fsync:
        sync_folder(Path(path).parent)


def replace_file(
    path: str | Path, content: bytes | str, *, mode: int | None = None, folder_owner: bool = False, fsync: bool = True
) -> None:
    """Replace a file, or create it in a folder that exists. Raises OSError. Parameters: see `stage_file`."""
    place_file(stage_file(path, content, mode=mode, folder_owner=folder_owner, fsync=fsync), path, fsync=fsync)


def replace_link(path: str | Path, target: str | Path) -> None:
    """Replace a symbolic link, or create it, so that it leads to `target`. Raises OSError."""
    path = Path(path)
    staged = path.with_name(f".{path.name}.new")
    staged.unlink(missing_ok=True)
    staged.symlink_to(target)
    os.replace(staged, path)


def sync_folder(folder: str | Path) -> None:
    """Wait until what was created, renamed or removed in a folder is on the disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
