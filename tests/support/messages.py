"""Every message of the project: what Python, YAML, shell and F# sources can print or return as text.

A string of four or more words is a message unless it is a docstring, a help text, documentation or code (CODE lists the kinds of
code). What raises or ends a program is one from two words on.

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
# Messages

Every message of Bramble, and with it every error message, by the file that it comes from. `{…}` stands for what is filled in, and
some messages are made of two of these lines. Search this page for the words that you see; most error messages name the next step.

`scripts/reference` writes this page. `tests/unit/test_messages.py` fails when it is out of date: read the new messages before you
commit them.
"""
NOT_USERS = ("tests/", "workloads/tests/", "molecule/", ".config/")
LONG = 4  # words from which any string is a message
SHORT = 2  # words from which an argument of what ends a program is one

# Python: functions that end a program, or whose text is an error; and keywords whose text is documentation.
ENDS = re.compile(r"(exit|error|fail|fail_json|fail_with|die|BadParameter|UsageError|\w+Error|SystemExit)$")
DOCUMENTS = {"help", "group_help", "description", "epilog", "title_format"}
DOCUMENTATION = {"DOCUMENTATION", "EXAMPLES", "RETURN"}
# Functions of Python whose text is a command, a pattern, SQL or a type.
TAKES_CODE = re.compile(r"(re\.\w+|.*\.split|compiled|client|\w+\.execute|\w+\.executemany|self\._ip)$", re.DOTALL)
# The kinds of text that are no messages.
CODE = re.compile(
    r"""\s*(?:
      \#(?:!|include\ |\ )                    # a script, C, a comment of a file that is written
    | (?:import|from)\ [\w.,\ ]+(?:;\ |\n)    # Python
    | \[(?:Unit|Service)\]                    # systemd
    | <!?\w | \w+="\{…\}"                     # HTML, SVG
    | table\ inet | nft\ --                   # nftables
    | iface\ | up\ ip\ | ip\ (?:\{|-)         # ifupdown, iproute2
    | \$\( | for\ \w+\ in\                    # shell
    | --?[\w-]+\ (?:-|\{…\}\ -|\d+\ -)        # options of a command
    | (?:bramble\ [\w{…}]+|rainbow\ build|fibonacci|quantum\ \w+|e2fsck)\ -
    | ansible-playbook\ \S+(?:\ -[-\w]+(?:[ =]\S+)?)*$
    | \{"| \w+::\w | deb\ \[ | set_inode_field | Status:\ install | STEP\(   # JSON, apt, debugfs, dpkg, C
    | \\n | %s | echo;\ | .*(?:\\d|\[\^?\w-\w|\(\?:|\w\|\w.*\|) # a pattern
    )""",
    re.VERBOSE,
)
# YAML: keys whose text is a message, keys whose text is documentation, and keys whose text is a command.
TELLS = {"msg", "fail_msg", "success_msg", "hint", "prompt"}
NOT_TELLING = {"name", "description", "short_description", "title", "comment"}
RUNS = re.compile(r"(ansible\.builtin\.)?(shell|command|raw|script)$|^(cmd|argv|ExecStart)$")

QUOTED = re.compile(r"""'((?:[^'\\\n]|\\.)*)'|"((?:[^"\\]|\\.)*)\"""")
# Shell. A substitution has up to two levels of parentheses inside $(…).
SUBSTITUTION = r"\$\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)|\$\{[^}]*\}|\$[\w@*#?$!-]+"
TOKEN = re.compile(
    rf"""(?P<comment>(?<![^\s;])\#.*)
    | (?P<string>"(?:[^"\\$]|\\[\s\S]|{SUBSTITUTION}|\$)*"|'[^']*')
    | (?P<filled>{SUBSTITUTION})
    | (?P<redirection>\d?[<>]+&?\s*[^\s;)|&]+)
    | (?P<blank>[ \t]+|\\\n)
    | (?P<end>[\n;|&(){{}}`])
    | (?P<other>\\?.)""",
    re.VERBOSE,
)
SHELL_ENDS = {"die", "fail"}
BEFORE_COMMANDS = {"!", "if", "then", "elif", "else", "do", "while", "until", "time"}


@dataclass(frozen=True, order=True)
class Message:
    """A message, with {…} for what is filled in, and the file that it comes from."""

    path: str
    text: str


def is_message(text: str, words: int = LONG) -> bool:
    """Return whether a text has this number of words, half of them of letters, and is not code."""
    found = text.split()
    letters = [word for word in found if re.search(r"[^\W\d_]{2}", word)]
    return len(found) >= words and len(letters) >= words // 2 and not CODE.match(text)


# --- Python


def _text(node: ast.AST) -> str | None:
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
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(value=str(glue)), attr="join"), args=[ast.List() | ast.Tuple() as parts]
        ):
            texts = [_text(part) for part in parts.elts]
            return None if not any(texts) else glue.join("{…}" if text is None else text for text in texts)
        case _:
            return None


