"""Decide whether the card in each slot may be overwritten. The guard only reads.

It fails closed: a card whose state it cannot establish from /sys and /proc, or that it cannot open exclusively, is refused. All
sizes are in bytes.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ansible_collections.bramble.cluster.plugins.module_utils.card import exclusive
from ansible_collections.bramble.cluster.plugins.module_utils.card.facts import (
    ABSENT,
    IN_USE,
    NOT_A_CARD,
    NOT_REMOVABLE,
    OK,
    READ_ONLY,
    SAME_TWICE,
    SYSTEM_DISK,
    TOO_SMALL,
    Facts,
)
from ansible_collections.bramble.cluster.plugins.module_utils.card.mounts import Mounts, Pool
from ansible_collections.bramble.cluster.plugins.module_utils.card.signatures import probe_signatures
from ansible_collections.bramble.cluster.plugins.module_utils.card.sysfs import (
    active_swaps,
    find_reader,
    loop_backing_file,
    partition_folders,
    read_line,
    read_text,
)
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import SECTOR
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import format_bytes

# A larger disk is more likely someone's backup than a card for a cluster. Cards sold as 256 GB have a little more than that.
LARGEST_CARD = 260 * 10**9
_NAMED_DISKS = "/dev/disk/by-id"
_CARD_BUSES = frozenset({"mmc", "usb"})
_DISK_BUSES = frozenset({"ata", "nvme", "nvme-subsystem", "scsi"})  # nvme-subsystem: an NVMe disk that may have several paths
# A file in one of these folders is never a card. For example, when a device node disappears, a plain file can take its name.
_SYSTEM_FOLDERS = ("/boot", "/dev", "/etc", "/proc", "/sys", "/usr")
_SYSTEM_PATHS = ("/", "/boot", "/home")
Finding = tuple[str, str]
"""A verdict (one of the constants of card.facts), and its reason for the user."""


class Guard:
    """Evaluates slots by the state of this machine, which it reads once: create a new Guard to evaluate them again.

    `sys` and `proc` are the paths of /sys and /proc; `image` is the file from which cards will be written; `max_bytes` is the
    size of the largest card, except for a disk that its slot names by model and serial number.
    """

    def __init__(self, image: str | None = None, sys: str = "/sys", proc: str = "/proc", max_bytes: int = LARGEST_CARD) -> None:
        self._sys, self._image, self._max_bytes = sys, image, max_bytes
        self._mounts = Mounts(sys, proc)
        self._swaps = active_swaps(read_text(proc, "swaps"))
        paths = [*_SYSTEM_PATHS, *([image] if image else [])]
        self._system_disks = [(os.path.realpath(path), self._mounts.holders(path)) for path in paths]

    def facts(self, cards: Sequence[Mapping[str, Any]], needed: int = 0) -> list[Facts]:
        """Return the facts of each card ({node, slot, virtual_bytes}) of a batch; each must hold `needed` bytes."""
        batch = [self._inspect(card["node"], card["slot"], needed, card.get("virtual_bytes") or 0) for card in cards]
        self._refuse_cards_in_use([facts for facts in batch if facts.verdict == OK and not facts.is_new])
        for facts in batch:
            same = [other.node for other in batch if other is not facts and facts.identity and other.identity == facts.identity]
            if same:
                facts.verdict, facts.reason = SAME_TWICE, f"also the card of {', '.join(same)}: {facts.device}"
        return batch

    @staticmethod
    def _refuse_cards_in_use(batch: Sequence[Facts]) -> None:
        """Set the verdict of the cards that another program uses. All are watched together, as some uses last only a moment."""
        busy = list(batch)

        def inspect_busy(processes: exclusive.Processes) -> str:
            for facts in list(busy):
                try:
                    reason = exclusive.inspect(facts.device, facts.kind == "block", processes)
                    facts.verdict, facts.reason = (IN_USE, reason) if reason else (OK, "")
                except OSError as error:
                    facts.verdict, facts.reason = NOT_REMOVABLE, f"it cannot be opened, so it is not written: {error}"
                if facts.verdict != IN_USE:
                    busy.remove(facts)
            return busy[0].reason if busy else ""

        exclusive.wait_while_used(inspect_busy)

    def _inspect(self, node: str, slot: str, needed: int, virtual_bytes: int = 0) -> Facts:
        """Return the facts of one slot."""
        facts = Facts(node, slot, device=os.path.realpath(slot), needed_bytes=needed)
        try:
            # The slot itself is asked for, not its device: realpath also removes the ".." after a folder that does not exist.
            status = os.stat(slot)
        except OSError as error:
            is_new = virtual_bytes and not os.path.lexists(slot) and ".." not in slot.split("/")
            if error.errno == errno.ENOENT and is_new:
                return self._inspect_new_card(facts, virtual_bytes)
            missing = (
                "no such device; to list the card readers: ls -l /dev/disk/by-path"
                if slot.startswith("/dev/")
                else "no such file"
            )
            facts.reason = missing if error.errno == errno.ENOENT else str(error)
            return facts
        try:
            if stat.S_ISBLK(status.st_mode):
                self._inspect_disk(facts, status)
            else:
                facts.kind, facts.bus = "file", "file"
                facts.bytes = status.st_size if stat.S_ISREG(status.st_mode) else 0
                facts.identity = ("file", status.st_dev, status.st_ino)
                # The first opening for writing creates a file of a lower layer again, in the upper one.
                is_lower = self._mounts.is_on_overlay(facts.device) and not self._mounts.upper_file(facts.device)
                facts.birth = 0 if is_lower else exclusive.file_status(facts.device).birth
                facts.verdict, facts.reason = next(self._file_findings(facts.device, needed), (OK, ""))
        except (OSError, ValueError) as error:
            facts.verdict, facts.reason = NOT_REMOVABLE, f"its state cannot be read, so it is not written: {error}"
        return facts

    def _inspect_new_card(self, facts: Facts, size: int) -> Facts:
        """Return the facts of a virtual card that is to be created."""
        facts.kind, facts.bus, facts.bytes, facts.is_new = "file", "file", size, True
        facts.identity = ("new", facts.device)
        folder = next((folder for folder in _SYSTEM_FOLDERS if facts.device.startswith(f"{folder}/")), "")
        if folder:
            facts.verdict, facts.reason = NOT_A_CARD, f"a virtual card cannot be created in {folder}"
        else:
            facts.verdict, facts.reason = next(_size_findings(size, facts.needed_bytes), (OK, ""))
        return facts

    def _inspect_disk(self, facts: Facts, status: os.stat_result) -> None:
        """Set the facts of a block device. Raises OSError or ValueError when its state cannot be read."""
        facts.kind = "block"
        number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        name = os.path.basename(os.path.realpath(os.path.join(self._sys, "dev/block", number)))
        facts.bus, facts.model = self.bus(name), self.model(name)
        facts.bytes = self.size(name)
        for field, value in asdict(find_reader(self._sysfs_folder(name))).items():
            setattr(facts, field, value)
        facts.identity = ("block", number, read_text(self._sys, "class/block", name, "diskseq"))
        is_named = os.path.dirname(facts.slot) == _NAMED_DISKS
        facts.verdict, facts.reason = self.evaluate_disk(name, facts.needed_bytes, is_named)
        if facts.bus == "loop" and facts.bytes:
            facts.identity = ("file", *loop_backing_file(facts.device))

    # Disks. `name` is the name that the kernel gives them: sda, mmcblk0, loop3.

    def _sysfs_folder(self, name: str) -> str:
        """Return the folder of a disk in /sys, without symbolic links."""
        return os.path.realpath(os.path.join(self._sys, "class/block", name))

    def size(self, name: str) -> int:
        """Return the size of a disk in bytes. The kernel counts sectors of 512 bytes, whatever the disk's own sector size."""
        return int(read_text(self._sysfs_folder(name), "size") or 0) * SECTOR

    def bus(self, name: str) -> str:
        """Return the bus of a disk: usb, mmc, loop, the kernel's name of another bus, or "unknown"."""
        folder = self._sysfs_folder(name)
        if re.search(r"/usb\d+/", folder):
            return "usb"
        if "/mmc_host/" in folder:
            return "mmc"
        if re.fullmatch(r"loop\d+", name) and folder.endswith(f"/devices/virtual/block/{name}"):
            return "loop"
        subsystem = os.path.join(folder, "device", "subsystem")
        return os.path.basename(os.path.realpath(subsystem)) if os.path.exists(subsystem) else "unknown"

    def model(self, name: str) -> str:
        """Return the vendor and model that a disk reports, or the file behind a loop device; may be empty."""
        folder = self._sysfs_folder(name)
        words = [read_text(folder, "device", field) for field in ("vendor", "model", "name")]
        return " ".join(word for word in words if word and not word.startswith("0x")) or read_line(folder, "loop/backing_file")

    def evaluate_disk(self, name: str, needed: int, is_named: bool = False) -> Finding:
        """Return the verdict on a disk, from /sys and /proc. Raises OSError when they cannot be read.

        :param is_named: whether the inventory names the disk below /dev/disk/by-id
        """
        return next(self._disk_findings(name, needed, is_named and self._is_one_disk(name)), (OK, ""))

    def _is_one_disk(self, name: str) -> bool:
        """Return whether the name of a disk in /dev/disk/by-id is that of the disk, and not of a reader with any card in it."""
        return self.bus(name) == "mmc" or read_text(self._sysfs_folder(name), "removable") == "0"

    def _disk_findings(self, name: str, needed: int, is_named: bool) -> Iterator[Finding]:
        """Yield all reasons not to write to a disk, the most serious first."""
        folder = self._sysfs_folder(name)
        if not read_text(folder, "size"):
            yield NOT_REMOVABLE, "the kernel reports nothing about it, so it is not written"
        yield from self._system_findings(name)
        if os.path.exists(os.path.join(folder, "partition")):
            yield NOT_A_CARD, f"a partition; the card is /dev/{os.path.basename(os.path.dirname(folder))}"
        yield from self._bus_findings(name, is_named)
        if not self.size(name):
            yield ABSENT, "no card in the reader"
        if (sector := int(read_text(folder, "queue/logical_block_size") or 0)) != SECTOR:
            size = format_bytes(sector) if sector else "an unknown number of bytes"
            yield NOT_A_CARD, f"its sectors are {size}; a Raspberry Pi's card has {SECTOR}"
        if read_text(folder, "ro") != "0":
            yield READ_ONLY, "look at the card's lock switch"
        yield from self._use_findings(name)
        if self.size(name) > self._max_bytes and not is_named:
            yield (
                NOT_A_CARD,
                f"it has {format_bytes(self.size(name))}, more than the {format_bytes(self._max_bytes)} of card_max_bytes. If it "
                f"is a card, increase that: -e card_max_bytes={self.size(name)}",
            )
        yield from _size_findings(self.size(name), needed)

    def _system_findings(self, name: str) -> Iterator[Finding]:
        """Yield which parts of this machine's system a disk holds."""
        if not self._mounts.all:
            yield SYSTEM_DISK, "it may be one: the mounts of this machine cannot be read (/proc/self/mountinfo)"
        disks, pools = self._mounts.whole_disks(name), set[str]()
        if any(isinstance(holder, Pool) for _, holders in self._system_disks for holder in holders):
            pools = set[str]().union(*(zfs_pools(f"/dev/{member}") for member in self._members(name)))
        for path, holders in self._system_disks:
            if holders & (disks | {Pool(pool) for pool in pools}):
                yield SYSTEM_DISK, f"it holds {path}"

    def _bus_findings(self, name: str, is_named: bool) -> Iterator[Finding]:
        """Yield the reasons not to write to a disk on its bus: soldered memory, and buses that have no cards."""
        bus, kind = self.bus(name), read_text(self._sysfs_folder(name), "device/type")
        if bus == "loop":
            yield from self._loop_findings(name)
        elif bus in _DISK_BUSES and not is_named:
            yield (
                NOT_REMOVABLE,
                f"it is on the {bus} bus; cards are on usb or mmc. If this disk is for a node, set card_slot to its name with "
                f"model and serial number: ls -l {_NAMED_DISKS}",
            )
        elif bus not in _CARD_BUSES | _DISK_BUSES:
            yield NOT_REMOVABLE, f"it is on the {bus} bus; cards are on usb or mmc"
        elif bus == "mmc" and kind != "SD":
            yield NOT_REMOVABLE, f"{kind or 'unknown'} memory that is soldered in, not an SD card"

    def _loop_findings(self, name: str) -> Iterator[Finding]:
        """Yield the reasons not to write to a loop device: those of the file behind it."""
        path = read_line(self._sysfs_folder(name), "loop/backing_file")
        if not path:
            yield ABSENT, "no file is behind this loop device"
        status = os.stat(path)
        if (status.st_dev, status.st_ino) != loop_backing_file(f"/dev/{name}"):
            yield NOT_REMOVABLE, f"the file behind it is not the {path} of this machine"
        for verdict, reason in self._file_findings(path, 0, except_loop=name):
            yield verdict, f"{path}: {reason}"

    def _use_findings(self, name: str) -> Iterator[Finding]:
        """Yield how a disk is in use: mounted, as swap, or as part of a RAID, LVM or encrypted device."""
        for member, place in self._members(name).items():
            number = read_text(place, "dev")
            if not number:
                yield IN_USE, f"it may be: the kernel reports too little about {member}"
            for mount in self._mounts.all:
                if mount.device == number or f"/dev/{member}" in mount.source.split(":"):
                    yield IN_USE, f"{member} is mounted on {mount.point}: umount {mount.point}"
            if any(os.path.basename(os.path.realpath(swap)) == member for swap in self._swaps):
                yield IN_USE, f"{member} is swap: swapoff /dev/{member}"
            for holder in os.listdir(os.path.join(place, "holders")):
                yield IN_USE, f"{member} is part of {holder} ({self._holder_kind(holder)})"

    def _members(self, name: str) -> dict[str, str]:
        """Return the folders in /sys of a disk and its partitions, by name."""
        folder = self._sysfs_folder(name)
        return {name: folder, **partition_folders(folder)}

    def _holder_kind(self, name: str) -> str:
        """Return what kind of device a holder is, for the user."""
        uuid = read_text(self._sysfs_folder(name), "dm/uuid")
        return "RAID" if name.startswith("md") else uuid.split("-")[0] or "device mapper"

    # Files.

    def _file_findings(self, path: str, needed: int, except_loop: str = "") -> Iterator[Finding]:
        """Yield all reasons not to write to a file; the loop device `except_loop` may use it."""
        path = os.path.realpath(path)
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            mounted = next((mount.source for mount in reversed(self._mounts.all) if mount.point == path), "")
            yield NOT_A_CARD, f"a folder where {mounted} is mounted" if mounted else "a folder"
        if not stat.S_ISREG(status.st_mode):
            yield NOT_A_CARD, "neither a disk nor a plain file"
        for folder in _SYSTEM_FOLDERS:
            if path.startswith(f"{folder}/"):
                yield NOT_A_CARD, f"a system file in {folder}"
        if self._image and os.path.samestat(status, os.stat(self._image)):
            yield IN_USE, "it is the image itself"
        if any(os.path.realpath(swap) == path for swap in self._swaps):
            yield IN_USE, f"it is swap: swapoff {path}"
        for mount in self._mounts.all:
            if mount.source == path:
                yield IN_USE, f"it is mounted on {mount.point}: umount {mount.point}"
        upper = self._mounts.upper_file(path)
        for used in (status, os.stat(upper)) if upper else (status,):
            for name in self._loop_devices_on(used):
                if name != except_loop:
                    yield IN_USE, f"/dev/{name} uses it. If a stand-in runs from this card, power it off first"
        yield from _size_findings(status.st_size, needed)

    def _loop_devices_on(self, status: os.stat_result) -> Iterator[str]:
        """Yield the loop devices on a file, found by device and inode, as the file has another name in a container."""
        for name in sorted(os.listdir(os.path.join(self._sys, "block"))):
            path = read_line(self._sys, "block", name, "loop/backing_file") if name.startswith("loop") else ""
            if not path:
                continue
            try:
                backing = loop_backing_file(f"/dev/{name}")
            except PermissionError:  # without root, only the file name is known
                try:
                    known = os.stat(path)
                except OSError:  # a file of a container, for example: the lease on the card shows whether it is this one
                    continue
                backing = (known.st_dev, known.st_ino)
            except OSError as error:
                # The loop device was detached just now, or its file is on a file system whose server has ended.
                if error.errno in (errno.ENXIO, errno.ENOENT, errno.ENOTCONN, errno.ECONNABORTED):
                    continue
                raise
            if backing == (status.st_dev, status.st_ino):
                yield name


def zfs_pools(device: str) -> set[str]:
    """Return the name of the ZFS pool that a disk or partition belongs to, from its signature; nothing without one.

    What blkid cannot tell, the exclusive opening of the disk does: ZFS holds the disks of its pools.
    """
    try:
        tags = probe_signatures(device, "--usages", "filesystem") or {}
    except BrambleError:
        return set()
    return {tags["LABEL"]} if tags.get("TYPE") == "zfs_member" and "LABEL" in tags else set()


def _size_findings(size: int, needed: int) -> Iterator[Finding]:
    """Yield TOO_SMALL for a card of `size` bytes that must hold `needed` bytes and does not."""
    if size < max(needed, 1):
        yield TOO_SMALL, f"by {format_bytes(max(needed, 1) - size)}"
