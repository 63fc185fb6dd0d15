"""Check that a disk has enough space for an image. Sizes are in bytes."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import format_bytes

ASSUMED_EXPANSION = 6  # an image of unknown size is assumed to be this many times as large as its download
RESERVED_BYTES = 64 * 2**20  # this much of the disk stays free
# A partition table (MBR) addresses 2^32 sectors of 512 bytes, and the largest SDXC card has 2 TB.
MAX_CARD_BYTES = 2**32 * 512


@dataclass(frozen=True)
class SizeLimit:
    """The largest size of an image or a download of unknown size; `reason` continues a sentence about more bytes than that."""

    bytes: int
    reason: str


def size_limit(folder: str) -> SizeLimit:
    """Return the limit for a file of unknown size in a folder: the free space, or the largest card.

    This ends a file that never ends, such as a few MB that decode to many TB of zeros, which would take hours but no space.
    """
    free = max(_free_bytes(folder) - RESERVED_BYTES, 0)
    if free < MAX_CARD_BYTES:
        return SizeLimit(
            free, f"which are free in {folder}. Free space there, or set image_cache_dir to a folder on a larger disk"
        )
    return SizeLimit(MAX_CARD_BYTES, "which is more than any card has. Use another image")


def check_card_size(size: int, source: str) -> None:
    """Check that an image of `size` bytes can fit a card. Raises BrambleError, which names its source."""
    if size > MAX_CARD_BYTES:
        raise BrambleError(
            f"{source} decodes to {format_bytes(size)}, but a card has at most {format_bytes(MAX_CARD_BYTES)}. Use another image"
        )


def _free_bytes(folder: str) -> int:
    """Return the free space of the disk of a folder, which need not exist yet."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return shutil.disk_usage(folder).free


def check_space(folder: str, size: int, purpose: str) -> None:
    """Check that the disk of a folder, which need not exist yet, has space for `size` bytes. Raises BrambleError."""
    free = _free_bytes(folder)
    if free < size + RESERVED_BYTES:
        raise BrambleError(
            f"There is no space for {purpose} in {folder}: it needs {format_bytes(size + RESERVED_BYTES)}, "
            f"and {format_bytes(free)} are free. Free space there, or set image_cache_dir to a folder on a larger disk"
        )
