"""The newest images in the catalogue of Raspberry Pi Imager, and in the lists that it leads to. Sizes are in bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urljoin

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.image.http import Web
from ansible_collections.bramble.cluster.plugins.module_utils.image.pin import LARGEST
from ansible_collections.bramble.cluster.plugins.module_utils.image.release import INIT_FORMATS, Release

# What a catalogue may be at most; the real one is a few dozen lists of some hundred images.
MAX_BYTES = 16 * 2**20
MAX_DOCUMENTS = 64
MAX_DEPTH = 16
MAX_ENTRIES = 20_000


def parse_catalogue(data: bytes) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the images in one document of a catalogue, whatever list they are in, and the addresses of further documents.

    {"os_list": [IMAGE | {"subitems": [...]} | {"subitems_url": URL}, ...]}; an image has a "url". Anything else is
    ignored: third parties write here too. Raises BrambleError for what is no catalogue, or is too large.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BrambleError(f"it is not JSON: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("os_list"), list):
        raise BrambleError('it is not a catalogue of Raspberry Pi Imager: it has no list "os_list"')
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


class Catalogue:
    """The images of a catalogue and of all documents that it leads to; `unread` names those that could not be read, and why.

    Raises BrambleError when the first document cannot be read.
    """

    def __init__(self, url: str, web: Web) -> None:
        self.url = url
        self.images: list[dict[str, Any]] = []
        self.unread: list[str] = []
        seen = [url]
        for address in seen:
            try:
                images, further = parse_catalogue(web.read(address, MAX_BYTES))
            except BrambleError as error:
                if address == url:
                    raise BrambleError(f"The catalogue {url} cannot be used: {error}") from None
                self.unread.append(f"{address}: {error}")
                continue
            web = replace(web, attempts=1)  # for the lists of third parties, which come and go
            self.images += images
            seen += dict.fromkeys(link for link in (_join(address, link) for link in further) if link not in seen)
            if len(seen) > MAX_DOCUMENTS:
                self.unread.append(f"{len(seen) - MAX_DOCUMENTS} more lists")
                del seen[MAX_DOCUMENTS:]

    def newest(self, pattern: str) -> Release:
        """Return the newest image whose URL matches (fnmatch). Raises BrambleError for none, or one with an invalid entry."""
        matching = [item for item in self.images if fnmatchcase(item["url"], pattern)]
        if not matching:
            unread = "".join(f"\n  not read: {reason}" for reason in self.unread)
            raise BrambleError(f"no image in {self.url} has a URL like {pattern}{unread}")
        return max(map(parse_release, matching), key=lambda one: (one.release_date, one.url))

    def with_extracted(self, one: Release) -> Release:
        """Return a release, with what the catalogue knows of the image in the same download; unchanged if it knows nothing."""
        for item in self.images:
            if str(item.get("image_download_sha256")).lower() == one.download_sha256:
                known = parse_release(item)
                return replace(one, sha256=known.sha256, bytes=known.bytes, release_date=known.release_date or one.release_date)
        return one


def _join(base: str, link: str) -> str:
    """Return the address of a link in a document; the link itself when it is no address."""
    try:
        return urljoin(base, link)
    except ValueError:
        return link  # what reads it says what is wrong with it


def parse_release(item: Mapping[str, Any]) -> Release:
    """Return an image of a catalogue, checked. Raises BrambleError when its entry is invalid."""
    url = item.get("url")
    if not isinstance(url, str) or not re.fullmatch("[!-~]{8,1000}", url):
        raise BrambleError(f"a url that makes no sense: {url!r:.200}")

    def hexadecimal(name: str) -> str | None:
        value = item.get(name)
        if value is not None and not (isinstance(value, str) and re.fullmatch("[0-9a-fA-F]{64}", value)):
            raise BrambleError(f"{url}: {name} makes no sense: {value!r:.200}")
        return value.lower() if value else None

    def size(name: str) -> int | None:
        value = item.get(name)
        if value is not None and not (type(value) is int and 0 < value <= LARGEST):
            raise BrambleError(f"{url}: {name} makes no sense: {value!r:.200}")
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
