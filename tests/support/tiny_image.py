"""Build a card image small enough for a test: a FAT partition, an ext4 partition with a few files, an empty end."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

MIB = 1024 * 1024
SIZE = 22 * MIB
BOOT_START, BOOT_SIZE = 1 * MIB, 4 * MIB
ROOT_START, ROOT_SIZE = 5 * MIB, 16 * MIB
# The types of both partitions, by the label of the table in sfdisk.
TYPES = {
    "dos": ("c", "83"),
    "gpt": ("C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "B921B045-1DF0-41C3-AF44-4C6F280D3FAE"),
}


def build(path: Path, root_size: int = ROOT_SIZE, blob: int = 3 * MIB, label: str = "dos") -> None:
    """Write a sparse image. Its size depends on that of the root partition.

    :param blob: the size of a file with random bytes in the root file system
    :param label: the kind of the partition table: "dos" (MBR) or "gpt"
    """
    size = ROOT_START + root_size + MIB
    table = f"""
        label: {label}
        start={BOOT_START // 512}, size={BOOT_SIZE // 512}, type={TYPES[label][0]}
        start={ROOT_START // 512}, size={root_size // 512}, type={TYPES[label][1]}
    """
    with tempfile.TemporaryDirectory() as folder:
        boot, files = Path(folder, "boot"), Path(folder, "files")
        (files / "etc/ssh").mkdir(parents=True)
        (files / "usr/lib/systemd").mkdir(parents=True)
        (files / "lib").symlink_to("usr/lib")
        (files / "etc/hostname").write_text("raspberrypi\n")
        with (files / "blob").open("wb") as file:
            for _ in range(blob // MIB):
                file.write(os.urandom(MIB))
        for target, length in ((path, size), (boot, BOOT_SIZE)):
            with target.open("wb") as file:
                file.truncate(length)
        subprocess.run(["sfdisk", "-q", path], input=table.encode(), check=True)
        subprocess.run(["mkfs.vfat", "-n", "BOOT", boot], check=True, capture_output=True)
        with path.open("r+b") as file:
            file.seek(BOOT_START)
            file.write(boot.read_bytes().rstrip(b"\0"))
        command: list[str | Path] = [
            "mke2fs",
            "-q",
            "-F",
            "-t",
            "ext4",
            "-b",
            "4096",
            "-E",
            f"offset={ROOT_START}",
            "-d",
            files,
            path,
        ]
        subprocess.run([*command, f"{root_size // 1024}k"], check=True, capture_output=True)
