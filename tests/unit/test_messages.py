"""docs/messages.md lists every message, wherever a source has it. tests/unit/test_english.py reads their words."""

from __future__ import annotations

import re

import pytest

from tests.support.messages import PAGE, all_messages, messages_of, page


def test_the_page_lists_every_message() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "Run scripts/reference, and read what changed."


def test_the_page_is_not_empty() -> None:
    assert len(all_messages()) > 900


TEXT = "Something was wrong here."


@pytest.mark.parametrize(
    ("path", "source", "messages"),
    [
        ("a.py", 'raise BrambleError(f"{path} is missing. Make it.")', ["{…} is missing. Make it."]),
        ("a.py", 'raise SystemExit("no cards " + where)', ["no cards {…}"]),
        ("a.py", 'module.fail_json(rc=1, msg="It failed: " f"{why}")', ["It failed: {…}"]),
        ("a.py", 'sys.exit("one word or" if many else "two words")', ["one word or", "two words"]),
        ("a.py", "raise error\nraise KeyError(name)\nsys.exit(2)\nprint('no message here')", []),
        ("a.py", "f\"{a} has {'none of the others' if b else c} there\"", ["{…} has {…} there", "none of the others"]),
        ("a.py", 'found = " ".join(["Something", "was wrong", here])', ["Something was wrong {…}"]),
        ("a.py", '"""What the module is for."""\ndef f():\n    """Return the sum of both."""', []),
        ("a.py", 'DOCUMENTATION = "What the module is for."\nadd(help="What the option is for.")', []),
        ("a.py", 're.compile("the number of .*")\n"-sS --open -p --top"\n"SELECT name FROM goods".split()\n"nft --file"', []),
        ("a.yml", "- tasks:\n  - ansible.builtin.fail:\n      msg: No {{ x }} here.", ["No {…} here."]),
        ("a.yml", "- ansible.builtin.assert: {that: x, fail_msg: [One line., Two lines.]}", ["One line.", "Two lines."]),
        ("a.yml", "- name: What the play makes here.\n  vars: {a: b, c: d e f g}", []),
        ("a.yml", "- hosts: \"{{ x | mandatory('Type this word now.') }}\"", ["Type this word now."]),
        ("a", '#!/bin/sh\n[ -f x ] || die "$name has no $(basename "$x"): ${y[*]}"', ["{…} has no {…}: {…}"]),
        ("a", '#!/bin/sh\nlog() { echo "a: $*"; }\nlog "the card\'s init ended"', ["the card's init ended"]),
        ("a", "#!/bin/sh\ncopy() { cp \"$@\"; }\ncopy one two three four\necho a >b\n# die 'of a comment'", []),
        ("a", "#!/usr/bin/env python3\nsys.exit('not in a .py file')", ["not in a .py file"]),
        ("a.fs", 'failwith "the gate is unknown" // "no more than a comment"', ["the gate is unknown"]),
        ("a.md", "die 'not a program'", []),
    ],
)
def test_messages_are_found(path: str, source: str, messages: list[str]) -> None:
    assert list(messages_of(path, source)) == messages


@pytest.mark.parametrize(
    ("path", "source"),
    [
        *(
            ("a.py", source)
            for source in (
                "error = BrambleError(TEXT)\nraise error",
                "raise BrambleError(TEXT.format(a=1))",
                "raise BrambleError(TEXT % a)",
                "raise BrambleError(message=TEXT)",
                "class A(Exception):\n    def __init__(self):\n        super().__init__(TEXT)",
                "assert a, TEXT",
                "module.fail_json(**{'msg': TEXT})",
                "module.exit_json(failed=True, msg=TEXT)",
                "result |= {'failed': True, 'msg': TEXT}",
                "module.warn(TEXT)",
                "print(TEXT, file=sys.stderr)",
                "sys.stderr.write(TEXT)",
                "typer.echo(TEXT, err=True)",
                "die(TEXT)",
                "def of(a):\n    return TEXT",
                "found = [TEXT]",
                "found = [TEXT for a in b]",
                "found += [TEXT]",
                "found.extend((TEXT,))",
                "def of(a):\n    yield from (TEXT, TEXT)",
                "REASONS = {1: TEXT}",
                "REASONS = {1: ('a', TEXT)}",
                "outcome = Outcome(lost=TEXT)",
                "def of(a, why=TEXT):\n    pass",
                "found = a or TEXT",
                "found = next(b, TEXT)",
                "found = a if b else (lambda: TEXT)",
            )
        ),
        *(
            ("a", f"#!/bin/bash\n{source}")
            for source in (
                "die TEXT",
                'die "Something $x" "here."',
                "[ -f a ] || { echo TEXT >&2; exit 1; }",
                "if x; then printf TEXT >&2; fi",
                'echo "${x:?Something was wrong here.}"',
                "fail() { echo $1 >&2; exit 1; }\nfail TEXT",
                "die Something was wrong here.",
                "[ -f 'a b' ] && die \\\n  TEXT",
                'python3 -c "import sys; sys.exit(TEXT)"',
            )
        ),
        ("Makefile", "a:\n\t@echo TEXT"),
        ("Makefile", "$(error Something was wrong here.)"),
        *(
            ("a.yml", source)
            for source in (
                "- assert: {that: a, msg: TEXT}",
                "- ansible.builtin.wait_for: {port: 1, msg: TEXT}",
                "- vars: {message: TEXT}",
                '- a: "{{ b | mandatory(TEXT) }}"',
                '- a: "{{ undef(hint=TEXT) }}"',
                "- ansible.builtin.shell: echo TEXT >&2; exit 1",
                '- ansible.builtin.shell: {cmd: "[ -f a ] || { echo TEXT >&2; exit 1; }"}',
                '- ansible.builtin.command: python3 -c "import sys; sys.exit(TEXT)"',
                '- ansible.builtin.set_fact: {a: "{{ TEXT if b else c }}"}',
            )
        ),
        ("a.service.j2", '[Service]\nExecStart=/bin/sh -c "echo TEXT"\n'),
        ("a.yml.j2", 'a: "{{ b | default(TEXT) }}"'),
    ],
)
def test_a_message_is_found_wherever_it_is(path: str, source: str) -> None:
    source = source.replace("TEXT", f"'{TEXT}'" if "vars" not in source else TEXT)
    found = " ".join(messages_of(path, source))
    assert re.search("Something (was wrong|{…}) here.", found), found
