"""A golden card made into an image: its used bytes, without what tells one node from another, as small as it goes.

The card is only read. The work is done on a private copy of its two file systems, without mounting them: e2fsprogs for the root,
and the FAT is made anew from its files. What was deleted is not in the image. Every size and offset is in bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import hashlib
import itertools
import json
import os
import re
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ansible_collections.bramble.cluster.plugins.module_utils.card.guard import OK, READ_ONLY, Facts, Guard
from ansible_collections.bramble.cluster.plugins.module_utils.card.partition import FAT_TYPES, Partition, boot_and_root, parse_mbr
from ansible_collections.bramble.cluster.plugins.module_utils.card.space import EXT, FAT, Fat, Range, kind, used
from ansible_collections.bramble.cluster.plugins.module_utils.card.writer import Card, Progress
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import (
    CHUNK,
    PAGE,
    SECTOR,
    ZEROS,
    is_zero,
    read_exactly,
)
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import format_bytes
from ansible_collections.bramble.cluster.plugins.module_utils.core.tools import TOOL_ENV

SLACK = 16 * 2**20  # free space of the root file system, above the least that resize2fs allows, until it grows
COMPRESSORS = {"zst": ("zstd", "-T0", "-q", "-c"), "xz": ("xz", "-T0", "-c")}
# What is needed, and the Debian package that brings it.
TOOLS = {
    "debugfs": "e2fsprogs",
    "dumpe2fs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "resize2fs": "e2fsprogs",
    "fatlabel": "dosfstools",
    "fsck.vfat": "dosfstools",
    "mkfs.vfat": "dosfstools",
    "mcopy": "mtools",
    "zstd": "zstd",
    "xz": "xz-utils",
}

# What tells one node from another, or is of no use to it. A folder goes with all that is in it.
GONE = (
    # who it is
    "/etc/ssh/ssh_host_*",
    "/etc/ssh/sshd_config.d/10-bramble*.conf",
    "/etc/bramble/ssh/*",
    "/etc/bramble/tls/*",
    "/var/lib/dbus/machine-id",
    "/var/lib/cloud/*",
    "/var/lib/systemd/random-seed",
    "/var/lib/systemd/credential.secret",
    "/var/lib/urandom/random-seed",
    # where it is
    "/etc/NetworkManager/system-connections/*",
    "/etc/cloud/cloud.cfg.d/99-bramble-network.cfg",
    "/etc/netplan/50-cloud-init.yaml",
    "/etc/netplan/90-NM-*",
    "/etc/network/interfaces.d/50-cloud-init",
    "/etc/network/interfaces.d/bramble-*",
    "/etc/systemd/network/05-bramble-*",
    "/var/lib/bramble/network",
    "/var/lib/NetworkManager/*",
    "/var/lib/dhcp/*",
    "/var/lib/dhcpcd/*",
    "/var/lib/dhcpcd5/*",
    # what it did
    "/var/log/journal/*",
    "/root/.*_history",
    "/root/.lesshst",
    "/root/.viminfo",
    "/home/*/.*_history",
    "/home/*/.lesshst",
    "/home/*/.viminfo",
    "/tmp/*",
    "/var/tmp/*",
    "/var/swap",
    # what can be fetched again
    "/var/cache/apt/*.bin",
    "/var/cache/apt/archives/*.deb",
    "/var/cache/apt/archives/partial/*",
)
EMPTIED = ("/var/log",)  # only the files: services want their folders
# Without this file, or with nothing in it, it would not be a first boot for systemd.
MACHINE_ID = "/etc/machine-id"
HOSTNAME = "/etc/hostname"
HOSTS = "/etc/hosts"

# On the boot partition: ways to tell a card who it is, by name.
BOOT_GONE = (
    "custom.toml",
    "firstrun.sh",
    "rpi-preseed.toml",
    "ssh",
    "ssh.txt",
    "userconf",
    "userconf.txt",
    "wpa_supplicant.conf",
)
CMDLINE_GONE = ("systemd.run=", "systemd.run_success_action=", "systemd.unit=kernel-command-line.target", "ds=nocloud")
GROW = "resize"  # the word in cmdline.txt that asks for a larger root partition

# Raspberry Pi OS from trixie on: https://github.com/RPi-Distro/raspberrypi-sys-mods, initramfs-tools and rpi-resize.service.
_PI_RESIZE = "/usr/share/initramfs-tools/scripts/local-premount/resize_early"
_PI_UNIT = "/usr/lib/systemd/system/rpi-resize.service"
_PI_WANTED = "/etc/systemd/system/sysinit.target.wants/rpi-resize.service"
_GROW_SCRIPT = "/usr/local/sbin/bramble-grow"
_GROW_UNIT = "/etc/systemd/system/bramble-grow.service"
_GROW_WANTED = "/etc/systemd/system/multi-user.target.wants/bramble-grow.service"
_GROW_FILES = {
    _GROW_SCRIPT: """\
