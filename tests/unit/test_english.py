"""Plain English: task names state a result, identifiers and prose have the words of docs/glossary.md (CONTRIBUTING.md, Words)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tests.support import ROOT
from tests.support.files import project_texts
from tests.support.identifiers import all_task_names, identifiers, is_python, task_names, words
from tests.support.messages import all_messages


def listed(text: str, separator: str = " ") -> list[str]:
    """Return the parts of a text, in as many lines as it needs."""
    return [part.strip() for part in " ".join(text.split()).split(separator)]


# The first words of task and play names. A new one must state a result that a reader of Ansible knows.
VERBS = listed(
    """Add Apply Block Break Build Capture Check Choose Close Compare Compose Compute Configure Confirm Connect Copy Create Cut
    Disable Discover Download Drain Drop Enable End Ensure Evaluate Exclude Fail Fetch Find Flash Gather Generate Hold Import
    Install Isolate Join Leave List Load Log Mask Measure Power Probe Provide Read Reboot Record Reduce Refresh Release Reload
    Remove Render Replace Report Require Reset Restart Restore Restrict Revoke Run Search Serve Set Show Shut Sign Start Stop Swap
    Synchronise Uncordon Unpack Update Upgrade Use Validate Verify Wait Write"""
)
# A pronoun in place of the thing, at the beginning or the end; and words that name nothing.
NOT_IN_NAMES = re.compile(
    r"(?:\S+ ){0,2}(?:it|them|they|he|she|we|I|you|this|those)\b"
    r"|.*\b(?:(?:it|them)$|(?:stuff|things?|everything|something|now|sure)\b)"
)
# playbooks/parts/role.yml: the title that playbooks/site.yml gives it.
TITLE = "{{ part_title | default('Apply the role') ~ ' (' ~ part | default('none') ~ ')' }}"

# Metaphors, puns and former names, in any part of a name.
REPLACED = re.compile(
    r"(?:^|_)(boardrom|onpi|ears|drip|adrift|unsound|taken_back|dead_?man|no_way_out|hearsay|homeward|golden|head_node|let_it)(?:$|_)"
)
# Names that say nothing alone: of anything, of a function (a verb without its object), of a class, of a variable in YAML.
LEFT_OUT = {
    "": listed("it them said told news lose hear master feature stuff thing things somebody misbehave"),
    "function": listed("put work say forget prove tell take let have give keep look see judge own on head"),
    "class": listed("golden order work"),
    "yaml": listed("head seed own on gone put"),
}
# Words of others: the method of HTTP.
FOREIGN = {("plugins/module_utils/image/http.py", "head")}
PRIVATE_PRONOUN = re.compile(r"_(it|own|on)$")
SHOUTED = {"GONE"}

NOT_PLAIN = re.compile(
    r"\b(can\s+not|makes?\s+no\s+sense|likewise|perhaps|none\s+such|so\s+many|nobody\s+knows|dead\s+man"
    r"|the\s+last\s+thing\s+first|no\s+way\s+out)\b",
    re.IGNORECASE,
)
RIDDLE = re.compile(r"\b(there (is|are) none|is odd|the way back|adrift|gave up)\b", re.IGNORECASE)
# In pages: the glossary's words, and British spelling (-ise, but for size).
NOT_IN_PAGES = re.compile(
    r"\b(?:master|head)s?\b|\b(?!\w*siz|priz|seiz)\w+iz(?:e[ds]?|ing|ation)\b|\b(?:color|behavior|favor|center)(?:s|ed)?\b",
    re.IGNORECASE,
)

HERE = Path(__file__).relative_to(ROOT).as_posix()
# Files that name what is wrong on purpose, or in the words of others: a license, history, the exercises of OctaPi.
EXCLUDED = (HERE, "tests/unit/test_messages.py", "CHANGELOG.md", "LICENSE", "workloads/tests/octapi/")


def files(*patterns: str) -> Iterator[tuple[str, str]]:
    return ((path, text) for path, text in project_texts(*patterns) if not path.startswith(EXCLUDED))


# --- Names of tasks and plays


def name_problem(name: str) -> bool:
    """Return whether the name of a task does not begin with a known verb, is one word, or has a pronoun."""
    found = name.replace(",", " ").split()
    return name != TITLE and (len(found) < 2 or found[0] not in VERBS or bool(NOT_IN_NAMES.match(name)))


def test_task_names_state_a_result() -> None:
    found = list(all_task_names())
    assert len(found) > 700
    assert [f"{path}: {name}" for path, name in found if name_problem(name)] == []


@pytest.mark.parametrize(
    "name",
    listed(
        """Ensure it|Do stuff|Worker|It is there|The last thing first|No way out|Now the node is there|Spare the card|Make sure
        |Handle it|Process|Work on it|Deal with the worker|Bring it up|Tell who must reboot|Get rid of the dead man|Prove
        |Perhaps restart|Both|Who has the port|Fetch them|Have it, or have it no more|Validate|Run the handlers now|{{ part }}
        |Check everything|Let it stay""",
        "|",
    ),
)
def test_a_name_that_states_no_result_is_found(name: str) -> None:
    for path, text in {
        "a.yml": f"- hosts: all\n  tasks:\n  - when: a\n    name: >-\n      {name}\n    ansible.builtin.command: a",
        "a.yaml": f"- block: []\n  name: '{name}'",
        "a.yml.j2": f"- name: {name}\n  ansible.builtin.command: a",
    }.items():
        assert [name_problem(found) for found in task_names(path, text)] == [True]


# --- Identifiers


def is_left_out(kind: str, name: str) -> bool:
    """Return whether an identifier has a word that the glossary replaces, or says nothing alone."""
    plain = words(name)
    alone = [*LEFT_OUT[""], *LEFT_OUT.get(kind, ())]
    pronoun = PRIVATE_PRONOUN.fullmatch(name.lower()) or name.strip("_") in SHOUTED
    return bool(REPLACED.search(plain) or plain in alone or pronoun)


def test_names_are_those_of_the_glossary() -> None:
    found = {(path, name) for path, text in files() for kind, name in identifiers(path, text) if is_left_out(kind, name)}
    assert found - FOREIGN == set()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        *(
            ("a.py", f"def {name}(self): pass")
            for name in listed("put work say hear lose forget prove tell _it _own _on onpi head")
        ),
        *(("a.py", f"class {name}: pass") for name in ("Golden", "Order", "DeadMan", "GoldenCard")),
        *(("a.py", f"{name} = 1") for name in listed("news GONE golden master feature _it deadMan golden_file")),
        ("a.py", "self.adrift = 1"),
        ("a.py", "print(job.adrift)"),
        ("a.py", "def find(ears=()): pass"),
        ("a.py", "import threading as deadman"),
        ("a.py", "from a import b as ears"),
        ("a.py", "find(adrift=1)"),
        ("a", "#!/usr/bin/env python3\nnews = 1"),
        ("a", "#!/bin/sh\nsay() { echo a; }"),
        ("a", "#!/bin/sh\nnews=1"),
        ("tests/ears.py", ""),
        ("docs/dead_man.md", ""),
        ("tests/a.golden", ""),
        ("a.yml", "__worker_adrift: 1"),
        ("a.yml", "- vars: {a: 1}\n  register: said"),
        ("a.yml", "worker_drip: 1"),
        ("a.yml", "seed: 1"),
        ("a.j2", "{% set ears = 1 %}"),
        ("a.yml", "- debug: {msg: '{{ __worker_adrift }}'}"),
    ],
)
def test_a_name_that_is_left_out_is_found(path: str, text: str) -> None:
    assert any(is_left_out(kind, name) for kind, name in identifiers(path, text))


# --- Prose


def prose(text: str) -> str:
    """Return a page without its code."""
    tokens = MarkdownIt().enable("table").parse(text)
    return "\n".join(child.content for token in tokens for child in token.children or [] if child.type == "text")


def test_prose_is_plain() -> None:
    assert [f"{path}: {found[0]}" for path, text in files() for found in NOT_PLAIN.finditer(text)] == []


def test_messages_are_plain() -> None:
    assert [message for message in all_messages() if NOT_PLAIN.search(message.text) or RIDDLE.search(message.text)] == []


def test_pages_have_the_words_of_the_glossary_in_british_spelling() -> None:
    assert [f"{path}: {found[0]}" for path, text in files("*.md") for found in NOT_IN_PAGES.finditer(prose(text))] == []


@pytest.mark.parametrize(
    "text",
    ["It can\nnot", "It can  not", "It can not", "Likewise", "there is none such", "Perhaps", "so many of them", "the dead man"],
)
def test_prose_that_is_not_plain_is_found(text: str) -> None:
    assert NOT_PLAIN.search(text)


@pytest.mark.parametrize("text", ["The head hands out jobs", "The master is off", "It is standardized", "its color"])
def test_a_page_with_other_words_is_found(text: str) -> None:
    assert NOT_IN_PAGES.search(prose(text)) and not NOT_IN_PAGES.search(prose(f"`{text}`, an image of 8 bytes in size, resized"))


# --- Docstrings

# A first line says what the function returns or does. Properties and fixtures are things, so theirs may name the thing.
NOUN_PHRASE = re.compile(r"(The|An?|This|That|Its?|There|Whether|What|Who|How|When|If|For|Used|Helper|Function)\b")
# Their docstrings are the help of a command, the title of a program, or what is tested.
OTHERS = ("workloads/src/bramble/programs/", "tests/", "workloads/tests/", "molecule/")
# Names that a base class gives.
GIVEN = listed("close connect handle_scheduler map warm_up jobs_at_once find_class do_GET connection_made datagram_received")


def docstring_problems(source: str) -> Iterator[str]:
    """Yield the public functions and methods without a docstring, and those whose docstring does not begin with what they do."""
    for holder in ast.walk(ast.parse(source)):
        for node in ast.iter_child_nodes(holder) if isinstance(holder, ast.Module | ast.ClassDef) else ():
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = (ast.get_docstring(node) or "").partition("\n")[0]
                decorators = " ".join(map(ast.unparse, node.decorator_list))
                if not first and not node.name.startswith("_") and node.name not in GIVEN:
                    yield f"{node.name} has no docstring"
                if NOUN_PHRASE.match(first) and not re.search(r"property|fixture", decorators):
                    yield f"{node.name}: {first}"


def test_docstrings_say_what_a_function_does() -> None:
    sources = [(path, text) for path, text in files() if is_python(path, text) and not path.startswith(OTHERS)]
    assert [f"{path}: {problem}" for path, text in sources for problem in docstring_problems(text)] == []


@pytest.mark.parametrize(
    "source",
    ['def f():\n    """The sum."""', 'class A:\n    def f(self):\n        """What it is."""', "def f():\n    return 1"],
)
def test_a_docstring_that_says_nothing_is_found(source: str) -> None:
    assert list(docstring_problems(source))
