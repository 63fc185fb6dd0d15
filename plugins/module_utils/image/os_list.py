"""The newest images in the OS list of Raspberry Pi Imager, and in the lists that it links to. Sizes are in bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urljoin

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.image.http import HttpClient
from ansible_collections.bramble.cluster.plugins.module_utils.image.release import INIT_FORMATS, Release
from ansible_collections.bramble.cluster.plugins.module_utils.image.space import MAX_CARD_BYTES

# The limits of an OS list; the real one has a few dozen lists with some hundred images.
MAX_BYTES = 16 * 2**20
MAX_DOCUMENTS = 64
MAX_DEPTH = 16
MAX_ENTRIES = 20_000


def parse_os_list(data: bytes) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the images in one document of an OS list, at any level, and the URLs of further documents.

    The format is {"os_list": [IMAGE | {"subitems": [...]} | {"subitems_url": URL}, ...]}; an image has a "url". Other items are
    ignored, as third parties write them, too. Raises BrambleError for a document that is not an OS list, or too large.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BrambleError(f"it is not JSON: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("os_list"), list):
        raise BrambleError('it is not an OS list of Raspberry Pi Imager: it has no list "os_list"')
    images: list[dict[str, Any]] = []
    further: list[str] = []
    lists, entries = [(document["os_list"], 1)], 0
    while lists:
        items, depth = lists.pop()
        entries += len(items)
        if depth > MAX_DEPTH or entries > MAX_ENTRIES:
            raise BrambleError(f"it is too large: more than {MAX_DEPTH} levels, or {MAX_ENTRIES:,} entries")
        for item in items:
            if not isinstance(item, dict):
                continue
            if isinstance(item.get("subitems"), list):
                lists.append((item["subitems"], depth + 1))
            if isinstance(item.get("subitems_url"), str):
                further.append(item["subitems_url"])
            if isinstance(item.get("url"), str):
                images.append(item)
    return images, further


class OsList:
    """The images of an OS list and of all documents that it links to.

    `unreadable` has the documents that could not be read, each with its reason. Raises BrambleError when the first document
    cannot be read.
    """

    def __init__(self, url: str, http: HttpClient) -> None:
        self.url = url
        self.images: list[dict[str, Any]] = []
        self.unreadable: list[str] = []
        seen = [url]
        for address in seen:
            try:
                images, further = parse_os_list(http.read(address, MAX_BYTES))
            except BrambleError as error:
                if address == url:
                    raise BrambleError(f"The OS list {url} cannot be used: {error}") from None
                self.unreadable.append(f"{address}: {error}")
                continue
            http = replace(http, attempts=1)  # lists of third parties are often unavailable
            self.images += images
            seen += dict.fromkeys(link for link in (_join(address, link) for link in further) if link not in seen)
            if len(seen) > MAX_DOCUMENTS:
                self.unreadable.append(f"{len(seen) - MAX_DOCUMENTS} more lists")
                del seen[MAX_DOCUMENTS:]

    def newest(self, pattern: str) -> Release:
        """Return the newest image whose URL matches a pattern (fnmatch).

        Raises BrambleError when there is none, or when the entry of one is invalid.
        """
        matching = [item for item in self.images if fnmatchcase(item["url"], pattern)]
        if not matching:
            unreadable = "".join(f"\n  not read: {reason}" for reason in self.unreadable)
            raise BrambleError(f"no image in {self.url} has a URL that matches {pattern}{unreadable}")
        return max(map(parse_release, matching), key=lambda release: (release.release_date, release.url))

    def with_extracted(self, release: Release) -> Release:
        """Return a release with the size, hash and date that the OS list has for the same download, if it has it."""
        for item in self.images:
            if str(item.get("image_download_sha256")).lower() == release.download_sha256:
                known = parse_release(item)
                date = known.release_date or release.release_date
                return replace(release, sha256=known.sha256, bytes=known.bytes, release_date=date)
        return release


def _join(base: str, link: str) -> str:
    """Return the URL of a link in a document; the link itself if it is not valid."""
    try:
        return urljoin(base, link)
    except ValueError:
        return link  # reading it raises the error


def parse_release(item: Mapping[str, Any]) -> Release:
    """Return the release that an entry of an OS list describes. Raises BrambleError when the entry is invalid."""
    url = item.get("url")
    if not isinstance(url, str) or not re.fullmatch("[!-~]{8,1000}", url):
        raise BrambleError(f"the url of an image is invalid: {url!r:.200}")

    def hexadecimal(name: str) -> str | None:
        value = item.get(name)
        if value is not None and not (isinstance(value, str) and re.fullmatch("[0-9a-fA-F]{64}", value)):
            raise BrambleError(f"{url}: {name} is invalid: {value!r:.200}")
        return value.lower() if value else None

    def size(name: str) -> int | None:
        value = item.get(name)
        if value is not None and not (type(value) is int and 0 < value <= MAX_CARD_BYTES):
            raise BrambleError(f"{url}: {name} is invalid: {value!r:.200}")
        return value

    digest = hexadecimal("image_download_sha256")
    if not digest:
        raise BrambleError(f"{url} is published without image_download_sha256")
    date, init_format = str(item.get("release_date")), item.get("init_format")
    return Release(
        url,
        digest,
        size("image_download_size"),
        hexadecimal("extract_sha256"),
        size("extract_size"),
        date if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", date) else "",
        init_format if init_format in INIT_FORMATS else None,
    )