#!/bin/sh
# Grow the root partition and its file system to the end of the card, once: this image was captured and shrunk by Bramble.
set -eu
part=$(readlink -f "/sys/dev/block/$(mountpoint -d /)")
disk=/dev/$(basename "$(dirname "$part")")
number=$(cat "$part/partition")
echo ',+' | sfdisk --quiet --force --no-reread --no-tell-kernel -N "$number" "$disk"
partx --update --nr "$number" "$disk"
resize2fs "/dev/$(basename "$part")"
systemctl disable bramble-grow.service
""",
    _GROW_UNIT: f"""\
[Unit]
Description=Grow the root file system to the card
ConditionVirtualization=!container

[Service]
Type=oneshot
ExecStart={_GROW_SCRIPT}

[Install]
WantedBy=multi-user.target
""",
}


def _tool(*command: str | Path, given: str = "", fine: Sequence[int] = (0,)) -> str:
    """Run a command and give what it says. Raises BrambleError with its first words when it ends otherwise than `fine`."""
    done = subprocess.run(command, input=given.encode(errors="surrogateescape"), stdout=-1, stderr=-2, check=False, env=TOOL_ENV)
    said = done.stdout.decode(errors="surrogateescape")
    if done.returncode not in fine:
        words = [line.strip() for line in said.splitlines() if not re.match(r"\s*$|Pass \d|\w+ \d+\.\d+\S* \(", line)]
        raise BrambleError(f"{command[0]} failed ({done.returncode}): {'; '.join(words[:6])}".encode(errors="replace").decode())
    return said


def check_tools(path: str = TOOL_ENV["PATH"]) -> None:
    """Raises BrambleError when one is missing on this machine."""
    if missing := sorted({package for tool, package in TOOLS.items() if shutil.which(tool, path=path) is None}):
        raise BrambleError(
            f"Missing on this machine: {', '.join(missing)}. Nothing was captured. Next: apt install {' '.join(missing)}"
        )


# The card


@dataclass(frozen=True)
class Golden:
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
        """How much is read."""
        return sum(high - low for low, high in [*self.boot_used, *self.root_used])


@contextlib.contextmanager
def opened(node: str, slot: str) -> Iterator[Card]:
    """A card, open for reading by nobody else. Raises BrambleError for what is not a card, or is in use."""
    (facts,) = Guard().facts([{"node": node, "slot": slot}])
    # A card whose lock is on can be read: whether it is in use shows when it is opened.
    if facts.verdict not in (OK, READ_ONLY):
        raise BrambleError(f"{slot}: {facts.verdict}: {facts.reason}. Nothing was captured.")
    card = Card(facts, writable=False)
    try:
        yield card
    finally:
        card.close()


def inspect(card: Card, most: int) -> Golden:
    """What there is to capture. Raises BrambleError, saying what to do, for a card that cannot be, or uses more than `most`."""
    slot, mtime = card.facts.slot, os.fstat(card.fd).st_mtime_ns
    try:
        mbr = card.read(0, PAGE)[:SECTOR]
        boot, root = _layout(card, mbr)
    except BrambleError as error:
        raise BrambleError(f"{slot} cannot be captured: {error}.") from None
    with unsound(card.facts, boot):
        boot_used = used(card.fd, boot.start, boot.size, strict=True)
    with unsound(card.facts, root):
        root_used = used(card.fd, root.start, root.size, strict=True, zeroed=True)
    golden = Golden(card.facts, mbr, boot, root, boot_used, root_used, mtime)
    if (least := boot.end + sum(high - low for low, high in root_used)) > most:
        raise too_large(least, most)
    return golden


def _layout(card: Card, mbr: bytes) -> tuple[Partition, Partition]:
    """Its boot and root partitions. Raises BrambleError unless it has these two, in this order, with known file systems."""
    partitions = parse_mbr(mbr, card.facts.bytes)
    boot, root = boot_and_root(partitions)
    fd = os.open(f"/proc/self/fd/{card.fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = kind(fd, boot.start, boot.size), kind(fd, root.start, root.size)
        if FAT not in found and root.start * 8 < card.facts.bytes and kind(fd, boot.start * 8, boot.size) == FAT:
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
def unsound(facts: Facts, partition: Partition) -> Iterator[None]:
    """Says of a BrambleError that a file system of the card is not sound, and what to do about it."""
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


def too_large(needed: int, most: int) -> BrambleError:
    """What to tell when it will not fit."""
    return BrambleError(
        f"The image would need a card of {format_bytes(needed)}; it may need {format_bytes(most)} (capture_card_bytes). "
        f"Nothing was captured. Remove {format_bytes(needed - most)} of files from the card "
        "(on its Pi: sudo du -xh / | sort -h | tail), or allow more."
    )


# The copy


@contextlib.contextmanager
def workspace(folder: Path) -> Iterator[Path]:
    """A private folder inside `folder`, removed at the end; what a killed capture left is removed first."""
    parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(parent, fcntl.LOCK_EX)
        for leftover in folder.glob(".capture-*"):
            fd = os.open(leftover, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            with contextlib.suppress(BlockingIOError):  # another capture's, at work
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover)
            os.close(fd)
        work = Path(tempfile.mkdtemp(prefix=".capture-", dir=folder))
        held = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(held, fcntl.LOCK_EX)
    finally:
        os.close(parent)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(held)


def copy(card: Card, golden: Golden, boot: Path, root: Path, progress: Progress) -> None:
    """The used bytes of both partitions as two sparse files. Raises BrambleError."""
    meter = progress.meter(card.facts.node, "read", golden.bytes)
    for partition, ranges, path in ((golden.boot, golden.boot_used, boot), (golden.root, golden.root_used, root)):
        with path.open("wb", buffering=0) as file:
            file.truncate(partition.size)
            for low, high in ranges:
                at = low
                while at < high:
                    data = card.read(at, min(CHUNK - at % CHUNK, high - at))
                    if not is_zero(data):
                        file.seek(at - partition.start)
                        file.write(data)
                    at += len(data)
                    meter(len(data))
    if card.regular and os.fstat(card.fd).st_mtime_ns != golden.mtime:
        raise BrambleError(f"{card.facts.slot} was written to while it was read. Nothing was captured; run it again.")


# The root file system


def check_root(path: Path) -> None:
    """Raises BrambleError unless it is sound."""
    _tool("e2fsck", "-fn", path)


@dataclass
class Root:
    """An ext file system in a file, looked at and changed with debugfs."""

    path: Path
    _entries: dict[str, dict[str, bool]] = field(default_factory=dict)

    def _ask(self, request: str) -> str:
        return _tool("debugfs", "-R", request, self.path)

    def is_there(self, path: str) -> bool:
        """Whether a path leads to something."""
        return bool(re.search(r"^Inode: \d", self._ask(f"stat {_quoted(path)}"), re.MULTILINE))

    def text(self, path: str) -> str:
        """What is in a file; "" when it is not there."""
        return self._ask(f"cat {_quoted(path)}").partition("\n")[2] if self.is_there(path) else ""

    def entries(self, folder: str) -> dict[str, bool]:
        """What is in a folder, by name, and whether that is a folder; nothing when it is none. Raises BrambleError."""
        if folder in self._entries:
            return self._entries[folder]
        # "/." goes through a symbolic link to the folder.
        lines = self._ask(f"ls -p {_quoted(folder + '/.')}").split("\n")[1:]
        found = self._entries[folder] = {}
        if re.search("not a directory|not found by ext2_lookup", lines[0]) and not lines[0].endswith("/"):
            return found
        for line in filter(None, lines):
            fields = line.split("/")
            if len(fields) != 8 or not fields[1].isdigit():
                raise BrambleError(f"a name in {folder} has a line break in it, and cannot be handled: rename it on the card")
            if fields[5] not in (".", ".."):
                found[fields[5]] = fields[2].startswith("04")
        return found

    def match(self, pattern: str) -> dict[str, bool]:
        """The paths that fit a pattern with * in its names, and whether each is a folder."""
        found = {"": True}
        for name in pattern.split("/")[1:]:
            found = {
                f"{folder}/{entry}": is_folder
                for folder in found
                for entry, is_folder in self.entries(folder).items()
                if fnmatch.fnmatchcase(entry, name)
            }
        return found

    def below(self, folder: str) -> dict[str, bool]:
        """All that is in a folder and in those in it, the outermost first."""
        found = {}
        for name, is_folder in self.entries(folder).items():
            found[f"{folder}/{name}"] = is_folder
            if is_folder:
                found |= self.below(f"{folder}/{name}")
        return found

    def condemned(self) -> tuple[list[str], list[str]]:
        """What GONE and EMPTIED name: files, and folders with the innermost first."""
        found: dict[str, bool] = {}
        for pattern in GONE:
            for path, is_folder in self.match(pattern).items():
                found[path] = is_folder
                if is_folder:
                    found |= self.below(path)
        for folder in EMPTIED:
            found |= {path: False for path, is_folder in self.below(folder).items() if not is_folder}
        files = sorted(path for path, is_folder in found.items() if not is_folder)
        return files, sorted((path for path, is_folder in found.items() if is_folder), key=lambda path: -path.count("/"))

    def change(self, gone: tuple[list[str], list[str]], files: Mapping[str, str], links: Mapping[str, str], work: Path) -> None:
        """Remove files and folders, put files (those in sbin executable) and links. Raises BrambleError unless it is so then."""
        script = [f"rm {_quoted(path)}" for path in gone[0]] + [f"rmdir {_quoted(path)}" for path in gone[1]]
        folders = {os.fspath(folder): None for path in [*files, *links] for folder in reversed(Path(path).parents)}
        script += [f"mkdir {_quoted(folder)}" for folder in folders if not self.is_there(folder)]
        for number, (path, text) in enumerate(files.items()):
            source = work / f"file{number}"
            source.write_text(text, errors="surrogateescape")
            if self.is_there(path):
                script.append(f"rm {_quoted(path)}")
            script.append(f"write {_quoted(os.fspath(source))} {_quoted(path)}")
            mode = "0100755" if "/sbin/" in path else "0100644"
            script += [
                f"set_inode_field {_quoted(path)} {name} {value}" for name, value in (("mode", mode), ("uid", 0), ("gid", 0))
            ]
        script += [f"symlink {_quoted(path)} {_quoted(target)}" for path, target in links.items() if not self.is_there(path)]
        self._entries.clear()
        said = _tool("debugfs", "-w", "-f", "-", self.path, given="\n".join([*script, ""]))
        wrong = [path for paths in self.condemned() for path in paths]
        wrong += [path for path, text in files.items() if self.text(path) != text]
        wrong += [path for path in links if not self.is_there(path)]
        if wrong:
            notes = [line for line in said.splitlines()[1:] if line and not line.startswith("debugfs: ")]
            raise BrambleError(f"{', '.join(wrong[:5])} on the root file system cannot be changed: {'; '.join(notes[:5])}")

    def grow_method(self) -> str:
        """What will grow it at the first boot: initramfs, cloud-init or unit."""
        if self.is_there(_PI_RESIZE):
            return "initramfs"
        off = ("/etc/growroot-disabled", "/etc/cloud/cloud-init.disabled")
        if all(map(self.is_there, ("/usr/bin/cloud-init", "/usr/bin/growpart"))) and not any(map(self.is_there, off)):
            return "cloud-init"
        return "unit"

    def init_format(self) -> str:
        """How it is told who it is, in the catalogue's words."""
        if not self.is_there("/usr/bin/cloud-init"):
            return "systemd"
        return "cloudinit-rpi" if self.is_there("/etc/rpi-issue") else "cloudinit"

    def clean(self, grow: str, work: Path) -> list[str]:
        """Remove what tells one node from another; the paths of what was removed or changed. Raises BrambleError."""
        gone = self.condemned()
        files = {MACHINE_ID: "uninitialized\n"}
        if self.is_there(HOSTNAME):
            files[HOSTNAME] = "raspberrypi\n"
        hosts = self.text(HOSTS)
        own = [line for line in hosts.splitlines(keepends=True) if line.split()[:1] == ["127.0.1.1"]]
        if own:
            files[HOSTS] = "".join(line for line in hosts.splitlines(keepends=True) if line not in own)
        links = {}
        if grow == "unit":
            files |= _GROW_FILES
            links[_GROW_WANTED] = _GROW_UNIT
        elif grow == "initramfs" and self.is_there(_PI_UNIT):
            links[_PI_WANTED] = _PI_UNIT  # it disables itself
        self.change(gone, files, links, work)
        return sorted({*gone[0], *gone[1], *files, *links})

    def field(self, name: str, default: int | None = None) -> int:
        """A number that dumpe2fs tells. Raises BrambleError when it is not there and has no default."""
        found = re.search(rf"^{name}:\s+(\d+)", _tool("dumpe2fs", "-h", self.path), re.MULTILINE)
        if found:
            return int(found[1])
        if default is None:
            raise BrambleError(f"dumpe2fs does not tell the {name.lower()} of its root file system")
        return default

    def forget(self) -> None:
        """Make zero what the journal holds, which are old directories and more. Raises BrambleError."""
        inode, block = self.field("Journal inode", 0), self.field("Block size")
        if not inode:
            return
        # "(0-11):1-12, (IND):13, (12):14": its blocks, and those that say where they are. The first block is the journal's head.
        found = re.findall(r"\((\d+)(?:-\d+)?\):(\d+)(?:-(\d+))?", self._ask(f"stat <{inode}>"))
        with self.path.open("r+b") as file:
            for first, low, high in found:
                start, end = (int(low) + (first == "0")) * block, (int(high or low) + 1) * block
                for at in range(start, end, CHUNK):
                    length = min(CHUNK, end - at)
                    if not is_zero(read_exactly(file.fileno(), at, length)):
                        os.pwrite(file.fileno(), ZEROS[:length], at)

    def shrink(self) -> int:
        """Make it as small as resize2fs can, and SLACK; its size. Raises BrambleError."""
        _tool("e2fsck", "-fpD", self.path, fine=(0, 1))  # makes directories anew, without the names of what was deleted
        self.forget()
        least = re.search(r"minimum size of the filesystem: (\d+)", _tool("resize2fs", "-P", self.path))
        if not least:
            raise BrambleError("resize2fs does not tell how small the root file system can be")
        block = self.field("Block size")
        target = int(least[1]) + SLACK // block
        if target < self.field("Block count"):
            _tool("resize2fs", self.path, str(target))
        check_root(self.path)
        return self.field("Block count") * block


