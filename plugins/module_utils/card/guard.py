"""What is in each card slot, and whether it may be overwritten. Looks, and never changes anything.

The guard fails closed: what it cannot establish from /sys and /proc counts against the card. Every size is in bytes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any

from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import SECTOR
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import format_bytes, text_table

LARGEST_CARD = 256 * 10**9  # a bigger disk is more likely someone's backup than a card for a cluster

USB2_SPEED = 480  # Mbit/s

OK = "OK"
ABSENT = "ABSENT"
IN_USE = "IN USE"
NOT_A_CARD = "NOT A CARD"
NOT_REMOVABLE = "NOT REMOVABLE"
READ_ONLY = "READ ONLY"
SAME_TWICE = "SAME CARD TWICE"
SYSTEM_DISK = "SYSTEM DISK"
TOO_SMALL = "TOO SMALL"

# No card is a file here, whatever its name: a device node that went missing leaves its name free for a plain file.
_SYSTEM_FOLDERS = ("/boot", "/dev", "/etc", "/proc", "/sys", "/usr")
_SYSTEM_PATHS = ("/", "/boot", "/home")
_NOT_ON_A_DISK = frozenset({"9p", "ceph", "cifs", "nfs", "nfs4", "ramfs", "smb3", "tmpfs", "virtiofs"})
_LOOP_GET_STATUS64 = 0x4C05  # linux/loop.h
_LOOP_INFO64 = 232  # sizeof(struct loop_info64); it begins with lo_device and lo_inode, both 64 bit

Finding = tuple[str, str]
"""A verdict (one of the constants above), and the reason in words."""


@dataclass
class Facts:
    """One slot of a batch: what is in it and whether it may be overwritten."""

    node: str
    slot: str
    device: str = ""
    kind: str = ""
    bus: str = ""
    model: str = ""
    # Of the reader; empty where there is none, as in a built-in slot.
    serial: str = ""
    # The USB controller the reader hangs on, as usb1, and what it carries for all its readers, in Mbit/s.
    controller: str = ""
    controller_speed: int = 0
    bytes: int = 0
    needed_bytes: int = 0
    verdict: str = ABSENT
    reason: str = ""
    # Says whether it is still the same card when it is opened to be written.
    identity: tuple[str | int, ...] = ()
    # A virtual card that does not exist yet.
    blank: bool = False

    def report(self) -> dict[str, object]:
        """The facts as a module returns them, with GB and GiB for people."""
        report = asdict(self)
        del report["identity"], report["blank"]
        return {**report, "gb": round(self.bytes / 1e9, 2), "gib": round(self.bytes / 2**30, 2)}


@dataclass(frozen=True)
class Mount:
    """A line of /proc/self/mountinfo: proc(5)."""

    device: str
    point: str
    kind: str
    source: str


def _text(*path: str) -> str:
    """What a file in /sys or /proc says, "" when it is not there (any other error is the caller's to refuse)."""
    try:
        with open(os.path.join(*path), encoding="utf-8", errors="surrogateescape") as file:
            return file.read().strip()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENXIO, errno.ENODEV):
            return ""
        raise


