"""The names that authors choose: in Python, YAML, templates and shell, and of files; and the names of tasks and plays."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import yaml

from tests.support.files import project_texts
from tests.support.yaml_files import mappings

PYTHON = re.compile(r"#!.*python")
IN_YAML = re.compile(
    r"""register:\ ["']?(\w+)                 # facts
    | ^[ \t-]*(?!register:)([A-Za-z_]\w*):   # keys
    | \b(__\w+)                              # variables of a role
    | \{%-?\ (?:set|for)\ (\w+)              # variables of a template
    """,
    re.MULTILINE | re.VERBOSE,
)
IN_SHELL = re.compile(
    r"^[ \t]*(?:function )?(\w+)(?=\(\))|^[ \t]*(?:local |export |readonly )?(\w+)=|\bfor (\w+) in", re.MULTILINE
)


def is_python(path: str, text: str) -> bool:
    return path.endswith(".py") or bool(PYTHON.match(text))


def _python(text: str) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield "function", name
            case ast.ClassDef(name=name):
                yield "class", name
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.ExceptHandler(name=str(name)):
                yield "variable", name
            case ast.alias(name=name, asname=other):
                yield "import", other or name.rpartition(".")[2]
            case ast.Attribute(attr=name) | ast.keyword(arg=str(name)):
                yield "attribute", name


def identifiers(path: str, text: str) -> Iterator[tuple[str, str]]:
    """Yield kind and name of each identifier of a file, its path included."""
    yield from (("file", part) for part in re.split(r"[/.-]", path) if part)
    if is_python(path, text):
        yield from _python(text)
    elif path.endswith((".yml", ".yaml", ".j2")):
        yield from (("yaml", name) for names in IN_YAML.findall(text) for name in names if name)
    elif text.startswith("#!"):
        for function, *variables in IN_SHELL.findall(text):
            yield from (("function" if name == function else "variable", name) for name in (function, *variables) if name)


def words(identifier: str) -> str:
    """Return the words of an identifier in lower case, joined by _: `deadMan` and `_dead_man` become `dead_man`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", identifier).lower().strip("_")


def task_names(path: str, text: str) -> Iterator[str]:
    """Yield the names of plays, blocks, tasks and handlers of a YAML file, or of a template of one."""
    if path.endswith(".j2"):
        yield from re.findall(r"(?m)^\s*- name: (.+)\n\s+(?:hosts|block|\w+\.\w+\.\w+):", text)
        return
    for document in yaml.load_all(text, Loader=yaml.BaseLoader):
        for mapping in mappings(document):
            if any(key in {"hosts", "block", "import_playbook"} or re.fullmatch(r"\w+\.\w+\.\w+", key) for key in mapping):
                yield from (mapping[key] for key in ("name",) if isinstance(mapping.get(key), str))
            if isinstance(mapping.get("part_title"), str) and "{{" not in mapping["part_title"]:
                yield mapping["part_title"]


def all_task_names() -> Iterator[tuple[str, str]]:
    """Yield path and name of all tasks and plays."""
    for path, text in project_texts("*.yml", "*.yaml", "*.yml.j2"):
        yield from ((path, " ".join(name.split())) for name in task_names(path, text))
