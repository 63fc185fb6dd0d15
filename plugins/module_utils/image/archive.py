"""Find the image in a zip archive. Nothing is extracted by its name, so the names in an archive need not be safe."""

from __future__ import annotations

import contextlib
import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.image.error import WrongImage

_IMAGE = re.compile(r"\.(img|raw)(\.(xz|zst|zstd|gz|bz2|lz4|lzma))?$", re.IGNORECASE)
# What file managers add to an archive, and what publishers put beside an image.
_HIDDEN = re.compile(r"(^|[/\\])(__MACOSX[/\\]|\.[^/\\]*$|(Thumbs\.db|desktop\.ini)$)", re.IGNORECASE)
_COMPANION = re.compile(
    r"(\.(bmap|txt|md|rst|html?|pdf|json|xml|info|sha\d+|sha\d+sums?|md5|md5sums?|asc|sig|gpg|png|jpe?g)"
    r"|(^|[/\\])(readme|licen[cs]e|copying|notice|changelog|sha\d+sums?|md5sums?)[^/\\]*)$",
    re.IGNORECASE,
)
_ENCRYPTED = 0x1  # APPNOTE.TXT of PKWARE, section 4.4.4, bit 0
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
_MAX_NAMES = 10
_UNPACK = "Unpack it, and set image_file to the image in it: 7z x FILE"


@contextlib.contextmanager
def open_only_image(path: str) -> Iterator[tuple[zipfile.ZipInfo, IO[bytes]]]:
    """Yield the description and the open content of the only image in a zip archive, which can itself be compressed.

    Raises BrambleError when there is not exactly one, and WrongImage for a damaged archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            member = _only_image(path, archive.infolist())
            with archive.open(member) as content:
                yield member, content
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise WrongImage(f"{path} is damaged or incomplete: {error}") from None


def _only_image(path: str, members: list[zipfile.ZipInfo]) -> zipfile.ZipInfo:
    """Return the member with the image. Raises BrambleError."""
    visible = [member for member in members if not member.is_dir() and not _HIDDEN.search(member.filename)]
    images = [member for member in visible if _IMAGE.search(member.filename)]
    images = images or [member for member in visible if not _COMPANION.search(member.filename)]
    if len(images) != 1:
        names = [repr(member.filename) for member in images or visible]
        names = names[:_MAX_NAMES] + [f"{len(names) - _MAX_NAMES} more"][: len(names) > _MAX_NAMES]
        what = f"{len(images)} files, of which one must be chosen" if images else "no image"
        raise BrambleError(f"{path} contains {what}{': ' * bool(names)}{', '.join(names)}. {_UNPACK}")
    image = images[0]
    if image.flag_bits & _ENCRYPTED:
        raise BrambleError(f"{image.filename!r} in {path} is encrypted. {_UNPACK}")
    if image.compress_type not in _METHODS:
        number = image.compress_type
        raise BrambleError(f"{image.filename!r} in {path} has a compression method that is not supported ({number}). {_UNPACK}")
    return image
