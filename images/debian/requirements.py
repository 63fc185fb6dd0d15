"""What must be so before a build writes anything: architecture, programs, space, memory."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from ansible_collections.bramble.cluster.images.debian.emulation import FOREIGN, FOREIGN_KERNEL
from ansible_collections.bramble.cluster.images.debian.packages import KEYRING
from ansible_collections.bramble.cluster.images.debian.recipe import Recipe
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.tools import missing_packages

TOOLS = ("mcopy", "mke2fs", "mkfs.vfat", "mmdebstrap", "setpriv", "unshare")
NEEDED_BYTES = 2_500_000_000


def check_architecture(recipe: Recipe, architecture: str, native: str, release: str) -> None:
    """Check that a machine of the architecture `native` with a release of Linux can build a recipe. Raises BrambleError."""
    own = "or give an image of your own: -e image_file=FILE -e image_sha256=SUM."
    if architecture not in recipe.architectures:
        known = ", ".join(recipe.architectures)
        raise BrambleError(
            f"{recipe.name} can not be built for {architecture}, only for {known}. Set cluster_architecture, {own}"
        )
    if architecture == native:
        return
    here = f"{recipe.name} for {architecture} can not be built on this machine, which is {native}"
    if architecture not in FOREIGN:
        raise BrambleError(f"{here}. Build it on a machine that is {architecture}, {own}")
    if tuple(int(number) for number in re.findall(r"\d+", release)[:2]) < FOREIGN_KERNEL:
        needed = ".".join(map(str, FOREIGN_KERNEL))
        raise BrambleError(
            f"{here} and runs Linux {release}: that needs Linux {needed} or newer (Debian 13, Ubuntu 24.04, or the kernel of "
            f"bookworm-backports on Debian 12). Build it on such a machine or on one that is {architecture}, {own}"
        )


def check_tools(keyring: Path = KEYRING) -> None:
    """Check that all programs are installed. Raises BrambleError, naming the packages that bring the missing ones."""
    missing = missing_packages(TOOLS)
    if not keyring.exists():
        missing.append("debian-archive-keyring")
    if missing:
        raise BrambleError(f"Missing on this machine: {', '.join(missing)}. Next: apt-get install {' '.join(missing)}")


def check_space(cache: Path, needed: int = NEEDED_BYTES) -> None:
    """Check that the disk has room for a build. Raises BrambleError."""
    free = shutil.disk_usage(cache).free
    if free < needed:
        raise BrambleError(
            f"Too little space in {cache}: {free:,} bytes are free, a build needs {needed:,}. "
            "Free some, or set cluster_cache_dir to a place with more."
        )


def available_memory(meminfo: str) -> int:
    """Return the bytes of available memory, from the text of /proc/meminfo."""
    return next((int(line.split()[1]) * 1024 for line in meminfo.splitlines() if line.startswith("MemAvailable:")), 0)