def _without_text(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the expressions in a text that are filled in."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Constant):
            continue
        if _text(child) is None or isinstance(node, ast.FormattedValue):
            yield child
        else:
            yield from _without_text(child)


def _texts(node: ast.AST, words: int = LONG) -> Iterator[str]:
    """Yield the messages below a node of a syntax tree.

    :param words: from how many words on a string is a message
    """
    text = _text(node)
    if text is not None:
        if is_message(text, words):
            yield text
        for inner in _without_text(node):
            yield from _texts(inner)
        return
    match node:
        case ast.Expr(value=ast.Constant()):
            return  # a docstring
        case ast.keyword(arg=str(name)) if name in DOCUMENTS:
            return
        case ast.Assign(targets=[ast.Name(id=name)]) if name in DOCUMENTATION:
            return
        case ast.Call(func=function):
            name = ast.unparse(function)
            if TAKES_CODE.match(name):
                return
            words = SHORT if ENDS.search(name) else LONG
        case ast.Raise():
            words = SHORT
    for child in ast.iter_child_nodes(node):
        yield from _texts(child, words if isinstance(node, ast.Call | ast.Raise | ast.keyword | ast.IfExp) else LONG)


def python_messages(source: str) -> Iterator[str]:
    """Yield the messages of a Python source."""
    return _texts(ast.parse(source))


# --- YAML and Jinja


def _jinja(text: str) -> str:
    return re.sub(r"\{\{.*?\}\}|\{%.*?%\}", "{…}", text, flags=re.DOTALL)


def jinja_messages(text: str) -> Iterator[str]:
    """Yield the sentences that are quoted in the expressions of a template."""
    for expression in re.findall(r"\{\{.*?\}\}|\{%.*?%\}", text, re.DOTALL):
        for quoted in QUOTED.findall(expression):
            yield from filter(is_message, quoted)


def _scalars(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield key and text of every scalar of a YAML document; the items of a list have the list's key."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _scalars(value, str(name))
    elif isinstance(node, list):
        for value in node:
            yield from _scalars(value, key)
    elif isinstance(node, str):
        yield key, node


def yaml_messages(source: str) -> Iterator[str]:
    """Yield what tasks print, fail with, assert or ask, what their variables say, and what their commands print."""
    for document in yaml.load_all(source, Loader=yaml.BaseLoader):
        for key, text in _scalars(document):
            yield from jinja_messages(text)
            if key in NOT_TELLING:
                continue
            if RUNS.search(key):
                yield from shell_messages(_jinja(text))
            elif key in TELLS or key.endswith("_message"):
                yield from filter(lambda found: is_message(found, SHORT), _jinja(text).splitlines())
            elif re.match(r"[A-Z{]", text) and re.search(r"[.!?:]$", text):
                yield from filter(is_message, [_jinja(text)])


# --- Shell


def _shell_commands(source: str) -> Iterator[tuple[str, str]]:
    """Yield name and arguments of each command of a shell script, with {…} for what the shell fills in."""
    words = [""]
    for token in [*TOKEN.finditer(source), None]:
        if token is None or token.lastgroup == "end":
            while words and (words[0].lstrip("@-") in BEFORE_COMMANDS or re.match(r"\w+=", words[0]) or not words[0]):
                words = words[1:]
            if words:
                yield words[0].lstrip("@-"), " ".join(words[1:]).strip()
            words = [""]
        elif token.lastgroup == "string":
            text = (
                token[0][1:-1]
                if token[0].startswith("'")
                else re.sub(r'\\(["`$])', r"\1", re.sub(SUBSTITUTION, "{…}", token[0][1:-1]))
            )
            words[-1] += text
        elif token.lastgroup == "filled":
            words[-1] += "{…}"
        elif token.lastgroup == "blank" and words[-1]:
            words.append("")
        elif token.lastgroup == "other":
            words[-1] += token[0].removeprefix("\\")


def shell_messages(source: str) -> Iterator[str]:
    """Yield what a shell script prints or ends with, also by functions of its own."""
    functions = re.findall(r"(?ms)^[ \t]*(\w+)\(\) *\{(.*?)(?:\}$|^\})", source)
    prints = {"echo", "printf"} | {name for name, body in functions if re.search(r"\b(echo|printf|die|fail)\b.*\$", body)}
    for name, text in _shell_commands(source):
        if name in SHELL_ENDS | prints and is_message(text, SHORT if name in SHELL_ENDS else LONG):
            yield text
    for texts in re.findall(r"\$\{\w+:\?([^}]*)\}|\$\((?:error|warning) ([^)]*)\)|sys\.exit\(['\"]([^'\"]*)", source):
        yield from (text for text in texts if is_message(text, SHORT))
    for _, inner in re.findall(r"sh -c ([\"'])(.*?)\1", source):
        yield from shell_messages(inner)


# --- Files


def fsharp_messages(source: str) -> Iterator[str]:
    """Yield the strings of an F# source."""
    return (text for text in re.findall(r'"((?:[^"\\\n]|\\.)*)"', re.sub(r"//.*", "", source)) if is_message(text))


def messages_of(path: str, source: str) -> Iterator[str]:
    """Yield the messages of one file, by what it is."""
    first = source.partition("\n")[0]
    if path.endswith(".py") or (first.startswith("#!") and "python" in first):
        return python_messages(source)
    if path.endswith((".yml", ".yaml")):
        return yaml_messages(source)
    if path.endswith(".j2"):
        return (text for found in (jinja_messages(source), shell_messages(_jinja(source))) for text in found)
    if path.endswith(".fs"):
        return fsharp_messages(source)
    if path.endswith("Makefile") or (first.startswith("#!") and first.rstrip().endswith(("bash", "sh"))):
        return shell_messages(source)
    return iter(())


def all_messages() -> list[Message]:
    """Return the messages of all files that git knows, each once per file, sorted."""
    found = set[Message]()
    for path, source in project_texts():
        if not path.startswith(NOT_USERS):
            found.update(Message(path, " ".join(text.split())) for text in messages_of(path, source))
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
