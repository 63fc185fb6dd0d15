"""What must be so before a batch is written: room on the disks of virtual cards, and the virtual cards themselves."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ansible_collections.bramble.cluster.plugins.module_utils.card.facts import Facts
from ansible_collections.bramble.cluster.plugins.module_utils.card.image import Image
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import BLOCK, extents
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
                status = os.fstat(file.fileno())
        except OSError as error:
            raise BrambleError(
                f"{facts.node}: the virtual card {facts.slot} cannot be made: {error}. Nothing was written."
            ) from error
        facts.identity, facts.blank = ("file", status.st_dev, status.st_ino), False


def check_space(image: Image, batch: Sequence[Facts], extra: int, folder: str) -> None:
    """Check that the disks of virtual cards, and of `folder` for the working copy, have room. Raises BrambleError.

    :param extra: the bytes that the nodes' own files may add to each card
    """
    needs: dict[int, int] = {}
    paths: dict[int, str] = {}

    def add_need(path: str, size: int) -> None:
        device = os.stat(path).st_dev
        needs[device] = needs.get(device, 0) + size
        paths.setdefault(device, path)

    add_need(folder, len(image.blocks) * BLOCK + extra)
    for facts in batch:
        if facts.blank:
            folder = os.path.dirname(facts.device)
            while not os.path.isdir(folder):
                folder = os.path.dirname(folder)
            add_need(folder, len(image.blocks) * BLOCK + extra)
        elif facts.kind == "file":
            fd = os.open(facts.device, os.O_RDONLY | os.O_CLOEXEC)
            try:
                held = {
                    block
                    for start, end in extents(fd, 0, image.size)
                    for block in range(-(-start // BLOCK), -(-end // BLOCK) if end == image.size else end // BLOCK)
                }
            finally:
                os.close(fd)
            add_need(os.path.dirname(facts.device), sum(block not in held for block in image.blocks) * BLOCK + extra)
    for device, need in needs.items():
        room = os.statvfs(paths[device])
        free = room.f_bavail * room.f_frsize
        if need > free:
            raise BrambleError(
                f"No space: {paths[device]} needs {format_bytes(need)} ({need / 2**30:.2f} GiB), "
                f"{format_bytes(free)} ({free / 2**30:.2f} GiB) are free. Nothing was written; make room there and run it again."
            )
