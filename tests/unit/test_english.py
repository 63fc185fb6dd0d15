"""What can be tested of plain English: names of tasks that state a result, and words that docs/glossary.md replaces."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.support import ROOT
from tests.support.files import project_texts

# "Have it", "See who is there": what results from these?
RIDDLE = re.compile(r"^\s*- name: [\"']?(Have|Say|Note|Let|Take|Give|Forget|Keep|See|Look|Judge)\b")
# Metaphors, puns and former names, none of which is a word of something else.
REPLACED = re.compile(
    r"(?:^|_)(boardrom|onpi|ears|drip|adrift|unsound|taken_back|deadman|dead_man|no_way_out|hearsay|homeward)(?:$|_)",
    re.IGNORECASE,
)
# Files that name what is wrong on purpose.
HERE = Path(__file__).relative_to(ROOT).as_posix()
EXCEPT = {HERE, "tests/unit/test_messages.py", "CHANGELOG.md"}


def files(*patterns: str) -> Iterator[tuple[str, str]]:
    return ((path, text) for path, text in project_texts(*patterns) if path not in EXCEPT)


def test_task_names_state_a_result() -> None:
    names = [line for _, text in files("*.yml") for line in text.splitlines() if line.lstrip().startswith("- name: ")]
    assert len(names) > 500
    assert [line for line in names if RIDDLE.match(line)] == []


def test_cannot_is_one_word() -> None:
    assert [path for path, text in files() if re.search(r"\bcan not\b", text, re.IGNORECASE)] == []


def test_names_are_those_of_the_glossary() -> None:
    found = []
    for path, text in files("*.py"):
        for node in ast.walk(ast.parse(text)):
            name = getattr(node, "name", None) or getattr(node, "arg", None) or getattr(node, "id", None)
            if isinstance(name, str) and REPLACED.search(name):
                found.append(f"{path}: {name}")
    assert found == []
