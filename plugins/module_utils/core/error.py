"""The exception whose message is shown to the user."""

from __future__ import annotations

from typing import Any


class BrambleError(Exception):
    """An error for the user: the message says what happened, where, and what to do next.

    `result` holds the values that a module returns together with the message when it fails.
    """

    def __init__(self, message: str, **result: Any) -> None:
        super().__init__(message)
        self.result = result
