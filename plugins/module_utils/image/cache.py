"""The cache of images: find an image, or download, verify and decode it. All sizes are in bytes.

NAME.img         the image; it gets this name when it is complete and verified. For a raw image of the user, it is a link to their
                 file, so that all later readers meet a plain name, whatever that file is called
NAME.json        its manifest, which is written last; it has the state of the image when it was verified (inode, mtime, ctime)
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
import shlex
import stat
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote, urlsplit

from ansible_collections.bramble.cluster.plugins.module_utils.core.atomic import replace_file, replace_link, sync_folder
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.file_state import FileState
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import format_bytes, replace_invalid
from ansible_collections.bramble.cluster.plugins.module_utils.image import decode as image_decode
from ansible_collections.bramble.cluster.plugins.module_utils.image.error import BadStatus, Unreachable, WrongImage
from ansible_collections.bramble.cluster.plugins.module_utils.image.formats import RAW
from ansible_collections.bramble.cluster.plugins.module_utils.image.http import HttpClient, discard
from ansible_collections.bramble.cluster.plugins.module_utils.image.layout import check_card_image
from ansible_collections.bramble.cluster.plugins.module_utils.image.pin import CachedImage, PinnedImage
from ansible_collections.bramble.cluster.plugins.module_utils.image.progress import Report
from ansible_collections.bramble.cluster.plugins.module_utils.image.space import (
    ASSUMED_EXPANSION,
    check_card_size,
    check_space,
    size_limit,
)

UPDATE_HINT = "To update the catalogue to the newest release: ansible-playbook playbooks/image.yml -e image_update=true"
Manifest = dict[str, Any]
"""The description of an image: name, architecture, file (in the cache), sha256, bytes, init_format, recipe and built. If it was
not built here, also source, source_sha256, release_date, and the state of its file: device, inode, mtime_ns and ctime_ns."""


class ImageCache:
    """A folder of images. In check mode, nothing in it is changed. `notes` are warnings for the user."""

    def __init__(self, folder: str, report: Report, check_mode: bool = False) -> None:
        self.folder, self._report, self._check_mode = os.path.abspath(folder), report, check_mode
        self.notes: list[str] = []

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
        if not state.items() <= facts.items() and self._hash_unchanged(image, state) != sha256:
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

    def _hash_unchanged(self, path: str, state: Manifest) -> str:
        """Return the SHA-256 of a file in a known state. Raises BrambleError when the file was changed since then."""
        sha256 = image_decode.hash_file(path, self._report)
        _check_unchanged(path, state)
        return sha256

    def _write_manifest(self, path: str, facts: Manifest) -> None:
        """Replace a manifest in one step."""
        replace_file(path, json.dumps(facts, indent=2) + "\n", mode=0o644)

    def _add_manifest(
        self, path: str, pin: PinnedImage, image: str, sha256: str, source: str, source_sha256: str, state: Manifest
    ) -> CachedImage:
        """Write the manifest of a new image in the cache, which was verified in a state, and return the image."""
        facts = {
            "name": pin.name,
            "architecture": pin.architecture,
            "file": os.path.basename(image),
            "sha256": sha256,
            "init_format": pin.init_format,
            "recipe": "",
            "built": datetime.now(UTC).isoformat(timespec="seconds"),
            # Roles read this with from_json, which refuses what is not UTF-8.
            "source": replace_invalid(source),
            "source_sha256": source_sha256,
            "release_date": pin.release_date,
            **state,
        }
        self._write_manifest(path, facts)
        return CachedImage(image, sha256, facts["bytes"], path, True)

    def _expected_size(self, source: str, pin: PinnedImage) -> int | None:
        """Return the size of the image in a file, None if unknown. Raises BrambleError for a wrong size or too little space."""
        decoded = image_decode.decoded_size(source)
        if pin.bytes is not None and decoded not in (None, pin.bytes):
            raise WrongImage(f"{source} decodes to {decoded:,} bytes, but {pin.bytes:,} were expected")
        size = decoded if pin.bytes is None else pin.bytes
        check_card_size(size or 0, source)
        guess = os.path.getsize(source) * ASSUMED_EXPANSION
        check_space(self.folder, guess if size is None else size, f"the image in {source}")
        return size

    def _decode(self, stem: str, source: str, pin: PinnedImage, state: Manifest) -> tuple[str, str]:
        """Decode a file in a known state into the cache, and return the path and SHA-256 of the image.

        Raises BrambleError if it is not the pinned image, or was changed meanwhile.
        """
        temporary, image = self._path(f"{stem}.decoding"), self._path(f"{stem}.img")
        for leftover in glob.glob("*.decoding", root_dir=self.folder):
            os.unlink(self._path(leftover))
        expected = self._expected_size(source, pin)
        try:
            with open(temporary, "x+b") as file:
                decoded = image_decode.decode(source, file, expected, size_limit(self.folder), self._report, pin.sha256)
                _check_unchanged(source, state)
                if pin.sha256 not in ("", decoded.sha256):
                    raise WrongImage(
                        "\n".join(
                            [
                                f"{source} decodes to an image with another SHA-256:",
                                f"  found     {decoded.sha256}",
                                f"  expected  {pin.sha256}",
                                *decoded.notes,
                            ]
                        )
                    )
                is_decoded = image_decode.detect_compression(source) != RAW
                check_card_image(file.fileno(), source, is_decoded)
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
        self.notes += [f"{note} The image before it has the expected SHA-256, and is used." for note in decoded.notes]
        return image, decoded.sha256

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
            source = provided or download
            try:
                image, sha256 = self._decode(stem, source, pin, _file_state(source))
            except WrongImage as error:
                raise BrambleError(
                    f"{error}\nThe download itself has the pinned SHA-256, so the catalogue has wrong values for the image in it."
                    f"\n{UPDATE_HINT}"
                ) from None
            found = self._add_manifest(manifest, pin, image, sha256, pin.url, pin.download_sha256, _file_state(image))
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
                limit = size_limit(self.folder).bytes + (os.path.getsize(path) if os.path.exists(path) else 0)
                is_resumed = http.download(pin.url, path, pin.download_bytes, limit, self._report)
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
        """Return the image in a file of the user. A compressed image is decoded into the cache, which has a link to a raw one.

        In check mode, return None if the image is not decoded yet. Raises BrambleError.

        :param wanted: the SHA-256 of the file, or of the image in it
        """
        stem, source = f"file-{wanted[:12]}", _user_file(source)
        manifest, link = self._path(f"{stem}.json"), self._path(f"{stem}.img")
        is_raw = image_decode.detect_compression(source) == RAW
        with contextlib.nullcontext() if self._check_mode else self._locked():
            found = self._find_cached(manifest, wanted, pin)
            is_link = os.path.islink(link)
            if found and found.path == link and (is_link and os.path.realpath(link) == source if is_raw else not is_link):
                return found
            state = _file_state(source)
            # A file of another format is refused before it is read to its end.
            if is_raw:
                with open(source, "rb") as file:
                    check_card_image(file.fileno(), source, False)
            else:
                image_decode.check_content(source)
            hashed = self._hash_unchanged(source, state)
            if is_raw:
                if hashed != wanted:
                    raise BrambleError(_wrong_file_message(source, f"  found     {hashed}\n  expected  {wanted}"))
                if self._check_mode:
                    return CachedImage(source, hashed, state["bytes"], manifest, True)
                replace_link(link, source)
                return self._add_manifest(manifest, pin, link, hashed, source, wanted, state)
            pin = pin if hashed == wanted else replace(pin, sha256=wanted)
            if self._check_mode:
                self._expected_size(source, pin)
                return None
            try:
                image, sha256 = self._decode(stem, source, pin, state)
            except WrongImage as error:
                if hashed == wanted:
                    raise BrambleError(
                        f"{error}. Nothing was changed. The file has the SHA-256 that image_sha256 gives, so the fault is in "
                        "its publisher's file: use another image"
                    ) from None
                raise BrambleError(_wrong_file_message(source, f"{error}\nThe SHA-256 of the file itself is {hashed}.")) from None
            return self._add_manifest(manifest, pin, image, sha256, source, wanted, _file_state(image))


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


def _user_file(path: str) -> str:
    """Return the absolute path of a file of the user, without links. Raises BrambleError for what is not a file.

    The path is taken literally: $NAME and ~ are part of the name.
    """
    try:
        path = os.path.realpath(path)
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BrambleError(f"{path} is not a file ({reason}). Set image_file to the path of a card image") from None
    if stat.S_ISBLK(mode):
        raise BrambleError(
            f"{path} is a disk, not a file. To make an image of the card in it: ansible-playbook playbooks/capture.yml "
            f"-e capture_slot={shlex.quote(path)}"
        )
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device"}
        raise BrambleError(f"{path} is {kinds[stat.S_IFMT(mode)]}, not a file. Set image_file to the path of a card image")
    return path


def _file_state(path: str) -> Manifest:
    """Return the state of a file, by the names of a manifest."""
    return FileState.of(path)._asdict()


def _check_unchanged(path: str, state: Manifest) -> None:
    """Check that a file is in the state in which it was before it was read. Raises BrambleError."""
    if _file_state(path) != state:
        raise BrambleError(
            f"{path} was changed while it was read, so it is not used. Wait until no other program writes to it, then run the "
            "same command again"
        )
