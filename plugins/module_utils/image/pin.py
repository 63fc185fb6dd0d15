"""An image as the catalogue pins it, and as it is in the cache. Sizes are in bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PinnedImage:
    """What is known of an image before it is in the cache; None and "" stand for unknown values.

    `sha256` and `bytes` belong to the image itself, and those with the prefix `download_` to its download.
    """

    name: str
    architecture: str
    init_format: str
    url: str = ""
    download_sha256: str = ""
    download_bytes: int | None = None
    sha256: str = ""
    bytes: int | None = None
    release_date: str = ""


@dataclass(frozen=True)
class CachedImage:
    """An image in the cache, or a raw image that is used in place; `changed` is whether this run has changed anything."""

    path: str
    sha256: str
    bytes: int
    manifest: str
    changed: bool
