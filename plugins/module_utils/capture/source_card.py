"""The card that is captured: which of its bytes are used, or why it cannot be captured. It is only read.

All sizes and offsets are in bytes.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from ansible_collections.bramble.cluster.plugins.module_utils.capture.tools import run_tool
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
from ansible_collections.bramble.cluster.plugins.module_utils.card.signatures import probe_signatures
from ansible_collections.bramble.cluster.plugins.module_utils.card.space import EXT, FAT, file_system_kind, used_ranges
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import PAGE, SECTOR, Range, read_exactly
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.file_state import FileState
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import format_bytes

_EXTENDED_TYPES = frozenset({"0x05", "0x0f", "0x85"})
_UNKNOWN_FEATURE = re.compile(r"FEATURE_[CIR]\d+")  # lib/e2p/feature.c of e2fsprogs
# e2fsprogs knows the names of these, but opens no file system with them for writing (EXT2_LIB_FEATURE_*_SUPP in ext2fs.h).
_UNSUPPORTED_FEATURES = frozenset({"compression", "dirdata", "exclude_bitmap", "lazy_bg", "replica", "shared_blocks", "snapshot"})


@dataclass(frozen=True)
class SourceCard:
    """A card that can be captured: its partitions, and the ranges of the card that they use.

    `gaps` are the ranges before and between the partitions, which can hold boot loaders. `file_state` is that of `file_state`.
    """

    facts: Facts
    mbr: bytes
    boot: Partition
    root: Partition
    boot_used: RangeList
    root_used: RangeList
    gaps: list[Range]
    file_state: FileState | None

    @property
    def used_bytes(self) -> int:
        """The number of bytes that are read."""
        return sum(high - low for low, high in self.gaps) + self.boot_used.total + self.root_used.total


def file_state(card: Card) -> FileState | None:
    """Return the state of a card that is a file; None for a block device, where nothing shows that it was written to.

    Programs can set the time of the last change of the content back, but not that of the last change of the inode. The kernel
    keeps neither for a block device: only the exclusive access protects a disk, and not from programs that do not ask for it.
    """
    return FileState.of(card.fd) if card.is_file else None


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
    slot, state = card.facts.slot, file_state(card)
    try:
        mbr = card.read(0, PAGE)[:SECTOR]
        boot, root = _layout(card, mbr)
        _check_features(card, root, max_bytes)
        _check_end(card, root)
    except BrambleError as error:
        raise BrambleError(f"{slot} cannot be captured: {error}. Nothing was captured.") from None
    # The copies of the file systems are checked (capture), as reading a card is slow. What is behind their ends is not captured.
    with explain_damage(card.facts, boot):
        boot_used = used_ranges(card.fd, boot, strict=True, include_tail=False, check=False)
    with explain_damage(card.facts, root):
        root_used = used_ranges(card.fd, root, strict=True, skip_unused_inodes=True, include_tail=False, check=False)
    gaps = [(low, high) for low, high in ((0, boot.start), (boot.end, root.start)) if low < high]
    source = SourceCard(card.facts, mbr, boot, root, boot_used, root_used, gaps, state)
    if (minimum := root.start + root_used.total) > max_bytes:
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
    for partition in partitions[2:]:
        if partition.type in _EXTENDED_TYPES:
            raise BrambleError(
                f"partition {partition.number} is an extended partition, which has logical partitions in it; only a boot and a "
                "root partition can be captured. Move their files to partition 2, and delete them"
            )
    if len(partitions) > 2:
        raise BrambleError(
            "it has more than two partitions; only a boot and a root partition can be captured. Move the files of the others to "
            "partition 2, and delete them"
        )
    if root.start < boot.end:
        raise BrambleError("its root partition begins before the end of its boot partition, so it cannot be shrunk")
    return boot, root


def _check_features(card: Card, root: Partition, max_bytes: int) -> None:
    """Check that the tools of this machine can change the root file system. Raises BrambleError, which is not about damage."""
    path = f"/proc/self/fd/{card.fd}?offset={root.start}"
    # -f: do not stop at unknown features. What else is wrong is found and explained later.
    text = run_tool("dumpe2fs", "-h", "-f", path, exit_codes=range(256), pass_fds=(card.fd,))
    line = re.search(r"^Filesystem features:(.*)", text, re.MULTILINE)
    features = set(line[1].split()) if line else set()
    if unknown := sorted(name for name in features if name in _UNSUPPORTED_FEATURES or _UNKNOWN_FEATURE.fullmatch(name)):
        raise BrambleError(
            f"its root file system (partition 2) has features that e2fsprogs of this machine lacks: {', '.join(unknown)}. "
            "Use a machine with a newer e2fsprogs, or copy the files of the card to a file system made by: mkfs.ext4"
        )
    if "bigalloc" in features:
        raise BrambleError(
            "its root file system (partition 2) has the feature bigalloc, with which Bramble cannot tell used from free space. "
            "Copy the files of the card to a file system made by: mkfs.ext4"
        )
    if "fast_commit" in features:
        raise BrambleError(
            "its root file system (partition 2) has the feature fast_commit, whose journal Bramble cannot read. Remove "
            "it from the card while it is not mounted: tune2fs -O ^fast_commit PARTITION"
        )
    if "journal_dev" in features:
        raise BrambleError("partition 2 holds the journal of another file system, and no root file system")
    if re.search(r"^Journal device:\s+0x(?!0000$)", text, re.MULTILINE):
        raise BrambleError(
            "the journal of its root file system (partition 2) is on another disk. Connect both disks, and remove it from the "
            "file system of the card: tune2fs -O ^has_journal PARTITION"
        )
    if "stable_inodes" in features and root.end > max_bytes:
        raise BrambleError(
            "its root file system (partition 2) has the feature stable_inodes, with which resize2fs cannot shrink it, "
            f"and ends at byte {root.end:,}; the image must fit a card of {format_bytes(max_bytes)} (capture_card_bytes). "
            "Increase that, or, if the card has no encrypted files, remove the feature: tune2fs -O ^stable_inodes PARTITION"
        )


def _check_end(card: Card, root: Partition) -> None:
    """Check that no file system or other known data begins or ends behind the root partition. Raises BrambleError.

    A lost partition begins there at once, or where partition programs align to: 1 MiB (sfdisk) or 4 MiB (Raspberry Pi OS).
    """
    size = card.facts.bytes
    for start in sorted({-(-root.end // unit) * unit for unit in (SECTOR, 2**20, 4 * 2**20)}):
        if start >= size:
            continue
        place = ("--offset", str(start), "--size", str(size - start))
        tags = probe_signatures(f"/proc/self/fd/{card.fd}", *place, pass_fds=(card.fd,))
        if kind := "several file systems" if tags is None else tags.get("TYPE") or tags.get("PTTYPE"):
            erase = f"blkdiscard --zeroout --offset {start} {shlex.quote(card.facts.device)}"
            if card.is_file:
                erase = f"fallocate --punch-hole --offset {start} --length {size - start} {shlex.quote(card.facts.device)}"
            raise BrambleError(
                f"behind its root partition, at byte {start:,}, there is data of the kind {kind}, which belongs to no "
                f"partition and would not be in the image. If you do not need it, erase it: {erase}"
            )


@contextlib.contextmanager
def explain_damage(facts: Facts, partition: Partition) -> Iterator[None]:
    """Add to a BrambleError which file system of the card is damaged, and how to repair it."""
    try:
        yield
    except BrambleError as error:
        tool = "fsck.vfat -a" if partition.type in FAT_TYPES else "e2fsck -f"
        target = f"{facts.device}{'p' if facts.device[-1].isdigit() else ''}{partition.number}"
        if facts.bus not in ("usb", "mmc"):
            disk = shlex.quote(facts.device)
            target = f"$(losetup --find --show --offset {partition.start} --sizelimit {partition.size} {disk})"
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
