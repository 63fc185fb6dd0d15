"""The cache of images: find an image, or download, verify and decode it. All sizes are in bytes.

NAME.img         the image; it gets this name when it is complete and verified
NAME.json        its manifest, which is written last; it has the state of the image when it was verified (inode, mtime)
NAME.download    a download, which can be incomplete; it is removed when the image, or a newer one, is in the cache
NAME.decoding    an image that is being decoded, or was when the power failed
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
from ansible_collections.bramble.cluster.plugins.module_utils.image.http import HttpClient, discard
from ansible_collections.bramble.cluster.plugins.module_utils.image.pin import MAX_IMAGE_BYTES, CachedImage, PinnedImage
from ansible_collections.bramble.cluster.plugins.module_utils.image.progress import Report
from ansible_collections.bramble.cluster.plugins.module_utils.image.space import ASSUMED_EXPANSION, check_space

UPDATE_HINT = "To update the catalogue to the newest release: ansible-playbook playbooks/image.yml -e image_update=true"
Manifest = dict[str, Any]
"""The description of an image: name, architecture, file (relative to the cache, or absolute), sha256, bytes, init_format, recipe
and built; for an image that was not built here also source, source_sha256, release_date, inode and mtime_ns."""


class ImageCache:
    """A folder of images. In check mode, nothing in it is changed."""

    def __init__(self, folder: str, report: Report, check_mode: bool = False) -> None:
        self.folder, self._report, self._check_mode = os.path.abspath(folder), report, check_mode

    def _path(self, name: str) -> str:
        """Return the path of a file in the cache."""
        return os.path.join(self.folder, name)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the cache, which images/debian uses, too."""
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
        """Return a manifest; {} if it does not exist or is invalid."""
        try:
            with open(path, encoding="utf-8") as file:
                facts = json.load(file)
        except (OSError, ValueError):
            return {}
        return facts if isinstance(facts, dict) else {}

    def _find_cached(self, path: str, source_sha256: str, pin: PinnedImage) -> CachedImage | None:
        """Return the image of a manifest if it is the wanted one, else None. An image that was touched is verified again."""
        facts = self._read_manifest(path)
        file, sha256 = facts.get("file"), facts.get("sha256")
        if facts.get("source_sha256") != source_sha256 or sha256 != (pin.sha256 or sha256):
            return None
        if not isinstance(file, str) or not os.path.isfile(image := self._path(file)):
            return None
        state = _file_state(image)
        if state["bytes"] != facts.get("bytes"):
            return None
        if not state.items() <= facts.items() and image_decode.hash_file(image, self._report) != sha256:
            return None
        # These values come from the catalogue, and may change while the image stays the same.
        described = {
            "name": pin.name,
            "architecture": pin.architecture,
            "init_format": pin.init_format,
            "release_date": pin.release_date,
        }
        if not self._check_mode and not (state | described).items() <= facts.items():
            self._write_manifest(path, facts | state | described)
        return CachedImage(image, str(sha256), state["bytes"], path, not described.items() <= facts.items())

    def _write_manifest(self, path: str, facts: Manifest) -> None:
        """Replace a manifest in one step."""
        replace_file(path, json.dumps(facts, indent=2) + "\n", mode=0o644)

    def _add_manifest(self, path: str, pin: PinnedImage, image: str, sha256: str, source: str, source_sha256: str) -> CachedImage:
        """Write the manifest of a new image, and return the image."""
        is_in_cache = os.path.dirname(image) == self.folder
        facts = {
            "name": pin.name,
            "architecture": pin.architecture,
            "file": os.path.basename(image) if is_in_cache else image,
            "sha256": sha256,
            "init_format": pin.init_format,
            "recipe": "",
            "built": datetime.now(UTC).isoformat(timespec="seconds"),
            "source": source,
            "source_sha256": source_sha256,
            "release_date": pin.release_date,
            **_file_state(image),
        }
        self._write_manifest(path, facts)
        return CachedImage(image, sha256, facts["bytes"], path, True)

    def _expected_size(self, source: str, pin: PinnedImage) -> int | None:
        """Return the size of the image in a file, None if unknown. Raises BrambleError for a wrong size or too little space."""
        decoded = image_decode.decoded_size(source)
        if pin.bytes is not None and decoded not in (None, pin.bytes):
            raise WrongImage(f"{source} decodes to {decoded:,} bytes, but {pin.bytes:,} were expected")
        size = decoded if pin.bytes is None else pin.bytes
        if size is not None and size > MAX_IMAGE_BYTES:
            raise WrongImage(f"{source} decodes to {size:,} bytes, which is too large for a card")
        guess = os.path.getsize(source) * ASSUMED_EXPANSION
        check_space(self.folder, guess if size is None else size, f"the image in {source}")
        return size

    def _decode(self, stem: str, source: str, pin: PinnedImage) -> tuple[str, str]:
        """Decode a file into the cache, and return the path and SHA-256. Raises BrambleError if it is not the pinned image."""
        temporary, image = self._path(f"{stem}.decoding"), self._path(f"{stem}.img")
        for leftover in glob.glob("*.decoding", root_dir=self.folder):
            os.unlink(self._path(leftover))
        expected = self._expected_size(source, pin)
        try:
            with open(temporary, "xb") as file:
                _, sha256 = image_decode.decode(source, file, expected, MAX_IMAGE_BYTES, self._report)
                if pin.sha256 not in ("", sha256):
                    raise WrongImage(
                        f"{source} decodes to an image with another SHA-256:\n  found     {sha256}\n  expected  {pin.sha256}"
                    )
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, image)
        except BaseException as error:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise BrambleError(
                    f"The disk of {self.folder} became full while {source} was decoded. "
                    "Free space there, then run the same command again"
                ) from None
            raise
        sync_folder(self.folder)
        return image, sha256

    def _link(self, link: str, manifest: str) -> bool:
        """Set a link to a manifest, and return whether this changed it (in check mode, would change it)."""
        path, target = self._path(link), os.path.basename(manifest)
        if os.path.islink(path) and os.readlink(path) == target:
            return False
        if not self._check_mode:
            replace_link(path, target)
        return True

    def fetch(self, pin: PinnedImage, http: HttpClient) -> CachedImage | None:
        """Return the image of a publisher, which is downloaded, verified and decoded unless it is in the cache.

        In check mode, return None if it is not in the cache. A download that the user put into the cache, under the file name of
        the URL, is used and kept. Raises BrambleError; a usable part of the download is kept for the next run.
        """
        stem = f"{pin.name}-{pin.architecture}-{pin.download_sha256[:12]}"
        manifest, link = self._path(f"{stem}.json"), f"{pin.name}-{pin.architecture}.json"
        with contextlib.nullcontext() if self._check_mode else self._locked():
            found = self._find_cached(manifest, pin.download_sha256, pin)
            if found:
                link_changed = self._link(link, manifest)
                return replace(found, changed=found.changed or link_changed)
            download, provided = self._path(f"{stem}.download"), self._provided_download(pin)
            if self._check_mode:
                http.check(pin.url)
                self._check_download_space(0 if provided else pin.download_bytes, download, pin)
                return None
            if not provided:
                self._download(download, pin, http)
            try:
                image, sha256 = self._decode(stem, provided or download, pin)
            except WrongImage as error:
                raise BrambleError(
                    f"{error}\nThe download itself has the pinned SHA-256, so the catalogue has wrong values for the image in it."
                    f"\n{UPDATE_HINT}"
                ) from None
            found = self._add_manifest(manifest, pin, image, sha256, pin.url, pin.download_sha256)
            self._link(link, manifest)
            for leftover in glob.glob(f"{pin.name}-{pin.architecture}-{'?' * 12}.download", root_dir=self.folder):
                discard(self._path(leftover))
            return found

    def _provided_download(self, pin: PinnedImage) -> str:
        """Return the verified path of a download that the user put into the cache; "" if there is none. Raises BrambleError."""
        path = self._path(_file_name(pin.url))
        if not os.path.isfile(path):
            return ""
        found = image_decode.hash_file(path, self._report)
        if found != pin.download_sha256:
            raise BrambleError(
                f"{path} does not have the pinned SHA-256 of {pin.name}. Remove the file, or replace it by the right one.\n"
                f"  found     {found}\n  expected  {pin.download_sha256}"
            )
        return path

    def _check_download_space(self, size: int | None, path: str, pin: PinnedImage) -> None:
        """Check that there is space for the rest of a download of `size` bytes, and for its image. Raises BrambleError."""
        size = size or 0
        have = os.path.getsize(path) if os.path.exists(path) else 0
        image = size * ASSUMED_EXPANSION if pin.bytes is None else pin.bytes
        check_space(self.folder, max(size - have, 0) + image, f"the download and the image of {pin.name}")

    def _download(self, path: str, pin: PinnedImage, http: HttpClient) -> None:
        """Complete a download, and verify it. Raises BrambleError."""
        may_be_complete = os.path.exists(path) and pin.download_bytes in (None, os.path.getsize(path))
        if may_be_complete and image_decode.hash_file(path, self._report) == pin.download_sha256:
            return
        try:
            self._check_download_space(pin.download_bytes or _content_length(pin.url, http), path, pin)
            for _ in range(2):
                is_resumed = http.download(pin.url, path, pin.download_bytes, MAX_IMAGE_BYTES, self._report)
                found = image_decode.hash_file(path, self._report)
                if found == pin.download_sha256:
                    return
                discard(path)
                if not is_resumed:  # a resumed download is repeated, as its earlier part may be the wrong one
                    break
        except Unreachable as error:
            have = format_bytes(os.path.getsize(path)) if os.path.exists(path) else ""
            kept = f"{have} of it are kept, and the same command resumes the download.\n" if have else ""
            raise BrambleError(
                f"{error}.\n{kept}If this machine has no internet: download {pin.url} elsewhere, put it into {self.folder} "
                f"under the name {_file_name(pin.url)}, and run the same command again."
            ) from None
        except WrongImage as error:
            discard(path)
            raise BrambleError(f"{error}. Nothing was kept.\n{UPDATE_HINT}") from None
        except BadStatus as error:
            raise BrambleError(f"{error}.\n{UPDATE_HINT}") from None
        raise BrambleError(
            f"{pin.url} does not have the pinned SHA-256. Nothing was kept.\n"
            f"  found     {found}\n  expected  {pin.download_sha256}\n{UPDATE_HINT}"
        )

    def import_file(self, pin: PinnedImage, source: str, wanted: str) -> CachedImage | None:
        """Return the image in a file of the user. A compressed image is decoded into the cache; a raw one is used in place.

        In check mode, return None if the image is not decoded yet. Raises BrambleError.

        :param wanted: the SHA-256 of the file, or of the image in it
        """
        stem, source = f"file-{wanted[:12]}", os.path.realpath(source)
        if not os.path.isfile(source):
            raise BrambleError(f"{source} is not a file. Set image_file to the path of a card image")
        manifest, is_raw = self._path(f"{stem}.json"), image_decode.detect_compression(source) == image_decode.RAW
        with contextlib.nullcontext() if self._check_mode else self._locked():
            found = self._find_cached(manifest, wanted, pin)
            if found and (found.path == source or not is_raw):
                return found
            hashed = image_decode.hash_file(source, self._report)
            if is_raw:
                if hashed != wanted:
                    raise BrambleError(_wrong_file_message(source, f"  found     {hashed}\n  expected  {wanted}"))
                if self._check_mode:
                    return CachedImage(source, hashed, os.path.getsize(source), manifest, True)
                return self._add_manifest(manifest, pin, source, hashed, source, wanted)
            pin = pin if hashed == wanted else replace(pin, sha256=wanted)
            if self._check_mode:
                self._expected_size(source, pin)
                return None
            try:
                image, sha256 = self._decode(stem, source, pin)
            except WrongImage as error:
                raise BrambleError(_wrong_file_message(source, f"{error}\nThe SHA-256 of the file itself is {hashed}.")) from None
            return self._add_manifest(manifest, pin, image, sha256, source, wanted)


def _file_name(url: str) -> str:
    """Return the file name in a URL."""
    return os.path.basename(unquote(urlsplit(url).path))


def _content_length(url: str, http: HttpClient) -> int | None:
    """Return the size of the file at a URL, None if it is unknown. Raises BrambleError when the server cannot be reached."""
    with contextlib.suppress(BadStatus):
        length = http.head(url).get("Content-Length", "")
        return int(length) if re.fullmatch(r"\d{1,18}", length) else None
    return None


def _wrong_file_message(source: str, reason: str) -> str:
    """Return the message for a file of the user that does not have the SHA-256 of image_sha256."""
    return (
        f"{source} does not have the SHA-256 that image_sha256 gives. Nothing was changed.\n{reason}\n"
        "Download the file again, or set image_sha256 to the SHA-256 that its publisher gives for the file or the image in it."
    )


def _file_state(path: str) -> Manifest:
    """Return values that change when a file is written to."""
    status = os.stat(path)
    return {"bytes": status.st_size, "inode": status.st_ino, "mtime_ns": status.st_mtime_ns}
