"""Every error message of the project: what raises, fails, asserts or exits, in Python, YAML and shell.

scripts/reference      writes docs/messages.md, which tests/unit/test_messages.py compares
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from tests.support import ROOT
from tests.support.files import project_texts

PAGE = ROOT / "docs/messages.md"
INTRODUCTION = """\
# Error messages

Every message that ends a command of Bramble, by the file that it comes from. `{…}` stands for what is filled in. Search this page
for the words that you see; most messages also name the next step.

`scripts/reference` writes this page. `tests/unit/test_messages.py` fails when it is out of date: read the new messages before you
commit them.
"""
# Functions whose argument is a message: its keyword, or its place.
CALLS: dict[str, str | int] = {"fail_json": "msg", "exit": 0, "error": 0, "fail": 0, "BadParameter": 0, "UsageError": 0}
TASKS = {"ansible.builtin.fail": "msg", "ansible.builtin.assert": "fail_msg"}
# Functions that return, yield or collect the sentences of a later message.
COLLECTS = re.compile(r"problem|check|lack|missing|refus|explain|reason|wrong|unfit|differ")
# Shell: `die "…"`. Playbooks: `mandatory('…')`.
SHELL = re.compile(r"""\bdie "((?:[^"\\]|\\.|"\$[^"]*")*)(?:"|$)""", re.MULTILINE)
MANDATORY = re.compile(r"mandatory\('([^']*)'\)")
NOT_USERS = ("tests/", "workloads/tests/", "molecule/", ".config/")


@dataclass(frozen=True, order=True)
class Message:
    """A message, with {…} for what is filled in, and the file that it comes from."""

    path: str
    text: str


def _text(node: ast.expr) -> str | None:
    """Return the text of an expression, or None where it has no text of its own."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(
                part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else "{…}" for part in parts
            )
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            texts = [_text(side) for side in (left, right)]
            return None if texts == [None, None] else "".join("{…}" if text is None else text for text in texts)
        case ast.IfExp(body=body, orelse=orelse):
            texts = [_text(side) for side in (body, orelse)]
            return " / ".join(text for text in texts if text) or None
        case _:
            return None


def _arguments(node: ast.AST) -> list[ast.expr]:
    """Return the expressions of a raise or a call that can be its message."""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        return node.exc.args
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        place = CALLS.get(name)
        if isinstance(place, int):
            return node.args[place : place + 1]
        return [keyword.value for keyword in node.keywords if keyword.arg == place]
    return []


def _collected(node: ast.AST) -> list[ast.expr]:
    """Return what a statement hands out: of a return, a yield or an append."""
    match node:
        case ast.Return(value=ast.expr() as value) | ast.Yield(value=ast.expr() as value):
            return [value]
        case ast.Call(func=ast.Attribute(attr="append"), args=[value]):
            return [value]
        case _:
            return []


def python_messages(source: str) -> Iterator[str]:
    """Yield the messages of a Python source."""
    for node in ast.walk(ast.parse(source)):
        expressions = _arguments(node)
        if isinstance(node, ast.FunctionDef) and COLLECTS.search(node.name):
            expressions = [value for inner in ast.walk(node) for value in _collected(inner)]
        for text in map(_text, expressions):
            if text and " " in text.strip():
                yield text


def _mappings(node: Any) -> Iterator[dict[str, Any]]:
    """Yield every mapping of a YAML document."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from _mappings(value)


def yaml_messages(source: str) -> Iterator[str]:
    """Yield the messages of tasks that fail or assert, and of what a play requires."""
    for mapping in _mappings(list(yaml.load_all(source, Loader=yaml.BaseLoader))):
        for task, option in TASKS.items():
            arguments = mapping.get(task)
            message = arguments.get(option) if isinstance(arguments, dict) else None
            for text in message if isinstance(message, list) else [message]:
                if text:
                    yield re.sub(r"{{.*?}}", _words, text, flags=re.DOTALL)
    yield from MANDATORY.findall(source)


def _words(expression: re.Match[str]) -> str:
    """Return the sentences in a Jinja expression, with {…} for the rest."""
    sentences = [text for text in re.findall(r"'([^']*)'", expression[0]) if text.count(" ") > 1]
    return " ".join(["{…}", *sentences, "{…}"]) if sentences else "{…}"


def shell_messages(source: str) -> Iterator[str]:
    """Yield what ends a shell script."""
    for text in SHELL.findall(source):
        yield re.sub(r"\$(\{[^}]*\}|\([^()]*(\([^()]*\))?[^()]*\)|\w+)", "{…}", text.replace('\\"', '"'))


def messages_of(path: str, source: str) -> Iterator[str]:
    """Yield the messages of one file, by what it is."""
    first = source.partition("\n")[0]
    if path.endswith(".py") or (first.startswith("#!") and "python" in first):
        return python_messages(source)
    if path.endswith((".yml", ".yaml")):
        return yaml_messages(source)
    if first.startswith("#!") and first.rstrip().endswith(("bash", "sh")):
        return shell_messages(source)
    return iter(())


def all_messages() -> list[Message]:
    """Return the messages of all files that git knows, each once per file, sorted."""
    found = set[Message]()
    for path, source in project_texts():
        if not path.startswith(NOT_USERS):
            texts = (" ".join(text.split()) for text in messages_of(path, source))
            found.update(Message(path, text) for text in texts if text.strip("{…} "))
    return sorted(found)


def page() -> str:
    """Return docs/messages.md."""
    by_path: dict[str, list[str]] = {}
    for message in all_messages():
        by_path.setdefault(message.path, []).append(message.text)
    sections = [f"\n## {path}\n\n" + "".join(f"- {text}\n" for text in texts) for path, texts in by_path.items()]
    return INTRODUCTION + "".join(sections)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
