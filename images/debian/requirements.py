"""Check the requirements of a build before it writes anything: architecture, programs, disk space, memory."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from ansible_collections.bramble.cluster.images.debian.emulation import EMULATED_ARCHITECTURES, MIN_EMULATION_KERNEL
from ansible_collections.bramble.cluster.images.debian.packages import KEYRING
from ansible_collections.bramble.cluster.images.debian.recipe import Recipe
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.tools import missing_packages

TOOLS = ("mcopy", "mke2fs", "mkfs.vfat", "mmdebstrap", "setpriv", "unshare")
NEEDED_BYTES = 2_500_000_000


def check_architecture(recipe: Recipe, architecture: str, native: str, release: str) -> None:
    """Check that a recipe can be built for an architecture on this machine. Raises BrambleError.

    :param native: the architecture of this machine
    :param release: its release of Linux, such as 6.12.0
    """
    alternative = "or use an image of your own: -e image_file=FILE -e image_sha256=SUM."
    if architecture not in recipe.architectures:
        known = ", ".join(recipe.architectures)
        raise BrambleError(
            f"{recipe.name} cannot be built for {architecture}, only for {known}. Set cluster_architecture, {alternative}"
        )
    if architecture == native:
        return
    problem = f"{recipe.name} for {architecture} cannot be built on the control machine, which is {native}"
    if architecture not in EMULATED_ARCHITECTURES:
        raise BrambleError(f"{problem}. Build it on a machine that is {architecture}, {alternative}")
    if tuple(int(number) for number in re.findall(r"\d+", release)[:2]) < MIN_EMULATION_KERNEL:
        needed = ".".join(map(str, MIN_EMULATION_KERNEL))
        raise BrambleError(
            f"{problem} and runs Linux {release}: emulation needs Linux {needed} or newer (Debian 13, Ubuntu 24.04, "
            f"or the kernel of bookworm-backports on Debian 12). Build it on such a machine or on one that is {architecture}, "
            f"{alternative}"
        )


def check_tools(keyring: Path = KEYRING) -> None:
    """Check that all programs are installed. Raises BrambleError with the packages of the missing ones."""
    missing = missing_packages(TOOLS)
    if not keyring.exists():
        missing.append("debian-archive-keyring")
    if missing:
        raise BrambleError(
            f"The control machine lacks the packages {', '.join(missing)}. Next: apt-get install {' '.join(missing)}"
        )


def check_space(cache: Path, needed: int = NEEDED_BYTES) -> None:
    """Check that the disk has enough space for a build. Raises BrambleError."""
    free = shutil.disk_usage(cache).free
    if free < needed:
        raise BrambleError(
            f"Too little space in {cache}: {free:,} bytes are free, and a build needs {needed:,}. "
            "Free space there, or set cluster_cache_dir to a folder on a larger disk."
        )


def available_memory(meminfo: str) -> int:
    """Return the bytes of available memory, from the text of /proc/meminfo."""
    return next((int(line.split()[1]) * 1024 for line in meminfo.splitlines() if line.startswith("MemAvailable:")), 0)
