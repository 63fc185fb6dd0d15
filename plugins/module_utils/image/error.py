"""The errors of downloading and decoding an image, which callers handle in different ways."""

from __future__ import annotations

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError


class WrongImage(BrambleError):
    """An image is not the expected one: it has another size or hash, or is damaged."""


class NotCardImage(BrambleError):
    """A file has no card image: it has another format, or no partitions for a Raspberry Pi. Its hash can be the expected one."""


class Unreachable(BrambleError):
    """The server does not answer, or closes the connection early. Another attempt may succeed."""


class BadStatus(BrambleError):
    """The server refuses the request; `code` is the HTTP status."""

    def __init__(self, code: int, url: str, reason: str) -> None:
        self.code = code
        super().__init__(f"{url}: the server answers with {code} {reason}")
