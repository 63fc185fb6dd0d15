"""The card that an image is made of: what of it is in use, and why it cannot be captured. It is only read.

Every size and offset is in bytes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from ansible_collections.bramble.cluster.plugins.module_utils.card.device import Card
from ansible_collections.bramble.cluster.plugins.module_utils.card.facts import OK, READ_ONLY, Facts
from ansible_collections.bramble.cluster.plugins.module_utils.card.guard import Guard
from ansible_collections.bramble.cluster.plugins.module_utils.card.partition import FAT_TYPES, Partition, boot_and_root, parse_mbr
from ansible_collections.bramble.cluster.plugins.module_utils.card.space import EXT, FAT, file_system_kind, used_ranges
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import PAGE, SECTOR, Range
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import format_bytes


@dataclass(frozen=True)
class SourceCard:
    """A card that can be captured: where its partitions are, and which bytes of the card they use."""

    facts: Facts
    mbr: bytes
    boot: Partition
    root: Partition
    boot_used: list[Range]
    root_used: list[Range]
    # When a file was last written to.
    mtime: int

    @property
    def bytes(self) -> int:
        """How many bytes are read."""
        return sum(high - low for low, high in [*self.boot_used, *self.root_used])


@contextlib.contextmanager
def open_card(node: str, slot: str) -> Iterator[Card]:
    """Yield a card that this process alone has open, for reading. Raises BrambleError for what is no card, or is in use."""
    (facts,) = Guard().facts([{"node": node, "slot": slot}])
    # A card whose lock is on can be read: whether it is in use shows when it is opened.
    if facts.verdict not in (OK, READ_ONLY):
        raise BrambleError(f"{slot}: {facts.verdict}: {facts.reason}. Nothing was captured.")
    card = Card(facts, writable=False)
    try:
        yield card
    finally:
        card.close()


def inspect_card(card: Card, max_bytes: int) -> SourceCard:
    """Return what of a card is to be captured. Raises BrambleError, with what to do, when that is not possible.

    :param max_bytes: the largest image that is allowed
    """
    slot, mtime = card.facts.slot, os.fstat(card.fd).st_mtime_ns
    try:
        mbr = card.read(0, PAGE)[:SECTOR]
        boot, root = _layout(card, mbr)
    except BrambleError as error:
        raise BrambleError(f"{slot} cannot be captured: {error}.") from None
    with explain_damage(card.facts, boot):
        boot_used = used_ranges(card.fd, boot.start, boot.size, strict=True)
    with explain_damage(card.facts, root):
        root_used = used_ranges(card.fd, root.start, root.size, strict=True, zeroed=True)
    source = SourceCard(card.facts, mbr, boot, root, boot_used, root_used, mtime)
    if (least := boot.end + sum(high - low for low, high in root_used)) > max_bytes:
        raise image_too_large(least, max_bytes)
    return source


def _layout(card: Card, mbr: bytes) -> tuple[Partition, Partition]:
    """Return its boot and root partitions. Raises BrambleError unless it has these two, in this order, each of a known kind."""
    partitions = parse_mbr(mbr, card.facts.bytes)
    boot, root = boot_and_root(partitions)
    fd = os.open(f"/proc/self/fd/{card.fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = file_system_kind(fd, boot.start, boot.size), file_system_kind(fd, root.start, root.size)
        if FAT not in found and root.start * 8 < card.facts.bytes and file_system_kind(fd, boot.start * 8, boot.size) == FAT:
            raise BrambleError("its partition table counts sectors of 4,096 bytes; Raspberry Pi cards have 512")
    finally:
        os.close(fd)
    for partition, one, wanted in ((boot, found[0], FAT), (root, found[1], EXT)):
        if one != wanted:
            name = "FAT" if wanted == FAT else "ext2, ext3 or ext4"
            raise BrambleError(f"partition {partition.number} holds no {name} file system that makes sense")
    if len(partitions) > 2:
        raise BrambleError("it has more than two partitions; a boot and a root partition are what can be captured")
    if root.start < boot.end:
        raise BrambleError("its root partition is not behind its boot partition, so it cannot be shrunk")
    return boot, root


@contextlib.contextmanager
def explain_damage(facts: Facts, partition: Partition) -> Iterator[None]:
    """Add to a BrambleError that a file system of the card is not sound, and what to do about it."""
    try:
        yield
    except BrambleError as error:
        tool = "fsck.vfat -a" if partition.type in FAT_TYPES else "e2fsck -f"
        place = f"{facts.device}{'p' if facts.device[-1].isdigit() else ''}{partition.number}"
        if facts.bus not in ("usb", "mmc"):
            place = f"$(losetup --find --show --offset {partition.start} --sizelimit {partition.size} {facts.device})"
        raise BrambleError(
            f"Partition {partition.number} of {facts.slot} is not sound: {error}\n"
            "Nothing was captured, and the card is as it was. Boot it once more in its Pi and shut it down, "
            f"or repair it here and look at what is lost: {tool} {place}"
        ) from None


def image_too_large(needed: int, max_bytes: int) -> BrambleError:
    """Return the error for an image of `needed` bytes that does not fit, with what to do."""
    return BrambleError(
        f"The image would need a card of {format_bytes(needed)}; it may need {format_bytes(max_bytes)} (capture_card_bytes). "
        f"Nothing was captured. Remove {format_bytes(needed - max_bytes)} of files from the card "
        "(on its Pi: sudo du -xh / | sort -h | tail), or allow more."
    )
