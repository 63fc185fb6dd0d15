"""What publishers say of their newest images: Raspberry Pi Imager's catalogue, and Ubuntu's signed sums. Sizes are in bytes."""

from __future__ import annotations

import base64
import binascii
import email.utils
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urljoin

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.image.http import Web
from ansible_collections.bramble.cluster.plugins.module_utils.image.store import LARGEST

# What a catalogue may be at most; the real one is a few dozen lists of some hundred images.
MAX_BYTES = 16 * 2**20
MAX_DOCUMENTS = 64
MAX_DEPTH = 16
MAX_ENTRIES = 20_000

# https://github.com/raspberrypi/rpi-imager, doc/json-schema/os-list-schema.json
INIT_FORMATS = ("none", "systemd", "cloudinit", "cloudinit-rpi", "rpi-preseed")


@dataclass(frozen=True)
class Release:
    """One version of an image, as its publisher describes it; None and "" for what it does not say."""

    url: str
    download_sha256: str
    download_bytes: int | None = None
    sha256: str | None = None
    bytes: int | None = None
    release_date: str = ""
    init_format: str | None = None


# Raspberry Pi Imager's catalogue.


def parse_catalogue(data: bytes) -> tuple[list[dict[str, Any]], list[str]]:
    """The images in one document of a catalogue, whatever list they are in, and the addresses of further documents.

    {"os_list": [IMAGE | {"subitems": [...]} | {"subitems_url": URL}, ...]}; an image has a "url". What is none of these is
    passed over: third parties write here too. Raises BrambleError for what is no catalogue, or beyond all measure.
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
    """The images of a catalogue and all documents it leads to. `unread` says of which not, and why.

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
        """The newest image whose URL matches (fnmatch). Raises BrambleError when there is none, or its entry makes no sense."""
        matching = [item for item in self.images if fnmatchcase(item["url"], pattern)]
        if not matching:
            unread = "".join(f"\n  not read: {reason}" for reason in self.unread)
            raise BrambleError(f"no image in {self.url} has a URL like {pattern}{unread}")
        return max(map(release, matching), key=lambda one: (one.release_date, one.url))

    def extracted(self, one: Release) -> Release:
        """A release, with what the catalogue says about the image in the same download; as it is if it says nothing."""
        for item in self.images:
            if str(item.get("image_download_sha256")).lower() == one.download_sha256:
                known = release(item)
                return replace(one, sha256=known.sha256, bytes=known.bytes, release_date=known.release_date or one.release_date)
        return one


def _join(base: str, link: str) -> str:
    try:
        return urljoin(base, link)
    except ValueError:
        return link  # what reads it says what is wrong with it


def release(item: Mapping[str, Any]) -> Release:
    """An image of a catalogue, checked. Raises BrambleError when it makes no sense."""
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


# Ubuntu's sums.


def ubuntu(base: str, folder: str, pattern: str, signer: str, key: bytes, web: Web) -> Release:
    """The newest file like `pattern` (fnmatch) in a folder's SHA256SUMS, which `signer` has signed. Raises BrambleError."""
    place = f"{base.rstrip('/')}/{folder}/"
    sums = web.read(f"{place}SHA256SUMS", 2**20)
    try:
        check_signature(sums, web.read(f"{place}SHA256SUMS.gpg", 2**16), key, signer)
    except BrambleError as error:
        raise BrambleError(f"{place}SHA256SUMS: {error}") from None
    found = dict(_sums(sums, pattern))
    if not found:
        raise BrambleError(f"no file in {place}SHA256SUMS is called like {pattern}")
    name = max(found, key=_version)
    headers = web.head(place + name)
    length, date = headers.get("Content-Length", ""), email.utils.parsedate(headers.get("Last-Modified"))
    return Release(
        place + name,
        found[name],
        int(length) if re.fullmatch("[0-9]{1,15}", length) else None,
        release_date="{:04}-{:02}-{:02}".format(*date) if date else "",
    )


def _sums(text: bytes, pattern: str) -> Iterator[tuple[str, str]]:
    for line in text.decode("ascii", errors="replace").splitlines():
        found = re.fullmatch(r"([0-9a-f]{64}) [ *]([!-.0-~]+)", line)
        if found and fnmatchcase(found[2], pattern):
            yield found[2], found[1]


def _version(name: str) -> list[tuple[int, str]]:
    """A key that sorts 24.04.10 after 24.04.9."""
    return [(int(digits or 0), word) for digits, word in re.findall(r"([0-9]+)|([^0-9]+)", name)]


def check_signature(data: bytes, signature: bytes, key: bytes, signer: str) -> None:
    """Raises BrambleError unless `data` is signed by the key with fingerprint `signer`, one of those in `key` (binary OpenPGP).

    Source: gnupg, doc/DETAILS, "Format of the --status-fd output".
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, name) for name in ("key.gpg", "signature", "data")]
        for path, content in zip(paths, (key, signature, data), strict=True):
            with open(path, "wb") as file:
                file.write(content)
        command = ["gpgv", "--homedir", folder, "--status-fd", "1", "--keyring", *paths]
        try:
            status = subprocess.run(command, capture_output=True, check=False).stdout.decode(errors="replace")
        except FileNotFoundError:
            raise BrambleError("gpgv is not installed on this machine: apt install gpgv") from None
    # A key that has expired or was revoked gives VALIDSIG too, but not GOODSIG. The signature of another key does not matter.
    for one in status.split("[GNUPG:] NEWSIG")[1:]:
        valid = re.search(r"^\[GNUPG:\] VALIDSIG (.*)$", one, re.MULTILINE)
        if valid and "[GNUPG:] GOODSIG " in one and signer.upper() in valid[1].split():
            return
    verdicts = re.findall(r"^\[GNUPG:\] ((?:BAD|ERR|EXP|EXPKEY|REVKEY|GOOD)SIG) (\S+)", status, re.MULTILINE)
    told = "; ".join(f"{verdict} of key {which}" for verdict, which in verdicts) or "no signature"
    raise BrambleError(f"it is not signed by {signer} ({told}). Somebody may have changed it; nothing of it is used")


def public_key(keyring: str, url: str, signer: str, web: Web) -> bytes:
    """The keys in a keyring file; where there is none, what a key server gives for `signer`. Raises BrambleError.

    It need not be trusted: a signature counts only with the fingerprint that is pinned.
    """
    if os.path.exists(keyring):
        with open(keyring, "rb") as file:
            return file.read()
    try:
        return dearmor(web.read(url + signer, 2**20))
    except BrambleError as error:
        raise BrambleError(
            f"The key {signer} is neither in {keyring} nor to be had: {error}.\n"
            "On Ubuntu: apt install ubuntu-keyring. Elsewhere set image_ubuntu_keyring to a file with the key in it"
        ) from None


def dearmor(text: bytes) -> bytes:
    """The key in an ASCII-armoured block: RFC 9580, section 6.2. Raises BrambleError."""
    block = (
        rb"-----BEGIN PGP PUBLIC KEY BLOCK-----\n(?:.+\n)*\n([A-Za-z0-9+/=\n]+?)\n(?:=....\n)?-----END PGP PUBLIC KEY BLOCK-----"
    )
    found = re.search(block, text.replace(b"\r", b""))
    try:
        return base64.b64decode(found[1].replace(b"\n", b"") if found else b"-", validate=True)
    except binascii.Error:
        raise BrambleError("what the key server sends is no OpenPGP key") from None
