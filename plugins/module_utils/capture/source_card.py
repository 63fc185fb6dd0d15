"""The card that is captured: which of its bytes are used, or why it cannot be captured. It is only read.

All sizes and offsets are in bytes.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass

from ansible_collections.bramble.cluster.plugins.module_utils.card.device import Card
from ansible_collections.bramble.cluster.plugins.module_utils.card.facts import OK, READ_ONLY, Facts
from ansible_collections.bramble.cluster.plugins.module_utils.card.guard import Guard
from ansible_collections.bramble.cluster.plugins.module_utils.card.partition import (
    FAT_TYPES,
    Partition,
    boot_and_root,
    has_gpt,
    parse_partitions,
)
from ansible_collections.bramble.cluster.plugins.module_utils.card.ranges import RangeList
from ansible_collections.bramble.cluster.plugins.module_utils.card.space import EXT, FAT, file_system_kind, used_ranges
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import PAGE, SECTOR, read_exactly
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import format_bytes


@dataclass(frozen=True)
class SourceCard:
    """A card that can be captured: its partitions, and the ranges of the card that they use."""

    facts: Facts
    mbr: bytes
    boot: Partition
    root: Partition
    boot_used: RangeList
    root_used: RangeList
    # The time of the last change, in nanoseconds; for a card that is a file.
    mtime: int

    @property
    def used_bytes(self) -> int:
        """The number of bytes that are read."""
        return self.boot_used.total + self.root_used.total


@contextlib.contextmanager
def open_card(node: str, slot: str) -> Iterator[Card]:
    """Yield a card that is opened exclusively, for reading. Raises BrambleError when the slot has no card, or it is in use."""
    (facts,) = Guard().facts([{"node": node, "slot": slot}])
    # A write-protected card can be captured. Whether it is in use is checked when it is opened.
    if facts.verdict not in (OK, READ_ONLY):
        raise BrambleError(f"{slot}: {facts.verdict}: {facts.reason}. Nothing was captured.")
    card = Card(facts, writable=False)
    try:
        yield card
    finally:
        card.close()


def inspect_card(card: Card, max_bytes: int) -> SourceCard:
    """Return what must be read to capture a card. Raises BrambleError when it cannot be captured.

    :param max_bytes: the largest size of the image
    """
    slot, mtime = card.facts.slot, os.fstat(card.fd).st_mtime_ns
    try:
        mbr = card.read(0, PAGE)[:SECTOR]
        boot, root = _layout(card, mbr)
    except BrambleError as error:
        raise BrambleError(f"{slot} cannot be captured: {error}.") from None
    # The copies of the file systems are checked (capture), as reading a card is slow. What is behind their ends is not captured.
    with explain_damage(card.facts, boot):
        boot_used = used_ranges(card.fd, boot, strict=True, include_tail=False, check=False)
    with explain_damage(card.facts, root):
        root_used = used_ranges(card.fd, root, strict=True, skip_unused_inodes=True, include_tail=False, check=False)
    source = SourceCard(card.facts, mbr, boot, root, boot_used, root_used, mtime)
    if (minimum := boot.end + root_used.total) > max_bytes:
        raise image_too_large(minimum, max_bytes)
    return source


def _layout(card: Card, mbr: bytes) -> tuple[Partition, Partition]:
    """Return the boot and root partitions. Raises BrambleError unless the card has just these two, in this order."""
    if has_gpt(mbr):
        raise BrambleError("its partition table is a GPT; only a card with an MBR can be captured, as its image gets a new MBR")
    fd = os.open(f"/proc/self/fd/{card.fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        partitions = parse_partitions(functools.partial(read_exactly, fd), card.facts.bytes)
        boot, root = boot_and_root(partitions)
        found = file_system_kind(fd, boot.start, boot.size), file_system_kind(fd, root.start, root.size)
        if FAT not in found and root.start * 8 < card.facts.bytes and file_system_kind(fd, boot.start * 8, boot.size) == FAT:
            raise BrambleError("its partition table has sectors of 4,096 bytes; the card of a Raspberry Pi has 512")
    finally:
        os.close(fd)
    for partition, kind, expected in ((boot, found[0], FAT), (root, found[1], EXT)):
        if kind != expected:
            name = "FAT" if expected == FAT else "ext2, ext3 or ext4"
            raise BrambleError(f"partition {partition.number} holds no valid {name} file system")
    if len(partitions) > 2:
        raise BrambleError("it has more than two partitions; only a boot and a root partition can be captured")
    if root.start < boot.end:
        raise BrambleError("its root partition begins before the end of its boot partition, so it cannot be shrunk")
    return boot, root


@contextlib.contextmanager
def explain_damage(facts: Facts, partition: Partition) -> Iterator[None]:
    """Add to a BrambleError which file system of the card is damaged, and how to repair it."""
    try:
        yield
    except BrambleError as error:
        tool = "fsck.vfat -a" if partition.type in FAT_TYPES else "e2fsck -f"
        target = f"{facts.device}{'p' if facts.device[-1].isdigit() else ''}{partition.number}"
        if facts.bus not in ("usb", "mmc"):
            target = f"$(losetup --find --show --offset {partition.start} --sizelimit {partition.size} {facts.device})"
        raise BrambleError(
            f"Partition {partition.number} of {facts.slot} is damaged or was not unmounted: {error}\n"
            "Nothing was captured, and the card was not changed. Boot the card in its Pi and shut the Pi down, "
            f"or repair the card here and check which files are lost: {tool} {target}"
        ) from None


def image_too_large(needed: int, max_bytes: int) -> BrambleError:
    """Return the error for an image of `needed` bytes, which is more than `max_bytes`."""
    return BrambleError(
        f"The image would need a card of {format_bytes(needed)}, but must fit a card of {format_bytes(max_bytes)} "
        f"(capture_card_bytes). Nothing was captured. Remove files of {format_bytes(needed - max_bytes)} from the card "
        "(to find large ones, on its Pi: sudo du -xh / | sort -h | tail), or increase capture_card_bytes."
    )
