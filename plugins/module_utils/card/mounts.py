"""The mounts of this machine, and the disks that hold a path, through whatever kinds of file systems."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ansible_collections.bramble.cluster.plugins.module_utils.card.sysfs import read_line, read_text, unescape_field

_NETWORK_KINDS = frozenset({"9p", "afs", "ceph", "cifs", "nfs", "nfs4", "smb3", "vboxsf", "virtiofs"})
_OVERLAY_FOLDERS = frozenset({"lowerdir", "upperdir", "workdir"})
_OVERLAY_FOLDERS_TO_ADD = frozenset({"lowerdir+", "datadir+"})


class Pool(NamedTuple):
    """A ZFS pool. The kernel does not show its disks, but each of them has a signature with the pool's name."""

    name: str


Holder = str | Pool
"""What holds a path: a whole disk, by the name that the kernel gives it (sda, mmcblk0, loop3), or a ZFS pool."""


@dataclass(frozen=True)
class Mount:
    """One line of /proc/self/mountinfo; see proc(5). `options` are those of the file system, still with escapes.

    `root` is the folder of the file system that is mounted, which is not "/" for a bind mount of another folder.
    """

    id: str
    parent: str
    device: str
    root: str
    point: str
    kind: str
    source: str
    options: str


def read_mounts(*path: str) -> list[Mount]:
    """Return the mounts in a mountinfo file; none if it does not exist. Raises OSError."""
    # Names can have any character that Python takes for white space, except for those that the kernel escapes.
    lines = [line.split(" - ", 1) for line in read_line(*path).split("\n") if line]
    return [_parse_mount(head.split(" "), tail.split(" ")) for head, tail in lines]


def _parse_mount(head: list[str], tail: list[str]) -> Mount:
    root, point, source = unescape_field(head[3]), unescape_field(head[4]), unescape_field(tail[1])
    return Mount(head[0], head[1], head[2], root, point, tail[0], source, " ".join(tail[2:]))


def overlay_folders(options: str) -> Iterator[str]:
    """Yield the folders of an overlay file system, from its options in mountinfo.

    In the list of `lowerdir`, a backslash precedes a colon or backslash that belongs to a name; `lowerdir+` and `datadir+` have
    one name without such escapes. Source: https://docs.kernel.org/filesystems/overlayfs.html.
    """
    for option in options.split(","):
        name, _, value = option.partition("=")
        value = unescape_field(value)
        if name in _OVERLAY_FOLDERS_TO_ADD:
            yield value
        elif name in _OVERLAY_FOLDERS:
            for folder in re.findall(r"(?:\\.|[^\\:])+", value, re.DOTALL) if name == "lowerdir" else [value]:
                yield _unescape_folder(folder)


def _unescape_folder(folder: str) -> str:
    """Return a folder in the options of an overlay file system without the backslashes before its characters."""
    return re.sub(r"\\(.)", r"\1", folder, flags=re.DOTALL)


