"""The private copy of a card that a capture changes, as the card itself is only read."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.bramble.cluster.plugins.module_utils.capture.source_card import SourceCard, file_state
from ansible_collections.bramble.cluster.plugins.module_utils.card.device import Card
from ansible_collections.bramble.cluster.plugins.module_utils.card.progress import Progress
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import CHUNK, is_zero
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError


@contextlib.contextmanager
def private_workspace(folder: Path) -> Iterator[Path]:
    """Yield a private folder inside `folder`, and remove it at the end. Folders that killed captures left are removed first."""
    parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(parent, fcntl.LOCK_EX)
        for leftover in folder.glob(".capture-*"):
            fd = os.open(leftover, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            with contextlib.suppress(BlockingIOError):  # another capture is still using it
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover)
            os.close(fd)
        work = Path(tempfile.mkdtemp(prefix=".capture-", dir=folder))
        work_fd = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(work_fd, fcntl.LOCK_EX)
    finally:
        os.close(parent)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(work_fd)


def copy_card(card: Card, source: SourceCard, gaps: Path, boot: Path, root: Path, progress: Progress) -> None:
    """Write the used bytes of both partitions to two sparse files, and those outside them to a third. Raises BrambleError.

    Offsets in the third file are those of the card.
    """
    meter = progress.meter(card.facts.node, "read", source.used_bytes)
    for start, size, ranges, path in (
        (0, source.root.start, source.gaps, gaps),
        (source.boot.start, source.boot.size, source.boot_used, boot),
        (source.root.start, source.root.size, source.root_used, root),
    ):
        with path.open("wb", buffering=0) as file:
            file.truncate(size)
            for low, high in ranges:
                at = low
                while at < high:
                    data = card.read(at, min(CHUNK - at % CHUNK, high - at))
                    if not is_zero(data):
                        file.seek(at - start)
                        file.write(data)
                    at += len(data)
                    meter(len(data))
    if file_state(card) != source.file_state:
        raise BrambleError(f"{card.facts.slot} was changed while it was read. Nothing was captured. Run the same command again.")
