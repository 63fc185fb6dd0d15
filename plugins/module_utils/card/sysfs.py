"""Read from /sys and /proc: the file behind a loop device, the USB reader of a card, and fields of their text files."""

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


def read_text(*path: str) -> str:
    """Return the text of a file in /sys or /proc, without white space at its ends; "" if the file does not exist.

    Raises OSError for any other error.
    """
    return read_line(*path).strip()


def read_line(*path: str) -> str:
    """Return the text of a file in /sys or /proc without its final line feed; "" if the file does not exist.

    Unlike `read_text`, this keeps the spaces at the end of a file name. Raises OSError for any other error.
    """
    try:
        with open(os.path.join(*path), encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            return file.read().removesuffix("\n")
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENXIO, errno.ENODEV):
            return ""
        raise


def unescape_field(field: str) -> str:
    """Return a field of a file in /proc without its octal escapes, such as \\040 for a space."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def active_swaps(text: str) -> list[str]:
    """Return the files and devices in the text of /proc/swaps."""
    return [unescape_field(re.split("[ \t]", line)[0]) for line in text.split("\n")[1:] if line]


def process_fields(pid: int, proc: str = "/proc") -> list[str]:
    """Return the fields of /proc/PID/stat from the state on (field 3 of proc(5)); none if there is no such process.

    The name of the program before them is in parentheses, and can have any character, so its end is the last one. Raises OSError.
    """
    return read_text(proc, str(pid), "stat").rpartition(")")[2].split()


def partition_folders(folder: str) -> dict[str, str]:
    """Return the folders in /sys of the partitions of a disk, by name; `folder` is that of the disk. Raises OSError."""
    return {name: os.path.join(folder, name) for name in os.listdir(folder) if read_text(folder, name, "partition")}


def loop_backing_file(device: str) -> tuple[int, int]:
    """Return (st_dev, st_ino) of the file behind a loop device. Raises OSError.

    The name of the file is not enough, as it can differ in a container.
    """
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
    """The USB card reader of a disk; all fields are empty for a disk in no reader."""

    serial: str = ""
    controller: str = ""
    controller_speed: int = 0


def find_reader(folder: str) -> Reader:
    """Return the reader of a disk; `folder` is the disk's folder in /sys, without symbolic links.

    Source: https://docs.kernel.org/admin-guide/abi-stable.html, /sys/bus/usb/devices/…
    """
    usb = [str(path) for path in (PurePath(folder), *PurePath(folder).parents) if read_text(str(path), "busnum")]
    if not usb:
        return Reader()
    device, hub = usb[0], usb[-1]
    return Reader(read_text(device, "serial"), os.path.basename(hub), int(read_text(hub, "speed") or 0))
