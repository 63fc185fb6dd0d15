"""Write the files of a node to the boot file system of a workbench with mtools. Sizes are in bytes or sectors, as names say."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator, Mapping

from ansible_collections.bramble.cluster.plugins.module_utils.card.fat import Fat
from ansible_collections.bramble.cluster.plugins.module_utils.card.workbench import Workbench
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import SECTOR, read_exactly
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

_FAT32_CLUSTERS = 65_525  # the fewest clusters with which mtools takes a file system for FAT32 (fat.c, set_fat)
# Offsets in the boot sector and in the FSInfo sector: Microsoft, "FAT32 File System Specification", version 1.03.
_TOTAL_SECTORS16, _TOTAL_SECTORS32, _FSINFO_SECTOR, _NEXT_FREE = 19, 32, 48, 492
_NEXT_FREE_UNKNOWN = 0xFFFFFFFF


def drive(bench: Workbench) -> str:
    """Return the boot file system, in the notation of mtools."""
    return f"/proc/self/fd/{bench.fd}@@{bench.boot.start}"


@contextlib.contextmanager
def readable_by_mtools(bench: Workbench) -> Iterator[None]:
    """Let mtools read and write a FAT32 file system that has fewer clusters than the specification demands.

    The kernel recognises FAT32 by its boot sector (fs/fat/inode.c), but mtools by its number of clusters. Until the end of this
    context, the boot sector states more clusters. mtools starts at the first cluster, so it reaches those that do not exist only
    when the file system is full, which is found at the end. Raises BrambleError.
    """
    fat = _parse_boot(bench)
    if fat.bits != 32 or fat.clusters >= _FAT32_CLUSTERS:
        yield
        return
    head = read_exactly(bench.fd, bench.boot.start, SECTOR)
    changed = bytearray(head)
    struct.pack_into("<H", changed, _TOTAL_SECTORS16, 0)
    struct.pack_into("<I", changed, _TOTAL_SECTORS32, fat.data + _FAT32_CLUSTERS * fat.sectors_per_cluster)
    (fsinfo,) = struct.unpack_from("<H", head, _FSINFO_SECTOR)
    if 0 < fsinfo < fat.reserved_sectors:
        os.pwrite(bench.fd, struct.pack("<I", _NEXT_FREE_UNKNOWN), bench.boot.start + fsinfo * fat.sector_size + _NEXT_FREE)
    end = bench.boot.start + fat.sectors * fat.sector_size
    behind = read_exactly(bench.fd, end, min(_FAT32_CLUSTERS * fat.sectors_per_cluster * fat.sector_size, bench.image.size - end))
    os.pwrite(bench.fd, changed, bench.boot.start)
    try:
        yield
    finally:
        os.pwrite(bench.fd, head, bench.boot.start)
    if read_exactly(bench.fd, end, len(behind)) != behind:
        raise BrambleError(f"The boot partition of {bench.image.path} is full, so the files of the node cannot be written to it")


def check_boot(bench: Workbench) -> None:
    """Check that the boot file system is not damaged: files would be written into others. Raises BrambleError."""
    _parse_boot(bench)
    if bench.boot_damage:
        raise _refusal(bench, bench.boot_damage, "repair this partition with fsck.vfat")


def _parse_boot(bench: Workbench) -> Fat:
    """Return the values of the boot sector of the boot file system. Raises BrambleError when they are not supported."""
    try:
        return Fat.parse(read_exactly(bench.fd, bench.boot.start, SECTOR))
    except BrambleError as error:
        raise _refusal(bench, str(error), "create this partition again with mkfs.vfat") from None


def _refusal(bench: Workbench, reason: str, repair: str) -> BrambleError:
    """Return the error for a boot file system that cannot be read or changed safely; `repair` is what the user can do."""
    return BrambleError(
        f"Partition 1 of {bench.image.path} cannot get the files of a node: {reason}. Nothing was written. Use another copy of "
        f"the image, or {repair} and set the new image_sha256"
    )


def write_boot_files(bench: Workbench, files: Mapping[str, str]) -> None:
    """Write files to the boot file system, and read them back.

    :param files: text by name
    :raises BrambleError: when a file cannot be written, or a folder has its name
    """
    for name in sorted(files):
        if name.lower() in _folders(bench):
            raise BrambleError(
                f"The boot file {name} cannot be written to partition 1 of {bench.image.path}, because a folder has this name. "
                "Nothing was written. Remove the folder from the image, or use another image"
            )
    for name, text in sorted(files.items()):
        content = text.encode()
        result = bench.run("mcopy", "-o", "-i", drive(bench), "-", f"::{name}", stdin=content)
        if result.returncode or bench.run("mtype", "-i", drive(bench), f"::{name}").stdout != content:
            reason = "; ".join(result.stderr.decode(errors="replace").splitlines()) or "it is not read back as it was written"
            raise BrambleError(f"The boot file {name} cannot be written to partition 1 of {bench.image.path}: {reason}")


def _folders(bench: Workbench) -> set[str]:
    """Return the names of the folders in the top folder of the boot file system, in lower case."""
    listing = bench.run("mdir", "-b", "-a", "-i", drive(bench), "::/").stdout.decode(errors="replace")
    return {line.removeprefix("::/")[:-1].lower() for line in listing.splitlines() if line.endswith("/")}


def read_boot_file(bench: Workbench, name: str) -> str:
    """Return the text of a file on the boot file system; "" if it does not exist. Raises BrambleError when it is not text."""
    content = bench.run("mtype", "-i", drive(bench), f"::{name}").stdout
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise BrambleError(f"{name} on partition 1 of {bench.image.path} is not a text file") from None
