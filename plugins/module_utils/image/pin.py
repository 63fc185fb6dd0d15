"""An image as it is pinned before it is in the cache, and as it is found in the cache. Sizes are in bytes."""

from __future__ import annotations

from dataclasses import dataclass

LARGEST = 64 * 10**9  # no image, and no download of one, is larger: it has to fit a card


@dataclass(frozen=True)
class Pin:
    """What is known of an image before it is in the cache; None and "" where nothing is known.

    `sha256` and `bytes` are those of the image, the others those of the download.
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
    """An image in the cache, or a raw one that stays where it is; `changed` is whether this run has changed anything."""

    path: str
    sha256: str
    bytes: int
    manifest: str
    changed: bool
