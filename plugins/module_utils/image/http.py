"""Reading from the web: https only unless told otherwise, bounded, and resumed where a download broke off. Sizes are in bytes."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import ssl
import time
import urllib.error
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

from ansible.module_utils.urls import open_url
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

CHUNK = 1024 * 1024
MAX_REDIRECTS = 10
PAUSE = 1.0  # seconds before the second attempt; doubled before each further one

T = TypeVar("T")
Tell = Callable[[str, int, int], None]
"""Is told how far something is: the phase, the bytes done, and of how many (0: unknown)."""


class WrongImage(BrambleError):
    """It is not what it should be: another size, another hash, damaged."""


class Unreachable(BrambleError):
    """The server does not answer, or not to the end: another try may help."""


class BadStatus(BrambleError):
    """The server answers that it will not: `code` is the HTTP status."""

    def __init__(self, code: int, url: str, reason: str) -> None:
        self.code = code
        super().__init__(f"{url}: the server answers {code} {reason}")


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else 0


def discard(path: str) -> None:
    """Remove a download and what is known about it."""
    for name in (path, f"{path}.validator"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


@dataclass(frozen=True)
class Web:
    """How the web is read.

    `ca_path` is a file of certificates to trust instead of the system's; `timeout` is in seconds without a byte. After
    `attempts` in a row that bring less than a CHUNK, a server is given up for now.
    """

    allow_http: bool = False
    ca_path: str | None = None
    timeout: float = 30.0
    attempts: int = 4

    def check(self, url: str) -> None:
        """Raises BrambleError for a URL that is not to be read."""
        try:
            parts = urlsplit(url)
            usable = bool(parts.hostname) and parts.scheme in ("https", "http") and url.isprintable() and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise BrambleError(f"{url!r} is not a web address")
        if parts.scheme != "https" and not self.allow_http:
            raise BrambleError(
                f"{url} is not https: anyone on the way could change it. To read it all the same: image_allow_http=true"
            )
        if self.ca_path and not os.path.isfile(self.ca_path):
            raise BrambleError(f"{self.ca_path} is not a file of certificates: see image_ca_path")

    def open(self, url: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> http.client.HTTPResponse:
        """The answer to a request, after redirects, each of which is checked. Raises BrambleError."""
        for _ in range(MAX_REDIRECTS + 1):
            self.check(url)
            try:
                response: http.client.HTTPResponse = open_url(
                    url,
                    method=method,
                    headers=dict(headers or {}),
                    follow_redirects="none",
                    ca_path=self.ca_path,
                    timeout=self.timeout,
                    http_agent="bramble",
                    decompress=False,
                    use_netrc=False,
                )
            except urllib.error.HTTPError as error:
                error.close()
                if error.code in (301, 302, 303, 307, 308) and error.headers.get("Location"):
                    url = urljoin(url, error.headers["Location"])
                    continue
                if error.code >= 500 or error.code in (408, 429):
                    raise Unreachable(f"{url}: the server answers {error.code} {error.reason}") from None
                raise BadStatus(error.code, url, str(error.reason)) from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = getattr(error, "reason", error)
                if isinstance(reason, ssl.SSLCertVerificationError):
                    raise BrambleError(f"{url}: the server's certificate is not to be trusted: {reason.verify_message}") from None
                raise Unreachable(f"{url} cannot be reached: {reason or type(reason).__name__}") from None
            return response
        raise BrambleError(f"{url}: more than {MAX_REDIRECTS} redirects")

    def read(self, url: str, limit: int) -> bytes:
        """A whole document of at most `limit` bytes. Raises BrambleError."""
        return self._persist(lambda: self._read_once(url, limit))

    def _read_once(self, url: str, limit: int) -> bytes:
        with self.open(url) as response:
            try:
                data = response.read(limit + 1)
            except (OSError, http.client.HTTPException) as error:
                raise Unreachable(f"{url} broke off: {error}") from None
            if len(data) > limit:
                raise BrambleError(f"{url} is larger than {limit:,} bytes: this is not what was looked for")
            if response.length:
                raise Unreachable(f"{url} broke off after {len(data):,} bytes")
            return data

    def head(self, url: str) -> Mapping[str, str]:
        """The headers of a document. Raises BrambleError."""

        def once() -> Mapping[str, str]:
            with self.open(url, method="HEAD") as response:
                return dict(response.headers.items())

        return self._persist(once)

    def _persist(self, once: Callable[[], T], progress: Callable[[], int] = lambda: 0) -> T:
        """What `once` returns, tried again where the server may answer yet; `progress` says how many bytes there are by now."""
        failures = 0
        while True:
            before = progress()
            try:
                return once()
            except Unreachable:
                failures = 0 if progress() - before >= CHUNK else failures + 1
                if failures >= self.attempts:
                    raise
                time.sleep(PAUSE * 2 ** max(failures - 1, 0))

    def download(self, url: str, path: str, expected: int | None, limit: int, tell: Tell) -> bool:
        """Complete a download into the file `path`, from where it stands; returns whether it was resumed.

        What is there stays, whatever is raised, so that another run goes on from it; only after WrongImage it is of no use.
        A file that changed on the server meanwhile begins anew (RFC 9110, If-Range). Whether it is the right one is for the
        caller to check. Raises BrambleError.

        :param expected: the size that it must have, None if nobody knows
        :param limit: the size at which to stop at the latest
        """
        resumed = False

        def once() -> None:
            nonlocal resumed
            resumed = self._download_once(url, path, expected, limit, tell) or resumed

        self._persist(once, lambda: _size(path))
        return resumed

    def _download_once(self, url: str, path: str, expected: int | None, limit: int, tell: Tell) -> bool:
        have = _size(path)
        if have and have == expected:
            return True
        try:
            response = self.open(url, self._range(path, have))
        except BadStatus as error:
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
                raise
            discard(path)
            raise Unreachable(f"{url} cannot be resumed at byte {have:,}") from None
        with response:
            start, total = self._place(response, url, have)
            if start not in (0, have):
                discard(path)
                raise Unreachable(f"{url} was asked for byte {have:,} on and sends byte {start:,} on")
            if expected is not None and total not in (None, expected):
                raise WrongImage(f"{url} has {total:,} bytes there, and {expected:,} were expected")
            if not start:
                discard(path)
                self._remember(response, path)
            at = start
            with open(path, "ab") as file:
                for data in self._body(response, url):
                    at += len(data)
                    if at > (limit if expected is None else expected):
                        raise WrongImage(f"{url} sends more than the {limit if expected is None else expected:,} bytes expected")
                    file.write(data)
                    tell("download", at, expected or total or 0)
        whole = total if expected is None else expected
        if whole is not None and at < whole:
            raise Unreachable(f"{url} broke off after {at:,} of {whole:,} bytes")
        return start > 0

    @staticmethod
    def _range(path: str, have: int) -> dict[str, str]:
        """The headers that ask for the rest of what is there: of the same file, where the server can tell."""
        if not have:
            return {}
        headers = {"Range": f"bytes={have}-"}
        with contextlib.suppress(FileNotFoundError), open(f"{path}.validator", encoding="latin-1") as file:
            headers["If-Range"] = file.read()
        return headers

    @staticmethod
    def _remember(response: http.client.HTTPResponse, path: str) -> None:
        """Keep what tells this version of the file from another: RFC 9110 has no use for a weak ETag here."""
        tag = response.headers.get("ETag", "")
        validator = tag if tag.startswith('"') else response.headers.get("Last-Modified", "")
        if validator:
            with open(f"{path}.validator", "w", encoding="latin-1") as file:
                file.write(validator)

    @staticmethod
    def _place(response: http.client.HTTPResponse, url: str, have: int) -> tuple[int, int | None]:
        """The offset at which an answer begins, and the size of the whole (None: not told)."""
        if response.status == http.HTTPStatus.PARTIAL_CONTENT:
            found = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", response.headers.get("Content-Range", ""))
            if not found or not have:
                raise BrambleError(f"{url}: the server sends a part that makes no sense: {response.headers.get('Content-Range')}")
            return int(found[1]), None if found[2] == "*" else int(found[2])
        return 0, response.length

    @staticmethod
    def _body(response: http.client.HTTPResponse, url: str) -> Iterator[bytes]:
        while True:
            try:
                data = response.read1(CHUNK)  # what there is: nothing is lost when it breaks off
            except (OSError, http.client.HTTPException) as error:
                raise Unreachable(f"{url} broke off: {error or type(error).__name__}") from None
            if not data:
                return
            yield data