def _quoted(path: str) -> str:
    """A path as a word of a debugfs script. Raises BrambleError."""
    if "\n" in path or "\r" in path:
        raise BrambleError(f"{path!r} has a line break in its name, and cannot be handled: rename it on the card")
    return '"' + path.replace('"', '""') + '"'


# The boot file system

_HARMLESS = re.compile(
    r"fsck\.fat |There are differences between boot sector and its backup|This is mostly harmless|  [0-9, ]+:[0-9a-f]{2}/"
    r"|  Not automatically fixing this|Dirty bit is set| Automatically removing dirty bit"
    r"|Free cluster summary |  Auto-correcting|Leaving filesystem unchanged|.*: \d+ files, |\s*$"
)


def check_boot(path: Path) -> None:
    """Raises BrambleError unless it is sound; a Pi that lost its power leaves traces that do not count."""
    said = _tool("fsck.vfat", "-n", path, fine=(0, 1)).splitlines()
    if wrong := [line.strip() for line in said if not _HARMLESS.match(line)]:
        raise BrambleError("; ".join(wrong[:6]))


def clean_boot(path: Path, work: Path, seeds: Mapping[str, str]) -> list[str]:
    """Make a FAT anew from its files, without those that say who a card is; the names of what was removed or changed.

    `seeds` replace the files of these names. The new one has the same size, geometry, label and number. Raises BrambleError.
    """
    files = work / "boot"
    files.mkdir()
    _tool("mcopy", "-s", "-m", "-n", "-Q", "-i", path, "::/", files)
    if not (files / "cmdline.txt").is_file():
        raise BrambleError("there is no cmdline.txt on its boot partition: it is not the card of a Raspberry Pi")
    changed = []
    for file in sorted(files.iterdir()):
        name = file.name.lower()
        if name in BOOT_GONE:
            file.unlink()
        elif name in seeds and file.read_text(errors="replace") != seeds[name]:
            file.write_text(seeds[name])
        elif name == "cmdline.txt":
            words = file.read_text(errors="surrogateescape").split()
            kept = [word for word in words if not word.startswith(CMDLINE_GONE) and word != GROW] + [GROW]
            if kept == words:
                continue
            file.write_text(" ".join(kept) + "\n", errors="surrogateescape")
        else:
            continue
        changed.append(file.name)
    with path.open("rb") as old:
        fat = Fat.parse(read_exactly(old.fileno(), 0, SECTOR))
    label = _tool("fatlabel", path).splitlines()[-1].strip()
    size = path.stat().st_size
    path.unlink()
    with path.open("wb") as new:
        new.truncate(size)
    geometry = {"-F": fat.bits, "-S": fat.sector, "-s": fat.per_cluster, "-R": fat.reserved, "-f": fat.copies, "-h": fat.hidden}
    words = [str(word) for pair in geometry.items() for word in pair] + ["-i", f"{fat.number:08x}"]
    words += ["-r", str(fat.root_entries)] if fat.root_entries else []
    words += ["-n", label] if label not in ("", "NO NAME") else []
    _tool("mkfs.vfat", "-a", *words, path, str(fat.sectors * fat.sector // 1024))
    _tool("mcopy", "-s", "-m", "-Q", "-i", path, *sorted(files.iterdir()), "::/")
    again = work / "again"
    again.mkdir()
    _tool("mcopy", "-s", "-m", "-n", "-Q", "-i", path, "::/", again)
    if _tree(again) != _tree(files):
        raise BrambleError("the boot file system does not read back as it was written")
    check_boot(path)
    return changed


def _tree(folder: Path) -> dict[str, str]:
    """The sha256 of each file below a folder, by path; of folders none."""
    return {str(path.relative_to(folder)): _sha256(path) if path.is_file() else "" for path in sorted(folder.rglob("*"))}


# The image


def with_root_size(mbr: bytes, size: int) -> bytes:
    """The first sector of a card, with the size of partition 2 changed; where its end is in cylinders is left to be ignored."""
    sector = bytearray(mbr)
    entry = 446 + 16
    sector[entry + 5 : entry + 8] = b"\xfe\xff\xff"
    struct.pack_into("<I", sector, entry + 12, size // SECTOR)
    return bytes(sector)


def pieces(mbr: bytes, parts: Sequence[tuple[Partition, Path]]) -> Iterator[tuple[int, bytes]]:
    """(offset, data) of an image, in order, without what its file systems do not use. Raises BrambleError."""
    yield 0, mbr
    for partition, path in parts:
        with path.open("rb") as file:
            # To the byte: what is next to it may be what was deleted.
            for low, high in used(file.fileno(), 0, partition.size, strict=True, grain=1, zeroed=True):
                for at in range(low, high, CHUNK):
                    yield partition.start + at, read_exactly(file.fileno(), at, min(CHUNK, high - at))


@contextlib.contextmanager
def packer(compression: str, target: IO[bytes]) -> Iterator[IO[bytes]]:
    """Something to write to, which comes out in `target` compressed with all cores. Raises BrambleError."""
    command = COMPRESSORS[compression]
    process = subprocess.Popen(command, stdin=-1, stdout=target, stderr=-1, env=TOOL_ENV)
    assert process.stdin
    broken = False
    try:
        yield process.stdin
    except BrokenPipeError:
        broken = True
    except BaseException:
        process.kill()
        raise
    finally:
        _, said = process.communicate()
    if process.returncode or broken:
        raise BrambleError(f"{command[0]} failed ({process.returncode}): {said.decode(errors='replace').strip()}")


def write_image(
    image: Path, archive: Path, size: int, content: Iterator[tuple[int, bytes]], progress: Progress, node: str
) -> str:
    """Write an image, sparse, and compressed by the name of `archive`; its sha256. Raises BrambleError."""
    digest, meter = hashlib.sha256(), progress.meter(node, "compress", size)
    with image.open("xb", buffering=0) as raw, archive.open("xb") as packed:
        raw.truncate(size)
        with packer(archive.suffix[1:], packed) as pipe:
            at = 0
            for offset, data in itertools.chain(content, [(size, b"")]):
                while at < offset:
                    gap = ZEROS[: min(CHUNK, offset - at)]
                    digest.update(gap)
                    pipe.write(gap)
                    at += len(gap)
                    meter(len(gap))
                if not is_zero(data):
                    raw.seek(offset)
                    raw.write(data)
                digest.update(data)
                pipe.write(data)
                at += len(data)
                meter(len(data))
        for file in (raw, packed):
            os.fsync(file.fileno())
    return digest.hexdigest()


@dataclass(frozen=True)
class Order:
    """What a capture shall be: `name` and `compression` (zst, xz) of its files in `folder`, and the card it must fit.

    `seeds` are the neutral first-boot files, by name. An empty `init_format` is found out.
    """

    folder: Path
    name: str
    compression: str = "zst"
    most: int = 30_400_000_000
    architecture: str = ""
    init_format: str = ""
    seeds: Mapping[str, str] = field(default_factory=dict)

    def file(self, suffix: str) -> Path:
        """One of the capture's files."""
        return self.folder / f"{self.name}{suffix}"

    @property
    def image(self) -> Path:
        """The raw image."""
        return self.file(".img")

    @property
    def archive(self) -> Path:
        """The same, compressed."""
        return self.file(f".img.{self.compression}")

    def check(self, golden: Golden) -> None:
        """Raises BrambleError when it cannot be done here: names that are taken, too little space."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise BrambleError(f"capture_name {self.name!r}: letters, digits and . _ - only. Nothing was captured.")
        for path in (self.image, self.archive, self.file(".json")):
            if os.path.lexists(path):
                raise BrambleError(f"{path} is there already: remove it, or give another capture_name. Nothing was captured.")
        folder = next(path for path in (self.folder, *self.folder.parents) if path.is_dir())
        # The copy, the image and the archive.
        need, free = 3 * golden.bytes, shutil.disk_usage(folder).free
        if need > free:
            raise BrambleError(
                f"No space: {folder} needs up to {format_bytes(need)} ({need / 2**30:.2f} GiB), "
                f"{format_bytes(free)} ({free / 2**30:.2f} GiB) are free. Nothing was captured; make room there and run it again."
            )


def capture(card: Card, golden: Golden, order: Order, progress: Progress) -> dict[str, object]:
    """Make the image, its archive and its manifest; what the manifest says, and what was removed. Raises BrambleError."""
    node, slot = card.facts.node, card.facts.slot
    order.folder.mkdir(parents=True, exist_ok=True)
    with workspace(order.folder) as work:
        boot, root = work / "boot.fat", work / "root.ext"
        copy(card, golden, boot, root, progress)
        progress.tell(node, "check")
        with unsound(golden.facts, golden.boot):
            check_boot(boot)
        with unsound(golden.facts, golden.root):
            check_root(root)
        progress.tell(node, "clean")
        system = Root(root)
        grow = system.grow_method()
        init_format = order.init_format or system.init_format()
        try:
            cleaned = clean_boot(boot, work, order.seeds) + system.clean(grow, work)
            check_root(root)
            progress.tell(node, "shrink")
            size = system.shrink()
        except BrambleError as error:
            raise BrambleError(f"{slot}: {error}. Nothing was captured.") from None
        end = golden.root.start + size
        if end > order.most:
            raise too_large(end, order.most)
        image, archive, manifest = (work / path.name for path in (order.image, order.archive, order.file(".json")))
        small = Partition(2, golden.root.type, golden.root.start, size)
        content = pieces(with_root_size(golden.mbr, size), [(golden.boot, boot), (small, root)])
        sha256 = write_image(image, archive, end, content, progress, node)
        facts = {
            "name": order.name,
            "architecture": order.architecture,
            "file": order.image.name,
            "sha256": sha256,
            "bytes": end,
            "init_format": init_format,
            "recipe": "",
            "built": "",
            "captured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "archive": {"file": order.archive.name, "sha256": _sha256(archive), "bytes": archive.stat().st_size},
            "grow": grow,
        }
        manifest.write_text(json.dumps(facts, indent=2) + "\n")
        # The manifest last: who finds it finds the rest.
        for path in (image, archive, manifest):
            path.chmod(0o600)  # a golden card's files are its owner's
            path.rename(order.folder / path.name)
    return {**facts, "cleaned": cleaned}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
