"""The cache of images: what is in it, verified once, and how an image gets into it. Every size is in bytes.

NAME.img         the image, complete and verified: it gets this name last but one
NAME.json        its manifest, which gets its name last; it says when the image was last known to be right (inode, mtime)
NAME.download    a download, perhaps not all of it: removed when the image, or a newer one, is there
NAME.decoding    an image that is being decoded, or was when the power went
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote, urlsplit

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import format_bytes
from ansible_collections.bramble.cluster.plugins.module_utils.image import decode as image_decode
from ansible_collections.bramble.cluster.plugins.module_utils.image.http import (
    BadStatus,
    Tell,
    Unreachable,
    Web,
    WrongImage,
    discard,
)

LARGEST = 64 * 10**9  # no image, and no download of one, is larger: it has to fit a card
DECODES_TO = 6  # an image of unknown size is taken to be this many times its download, when space is looked for
SPARE = 64 * 2**20  # what is left free on the disk
UPDATE = "If its publisher has a newer one: ansible-playbook playbooks/image.yml -e image_update=true"

Manifest = dict[str, Any]
"""name, architecture, file (relative to the cache, or absolute), sha256, bytes, init_format, recipe, built; of an image that was
fetched also source, source_sha256, release_date, inode and mtime_ns."""


@dataclass(frozen=True)
class Pin:
    """What is known of an image before it is there; None and "" where nobody knows.

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
class Found:
    """The image in the cache."""

    path: str
    sha256: str
    bytes: int
    manifest: str
    changed: bool


