"""Check that a disk has enough space for an image. Sizes are in bytes."""

from __future__ import annotations

import os
import shutil

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import format_bytes

ASSUMED_EXPANSION = 6  # an image of unknown size is assumed to be this many times as large as its download
RESERVED_BYTES = 64 * 2**20  # this much of the disk stays free


def check_space(folder: str, size: int, purpose: str) -> None:
    """Check that the disk of a folder, which need not exist yet, has space for `size` bytes. Raises BrambleError."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    if free < size + RESERVED_BYTES:
        raise BrambleError(
            f"There is no space for {purpose} in {folder}: it needs {format_bytes(size + RESERVED_BYTES)}, "
            f"and {format_bytes(free)} are free. Free space there, or set image_cache_dir to a folder on a larger disk"
        )
