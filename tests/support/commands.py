"""What is wrong in the commands that pages name: programs, options, values, tags, hosts, variables, targets and scenarios.

ansible-playbook is read by Ansible's own parser, `bramble` and `molecule` by their own commands.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, get_args

import typer
import yaml
from ansible.cli.playbook import PlaybookCLI
from molecule.shell import main as molecule

from bramble.cli import app
from bramble.engine.base import Place
from tests.support import ROOT, playbooks
from tests.support.files import source_texts


def names_in(path: str, constant: str) -> set[str]:
    """Return the names in a tuple or dict of a program, without the import, which compiles the kernels for seconds."""
    tree = ast.parse((ROOT / "workloads/src/bramble/programs" / path).read_text(encoding="utf-8"))
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", ast.Pass())]
        if isinstance(node, ast.Assign | ast.AnnAssign) and ast.unparse(targets[0]) == constant:
            parts = node.value.keys if isinstance(node.value, ast.Dict) else getattr(node.value, "elts", [])
            return {str(part.value) for part in parts if isinstance(part, ast.Constant)}
    raise LookupError(f"{path} has no {constant}.")


# Values of options of `bramble`, whose programs check them themselves; None: of every program.
CHOICES = {
    (None, "--on"): set(get_args(Place)),
    ("pi", "--method"): {"montecarlo", "chudnovsky", "bbp"},
    ("primality", "--method"): names_in("primality/kernel.py", "METHODS"),
    (None, "--charset"): names_in("rainbow/kernel.py", "CHARSETS"),
    (None, "--reflector"): names_in("enigma/machine.py", "REFLECTORS"),
    ("quantum", ""): names_in("quantum/programs.py", "PROGRAMS"),
}
# Options of docker and lynis that pages name alone.
FOREIGN_OPTIONS = {"--privileged", "--tests-from-group"}
# Hosts that pages invent: CONTRIBUTING.md adds a node.
INVENTED_HOSTS = {"pi-09", "localhost", "all"}


def is_placeholder(word: str) -> bool:
    return bool(re.search(r"[A-Z…<>*$]|\.\.\.|\{", word))


@cache
def hosts() -> frozenset[str]:
    """Return the hosts and groups of the inventory."""
    listed = subprocess.run(
        [
            Path(sys.executable).with_name("ansible-inventory"),
            *("-i", "inventory/hosts.yml", "-i", "inventory/active.yml", "--list", "--export"),
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    groups = yaml.safe_load(listed)
    named = {host for group in groups.values() for host in group.get("hosts", [])}
    return frozenset({*groups, *named, *groups["_meta"]["hostvars"], *INVENTED_HOSTS})


# --- ansible-playbook


class _Refused(Exception):
    """Raised by the parser of ansible-playbook."""


class _Parser:
    """The parser of ansible-playbook, which raises an exception where it would exit."""

    def __init__(self) -> None:
        command = PlaybookCLI(["ansible-playbook"])
        command.init_parser()
        assert command.parser
        self.parser: argparse.ArgumentParser = command.parser
        self.parser.allow_abbrev = False
        self.parser.error = self._refuse

    def _refuse(self, message: str) -> NoReturn:
        raise _Refused(message)

    def parse(self, words: list[str]) -> argparse.Namespace:
        """Return the parsed arguments. Raises _Refused."""
        # The lists of defaults are shared, so each call gets its own.
        return self.parser.parse_args(words, argparse.Namespace(tags=[], skip_tags=[], extra_vars=[], inventory=None, args=[]))


@cache
def _parser() -> _Parser:
    return _Parser()


def given_variables(extra: str) -> dict[str, str]:
    """Return the variables that one -e sets, in either form of Ansible's."""
    if extra.startswith("{"):
        return {name: str(value) for name, value in json.loads(extra).items()}
    if extra.startswith("@"):
        return {}
    return dict(word.split("=", 1) for word in shlex.split(extra) if "=" in word)


def _variable_problems(extra: str, played: list[str]) -> Iterator[str]:
    for name, value in given_variables(extra).items():
        if is_placeholder(name):
            continue
        if not any(name in playbooks.variables(playbook) for playbook in played):
            yield f"no variable {name}"
        known = playbooks.values().get(name)
        if known is not None and not is_placeholder(value) and value.lower() not in known:
            yield f"{name} has no value {value}"
        if name in {"node", "card_host"} and not is_placeholder(value) and value not in hosts():
            yield f"no host {value}"


