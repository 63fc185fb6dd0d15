"""Find out who else uses a card, and keep other programs away from it while it is open.

No single sign finds every user. Locks show a virtual machine or another writer, also one on another computer; a lease shows
everyone who has a file open, also in the kernel or a container, but only on some file systems; an exclusive opening (O_EXCL)
shows a mounted disk in any mount namespace; and /proc shows each process that this user may inspect.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import signal
import stat
import struct
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ansible_collections.bramble.cluster.plugins.module_utils.card.mounts import Mounts, read_mounts
from ansible_collections.bramble.cluster.plugins.module_utils.card.sysfs import (
    loop_backing_file,
    partition_folders,
    process_fields,
    read_line,
    read_text,
)
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

PATIENCE = 3.0  # seconds: udev and blkid open each new disk, and file indexers each new file, for a moment
INTERVAL = 0.1  # seconds between two attempts
_NAMED_PROCESSES = 3  # a message names this many
_AT_FDCWD, _AT_EMPTY_PATH, _AT_STATX_DONT_SYNC = -100, 0x1000, 0x4000  # linux/fcntl.h
_STATX_BASIC_AND_BIRTH = 0x0FFF  # linux/stat.h: STATX_BASIC_STATS | STATX_BTIME
_STATX_BYTES = 256  # sizeof(struct statx)
_FLOCK = "hhqqi4x"  # struct flock of fcntl(2), with 64-bit offsets: type, whence, start, length, pid
_libc = ctypes.CDLL(None, use_errno=True)


class Key(NamedTuple):
    """Identifies what a descriptor is open on: a file by its device and inode, or a block device by its own number, and 0."""

    is_block: bool
    device: int
    inode: int


class Process(NamedTuple):
    """Another process that uses a card."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command})" if self.command else f"process {self.pid}"


@dataclass(frozen=True)
class Status:
    """What statx(2) returns of a file. `birth` is the time of its creation, in nanoseconds, or 0 if that is unknown."""

    key: Key
    birth: int


def file_status(path: str = "", fd: int = _AT_FDCWD) -> Status:
    """Return the status of a path, or of a descriptor. Raises OSError.

    Unlike os.stat, this does not wait for a server of a network or FUSE file system that no longer answers.
    """
    buffer = bytearray(_STATX_BYTES)
    raw = (ctypes.c_char * _STATX_BYTES).from_buffer(buffer)
    flags = _AT_STATX_DONT_SYNC | (0 if path else _AT_EMPTY_PATH)
    if _libc.statx(fd, os.fsencode(path), flags, _STATX_BASIC_AND_BIRTH, raw):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    # The offsets are those of struct statx in linux/stat.h.
    (mode,), (inode,) = struct.unpack_from("=H", buffer, 28), struct.unpack_from("=Q", buffer, 32)
    seconds, nanoseconds = struct.unpack_from("=qI", buffer, 80)
    rdev_major, rdev_minor, major, minor = struct.unpack_from("=4I", buffer, 128)
    if stat.S_ISBLK(mode):
        return Status(Key(True, os.makedev(rdev_major, rdev_minor), 0), 0)
    return Status(Key(False, os.makedev(major, minor), inode), seconds * 10**9 + nanoseconds)


def keys_of(fd: int, sys: str = "/sys") -> set[Key]:
    """Return the keys under which another process can use a card: the file, or a disk and its partitions.

    Raises OSError.
    """
    key = file_status(fd=fd).key
    if not key.is_block:
        return {key}
    keys = {key}
    folder = os.path.realpath(os.path.join(sys, f"dev/block/{os.major(key.device)}:{os.minor(key.device)}"))
    for place in partition_folders(folder).values() if os.path.isdir(folder) else []:
        if number := read_text(place, "dev"):
            major, minor = number.split(":")
            keys.add(Key(True, os.makedev(int(major), int(minor)), 0))
    return keys


# Who has it


