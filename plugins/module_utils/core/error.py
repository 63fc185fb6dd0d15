"""The error whose text a person reads."""

from __future__ import annotations

from typing import Any


class BrambleError(Exception):
    """What is wrong, for a person: the message says what happened, where, and what to do next.

    `result` is what a module returns beside the message when it fails with this.
    """

    def __init__(self, message: str, **result: Any) -> None:
        super().__init__(message)
        self.result = result
