"""Write the image file: a partition table, a FAT and an ext4 file system, in place and without mounting them."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ansible_collections.bramble.cluster.images.debian.recipe import Recipe
from ansible_collections.bramble.cluster.images.debian.root_fs import BLOCK, INODE, tree_size
from ansible_collections.bramble.cluster.images.host import run

MIB = 1 << 20
SECTOR = 512


# Partition types of the master boot record.
FAT32_LBA, LINUX = 0x0C, 0x83


class ImagePartition(NamedTuple):
    """A partition of an image; sizes and offsets are in bytes."""

    type: int
    start: int
    size: int


def disk_id(recipe_hash: str) -> int:
    """Return the disk identifier of an image, which is derived from the hash of its recipe and never 0."""
    return int(recipe_hash[:8], 16) or 1


def partuuid(recipe_hash: str) -> str:
    """Return the disk identifier as in PARTUUID=, without the partition number."""
    return f"{disk_id(recipe_hash):08x}"


def place_partitions(recipe: Recipe, tree_bytes: int) -> tuple[ImagePartition, ImagePartition]:
    """Return the boot and root partitions; the root partition has space for a tree of `tree_bytes`, and some free space."""
    boot = ImagePartition(FAT32_LBA, recipe.first_partition * MIB, recipe.bootfs * MIB)
    wanted = tree_bytes + tree_bytes // 16 + recipe.slack * MIB
    unit = 8 * MIB
    return boot, ImagePartition(LINUX, boot.start + boot.size, -(-wanted // unit) * unit)


def master_boot_record(identifier: int, partitions: Iterable[ImagePartition]) -> bytes:
    """Return the first sector of the image."""
    sector = bytearray(SECTOR)
    struct.pack_into("<I", sector, 440, identifier)
    beyond_chs = b"\xfe\xff\xff"
    for number, part in enumerate(partitions):
        entry = (0, beyond_chs, part.type, beyond_chs, part.start // SECTOR, part.size // SECTOR)
        struct.pack_into("<B3sB3sII", sector, 446 + 16 * number, *entry)
    sector[510:] = b"\x55\xaa"
    return bytes(sector)


def write_image(recipe: Recipe, recipe_hash: str, root: Path, boot: Path, image: Path) -> None:
    """Write a root tree and a boot tree to an image file. Its identifiers are derived from the hash of the recipe."""
    part1, part2 = place_partitions(recipe, tree_size(root))
    with image.open("wb") as file:
        file.write(master_boot_record(disk_id(recipe_hash), [part1, part2]))
        file.truncate(part2.start + part2.size)
    first_sector = str(part1.start // SECTOR)
    fat = ["-F", "32", "-s", "1", "-n", "bootfs", "-i", partuuid(recipe_hash), "-h", first_sector, "--offset", first_sector]
    run("mkfs.vfat", *fat, image, str(part1.size // 1024))
    run("mcopy", "-i", f"{image}@@{part1.start}", "-s", "-Q", "-m", *sorted(boot.iterdir()), "::/")
    seed = str(uuid.uuid5(uuid.NAMESPACE_OID, recipe_hash))
    extended = f"offset={part2.start},nodiscard,lazy_itable_init=1,hash_seed={seed}"
    ext4 = ["-L", "rootfs", "-U", seed, "-b", str(BLOCK), "-I", str(INODE), "-i", "16384", "-m", "1", "-E", extended]
    run("mke2fs", "-q", "-F", "-t", "ext4", *ext4, "-d", root, image, f"{part2.size // 1024}k")