def _plain(field: str) -> str:
    """A mountinfo field without its octal escapes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def loop_backing(device: str) -> tuple[int, int]:
    """(st_dev, st_ino) of the file behind a loop device, whatever that file is called where. Raises OSError."""
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        info = bytearray(_LOOP_INFO64)
        fcntl.ioctl(fd, _LOOP_GET_STATUS64, info)
    finally:
        os.close(fd)
    raw, inode = struct.unpack_from("=QQ", info)
    return os.makedev((raw >> 8) & 0xFFF, (raw & 0xFF) | ((raw >> 12) & 0xFFF00)), inode


@dataclass(frozen=True)
class Reader:
    """The USB card reader a disk is in; all empty for a disk that is in none."""

    serial: str = ""
    controller: str = ""
    controller_speed: int = 0


def reader(node: str) -> Reader:
    """The reader of a disk, whose real folder in /sys is `node`.

    Source: https://docs.kernel.org/admin-guide/abi-stable.html, /sys/bus/usb/devices/…
    """
    usb = [str(folder) for folder in (PurePath(node), *PurePath(node).parents) if _text(str(folder), "busnum")]
    if not usb:
        return Reader()
    device, hub = usb[0], usb[-1]
    return Reader(_text(device, "serial"), os.path.basename(hub), int(_text(hub, "speed") or 0))


class Guard:
    """Judges slots by the state of this machine, read once: make a new one for a new look.

    `sys` and `proc` are the places of /sys and /proc; `image` is the file that cards will be written from.
    """

    def __init__(self, image: str | None = None, sys: str = "/sys", proc: str = "/proc") -> None:
        self._sys, self._image = sys, image
        self._mounts = [
            Mount(fields[2], _plain(fields[4]), tail[0], _plain(tail[1]))
            for line in _text(proc, "self/mountinfo").splitlines()
            for fields, tail in [[part.split() for part in line.split(" - ", 1)]]
        ]
        self._swaps = [_plain(line.split()[0]) for line in _text(proc, "swaps").splitlines()[1:]]
        paths = [*_SYSTEM_PATHS, *([os.path.realpath(image)] if image else [])]
        self._system = [(path, self._disks_below(path)) for path in paths]

    def facts(self, cards: Sequence[Mapping[str, Any]], needed: int = 0) -> list[Facts]:
        """The facts of each card ({node, slot, virtual_bytes}) of a batch, of which `needed` bytes would be overwritten."""
        batch = [self._look(card["node"], card["slot"], needed, card.get("virtual_bytes") or 0) for card in cards]
        for one in batch:
            twins = [other.node for other in batch if other is not one and one.identity and other.identity == one.identity]
            if twins:
                one.verdict, one.reason = SAME_TWICE, f"also the card of {', '.join(twins)}: {one.device}"
        return batch

    def _look(self, node: str, slot: str, needed: int, virtual_bytes: int = 0) -> Facts:
        facts = Facts(node, slot, device=os.path.realpath(slot), needed_bytes=needed)
        try:
            status = os.stat(facts.device)
        except OSError as error:
            if error.errno == errno.ENOENT and virtual_bytes and not os.path.lexists(slot):
                return self._blank(facts, virtual_bytes)
            missing = "is a card in the reader? see ls -l /dev/disk/by-path" if slot.startswith("/dev/") else "no such file"
            facts.reason = missing if error.errno == errno.ENOENT else str(error)
            return facts
        try:
            if stat.S_ISBLK(status.st_mode):
                self._look_at_disk(facts, status)
            else:
                facts.kind, facts.bus = "file", "file"
                facts.bytes = status.st_size if stat.S_ISREG(status.st_mode) else 0
                facts.identity = ("file", status.st_dev, status.st_ino)
                facts.verdict, facts.reason = next(self._against_file(facts.device, needed), (OK, ""))
        except (OSError, ValueError) as error:
            facts.verdict, facts.reason = NOT_REMOVABLE, f"its state cannot be read, so it is left alone: {error}"
        return facts

    def _blank(self, facts: Facts, size: int) -> Facts:
        """A virtual card that would be made."""
        facts.kind, facts.bus, facts.bytes, facts.blank = "file", "file", size, True
        facts.identity = ("new", facts.device)
        folder = next((folder for folder in _SYSTEM_FOLDERS if facts.device.startswith(f"{folder}/")), "")
        if folder:
            facts.verdict, facts.reason = NOT_A_CARD, f"a virtual card cannot be made in {folder}"
        else:
            facts.verdict, facts.reason = next(_against_size(size, facts.needed_bytes), (OK, ""))
        return facts

    def _look_at_disk(self, facts: Facts, status: os.stat_result) -> None:
        facts.kind = "block"
        number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        name = os.path.basename(os.path.realpath(os.path.join(self._sys, "dev/block", number)))
        facts.bus, facts.model = self.bus(name), self.model(name)
        facts.bytes = self.size(name)
        for field, value in asdict(reader(self._node(name))).items():
            setattr(facts, field, value)
        facts.identity = ("block", number, _text(self._sys, "class/block", name, "diskseq"))
        facts.verdict, facts.reason = self.judge_disk(name, facts.needed_bytes)
        if facts.bus == "loop" and facts.bytes:
            facts.identity = ("file", *loop_backing(facts.device))
        if facts.verdict == OK:
            # Whoever holds it in another mount namespace (a container) shows only here.
            try:
                os.close(os.open(facts.device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                facts.verdict, facts.reason = IN_USE, "something holds it, perhaps in a container"

    # Disks. `name` is the kernel's: sda, mmcblk0, loop3.

    def _node(self, name: str) -> str:
        return os.path.realpath(os.path.join(self._sys, "class/block", name))

    def size(self, name: str) -> int:
        """The size of a disk; the kernel counts in 512-byte sectors whatever the disk does."""
        return int(_text(self._node(name), "size") or 0) * SECTOR

    def bus(self, name: str) -> str:
        """usb, mmc or loop; for any other the kernel's own name of its bus, "unknown" if there is none."""
        node = self._node(name)
        if re.search(r"/usb\d+/", node):
            return "usb"
        if "/mmc_host/" in node:
            return "mmc"
        if re.fullmatch(r"loop\d+", name) and node.endswith(f"/devices/virtual/block/{name}"):
            return "loop"
        subsystem = os.path.join(node, "device", "subsystem")
        return os.path.basename(os.path.realpath(subsystem)) if os.path.exists(subsystem) else "unknown"

    def model(self, name: str) -> str:
        """What the disk (or for a loop device its file) calls itself; may be empty."""
        node = self._node(name)
        words = [_text(node, "device", field) for field in ("vendor", "model", "name")]
        return " ".join(word for word in words if word and not word.startswith("0x")) or _text(node, "loop/backing_file")

    def judge_disk(self, name: str, needed: int) -> Finding:
        """Whether a disk may be overwritten, from what /sys and /proc say about it. Raises OSError when they cannot be read."""
        return next(self._against_disk(name, needed), (OK, ""))

    def _against_disk(self, name: str, needed: int) -> Iterator[Finding]:
        """All that is to be said against writing to a disk, the gravest first."""
        node = self._node(name)
        if not _text(node, "size"):
            yield NOT_REMOVABLE, "the kernel says nothing about it, so it is left alone"
        for path, disks in self._system:
            if disks is None:
                yield SYSTEM_DISK, f"perhaps: which disk holds {path} cannot be told on this machine"
            elif disks & self._whole_disks(name):
                yield SYSTEM_DISK, f"it holds {path}"
        if os.path.exists(os.path.join(node, "partition")):
            yield NOT_A_CARD, f"a partition; the card is /dev/{os.path.basename(os.path.dirname(node))}"
        yield from self._against_bus(name)
        if not self.size(name):
            yield ABSENT, "no card in the reader"
        if (sector := int(_text(node, "queue/logical_block_size") or 0)) != SECTOR:
            size = format_bytes(sector) if sector else "an unknown number of bytes"
            yield NOT_A_CARD, f"its sectors are {size}; a Raspberry Pi's card has {SECTOR}"
        if _text(node, "ro") != "0":
            yield READ_ONLY, "look at the card's lock switch"
        yield from self._against_use(name)
        if self.size(name) > LARGEST_CARD:
            yield NOT_A_CARD, f"{format_bytes(self.size(name))} is more than {LARGEST_CARD // 10**9} GB"
        yield from _against_size(self.size(name), needed)

    def _against_bus(self, name: str) -> Iterator[Finding]:
        bus, kind = self.bus(name), _text(self._node(name), "device/type")
        if bus == "loop":
            yield from self._against_loop(name)
        elif bus not in ("usb", "mmc"):
            yield NOT_REMOVABLE, f"on the {bus} bus; cards are on usb or mmc"
        elif bus == "mmc" and kind != "SD":
            yield NOT_REMOVABLE, f"{kind or 'unknown'} memory, soldered in, not an SD card"

    def _against_loop(self, name: str) -> Iterator[Finding]:
        """A loop device is as good as the file behind it."""
        path = _text(self._node(name), "loop/backing_file")
        if not path:
            yield ABSENT, "no file is behind this loop device"
        status = os.stat(path)
        if (status.st_dev, status.st_ino) != loop_backing(f"/dev/{name}"):
            yield NOT_REMOVABLE, f"the file behind it is not {path} of this machine"
        for verdict, reason in self._against_file(path, 0, but=name):
            yield verdict, f"{path}: {reason}"

    def _against_use(self, name: str) -> Iterator[Finding]:
        node = self._node(name)
        family = {name: node}
        family |= {part: os.path.join(node, part) for part in os.listdir(node) if _text(node, part, "partition")}
        for member, place in family.items():
            number = _text(place, "dev")
            if not number:
                yield IN_USE, f"perhaps: the kernel says too little about {member}"
            for mount in self._mounts:
                if mount.device == number or mount.source == f"/dev/{member}":
                    yield IN_USE, f"{member} is mounted on {mount.point}: umount {mount.point}"
            if any(os.path.basename(os.path.realpath(swap)) == member for swap in self._swaps):
                yield IN_USE, f"{member} is swap: swapoff /dev/{member}"
            for holder in os.listdir(os.path.join(place, "holders")):
                yield IN_USE, f"{member} is part of {holder} ({self._role(holder)})"

    def _role(self, name: str) -> str:
        """What a holder is, for people."""
        uuid = _text(self._node(name), "dm/uuid")
        return "RAID" if name.startswith("md") else uuid.split("-")[0] or "device mapper"

    # Files.

    def _against_file(self, path: str, needed: int, but: str = "") -> Iterator[Finding]:
        """All that is to be said against writing to a file; `but` is a loop device that may be on it."""
        path = os.path.realpath(path)
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            mounted = next((mount.source for mount in reversed(self._mounts) if mount.point == path), "")
            yield NOT_A_CARD, f"a folder where {mounted} is mounted" if mounted else "a folder"
        if not stat.S_ISREG(status.st_mode):
            yield NOT_A_CARD, "neither a disk nor a plain file"
        for folder in _SYSTEM_FOLDERS:
            if path.startswith(f"{folder}/"):
                yield NOT_A_CARD, f"a system file, in {folder}"
        if self._image and os.path.samestat(status, os.stat(self._image)):
            yield IN_USE, "it is the image itself"
        if any(os.path.realpath(swap) == path for swap in self._swaps):
            yield IN_USE, f"it is swap: swapoff {path}"
        for name in self._loops_on(status):
            if name != but:
                yield IN_USE, f"/dev/{name} (a stand-in is running from it? power it off first)"
        yield from _against_size(status.st_size, needed)

    def _loops_on(self, status: os.stat_result) -> Iterator[str]:
        """The loop devices on a file, by device and inode: in a container it has another name."""
        for name in sorted(os.listdir(os.path.join(self._sys, "block"))):
            path = _text(self._sys, "block", name, "loop/backing_file") if name.startswith("loop") else ""
            if not path:
                continue
            try:
                backing = loop_backing(f"/dev/{name}")
            except PermissionError:  # without root only the name is left to go by
                known = os.stat(path)
                backing = (known.st_dev, known.st_ino)
            except OSError as error:
                if error.errno in (errno.ENXIO, errno.ENOENT):  # detached meanwhile
                    continue
                raise
            if backing == (status.st_dev, status.st_ino):
                yield name

    # Where the system lives.

    def _disks_below(self, path: str) -> set[str] | None:
        """The whole disks that hold a path; None when that cannot be told."""
        above = [mount for mount in self._mounts if mount.point == "/" or f"{path}/".startswith(f"{mount.point}/")]
        if not above:
            return None
        mount = max(enumerate(above), key=lambda item: (len(item[1].point), item[0]))[1]
        name = os.path.basename(os.path.realpath(os.path.join(self._sys, "dev/block", mount.device)))
        if not _text(self._node(name), "size") and mount.source.startswith("/dev/"):  # btrfs
            name = os.path.basename(os.path.realpath(mount.source))
        if not _text(self._node(name), "size"):
            return set() if mount.kind in _NOT_ON_A_DISK else None
        return self._whole_disks(name)

    def _whole_disks(self, name: str) -> set[str]:
        """The disk a partition is on, and all disks below a RAID, LVM or encrypted one."""
        node = self._node(name)
        if os.path.exists(os.path.join(node, "partition")):
            return self._whole_disks(os.path.basename(os.path.dirname(node)))
        slaves = os.path.join(node, "slaves")
        below = os.listdir(slaves) if os.path.isdir(slaves) else []
        return {name}.union(*(self._whole_disks(slave) for slave in below))


