"""Prepare a batch before it is written: check the free space for virtual cards, and create them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ansible_collections.bramble.cluster.plugins.module_utils.card.exclusive import file_status
from ansible_collections.bramble.cluster.plugins.module_utils.card.facts import Facts
from ansible_collections.bramble.cluster.plugins.module_utils.card.image import Image
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import BLOCK, data_extents
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import format_bytes


def create_virtual_cards(batch: Sequence[Facts]) -> None:
    """Create the virtual cards that do not exist yet: sparse files, mode 0600. Raises BrambleError."""
    for facts in batch:
        try:
            os.makedirs(os.path.dirname(facts.device), mode=0o700, exist_ok=True)
            fd = os.open(facts.device, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.truncate(facts.bytes)
                status, birth = os.fstat(file.fileno()), file_status(fd=file.fileno()).birth
        except OSError as error:
            raise BrambleError(
                f"{facts.node}: the virtual card {facts.slot} cannot be created: {error}. Nothing was written."
            ) from error
        facts.identity, facts.birth, facts.is_new = ("file", status.st_dev, status.st_ino), birth, False


def check_space(image: Image, batch: Sequence[Facts], extra: int, folder: str) -> None:
    """Check that the disks of virtual cards have enough space, and the disk of `folder` for the working copy.

    :param extra: how many bytes the identity of a node can add to its card
    :raises BrambleError: when a disk has too little space; the message has the needed and the free bytes
    """
    needs: dict[int, int] = {}
    paths: dict[int, str] = {}

    def add_need(path: str, size: int) -> None:
        device = os.stat(path).st_dev
        needs[device] = needs.get(device, 0) + size
        paths.setdefault(device, path)

    add_need(folder, len(image.data_blocks) * BLOCK + extra)
    for facts in batch:
        if facts.is_new:
            folder = os.path.dirname(facts.device)
            while not os.path.isdir(folder):
                folder = os.path.dirname(folder)
            add_need(folder, len(image.data_blocks) * BLOCK + extra)
        elif facts.kind == "file":
            fd = os.open(facts.device, os.O_RDONLY | os.O_CLOEXEC)
            try:
                held = {
                    block
                    for start, end in data_extents(fd, 0, image.size)
                    for block in range(-(-start // BLOCK), -(-end // BLOCK) if end == image.size else end // BLOCK)
                }
            finally:
                os.close(fd)
            add_need(os.path.dirname(facts.device), sum(block not in held for block in image.data_blocks) * BLOCK + extra)
    for device, need in needs.items():
        file_system = os.statvfs(paths[device])
        free = file_system.f_bavail * file_system.f_frsize
        if need > free:
            raise BrambleError(
                f"No space: {paths[device]} needs {format_bytes(need)} ({need / 2**30:.2f} GiB), and "
                f"{format_bytes(free)} ({free / 2**30:.2f} GiB) are free. Nothing was written. "
                "Free space there, then run the same command again."
            )
