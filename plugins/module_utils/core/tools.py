"""The programs that the control machine needs: their environment, and the Debian packages that contain them."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterable

# For programs that read and change file systems: their output and their dates must not depend on locale and time zone.
TOOL_ENV = {
    "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "MTOOLS_SKIP_CHECK": "1",
}
PACKAGES = {
    "apt-get": "apt",
    "bzip2": "bzip2",
    "debugfs": "e2fsprogs",
    "dpkg-deb": "dpkg",
    "dumpe2fs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "f3probe": "f3",
    "fatlabel": "dosfstools",
    "fsck.vfat": "dosfstools",
    "gpgv": "gpgv",
    "gzip": "gzip",
    "mcopy": "mtools",
    "mdir": "mtools",
    "mke2fs": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "mmdebstrap": "mmdebstrap",
    "mtype": "mtools",
    "resize2fs": "e2fsprogs",
    "setpriv": "util-linux",
    "ssh-keygen": "openssh-client",
    "unshare": "util-linux",
    "xz": "xz-utils",
    "zstd": "zstd",
}


def not_installed(program: str) -> str:
    """Return the error message for a missing program, with the command that installs it."""
    install = f". Next: apt-get install {PACKAGES[program]}" if program in PACKAGES else ""
    return f"{program} is not installed on {socket.gethostname()}{install}"


def missing_packages(programs: Iterable[str], path: str | None = None) -> list[str]:
    """Return the sorted Debian packages of those programs that are not in `path` (by default $PATH)."""
    return sorted({PACKAGES[program] for program in programs if shutil.which(program, path=path) is None})
