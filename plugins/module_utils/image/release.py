"""One version of an image, as its publisher describes it. Sizes are in bytes."""

from __future__ import annotations

from dataclasses import dataclass

# https://github.com/raspberrypi/rpi-imager, doc/json-schema/os-list-schema.json
INIT_FORMATS = ("none", "systemd", "cloudinit", "cloudinit-rpi", "rpi-preseed")


@dataclass(frozen=True)
class Release:
    """One version of an image, as its publisher describes it; None and "" stand for values that are not published."""

    url: str
    download_sha256: str
    download_bytes: int | None = None
    sha256: str | None = None
    bytes: int | None = None
    release_date: str = ""
    init_format: str | None = None