def check_space(folder: str, size: int, what: str) -> None:
    """Raises BrambleError when a folder, which need not be there yet, has no room for so much."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    if free < size + SPARE:
        raise BrambleError(
            f"There is no space for {what} in {folder}: it needs {format_bytes(size + SPARE)} and {format_bytes(free)} are free. "
            "Free some, or set image_cache_dir to a folder on a larger disk"
        )


class Store:
    """A folder of images. In a dry run (`check`) it is only looked at."""

    def __init__(self, folder: str, tell: Tell, check: bool = False) -> None:
        self.folder, self._tell, self._check = os.path.abspath(folder), tell, check

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One at a time: the same lock as images/debian/build.py's."""
        os.makedirs(self.folder, exist_ok=True)
        fd = os.open(self._path(".lock"), os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._tell("wait for another run", 0, 0)
                fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    # What there is.

    def _manifest(self, path: str) -> Manifest:
        """A manifest; {} when there is none, or it is not readable as one."""
        try:
            with open(path, encoding="utf-8") as file:
                facts = json.load(file)
        except (OSError, ValueError):
            return {}
        return facts if isinstance(facts, dict) else {}

    def _known(self, path: str, source_sha256: str, pin: Pin) -> Found | None:
        """The image that a manifest describes, if it is the one wanted and was not touched since; read again if it was."""
        facts = self._manifest(path)
        file, sha256 = facts.get("file"), facts.get("sha256")
        if facts.get("source_sha256") != source_sha256 or sha256 != (pin.sha256 or sha256):
            return None
        if not isinstance(file, str) or not os.path.isfile(image := self._path(file)):
            return None
        stamp = _stamp(image)
        if stamp["bytes"] != facts.get("bytes"):
            return None
        if not stamp.items() <= facts.items() and image_decode.sha256(image, self._tell) != sha256:
            return None
        # Not what the image is, but what is said of it.
        told = {
            "name": pin.name,
            "architecture": pin.architecture,
            "init_format": pin.init_format,
            "release_date": pin.release_date,
        }
        if not self._check and not (stamp | told).items() <= facts.items():
            self._describe(path, facts | stamp | told)
        return Found(image, str(sha256), stamp["bytes"], path, not told.items() <= facts.items())

    # What is made.

    def _describe(self, path: str, facts: Manifest) -> None:
        """Write a manifest, in one step."""
        temporary = f"{path}.new"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(facts, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        self._sync()

    def _sync(self) -> None:
        fd = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _record(self, path: str, pin: Pin, image: str, sha256: str, source: str, source_sha256: str) -> Found:
        """Write the manifest of a new image."""
        inside = os.path.dirname(image) == self.folder
        facts = {
            "name": pin.name,
            "architecture": pin.architecture,
            "file": os.path.basename(image) if inside else image,
            "sha256": sha256,
            "init_format": pin.init_format,
            "recipe": "",
            "built": datetime.now(UTC).isoformat(timespec="seconds"),
            "source": source,
            "source_sha256": source_sha256,
            "release_date": pin.release_date,
            **_stamp(image),
        }
        self._describe(path, facts)
        return Found(image, sha256, facts["bytes"], path, True)

    def _plan(self, source: str, pin: Pin) -> int | None:
        """The size of the image in a file, as far as it is known. Raises BrambleError when it cannot be, or there is no space."""
        told = image_decode.decoded_size(source)
        if pin.bytes is not None and told not in (None, pin.bytes):
            raise WrongImage(f"{source} decodes to {told:,} bytes, and {pin.bytes:,} were expected")
        size = told if pin.bytes is None else pin.bytes
        if size is not None and size > LARGEST:
            raise WrongImage(f"{source} decodes to {size:,} bytes: that fits no card")
        guess = os.path.getsize(source) * DECODES_TO
        check_space(self.folder, guess if size is None else size, f"the image in {source}")
        return size

    def _decode(self, stem: str, source: str, pin: Pin) -> tuple[str, str]:
        """Decode a file to the image of this name, if it is the one pinned; returns its path and sha256. Raises BrambleError."""
        temporary, image = self._path(f"{stem}.decoding"), self._path(f"{stem}.img")
        for leftover in glob.glob("*.decoding", root_dir=self.folder):
            os.unlink(self._path(leftover))
        expected = self._plan(source, pin)
        try:
            with open(temporary, "xb") as file:
                _, sha256 = image_decode.decode(source, file, expected, LARGEST, self._tell)
                if pin.sha256 not in ("", sha256):
                    raise WrongImage(
                        f"{source} decodes to another image:\n  sha256 found   {sha256}\n  sha256 wanted  {pin.sha256}"
                    )
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, image)
        except BaseException as error:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise BrambleError(
                    f"{self.folder} became full while {source} was decoded into it. Free some, and run again"
                ) from None
            raise
        self._sync()
        return image, sha256

    def _point(self, link: str, manifest: str) -> bool:
        """Make a link name a manifest, in one step; returns whether it did not."""
        path, target = self._path(link), os.path.basename(manifest)
        if os.path.islink(path) and os.readlink(path) == target:
            return False
        if not self._check:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{path}.new")
            os.symlink(target, f"{path}.new")
            os.replace(f"{path}.new", path)
        return True

    # The two ways to an image.

    def fetch(self, pin: Pin, web: Web) -> Found | None:
        """The image of a publisher: downloaded, verified and decoded unless it is there. None: not there, in a dry run.

        A download that someone put into the folder, under the name that it has in the URL, is used, and kept.
        Raises BrambleError; what is worth keeping of the download is kept.
        """
        stem = f"{pin.name}-{pin.architecture}-{pin.download_sha256[:12]}"
        manifest, link = self._path(f"{stem}.json"), f"{pin.name}-{pin.architecture}.json"
        with contextlib.nullcontext() if self._check else self._locked():
            found = self._known(manifest, pin.download_sha256, pin)
            if found:
                moved = self._point(link, manifest)
                return replace(found, changed=found.changed or moved)
            download, given = self._path(f"{stem}.download"), self._given(pin)
            if self._check:
                web.check(pin.url)
                self._room(0 if given else pin.download_bytes, download, pin)
                return None
            if not given:
                self._download(download, pin, web)
            try:
                image, sha256 = self._decode(stem, given or download, pin)
            except WrongImage as error:
                raise BrambleError(
                    f"{error}\nThe download is the pinned one: the catalog is wrong about the image in it.\n{UPDATE}"
                ) from None
            found = self._record(manifest, pin, image, sha256, pin.url, pin.download_sha256)
            self._point(link, manifest)
            for done in glob.glob(f"{pin.name}-{pin.architecture}-{'?' * 12}.download", root_dir=self.folder):
                discard(self._path(done))
            return found

    def _given(self, pin: Pin) -> str:
        """The download that someone put into the folder, verified; "" if there is none. Raises BrambleError."""
        path = self._path(_name(pin.url))
        if not os.path.isfile(path):
            return ""
        found = image_decode.sha256(path, self._tell)
        if found != pin.download_sha256:
            raise BrambleError(
                f"{path} is not the download that is pinned for {pin.name}. Remove it, or put the right one there.\n"
                f"  sha256 found   {found}\n  sha256 wanted  {pin.download_sha256}"
            )
        return path

    def _room(self, size: int | None, path: str, pin: Pin) -> None:
        """Raises BrambleError when there is no space for the rest of a download of this size, and the image in it."""
        size = size or 0
        have = os.path.getsize(path) if os.path.exists(path) else 0
        image = size * DECODES_TO if pin.bytes is None else pin.bytes
        check_space(self.folder, max(size - have, 0) + image, f"{pin.name}, download and image,")

    def _download(self, path: str, pin: Pin, web: Web) -> None:
        """Have the whole download, verified. Raises BrambleError."""
        whole = os.path.exists(path) and pin.download_bytes in (None, os.path.getsize(path))
        if whole and image_decode.sha256(path, self._tell) == pin.download_sha256:
            return
        try:
            self._room(pin.download_bytes or _length(pin.url, web), path, pin)
            for _ in range(2):
                resumed = web.download(pin.url, path, pin.download_bytes, LARGEST, self._tell)
                found = image_decode.sha256(path, self._tell)
                if found == pin.download_sha256:
                    return
                discard(path)
                if not resumed:  # else its beginning may be to blame: once more, from the start
                    break
        except Unreachable as error:
            have = format_bytes(os.path.getsize(path)) if os.path.exists(path) else ""
            kept = f"{have} of it are kept, and the same command goes on from there.\n" if have else ""
            raise BrambleError(
                f"{error}.\n{kept}Without internet here: download {pin.url} elsewhere, put it into {self.folder} under the name "
                f"{_name(pin.url)}, and run the same command again."
            ) from None
        except WrongImage as error:
            discard(path)
            raise BrambleError(f"{error}. Nothing was kept.\n{UPDATE}") from None
        except BadStatus as error:
            raise BrambleError(f"{error}.\n{UPDATE}") from None
        raise BrambleError(
            f"What {pin.url} sends is not what is pinned. Nothing was kept.\n"
            f"  sha256 found   {found}\n  sha256 wanted  {pin.download_sha256}\n{UPDATE}"
        )

    def own(self, pin: Pin, source: str, wanted: str) -> Found | None:
        """The image in a file of the user's, decoded into the cache if it is compressed; a raw one stays where it is.

        `wanted` is the sha256 of the file, or of the image in it. None: not decoded yet, in a dry run. Raises BrambleError.
        """
        stem, source = f"file-{wanted[:12]}", os.path.realpath(source)
        if not os.path.isfile(source):
            raise BrambleError(f"{source} is not a file. Give the path of a card image with image_file")
        manifest, raw = self._path(f"{stem}.json"), image_decode.kind(source) == image_decode.RAW
        with contextlib.nullcontext() if self._check else self._locked():
            found = self._known(manifest, wanted, pin)
            if found and (found.path == source or not raw):
                return found
            hashed = image_decode.sha256(source, self._tell)
            if raw:
                if hashed != wanted:
                    raise BrambleError(_not_it(source, f"  sha256 found   {hashed}\n  sha256 wanted  {wanted}"))
                if self._check:
                    return Found(source, hashed, os.path.getsize(source), manifest, True)
                return self._record(manifest, pin, source, hashed, source, wanted)
            pin = pin if hashed == wanted else replace(pin, sha256=wanted)
            if self._check:
                self._plan(source, pin)
                return None
            try:
                image, sha256 = self._decode(stem, source, pin)
            except WrongImage as error:
                raise BrambleError(_not_it(source, f"{error}\nThe sha256 of the file itself is {hashed}.")) from None
            return self._record(manifest, pin, image, sha256, source, wanted)


def _name(url: str) -> str:
    """The name that a file has in its URL."""
    return os.path.basename(unquote(urlsplit(url).path))


def _length(url: str, web: Web) -> int | None:
    """The size of what is behind a URL, if the server tells. Raises BrambleError when it cannot be reached."""
    with contextlib.suppress(BadStatus):
        length = web.head(url).get("Content-Length", "")
        return int(length) if re.fullmatch(r"\d{1,18}", length) else None
    return None


def _not_it(source: str, why: str) -> str:
    return (
        f"{source} is not the image that was asked for. Nothing was changed.\n{why}\n"
        "Fetch it again, or set image_sha256 to what its maker published, for the file or for the image in it."
    )


def _stamp(path: str) -> Manifest:
    """What changes when a file is written to."""
    status = os.stat(path)
    return {"bytes": status.st_size, "inode": status.st_ino, "mtime_ns": status.st_mtime_ns}
