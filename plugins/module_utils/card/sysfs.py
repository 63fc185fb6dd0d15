"""What /sys and /proc say of disks: the file behind a loop device, the reader that a card is in, a mount."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
from dataclasses import dataclass
from pathlib import PurePath

_LOOP_GET_STATUS64 = 0x4C05  # linux/loop.h
_LOOP_INFO64 = 232  # sizeof(struct loop_info64); it begins with lo_device and lo_inode, both 64 bit


@dataclass(frozen=True)
class Mount:
    """A line of /proc/self/mountinfo: proc(5)."""

    device: str
    point: str
    kind: str
    source: str


def read_text(*path: str) -> str:
    """Return the text of a file in /sys or /proc, "" when it does not exist. Raises OSError for any other error."""
    try:
        with open(os.path.join(*path), encoding="utf-8", errors="surrogateescape") as file:
            return file.read().strip()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENXIO, errno.ENODEV):
            return ""
        raise


def unescape_field(field: str) -> str:
    """Return a field of mountinfo without its octal escapes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def loop_backing(device: str) -> tuple[int, int]:
    """Return (st_dev, st_ino) of the file behind a loop device, whose name may differ in a container. Raises OSError."""
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
    """Return the reader of a disk, whose real folder in /sys is `node`.

    Source: https://docs.kernel.org/admin-guide/abi-stable.html, /sys/bus/usb/devices/…
    """
    usb = [str(folder) for folder in (PurePath(node), *PurePath(node).parents) if read_text(str(folder), "busnum")]
    if not usb:
        return Reader()
    device, hub = usb[0], usb[-1]
    return Reader(read_text(device, "serial"), os.path.basename(hub), int(read_text(hub, "speed") or 0))
