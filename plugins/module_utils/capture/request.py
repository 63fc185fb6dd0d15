"""The request for a capture: its files, their folder, and the size of the card that the image must fit."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.bramble.cluster.plugins.module_utils.capture.source_card import SourceCard
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import format_bytes


@dataclass(frozen=True)
class CaptureRequest:
    """The request for a capture.

    :param folder: the folder of its files
    :param name: the name of its files, without suffix
    :param compression: zst or xz
    :param max_bytes: the size of the card that the image must fit
    :param init_format: how a card gets its identity; empty to detect it
    :param seeds: the neutral first-boot files, text by name
    """

    folder: Path
    name: str
    compression: str = "zst"
    max_bytes: int = 30_400_000_000
    architecture: str = ""
    init_format: str = ""
    seeds: Mapping[str, str] = field(default_factory=dict)

    def file_path(self, suffix: str) -> Path:
        """Return the path of one of the capture's files."""
        return self.folder / f"{self.name}{suffix}"

    @property
    def image(self) -> Path:
        """The path of the raw image."""
        return self.file_path(".img")

    @property
    def archive(self) -> Path:
        """The path of the compressed image."""
        return self.file_path(f".img.{self.compression}")

    def check_name(self) -> None:
        """Check that the name can be used everywhere, also in commands and addresses, as it is. Raises BrambleError."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{,199}", self.name):
            raise BrambleError(
                f"The capture_name {self.name!r} is invalid: it begins with a letter or digit, and has at most 200 characters, "
                "each of A-Z a-z 0-9 . _ -. Nothing was captured. Set another capture_name."
            )

    def check(self, source: SourceCard) -> None:
        """Check that the names are unused and the disk has enough space. Raises BrambleError."""
        for path in (self.image, self.archive, self.file_path(".json")):
            if os.path.lexists(path):
                raise BrambleError(f"{path} already exists. Nothing was captured. Remove it, or set another capture_name.")
        folder = next(path for path in (self.folder, *self.folder.parents) if path.is_dir())
        # Space for the working copy, the image and the archive.
        need, free = 3 * source.used_bytes, shutil.disk_usage(folder).free
        if need > free:
            raise BrambleError(
                f"No space: {folder} needs up to {format_bytes(need)} ({need / 2**30:.2f} GiB), and "
                f"{format_bytes(free)} ({free / 2**30:.2f} GiB) are free. Nothing was captured. "
                "Free space there, then run the same command again."
            )