class Processes:
    """The other processes of this machine, and what they have open, as they are when this is first asked for.

    Processes that this user may not inspect are left out, unless the kernel names them as holders of a lock.
    """

    def __init__(self, proc: str = "/proc") -> None:
        self.proc = proc

    @functools.cached_property
    def _pids(self) -> list[int]:
        return sorted({int(entry) for entry in os.listdir(self.proc) if entry.isdigit()} - {os.getpid()})

    def users(self, keys: Collection[Key]) -> list[Process]:
        """Return the processes that have one of these files or devices open, mapped or locked."""
        pids = {pid for key in keys for pid, fd in self._opened.get(key, ()) if self._is_use(pid, fd, key.is_block)}
        pids.update(*(self._mapped.get(key, ()) for key in keys))
        pids |= _lock_holders(self.proc, keys) & set(self._pids)
        return [self._process(pid) for pid in sorted(pids)]

    def foreign_mounts(self, keys: Collection[Key]) -> Iterator[tuple[Process, str]]:
        """Yield each (process, mount point) at which one of these devices is mounted in another mount namespace."""
        numbers = {f"{os.major(key.device)}:{os.minor(key.device)}" for key in keys if key.is_block}
        namespaces = {_link(self.proc, "self", "ns/mnt")}
        for pid in self._pids:
            namespace = _link(self.proc, str(pid), "ns/mnt")
            if not namespace or namespace in namespaces:
                continue
            namespaces.add(namespace)
            with contextlib.suppress(OSError):
                for mount in read_mounts(self.proc, str(pid), "mountinfo"):
                    if mount.device in numbers:
                        yield self._process(pid), mount.point

    def _process(self, pid: int) -> Process:
        return Process(pid, read_text(self.proc, str(pid), "comm"))

    @functools.cached_property
    def _opened(self) -> Mapping[Key, list[tuple[int, str]]]:
        """The (process, descriptor) of each open file and device."""
        opened = dict[Key, list[tuple[int, str]]]()
        for pid in self._pids:
            folder = f"{self.proc}/{pid}/fd"
            for fd in _entries(folder):
                with contextlib.suppress(OSError):  # it was closed just now
                    opened.setdefault(file_status(f"{folder}/{fd}").key, []).append((pid, fd))
        return opened

    def _is_use(self, pid: int, fd: str, is_block: bool) -> bool:
        """Return whether a descriptor is more than a name, and not that of a program that is waiting for this one.

        A program that started this one may keep a disk open for reading, so that it stays attached.
        """
        with contextlib.suppress(OSError):
            lines = read_text(self.proc, str(pid), "fdinfo", fd).split("\n")
            flags = next((int(line.split()[1], 8) for line in lines if line.startswith("flags:")), os.O_RDWR)
            is_for_reading = flags & os.O_ACCMODE == os.O_RDONLY
            return not (flags & os.O_PATH or (is_block and is_for_reading and pid in self._ancestors))
        return True

    @functools.cached_property
    def _ancestors(self) -> set[int]:
        """The parent of this process, its parent, and so on."""
        pids, pid = set[int](), os.getppid()
        while pid > 0 and pid not in pids:
            pids.add(pid)
            fields = process_fields(pid, self.proc)
            pid = int(fields[1]) if len(fields) > 1 else 0
        return pids

    @functools.cached_property
    def _mapped(self) -> Mapping[Key, set[int]]:
        """The processes that have each file or device mapped into memory, also if it is no longer open."""
        mapped, known = dict[Key, set[int]](), dict[bytes, Key]()
        for pid in self._pids:
            for file_id, addresses in self._mappings(pid).items():
                if file_id not in known:
                    known[file_id] = self._mapping_key(pid, file_id, addresses)
                mapped.setdefault(known[file_id], set()).add(pid)
        return mapped

    def _mappings(self, pid: int) -> dict[bytes, bytes]:
        """Return the addresses at which a process has each file mapped, by device and inode; each as in /proc/PID/maps."""
        try:
            with open(f"{self.proc}/{pid}/maps", "rb") as file:
                lines = [line.split(maxsplit=5) for line in file.read().split(b"\n")]
        except OSError:
            return {}
        return {b" ".join(fields[3:5]): fields[0] for fields in lines if len(fields) > 5 and fields[4] != b"0"}

    def _mapping_key(self, pid: int, file_id: bytes, addresses: bytes) -> Key:
        """Return the key of a file that a process has mapped.

        Only root may follow the link in map_files, which alone shows a device that is mapped, and a file on btrfs, whose device
        number is that of its subvolume.
        """
        start, end = (int(address, 16) for address in addresses.split(b"-"))
        try:
            return file_status(f"{self.proc}/{pid}/map_files/{start:x}-{end:x}").key
        except OSError:
            device, inode = file_id.split()
            major, minor = (int(number, 16) for number in device.split(b":"))
            return Key(False, os.makedev(major, minor), int(inode))


