"""The programs that the control machine needs: their environment, and the Debian packages that bring them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable

# For programs that look at file systems and change them: the same output and the same dates everywhere.
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
    """Return the message for a program that is missing on this machine, with the command that installs it."""
    install = f": apt install {PACKAGES[program]}" if program in PACKAGES else ""
    return f"{program} is not installed on this machine{install}"


def missing_packages(programs: Iterable[str], path: str | None = None) -> list[str]:
    """Return the Debian packages of those programs that are not in `path` (by default PATH), sorted."""
    return sorted({PACKAGES[program] for program in programs if shutil.which(program, path=path) is None})
