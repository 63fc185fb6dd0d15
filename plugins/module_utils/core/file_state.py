"""The state of a file, which shows whether it was written to."""

from __future__ import annotations

import os
from typing import NamedTuple


class FileState(NamedTuple):
    """Numbers that change when a file is written to, also if its mtime is put back then, as by rsync --inplace --times."""

    device: int
    inode: int
    bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, file: int | str) -> FileState:
        """Return the state of a path or of an open descriptor. Raises OSError."""
        status = os.stat(file)
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
