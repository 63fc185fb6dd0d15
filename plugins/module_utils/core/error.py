"""The error whose text a person reads."""

from __future__ import annotations


class BrambleError(Exception):
    """What is wrong, for a person: the message says what happened, where, and what to do next."""