def playbook_problems(words: list[str]) -> Iterator[str]:
    """Yield what is wrong in `ansible-playbook …`; without a playbook, any may have the tags and variables."""
    try:
        given = [word for word in words[1:] if word not in {"…", "..."}] + (["_"] if words[-1] == "-e" else [])
        has_playbook = any(word.endswith(".yml") and not before.startswith("-i") for before, word in pairwise(["", *given]))
        options = _parser().parse(given if has_playbook else ["_", *given])
    except _Refused as problem:
        yield str(problem)
        return
    named = [name for name in options.args if name != "_" and not is_placeholder(name)]
    yield from (f"no playbook {name}" for name in named if not (ROOT / name).is_file())
    played = [name for name in named if (ROOT / name).is_file()]
    if not played:
        played = [path.relative_to(ROOT).as_posix() for path in (ROOT / "playbooks").glob("*.yml")]
    for names in [*options.tags, *options.skip_tags]:
        for tag in names.split(","):
            if not is_placeholder(tag) and not any(tag in playbooks.tags(playbook) for playbook in played):
                yield f"no tag {tag}"
    for host in re.split(r"[,:]", options.subset or ""):
        if host and not is_placeholder(host) and host.lstrip("!&") not in hosts():
            yield f"no host {host}"
    for extra in options.extra_vars:
        yield from _variable_problems(extra, played)
    yield from (
        f"no inventory {name}" for name in options.inventory or [] if not is_placeholder(name) and not (ROOT / name).exists()
    )


# --- make, molecule, scripts