def _lock_holders(proc: str, keys: Collection[Key]) -> set[int]:
    """Return the processes that hold a lock or lease on one of these files, from /proc/locks.

    An open-file-description lock belongs to no process, and has -1 there.
    """
    files = {f"{os.major(key.device):02x}:{os.minor(key.device):02x}:{key.inode}" for key in keys if not key.is_block}
    pids = set[int]()
    for line in read_text(proc, "locks").split("\n"):
        fields = [field for field in line.split() if field != "->"]
        if len(fields) > 5 and fields[5] in files and fields[4].isdigit():
            pids.add(int(fields[4]))
    return pids


def _entries(folder: str) -> list[str]:
    """Return the names in a folder; none if it cannot be read."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _link(*path: str) -> str:
    """Return where a symbolic link leads; "" if it cannot be read."""
    try:
        return os.readlink(os.path.join(*path))
    except OSError:
        return ""


# How it is in use. Each reason is a sentence in which "it" is the card, and ends with what to do.


def conflict(fd: int, processes: Processes, is_sole_opening: bool = True) -> str:
    """Return how another program uses a card, and what to do; "" if nobody else does. The locks are then held by `fd`.

    :param is_sole_opening: whether `fd` is the only opening that is expected; false for the file behind a loop device
    :raises OSError: when the card cannot be read
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # this also keeps udev from probing the card
    except BlockingIOError:
        who = _names(processes.users(keys_of(fd)))
        return f"it is being written by another process{who}. Wait until it has ended, then run the same command again"
    except OSError as error:
        _require_unsupported(error)
    if not _lock(fd):
        who = _names(processes.users(keys_of(fd)))
        return f"it is locked by another process, as a virtual machine locks its disks{who}. {_END_IT}"
    is_block = stat.S_ISBLK(os.fstat(fd).st_mode)
    is_sole = _is_only_opening(fd) if is_sole_opening and not is_block else None
    if is_sole:
        return ""
    if users := processes.users(keys_of(fd)):
        return f"it is open in another process{_names(users)}. {_END_IT}"
    if is_sole is False:
        return (
            "it is in use, but by no process that this user can see: by the kernel, such as a loop device, or by another user. "
            "Run the same command as root to see that process"
        )
    return ""


_END_IT = "End that program, then run the same command again"


def explain_busy(device: str, processes: Processes) -> str:
    """Return how a disk is in use that cannot be opened exclusively, and what to do."""
    keys = set[Key]()
    with contextlib.suppress(OSError):
        # A descriptor that only names the device can always be opened.
        fd = os.open(device, os.O_PATH | os.O_CLOEXEC)
        try:
            keys = keys_of(fd)
        finally:
            os.close(fd)
    for process, point in processes.foreign_mounts(keys):
        return (
            f"it is mounted on {point} in another mount namespace, that of {process}, such as a container. Unmount it there: "
            f"nsenter --target {process.pid} --mount umount {point}"
        )
    users = processes.users(keys)
    if not users:
        return "another program has it open; it may run in a container"
    return f"it is held by another process{_names(users)}. {_END_IT}"


def _names(processes: Iterable[Process]) -> str:
    """Return the names of processes for a message, after a colon; "" for none."""
    names = [str(process) for process in processes]
    more = f" and {len(names) - _NAMED_PROCESSES} more" if len(names) > _NAMED_PROCESSES else ""
    return f": {', '.join(names[:_NAMED_PROCESSES])}{more}" if names else ""


def _require_unsupported(error: OSError) -> None:
    """Raise an error unless it says that the file system does not support a kind of lock, or not with this descriptor."""
    if error.errno not in (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
        raise error


def _lock(fd: int) -> bool:
    """Lock all of a file or device for an open file description; return whether nobody else has a lock of any part of it.

    Such a lock also conflicts with the locks of processes (fcntl(2), F_OFD_SETLK), and with the shared ones of QEMU. A descriptor
    that is open for reading can only hold a shared lock.
    """
    can_write = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    wanted = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    held = wanted if can_write else struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
    try:
        found = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_OFD_GETLK, wanted))
        if found[0] != fcntl.F_UNLCK:
            return False
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, held)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        _require_unsupported(error)
    return True


