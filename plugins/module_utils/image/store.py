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
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote, urlsplit

from ansible_collections.bramble.cluster.plugins.module_utils.core.atomic import replace_file, replace_link, sync_folder
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import format_bytes
from ansible_collections.bramble.cluster.plugins.module_utils.image import decode as image_decode
from ansible_collections.bramble.cluster.plugins.module_utils.image.error import BadStatus, Unreachable, WrongImage
from ansible_collections.bramble.cluster.plugins.module_utils.image.http import Web, discard
from ansible_collections.bramble.cluster.plugins.module_utils.image.pin import LARGEST, CachedImage, Pin
from ansible_collections.bramble.cluster.plugins.module_utils.image.progress import Report
from ansible_collections.bramble.cluster.plugins.module_utils.image.space import DECODES_TO, check_space

UPDATE = "If its publisher has a newer one: ansible-playbook playbooks/image.yml -e image_update=true"
Manifest = dict[str, Any]
"""name, architecture, file (relative to the cache, or absolute), sha256, bytes, init_format, recipe, built; of an image that was
fetched also source, source_sha256, release_date, inode and mtime_ns."""


class Store:
    """A folder of images. In a dry run (`check`) nothing in it is changed."""

    def __init__(self, folder: str, report: Report, check: bool = False) -> None:
        self.folder, self._report, self._check = os.path.abspath(folder), report, check

    def _path(self, name: str) -> str:
        """Return the path of a file in the cache."""
        return os.path.join(self.folder, name)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the cache, which images/debian takes, too."""
        os.makedirs(self.folder, exist_ok=True)
        fd = os.open(self._path(".lock"), os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._report("wait for another run", 0, 0)
                fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _read_manifest(self, path: str) -> Manifest:
        """Return a manifest; {} when there is none, or it is not readable as one."""
        try:
            with open(path, encoding="utf-8") as file:
                facts = json.load(file)
        except (OSError, ValueError):
            return {}
        return facts if isinstance(facts, dict) else {}

    def _find(self, path: str, source_sha256: str, pin: Pin) -> CachedImage | None:
        """Return the image that a manifest describes if it is the one wanted; one that was touched since is read again."""
        facts = self._read_manifest(path)
        file, sha256 = facts.get("file"), facts.get("sha256")
        if facts.get("source_sha256") != source_sha256 or sha256 != (pin.sha256 or sha256):
            return None
        if not isinstance(file, str) or not os.path.isfile(image := self._path(file)):
            return None
        stamp = _stamp(image)
        if stamp["bytes"] != facts.get("bytes"):
            return None
        if not stamp.items() <= facts.items() and image_decode.sha256(image, self._report) != sha256:
            return None
        # Not what the image is, but how the catalogue describes it.
        described = {
            "name": pin.name,
            "architecture": pin.architecture,
            "init_format": pin.init_format,
            "release_date": pin.release_date,
        }
        if not self._check and not (stamp | described).items() <= facts.items():
            self._write_manifest(path, facts | stamp | described)
        return CachedImage(image, str(sha256), stamp["bytes"], path, not described.items() <= facts.items())

    def _write_manifest(self, path: str, facts: Manifest) -> None:
        """Replace a manifest in one step."""
        replace_file(path, json.dumps(facts, indent=2) + "\n", mode=0o644)

    def _record(self, path: str, pin: Pin, image: str, sha256: str, source: str, source_sha256: str) -> CachedImage:
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
        self._write_manifest(path, facts)
        return CachedImage(image, sha256, facts["bytes"], path, True)

    def _plan(self, source: str, pin: Pin) -> int | None:
        """Return the size of the image in a file, None if unknown. Raises BrambleError for a wrong size, or without space."""
        decoded = image_decode.decoded_size(source)
        if pin.bytes is not None and decoded not in (None, pin.bytes):
            raise WrongImage(f"{source} decodes to {decoded:,} bytes, and {pin.bytes:,} were expected")
        size = decoded if pin.bytes is None else pin.bytes
        if size is not None and size > LARGEST:
            raise WrongImage(f"{source} decodes to {size:,} bytes: that fits no card")
        guess = os.path.getsize(source) * DECODES_TO
        check_space(self.folder, guess if size is None else size, f"the image in {source}")
        return size

    def _decode(self, stem: str, source: str, pin: Pin) -> tuple[str, str]:
        """Decode a file to the image of this name, if it is the one pinned; return its path and SHA-256. Raises BrambleError."""
        temporary, image = self._path(f"{stem}.decoding"), self._path(f"{stem}.img")
        for leftover in glob.glob("*.decoding", root_dir=self.folder):
            os.unlink(self._path(leftover))
        expected = self._plan(source, pin)
        try:
            with open(temporary, "xb") as file:
                _, sha256 = image_decode.decode(source, file, expected, LARGEST, self._report)
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
        sync_folder(self.folder)
        return image, sha256

    def _link(self, link: str, manifest: str) -> bool:
        """Make a link lead to a manifest; return whether that changed it."""
        path, target = self._path(link), os.path.basename(manifest)
        if os.path.islink(path) and os.readlink(path) == target:
            return False
        if not self._check:
            replace_link(path, target)
        return True

    def fetch(self, pin: Pin, web: Web) -> CachedImage | None:
        """Return the image of a publisher: downloaded, verified and decoded unless it is there; None if not, in a dry run.

        A download that someone put into the folder, under the name that it has in the URL, is used, and kept.
        Raises BrambleError; what is worth keeping of the download is kept.
        """
        stem = f"{pin.name}-{pin.architecture}-{pin.download_sha256[:12]}"
        manifest, link = self._path(f"{stem}.json"), f"{pin.name}-{pin.architecture}.json"
        with contextlib.nullcontext() if self._check else self._locked():
            found = self._find(manifest, pin.download_sha256, pin)
            if found:
                moved = self._link(link, manifest)
                return replace(found, changed=found.changed or moved)
            download, given = self._path(f"{stem}.download"), self._provided_download(pin)
            if self._check:
                web.check(pin.url)
                self._check_room(0 if given else pin.download_bytes, download, pin)
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
            self._link(link, manifest)
            for done in glob.glob(f"{pin.name}-{pin.architecture}-{'?' * 12}.download", root_dir=self.folder):
                discard(self._path(done))
            return found

    def _provided_download(self, pin: Pin) -> str:
        """Return the download that someone put into the folder, verified; "" if there is none. Raises BrambleError."""
        path = self._path(_name(pin.url))
        if not os.path.isfile(path):
            return ""
        found = image_decode.sha256(path, self._report)
        if found != pin.download_sha256:
            raise BrambleError(
                f"{path} is not the download that is pinned for {pin.name}. Remove it, or put the right one there.\n"
                f"  sha256 found   {found}\n  sha256 wanted  {pin.download_sha256}"
            )
        return path

    def _check_room(self, size: int | None, path: str, pin: Pin) -> None:
        """Check that there is room for the rest of a download of this size, and the image in it. Raises BrambleError."""
        size = size or 0
        have = os.path.getsize(path) if os.path.exists(path) else 0
        image = size * DECODES_TO if pin.bytes is None else pin.bytes
        check_space(self.folder, max(size - have, 0) + image, f"{pin.name}, download and image,")

    def _download(self, path: str, pin: Pin, web: Web) -> None:
        """Complete the download, and verify it. Raises BrambleError."""
        whole = os.path.exists(path) and pin.download_bytes in (None, os.path.getsize(path))
        if whole and image_decode.sha256(path, self._report) == pin.download_sha256:
            return
        try:
            self._check_room(pin.download_bytes or _length(pin.url, web), path, pin)
            for _ in range(2):
                resumed = web.download(pin.url, path, pin.download_bytes, LARGEST, self._report)
                found = image_decode.sha256(path, self._report)
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

    def import_file(self, pin: Pin, source: str, wanted: str) -> CachedImage | None:
        """Return the image in a file of the user's, decoded into the cache if it is compressed; a raw one stays where it is.

        `wanted` is the SHA-256 of the file, or of the image in it. None: not decoded yet, in a dry run. Raises BrambleError.
        """
        stem, source = f"file-{wanted[:12]}", os.path.realpath(source)
        if not os.path.isfile(source):
            raise BrambleError(f"{source} is not a file. Give the path of a card image with image_file")
        manifest, raw = self._path(f"{stem}.json"), image_decode.kind(source) == image_decode.RAW
        with contextlib.nullcontext() if self._check else self._locked():
            found = self._find(manifest, wanted, pin)
            if found and (found.path == source or not raw):
                return found
            hashed = image_decode.sha256(source, self._report)
            if raw:
                if hashed != wanted:
                    raise BrambleError(_not_the_image(source, f"  sha256 found   {hashed}\n  sha256 wanted  {wanted}"))
                if self._check:
                    return CachedImage(source, hashed, os.path.getsize(source), manifest, True)
                return self._record(manifest, pin, source, hashed, source, wanted)
            pin = pin if hashed == wanted else replace(pin, sha256=wanted)
            if self._check:
                self._plan(source, pin)
                return None
            try:
                image, sha256 = self._decode(stem, source, pin)
            except WrongImage as error:
                raise BrambleError(_not_the_image(source, f"{error}\nThe sha256 of the file itself is {hashed}.")) from None
            return self._record(manifest, pin, image, sha256, source, wanted)


def _name(url: str) -> str:
    """Return the name that a file has in its URL."""
    return os.path.basename(unquote(urlsplit(url).path))


def _length(url: str, web: Web) -> int | None:
    """Return the size of what is behind a URL, None if unknown. Raises BrambleError when the server cannot be reached."""
    with contextlib.suppress(BadStatus):
        length = web.head(url).get("Content-Length", "")
        return int(length) if re.fullmatch(r"\d{1,18}", length) else None
    return None


def _not_the_image(source: str, why: str) -> str:
    """Return the message for a file of the user's that is not the image asked for."""
    return (
        f"{source} is not the image that was asked for. Nothing was changed.\n{why}\n"
        "Fetch it again, or set image_sha256 to what its maker published, for the file or for the image in it."
    )


def _stamp(path: str) -> Manifest:
    """Return what changes when a file is written to."""
    status = os.stat(path)
    return {"bytes": status.st_size, "inode": status.st_ino, "mtime_ns": status.st_mtime_ns}
