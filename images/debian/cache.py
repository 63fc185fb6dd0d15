"""The cache of built images: complete or absent, and one build at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.bramble.cluster.plugins.module_utils.core.atomic import replace_link


@dataclass(frozen=True)
class CacheEntry:
    """The place of an image in the cache."""

    cache: Path
    stem: str
    recipe_hash: str

    @property
    def image(self) -> Path:
        """The image file."""
        return self.cache / f"{self.stem}-{self.recipe_hash[:12]}.img"

    @property
    def manifest(self) -> Path:
        """The manifest of the image."""
        return self.image.with_suffix(".json")

    @property
    def current(self) -> Path:
        """A link to the manifest of the image in use; its name does not change with the recipe."""
        return self.cache / f"{self.stem}.json"

    def is_complete(self) -> bool:
        """Return whether the image is complete: its manifest is written last."""
        try:
            return self.image.stat().st_size == json.loads(self.manifest.read_text())["bytes"]
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def is_current(self) -> bool:
        """Return whether the link leads to this image."""
        return self.current.is_symlink() and os.readlink(self.current) == self.manifest.name


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(entry: CacheEntry, image: Path, facts: dict[str, object]) -> None:
    """Move a finished image into the cache, then its manifest."""
    manifest = image.with_suffix(".json")
    manifest.write_text(json.dumps(facts, indent=2) + "\n")
    for source, target in ((image, entry.image), (manifest, entry.manifest)):
        source.chmod(0o644)
        sync(source)
        source.rename(target)
        sync(entry.cache)


def link_current(entry: CacheEntry) -> None:
    """Make the link lead to this image, in one step."""
    replace_link(entry.current, entry.manifest.name)


@contextlib.contextmanager
def workspace(cache: Path) -> Iterator[Path]:
    """Yield a folder for one build, one at a time in a cache; what a killed build left is removed first."""
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in cache.glob(".build-*"):
            shutil.rmtree(leftover)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=cache, ignore_cleanup_errors=True) as directory:
            yield Path(directory)