class Mounts:
    """All mounts of this process's mount namespace. `sys` and `proc` are the paths of /sys and /proc."""

    def __init__(self, sys: str = "/sys", proc: str = "/proc") -> None:
        self._sys = sys
        self.all = read_mounts(proc, "self/mountinfo")

    def holders(self, path: str) -> set[Holder]:
        """Return what holds a path, as far as it can be named.

        Nothing holds a path on a network or FUSE file system, or in memory. What cannot be named is not returned: a disk with a
        mounted file system cannot be opened exclusively, whatever is mounted, and the guard opens each card exclusively.
        """
        return self._holders(os.path.realpath(path), frozenset())

    def is_on_overlay(self, path: str) -> bool:
        """Return whether a path, which is absolute and without symbolic links, is on an overlay file system."""
        mount = self._mount_of(path)
        return mount is not None and mount.kind == "overlay"

    def upper_file(self, path: str) -> str:
        """Return the file in the upper layer of an overlay file system to which a file's content is written; "" if there is none.

        Both names lead to the same bytes, but the kernel gives them different devices and inodes, and keeps their locks apart.
        A file has none until it is first opened for writing, which copies it from a lower layer; nothing is written there. In a
        container, the upper layer has no name.

        :param path: an absolute path without symbolic links
        """
        mount = self._mount_of(path)
        if mount is None:
            return ""
        inner = os.path.join(mount.root, os.path.relpath(path, mount.point))
        options = (option.partition("=") for option in mount.options.split(","))
        upper = next((_unescape_folder(unescape_field(value)) for name, _, value in options if name == "upperdir"), "")
        file = os.path.normpath(f"{upper}/{inner}")
        return file if upper.startswith("/") and os.path.isfile(file) else ""

    def _holders(self, path: str, seen: frozenset[Mount]) -> set[Holder]:
        """Return what holds a path. `seen` are the mounts that led to it.

        A path that leads to one of them again is not a path of this machine: in a container, the options of an overlay have paths
        of the host.
        """
        mount = self._mount_of(path)
        if mount is None or mount in seen:
            return set()
        seen |= {mount}
        if name := self._block_name(f"dev/block/{mount.device}"):
            return self._disks_below(name, seen)
        if mount.kind == "overlay":
            return self._union(overlay_folders(mount.options), seen)
        if mount.kind == "zfs":
            return {Pool(mount.source.split("/")[0])}
        if mount.kind in _NETWORK_KINDS or mount.kind.split(".")[0] == "fuse":
            return set()
        # These have a device number of their own: btrfs, bcachefs (whose source is a list), and a file that is mounted itself.
        sources = mount.source.split(":") if mount.kind == "bcachefs" else [mount.source]
        devices = [os.path.basename(os.path.realpath(source)) for source in sources if source.startswith("/dev/")]
        names = {self._block_name(f"class/block/{device}") for device in devices} - {""}
        disks = set[Holder]().union(*(self._disks_below(name, seen) for name in names | self._members(names)))
        return disks | self._union((source for source in sources if re.match(r"/(?!dev/)", source)), seen)

    def _union(self, paths: Iterable[str], seen: frozenset[Mount]) -> set[Holder]:
        """Return what holds any of these paths. A path that is not absolute cannot be found."""
        return set[Holder]().union(*(self._holders(os.path.realpath(path), seen) for path in paths if path.startswith("/")))

    def _mount_of(self, path: str) -> Mount | None:
        """Return the mount that holds a path, which is the topmost one, as with a disk that is mounted over an autofs."""
        above = [mount for mount in self.all if mount.point == "/" or f"{path}/".startswith(f"{mount.point}/")]
        longest = max((len(mount.point) for mount in above), default=0)
        stack = [mount for mount in above if len(mount.point) == longest]
        covered = {mount.parent for mount in stack if mount.parent != mount.id}
        return next(reversed([mount for mount in stack if mount.id not in covered] or stack), None)

    def _block_name(self, place: str) -> str:
        """Return the name of a block device by its place in /sys; "" if the kernel does not know it."""
        folder = os.path.realpath(os.path.join(self._sys, place))
        return os.path.basename(folder) if read_text(folder, "size") else ""

    def _members(self, names: set[str]) -> set[str]:
        """Return all block devices of the btrfs and bcachefs file systems that are on any of these block devices."""
        members = set[str]()
        for kind in ("btrfs", "bcachefs"):
            folder = os.path.join(self._sys, "fs", kind)
            for file_system in os.listdir(folder) if os.path.isdir(folder) else []:
                place = os.path.join(folder, file_system)
                if kind == "btrfs":
                    devices = os.path.join(place, "devices")
                    found = set(os.listdir(devices)) if os.path.isdir(devices) else set()
                else:
                    links = [os.path.join(place, entry, "block") for entry in os.listdir(place) if entry.startswith("dev-")]
                    found = {os.path.basename(os.path.realpath(link)) for link in links}
                if found & names:
                    members |= found
        return members

    def _disks_below(self, name: str, seen: frozenset[Mount]) -> set[Holder]:
        """Return the whole disks below a block device, and what holds the file behind a loop device."""
        disks: set[Holder] = set(self.whole_disks(name))
        files = {read_line(self._sys, "class/block", disk, "loop/backing_file") for disk in self.whole_disks(name)} - {""}
        return disks | self._union(files, seen)

    def whole_disks(self, name: str) -> set[str]:
        """Return the disk of a partition, or all disks below a RAID, LVM or encrypted device."""
        folder = os.path.realpath(os.path.join(self._sys, "class/block", name))
        if os.path.exists(os.path.join(folder, "partition")):
            return self.whole_disks(os.path.basename(os.path.dirname(folder)))
        slaves = os.path.join(folder, "slaves")
        below = os.listdir(slaves) if os.path.isdir(slaves) else []
        return {name}.union(*(self.whole_disks(slave) for slave in below))
