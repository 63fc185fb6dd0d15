"""Check that a disk has room for an image. Sizes are in bytes."""

from __future__ import annotations

import os
import shutil

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import format_bytes

DECODES_TO = 6  # an image of unknown size is taken to be this many times its download, when space is looked for
SPARE = 64 * 2**20  # what is left free on the disk


def check_space(folder: str, size: int, what: str) -> None:
    """Check that a folder, which need not exist yet, has room for `size` bytes and SPARE. Raises BrambleError."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    if free < size + SPARE:
        raise BrambleError(
            f"There is no space for {what} in {folder}: it needs {format_bytes(size + SPARE)} and {format_bytes(free)} are free. "
            "Free some, or set image_cache_dir to a folder on a larger disk"
        )
