"""The cache of built images. An image in it is complete, and one build runs at a time."""

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
    """The files of an image in the cache."""

    cache: Path
    stem: str
    recipe_hash: str

    @property
    def image(self) -> Path:
        """The path of the image."""
        return self.cache / f"{self.stem}-{self.recipe_hash[:12]}.img"

    @property
    def manifest(self) -> Path:
        """The path of the manifest of the image."""
        return self.image.with_suffix(".json")

    @property
    def current_link(self) -> Path:
        """The path of a link to the manifest of the image in use; it does not depend on the hash of the recipe."""
        return self.cache / f"{self.stem}.json"

    def is_complete(self) -> bool:
        """Return whether the image is complete. Its manifest is written last."""
        try:
            return self.image.stat().st_size == json.loads(self.manifest.read_text())["bytes"]
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def is_current(self) -> bool:
        """Return whether the link leads to the manifest of this image."""
        return self.current_link.is_symlink() and os.readlink(self.current_link) == self.manifest.name


def sync_path(path: Path) -> None:
    """Wait until a file or folder is written to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(entry: CacheEntry, image: Path, facts: dict[str, object]) -> None:
    """Move a complete image into the cache, then its manifest."""
    manifest = image.with_suffix(".json")
    manifest.write_text(json.dumps(facts, indent=2) + "\n")
    for source, target in ((image, entry.image), (manifest, entry.manifest)):
        source.chmod(0o644)
        sync_path(source)
        source.rename(target)
        sync_path(entry.cache)


def link_current(entry: CacheEntry) -> None:
    """Set the link to the manifest of this image, in one step."""
    replace_link(entry.current_link, entry.manifest.name)


@contextlib.contextmanager
def workspace(cache: Path) -> Iterator[Path]:
    """Yield a folder for one build; other builds in this cache wait. Folders that killed builds left are removed first."""
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in cache.glob(".build-*"):
            shutil.rmtree(leftover)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=cache, ignore_cleanup_errors=True) as directory:
            yield Path(directory)
