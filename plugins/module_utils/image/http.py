"""Read from web servers: by https unless http is allowed, with a size limit, and with resumed downloads. Sizes are in bytes."""

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
from ansible_collections.bramble.cluster.plugins.module_utils.image.error import BadStatus, Unreachable, WrongImage
from ansible_collections.bramble.cluster.plugins.module_utils.image.progress import Report

CHUNK = 1024 * 1024
MAX_REDIRECTS = 10
RETRY_DELAY = 1.0  # seconds before the second attempt; doubled before each further one
T = TypeVar("T")


def _size(path: str) -> int:
    """Return the size of a download so far; 0 if it does not exist."""
    return os.path.getsize(path) if os.path.exists(path) else 0


def discard(path: str) -> None:
    """Remove a download and its validator."""
    for name in (path, f"{path}.validator"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


@dataclass(frozen=True)
class HttpClient:
    """Reads from web servers.

    :param allow_http: allow URLs without TLS
    :param ca_path: a file of certificates to trust instead of the system's
    :param timeout: seconds without a byte after which an attempt fails
    :param attempts: after this many consecutive attempts that receive less than a CHUNK, a server counts as unreachable
    """

    allow_http: bool = False
    ca_path: str | None = None
    timeout: float = 30.0
    attempts: int = 4

    def check(self, url: str) -> None:
        """Check that a URL may be requested. Raises BrambleError."""
        try:
            parts = urlsplit(url)
            is_valid = bool(parts.hostname) and parts.scheme in ("https", "http") and url.isprintable() and parts.port != 0
        except ValueError:
            is_valid = False
        if not is_valid:
            raise BrambleError(f"{url!r} is not a valid http or https URL")
        if parts.scheme != "https" and not self.allow_http:
            raise BrambleError(
                f"{url} is not an https URL, so its content could be changed on the way. To allow http, set image_allow_http=true"
            )
        if self.ca_path and not os.path.isfile(self.ca_path):
            raise BrambleError(f"{self.ca_path}, the value of image_ca_path, is not a file of certificates")

    def open(self, url: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> http.client.HTTPResponse:
        """Return the response to a request. Redirects are followed, and their URLs checked. Raises BrambleError."""
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
                    raise Unreachable(f"{url}: the server answers with {error.code} {error.reason}") from None
                raise BadStatus(error.code, url, str(error.reason)) from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = getattr(error, "reason", error)
                if isinstance(reason, ssl.SSLCertVerificationError):
                    raise BrambleError(f"{url}: the certificate of the server is not trusted: {reason.verify_message}") from None
                raise Unreachable(f"{url} cannot be reached: {reason or type(reason).__name__}") from None
            return response
        raise BrambleError(f"{url}: more than {MAX_REDIRECTS} redirects")

    def read(self, url: str, limit: int) -> bytes:
        """Return a whole document of at most `limit` bytes. Raises BrambleError."""
        return self._retry(lambda: self._read_once(url, limit))

    def _read_once(self, url: str, limit: int) -> bytes:
        with self.open(url) as response:
            try:
                data = response.read(limit + 1)
            except (OSError, http.client.HTTPException) as error:
                raise Unreachable(f"{url}: the connection was lost: {error}") from None
            if len(data) > limit:
                raise BrambleError(f"{url} is larger than {limit:,} bytes, so it is not the expected document")
            if response.length:
                raise Unreachable(f"{url}: the connection was lost after {len(data):,} bytes")
            return data

    def head(self, url: str) -> Mapping[str, str]:
        """Return the headers of a document. Raises BrambleError."""

        def request_headers() -> Mapping[str, str]:
            with self.open(url, method="HEAD") as response:
                return dict(response.headers.items())

        return self._retry(request_headers)

    def _retry(self, attempt: Callable[[], T], progress: Callable[[], int] = lambda: 0) -> T:
        """Return the result of `attempt`, which is repeated after Unreachable; `progress` returns the number of bytes so far."""
        failures = 0
        while True:
            before = progress()
            try:
                return attempt()
            except Unreachable:
                failures = 0 if progress() - before >= CHUNK else failures + 1
                if failures >= self.attempts:
                    raise
                time.sleep(RETRY_DELAY * 2 ** max(failures - 1, 0))

    def download(self, url: str, path: str, expected: int | None, limit: int, report: Report) -> bool:
        """Complete a download into the file `path`, and return whether it was resumed.

        After an error, the file is kept for another run to resume, except that it is of no use after WrongImage. If the file was
        changed on the server, the download starts again (RFC 9110, If-Range). The caller must check the hash of the file.

        :param expected: the size of the file, None if it is unknown
        :param limit: the largest size, if `expected` is None
        :raises BrambleError: when the download is not complete
        """
        is_resumed = False

        def attempt() -> None:
            nonlocal is_resumed
            is_resumed = self._download_once(url, path, expected, limit, report) or is_resumed

        self._retry(attempt, lambda: _size(path))
        return is_resumed

    def _download_once(self, url: str, path: str, expected: int | None, limit: int, report: Report) -> bool:
        have = _size(path)
        if have and have == expected:
            return True
        try:
            response = self.open(url, self._range_headers(path, have))
        except BadStatus as error:
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
                raise
            discard(path)
            raise Unreachable(f"{url} cannot be resumed at byte {have:,}") from None
        with response:
            start, total = self._position(response, url, have)
            if start not in (0, have):
                discard(path)
                raise Unreachable(f"{url}: the server sends data from byte {start:,} on instead of byte {have:,}")
            if expected is not None and total not in (None, expected):
                raise WrongImage(f"{url} has {total:,} bytes on the server, but {expected:,} were expected")
            if not start:
                discard(path)
                self._keep_validator(response, path)
            at = start
            with open(path, "ab") as file:
                for data in self._read_body(response, url):
                    at += len(data)
                    if at > (limit if expected is None else expected):
                        raise WrongImage(f"{url} sends more than the expected {limit if expected is None else expected:,} bytes")
                    file.write(data)
                    report("download", at, expected or total or 0)
        whole = total if expected is None else expected
        if whole is not None and at < whole:
            raise Unreachable(f"{url}: the connection was lost after {at:,} of {whole:,} bytes")
        return start > 0

    @staticmethod
    def _range_headers(path: str, have: int) -> dict[str, str]:
        """Return the headers that request the rest of a download, of the same version if the server has sent a validator."""
        if not have:
            return {}
        headers = {"Range": f"bytes={have}-"}
        with contextlib.suppress(FileNotFoundError), open(f"{path}.validator", encoding="latin-1") as file:
            headers["If-Range"] = file.read()
        return headers

    @staticmethod
    def _keep_validator(response: http.client.HTTPResponse, path: str) -> None:
        """Save the validator of this version of the file: a strong ETag, or the time of its last change (RFC 9110, If-Range)."""
        tag = response.headers.get("ETag", "")
        validator = tag if tag.startswith('"') else response.headers.get("Last-Modified", "")
        if validator:
            with open(f"{path}.validator", "w", encoding="latin-1") as file:
                file.write(validator)

    @staticmethod
    def _position(response: http.client.HTTPResponse, url: str, have: int) -> tuple[int, int | None]:
        """Return the offset at which a response begins, and the size of the whole file (None: unknown)."""
        if response.status == http.HTTPStatus.PARTIAL_CONTENT:
            found = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", response.headers.get("Content-Range", ""))
            if not found or not have:
                raise BrambleError(f"{url}: the server sends an invalid Content-Range: {response.headers.get('Content-Range')}")
            return int(found[1]), None if found[2] == "*" else int(found[2])
        return 0, response.length

    @staticmethod
    def _read_body(response: http.client.HTTPResponse, url: str) -> Iterator[bytes]:
        while True:
            try:
                data = response.read1(CHUNK)  # returns what has arrived, so that a lost connection loses nothing
            except (OSError, http.client.HTTPException) as error:
                raise Unreachable(f"{url}: the connection was lost: {error or type(error).__name__}") from None
            if not data:
                return
            yield data