def _is_only_opening(fd: int) -> bool | None:
    """Return whether nobody else has a file open, in any namespace or in the kernel; None if this cannot be found out.

    A write lease is granted only then (fcntl(2), F_SETLEASE). It is given back at once.
    """
    try:
        # If someone opens the file before the lease is given back, the kernel sends a signal: one that is ignored by default.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return False if error.errno == errno.EAGAIN else None
    return True


# Opening


def inspect(device: str, is_block: bool, processes: Processes) -> str:
    """Return how another program uses a card, which is opened for reading and closed again; "" if nobody does.

    Raises OSError when the card cannot be opened or read.
    """
    # Opening a file with O_NONBLOCK does not wait for the holder of a lease: open(2).
    mode = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_EXCL if is_block else 0)
    try:
        fd = os.open(device, mode)
    except OSError as error:
        if is_block and error.errno == errno.EBUSY:
            return explain_busy(device, processes)
        if error.errno == errno.EWOULDBLOCK:
            return f"it is reserved by another process with a lease. {_END_IT}"
        raise
    try:
        return conflict(fd, processes) or backing_file_conflict(fd, processes) or _upper_file_conflict(device, processes)
    finally:
        os.close(fd)


def open_upper_file(device: str) -> int | None:
    """Return a descriptor of the file in the upper layer of an overlay file system that holds a card; None if there is none.

    Raises OSError.
    """
    if path := Mounts().upper_file(device):
        with contextlib.suppress(PermissionError, FileNotFoundError):
            return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    return None


def upper_conflict(upper: int | None, processes: Processes) -> str:
    """Return how another program uses the file that `open_upper_file` opened; "" if nobody does, or if there is none.

    The locks are then held by `upper`. Raises OSError.
    """
    # The overlay file system has this file open as well, so it is not the only opening.
    reason = conflict(upper, processes, False) if upper is not None else ""
    return f"it is on an overlay file system, and of the same file in its upper layer: {reason}" if reason else ""


def _upper_file_conflict(device: str, processes: Processes) -> str:
    """Return how another program uses the file of an upper layer that holds a card; "" if nobody does. Raises OSError."""
    upper = open_upper_file(device)
    try:
        return upper_conflict(upper, processes)
    finally:
        if upper is not None:
            os.close(upper)


def backing_file_conflict(fd: int, processes: Processes, sys: str = "/sys") -> str:
    """Return how another program uses the file behind a loop device; "" if nobody does, or if `fd` is no loop device.

    Raises OSError.
    """
    status = os.fstat(fd)
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    path = read_line(sys, "dev/block", number, "loop/backing_file") if stat.S_ISBLK(status.st_mode) else ""
    if not path:
        return ""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # The file may have another name here than where it was attached; the processes that have it open are found by its inode.
        key = file_status(fd=file).key
        is_backing = key == Key(False, *loop_backing_file(f"/proc/self/fd/{fd}"))
        reason = (conflict(file, processes, False) or _upper_file_conflict(path, processes)) if is_backing else ""
    finally:
        os.close(file)
    return f"it is on {path}, and of that file: {reason}" if reason else ""


def wait_while_used(find_reason: Callable[[Processes], str]) -> str:
    """Return the reason that a function returns after PATIENCE seconds; "" as soon as it returns none."""
    end = time.monotonic() + PATIENCE
    while (reason := find_reason(Processes())) and time.monotonic() < end:
        time.sleep(INTERVAL)
    return reason


def open_card(device: str, flags: int, is_block: bool) -> int:
    """Return a descriptor of a card, opened exclusively and without following a symbolic link. Raises BrambleError, OSError."""
    opened: list[int] = []

    def attempt(processes: Processes) -> str:
        try:
            opened.append(os.open(device, flags | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_EXCL if is_block else 0)))
        except OSError as error:
            if not is_block or error.errno != errno.EBUSY:
                raise
            return explain_busy(device, processes)
        return ""

    if reason := wait_while_used(attempt):
        raise BrambleError(f"{device} is in use: {reason}")
    return opened[0]


def claim(fd: int, device: str, upper: int | None = None) -> None:
    """Lock a card that is open, until it is closed. Raises BrambleError when another program uses it, OSError.

    :param upper: the file that `open_upper_file` opened, which is locked as well
    """

    def find_conflict(processes: Processes) -> str:
        return conflict(fd, processes) or backing_file_conflict(fd, processes) or upper_conflict(upper, processes)

    if reason := wait_while_used(find_conflict):
        raise BrambleError(f"{device} is in use: {reason}")