def _against_size(size: int, needed: int) -> Iterator[Finding]:
    if size < max(needed, 1):
        yield TOO_SMALL, f"by {format_bytes(max(needed, 1) - size)}"


def warnings(batch: Sequence[Facts]) -> list[str]:
    """What will be slow, before it is."""
    by_controller: dict[str, list[str]] = {}
    for facts in batch:
        if 0 < facts.controller_speed <= USB2_SPEED:
            by_controller.setdefault(facts.controller, []).append(facts.node)
    return [
        f"The readers of {', '.join(nodes)} share one USB 2 controller ({name}), which carries 25 to 40 MB/s for all of them "
        "together: spread them over more, or use USB 3."
        for name, nodes in by_controller.items()
        if len(nodes) > 1
    ]


def table(batch: Sequence[Facts]) -> str:
    """The batch for people: one line per slot, aligned."""
    rows = [("node", "slot", "bus", "bytes", "GB", "GiB", "needed", "verdict")]
    for facts in batch:
        size = (f"{facts.bytes:,}", f"{facts.bytes / 1e9:.2f}", f"{facts.bytes / 2**30:.2f}") if facts.bytes else ("-",) * 3
        glue = " " if facts.verdict == TOO_SMALL else ": "
        verdict = glue.join(part for part in (facts.verdict, facts.reason) if part)
        rows.append((facts.node, facts.slot, facts.bus or "-", *size, f"{facts.needed_bytes:,}", verdict))
    return text_table(rows, range(3, 7))
