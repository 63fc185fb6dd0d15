"""Read the content of a virtual card without mounting it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path


class CardContent:
    """A card with a FAT partition and an ext4 partition."""

    def __init__(self, path: Path) -> None:
        self.path = path
        table = json.loads(_output("sfdisk", "--json", path))["partitiontable"]["partitions"]
        (self.boot, self.boot_size), (self.root, _) = ((part["start"] * 512, part["size"] * 512) for part in table)

    def boot_partition(self) -> bytes:
        """Return all bytes of the FAT partition, with deleted data."""
        with self.path.open("rb") as file:
            file.seek(self.boot)
            return file.read(self.boot_size)

    def stat(self, path: str) -> tuple[str, str, str] | None:
        """Return mode, owner and group of a file in the root file system; None if it does not exist."""
        found = re.search(
            r"Mode:\s+(\d+).*?User:\s+(\d+)\s+Group:\s+(\d+)",
            _output("debugfs", "-R", f"stat {path}", f"{self.path}?offset={self.root}"),
            re.DOTALL,
        )
        return (found[1], found[2], found[3]) if found else None

    def check_root(self) -> None:
        """Check the root file system. Raises subprocess.CalledProcessError if it is damaged."""
        _output("e2fsck", "-fn", f"{self.path}?offset={self.root}")


def passwords(shadow: str) -> dict[str, str]:
    """Return the password field of each user, by name, from a text like /etc/shadow."""
    return {name: password for name, password, *_ in (line.split(":") for line in shadow.splitlines())}


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