@cache
def make_targets() -> frozenset[str]:
    return frozenset(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def make_problems(words: list[str]) -> Iterator[str]:
    """Yield the targets and variables that the Makefile does not have."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words[1:]:
        name, is_variable, _ = word.partition("=")
        if is_variable and not re.search(rf"\b{re.escape(name)}\b", text):
            yield f"no variable {name}"
        if not is_variable and not is_placeholder(word) and word not in make_targets():
            yield f"no target {word}"


def _click_problems(command: Any, words: list[str], choices: dict[tuple[str | None, str], set[str]]) -> Iterator[str]:
    """Yield what a command of click does not have: a command, an option, or a value of an option."""
    waiting = list(words[1:])
    while waiting and (commands := getattr(command, "commands", None)):
        word = waiting[0]
        if word.startswith("-"):
            break
        if is_placeholder(word):
            return
        if word not in commands:
            yield f"no command {word}"
            return
        command = commands[waiting.pop(0)]
    first = waiting[0] if waiting and not waiting[0].startswith("-") else ""
    if first and not is_placeholder(first) and (command.name, "") in choices and first not in choices[command.name, ""]:
        yield f"{command.name} has no {first}"
    known = {name: option for option in command.params for name in (*option.opts, *option.secondary_opts)}
    for place, word in enumerate(waiting):
        if not re.match(r"--?[a-zA-Z]", word):
            continue
        option, is_joined, value = word.partition("=")
        value = value if is_joined else next(iter(waiting[place + 1 : place + 2]), "")
        if option not in {*known, "--help"}:
            yield f"{command.name} has no option {option}"
        allowed = choices.get((command.name, option)) or choices.get((None, option))
        if allowed and value and not is_placeholder(value) and value not in allowed:
            yield f"{option} has no value {value}"


def bramble_problems(words: list[str]) -> Iterator[str]:
    """Yield what `bramble …` does not know."""
    return _click_problems(typer.main.get_command(app), words, CHOICES)


def molecule_problems(words: list[str]) -> Iterator[str]:
    """Yield what `molecule …` does not know, and scenarios that do not exist."""
    scenarios = {path.parent.name for path in ROOT.glob("molecule/*/molecule.yml")}
    return _click_problems(molecule, words, {(None, "-s"): scenarios, (None, "--scenario-name"): scenarios})


def script_problems(words: list[str]) -> Iterator[str]:
    """Yield the arguments of a script that its source does not have as a word of its own, or as an option."""
    file = ROOT / words[0]
    if not file.is_file():
        yield f"no file {words[0]}"
        return
    text = file.read_text(encoding="utf-8")
    for before, word in pairwise(words):
        is_argument = re.fullmatch(r"--?[a-z][\w-]*|[a-z]+", word)
        # The value of an option, such as the name of a node, is not in the source.
        is_value = before.startswith("--") and not word.startswith("-")
        if is_argument and not is_value and not re.search(rf"""(?<![\w-]){re.escape(word)}(?=["'|)\]]|\ \])""", text):
            yield f"{words[0]} has no {word}"


# --- Options alone


@cache
def known_options() -> frozenset[str]:
    """Return the options of ansible-playbook, `bramble` and molecule, and those that a source has."""
    found = {option for action in _parser().parser._actions for option in action.option_strings}
    waiting = [typer.main.get_command(app), molecule]
    while waiting:
        command: Any = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        found |= {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    for _, text in source_texts():
        found.update(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))
    return frozenset(found | FOREIGN_OPTIONS)


def option_problems(words: list[str]) -> Iterator[str]:
    """Yield the options that no program has, and the values that none takes."""
    for option, value in zip(words, [*words[1:], ""], strict=True):
        name = option.partition("=")[0]
        if re.match(r"--[a-z]", name) and name not in known_options():
            yield f"no option {name}"
        known = {value for (_, other), allowed in CHOICES.items() if other == name for value in allowed}
        if known and value and not is_placeholder(value) and value not in known:
            yield f"{name} has no value {value}"


# --- All commands of a page

PROGRAMS: dict[str, Callable[[list[str]], Iterator[str]]] = {
    "ansible-playbook": playbook_problems,
    "make": make_problems,
    "molecule": molecule_problems,
    "bramble": bramble_problems,
}


# Options with which pages begin when they mean any playbook.
PLAYBOOK_OPTIONS = {"-e", "-i", "-K", "--tags", "--skip-tags", "--limit", "--check", "--diff"}


def simple_commands(line: str, variables: dict[str, str]) -> Iterator[list[str]]:
    """Yield the words of each command of a line: between && || | ;, without sudo and variables, with `$play` filled in.

    :param variables: the shell variables of the page, which an assignment in the line changes
    """
    if match := re.fullmatch(r'(\w+)="([^"]*)"', line):
        variables[match[1]] = re.sub(r" -e \S+", "", match[2])  # the playbook of each use may not read them
        line = match[2]
    line = re.sub(r"\$\([^)]*\)", "…", line)
    line = re.sub(r"\$(\w+)", lambda found: variables.get(found[1], found[0]), re.sub(r"\[(-[^]]*)\]", r"\1", line))
    try:
        words = [*shlex.split(line, comments=True), ";"]
    except ValueError:
        return
    found: list[str] = []
    for word in words:
        if word in {"|", ";", "&&", "||", ">", "2>/dev/null"}:
            while found and (found[0] in {"sudo", "…", "time"} or re.fullmatch(r"[A-Z_]+=.*", found[0])):
                found = found[1:]
            if found:
                yield found
            found = []
        else:
            found.append(word)


def whole_command(words: list[str]) -> list[str] | None:
    """Return a command with the program that pages leave out: `--tags verify`, `cards.yml --check`, `grover --qubits 6`.

    None: a program of others.
    """
    first, option = words[0], words[0].partition("=")[0]
    if first.startswith("scripts/") or first.rpartition("/")[2] in PROGRAMS:
        return words
    if first.endswith(".yml") and (len(words) > 1 or first.startswith("playbooks/")):
        return ["ansible-playbook", first if "/" in first else f"playbooks/{first}", *words[1:]]
    if first in CHOICES["quantum", ""] and len(words) > 1:
        return ["bramble", "quantum", *words]
    if option in PLAYBOOK_OPTIONS:
        return ["ansible-playbook", *words]
    return words if re.match(r"--[a-z]", first) else None


def checks(words: list[str]) -> Callable[[list[str]], Iterator[str]]:
    """Return the function that checks a command."""
    default = option_problems if words[0].startswith("-") else script_problems
    return PROGRAMS.get(words[0].rpartition("/")[2], default)


def command_problems(code: Iterator[str]) -> list[str]:
    """Return what is wrong in the code of a page.

    :param code: each inline code and each line of a block
    """
    found, variables = [], dict[str, str]()
    for line in code:
        for words in simple_commands(line, variables):
            command = whole_command(words)
            if command and ".yml:" not in line:
                found += [f"`{line}`: {problem}" for problem in checks(command)(command)]
    return found
