"""docs/messages.md lists every error message, and each can be read once (shared/english.md is the rule)."""

from __future__ import annotations

import re

import pytest

from tests.support.messages import PAGE, all_messages, messages_of, page

# Riddles, and words that the glossary replaces.
NOT_PLAIN = re.compile(
    r"\b(can not|makes? no sense|likewise|perhaps|there is none|there are none|so many|nobody knows|is odd)\b",
    re.IGNORECASE,
)


def test_the_page_lists_every_message() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "Run scripts/reference, and read what changed."


def test_every_message_is_plain() -> None:
    found = all_messages()
    assert len(found) > 400
    assert [message for message in found if NOT_PLAIN.search(message.text)] == []


@pytest.mark.parametrize(
    ("path", "source", "messages"),
    [
        ("a.py", 'raise BrambleError(f"{path} is missing. Make it.")', ["{…} is missing. Make it."]),
        ("a.py", 'raise SystemExit("no cards " + where)', ["no cards {…}"]),
        ("a.py", 'module.fail_json(rc=1, msg="It failed: " f"{why}")', ["It failed: {…}"]),
        ("a.py", 'sys.exit("one word or" if many else "two words")', ["one word or / two words"]),
        ("a.py", "raise error\nraise KeyError(name)\nsys.exit(2)\nprint('no message here')", []),
        ("a.py", 'def _problem():\n    return f"{a} is wrong"\ndef other():\n    return "no message either"', ["{…} is wrong"]),
        ("a.py", 'def problems():\n    found.append("a is wrong")\n    yield "b is wrong"', ["a is wrong", "b is wrong"]),
        ("a.yml", "- tasks:\n  - ansible.builtin.fail:\n      msg: No {{ x }} here.", ["No {…} here."]),
        ("a.yml", "- ansible.builtin.assert: {that: x, fail_msg: [One line., Two lines.]}", ["One line.", "Two lines."]),
        ("a.yml", "- ansible.builtin.debug: {msg: All is well.}", []),
        ("a.yml", "- hosts: \"{{ x | mandatory('Type something.') }}\"", ["Type something."]),
        ("a", '#!/bin/sh\n[ -f x ] || die "$name has no $(basename "$x"): ${y[*]}"', ["{…} has no {…}: {…}"]),
        ("a", "#!/usr/bin/env python3\nsys.exit('not in a .py file')", ["not in a .py file"]),
        ("a.md", "die 'not a program'", []),
    ],
)
def test_messages_are_found(path: str, source: str, messages: list[str]) -> None:
    assert list(messages_of(path, source)) == messages
