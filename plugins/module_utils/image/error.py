"""What can go wrong with an image on its way, so that a caller can tell one from another."""

from __future__ import annotations

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError


class WrongImage(BrambleError):
    """An image is not the one expected: another size, another hash, damaged."""


class Unreachable(BrambleError):
    """The server does not answer, or breaks off: another try may help."""


class BadStatus(BrambleError):
    """The server refuses: `code` is the HTTP status."""

    def __init__(self, code: int, url: str, reason: str) -> None:
        self.code = code
        super().__init__(f"{url}: the server answers {code} {reason}")
