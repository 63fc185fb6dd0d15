"""Every page: its links lead somewhere, and what it names (commands, options, files, variables) exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

import bramble
from bramble.cli import app
from tests.support import ROOT, variables
from tests.support.files import project_files, project_texts

# Names of other projects: SQLite's, and those of OctaPi's scripts.
OCTAPI = """brute_force_factor bruteforce_octapi cluster_action compute_pi_canonical compute_pi_efficient compute_pi_standalone
    dartboard_octapi enigma_bf_efficient jobs_cond no_of_jobs not_very_random pi_dartboard pkc_caesar semi_prime_standalone"""
FOREIGN = {"docs/lab/shop.md": {"sqlite_master"}, "docs/octapi.md": set(re.findall(r"\w+", OCTAPI))}
# What changed once need not exist today; a template's page is one after it was copied; the listing of messages has its own test.
HISTORY = {"CHANGELOG.md", "docs/messages.md", "workloads/tests/template/README.md"}


FILES = project_files()
PAGES = [path for path in FILES if path.endswith(".md") and path not in HISTORY]


def tokens(text: str) -> Iterator[Token]:
    for token in MarkdownIt().enable("table").parse(text):
        yield token
        yield from token.children or []


def slug(heading: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    return {slug(match) for match in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


def broken_links(path: str, text: str) -> list[str]:
    found = []
    for token in tokens(text):
        target = str(token.attrs.get("href") or token.attrs.get("src") or "")
        if not target or re.match(r"https?:|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / path).parent / name if name else ROOT / path
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            found.append(target)
    return found


def code(text: str) -> Iterator[str]:
    """Yield the commands and names of a page: each inline code, and each line of a block without prompt and comment."""
    for token in tokens(text):
        if token.type == "code_inline":
            yield token.content
        elif token.type in {"code_block", "fence"}:
            for line in token.content.replace("\\\n", " ").splitlines():
                yield re.sub(r"\s+# .*", "", line.removeprefix("$ ").strip())


def words_of(command: str) -> list[str]:
    """Return the words of a command up to a pipe or another command, or none where it is no command."""
    try:
        words = shlex.split(command, comments=True)
    except ValueError:
        return []
    end = next((place for place, word in enumerate(words) if word in {"|", ";", "&&", ">", "..."}), len(words))
    words = words[:end]
    while words and (words[0] in {"sudo", "…", "time"} or re.fullmatch(r"[A-Z_]+=.*", words[0])):
        words = words[1:]
    return words


# --- Ansible


@cache
def names() -> set[str]:
    """Return every word that is in a file other than a page or a picture, or in the path of a file."""
    found = {part for path in FILES for part in re.split(r"\W+", path)}
    for path, text in project_texts():
        if not path.endswith((".md", ".svg")):
            found.update(re.findall(r"[A-Za-z_][A-Za-z0-9_]*", text))
    return found


@cache
def tags() -> set[str]:
    found = {path.name for path in (ROOT / "roles").iterdir()} | {"all", "always", "never", "untagged"}
    for path in FILES:
        if path.startswith(("playbooks/", "roles/")) and path.endswith(".yml"):
            for values in re.findall(r"^\s*(?:- |tags: )?tags: \[(.*)\]", (ROOT / path).read_text(), re.MULTILINE):
                found |= {value.strip() for value in values.split(",")}
    return found


@cache
def hosts() -> set[str]:
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
    return set(groups) | {host for group in groups.values() for host in group.get("hosts", [])} | set(groups["_meta"]["hostvars"])


def is_placeholder(word: str) -> bool:
    return bool(re.search(r"[A-Z…<>*]|\.\.\.|\{", word))


def playbook_problems(words: list[str]) -> Iterator[str]:
    """Yield what is wrong in `ansible-playbook …`."""
    for option, value in zip(words, [*words[1:], ""], strict=True):
        if option.endswith(".yml") and "/" in option and not is_placeholder(option) and not (ROOT / option).exists():
            yield f"no file {option}"
        if option in {"--tags", "--skip-tags"}:
            yield from (f"no tag {tag}" for tag in value.split(",") if not is_placeholder(tag) and tag not in tags())
        if option == "--limit":
            limits = re.split(r"[,:]", value)
            yield from (f"no host {host}" for host in limits if not is_placeholder(host) and host.lstrip("!&") not in hosts())
        if option in {"-e", "--extra-vars"} and not value.startswith(("{", "@")):
            given = re.findall(r"(?:^|\s)(\w+)=", value)
            yield from (f"no variable {name}" for name in given if not is_placeholder(name) and name not in names())


# --- everything else that is typed


@cache
def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def make_problems(words: list[str]) -> Iterator[str]:
    goals = [word for word in words[1:] if re.fullmatch(r"[a-z-]+", word)]
    yield from (f"no target {goal}" for goal in goals if goal not in make_targets())


def molecule_problems(words: list[str]) -> Iterator[str]:
    if {"-s", "--scenario-name"} & set(words):
        name = words[max(words.index(option) for option in ("-s", "--scenario-name") if option in words) + 1]
        if not is_placeholder(name) and not (ROOT / "molecule" / name).is_dir():
            yield f"no scenario {name}"


def bramble_problems(words: list[str]) -> Iterator[str]:
    """Yield what `bramble …` does not know: a command, or an option of it."""
    command = typer.main.get_command(app)
    for word in words[1:]:
        commands = getattr(command, "commands", None)
        if commands is None:
            break
        if is_placeholder(word):
            return
        if word.startswith("-"):
            continue
        if word not in commands:
            yield f"no command {word}"
            return
        command = commands[word]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    used = [word.partition("=")[0] for word in words[1:] if word.startswith("--")]
    yield from (f"{command.name} has no option {option}" for option in used if option not in known)


PROGRAMS = {
    "ansible-playbook": playbook_problems,
    "make": make_problems,
    "molecule": molecule_problems,
    "bramble": bramble_problems,
}


def command_problems(text: str) -> list[str]:
    found = []
    for command in code(text):
        # Options are often named without their program: `--tags verify`, `-e cluster_state=absent`.
        words = words_of(command)
        if words and words[0] in {"-e", "--tags", "--limit"}:
            words = ["ansible-playbook", *words]
        program = PROGRAMS.get(words[0].rpartition("/")[2]) if words else None
        found += [f"`{command}`: {problem}" for problem in (program(words) if program else ())]
    return found


TOP = {path.partition("/")[0] for path in FILES if "/" in path}


def missing_files(path: str, text: str) -> list[str]:
    """Return the paths of this repository that a page names and that do not exist."""
    found = []
    for command in code(text):
        for word in re.findall(r"(?<![\w./~-])\.?[\w-]+(?:/[\w.*-]+)+/?", command):
            near = {ROOT / word, (ROOT / path).parent / word}
            if is_placeholder(word) or word.partition("/")[0] not in TOP or any(file.exists() for file in near):
                continue
            # meta/argument_specs.yml is a file of every role.
            if not any(other.endswith(f"/{word}") for other in FILES):
                found.append(word)
    return found


def unknown_names(path: str, text: str) -> list[str]:
    """Return the variables, modules and functions (words with an underscore) in code that no source has."""
    used = {word for part in code(text) for word in re.findall(r"\b[a-z]+(?:_[a-z0-9]+)+\b", part)}
    return sorted(used - names() - FOREIGN.get(path, set()))


@pytest.mark.parametrize("path", PAGES)
def test_page(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert broken_links(path, text) == []
    assert command_problems(text) == []
    assert missing_files(path, text) == []
    assert unknown_names(path, text) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a](nowhere.md)", "nowhere.md"),
        ("[a](README.md#nothing-of-that-name)", "README.md#nothing-of-that-name"),
        ("![a](docs/nothing.png)", "docs/nothing.png"),
        ("`ansible-playbook playbooks/nothing.yml`", "no file playbooks/nothing.yml"),
        ("`… playbooks/nothing.yml --check`", "playbooks/nothing.yml"),
        ("    ansible-playbook playbooks/site.yml --tags nothing", "no tag nothing"),
        ("`--tags nothing`", "no tag nothing"),
        ("    ansible-playbook playbooks/site.yml --limit pi-77", "no host pi-77"),
        ("`-e nothing_here=1`", "no variable nothing_here"),
        ("    $ ansible-playbook playbooks/site.yml -e 'nothing_here=1'", "no variable nothing_here"),
        ("`make nothing`", "no target nothing"),
        ("`molecule test -s nothing`", "no scenario nothing"),
        ("`bramble nothing`", "no command nothing"),
        ("`bramble pi --nothing 3`", "pi has no option --nothing"),
        ("`scripts/nothing`", "scripts/nothing"),
        ("`nothing_of_this_name`", "nothing_of_this_name"),
    ],
)
def test_a_page_that_is_wrong_is_found(text: str, problem: str) -> None:
    # Written out here, these names would be in a source.
    for name in ("nothing_of_this_name", "nothing_here"):
        text, problem = text.replace(name, name[::-1]), problem.replace(name, name[::-1])
    page = "README.md"
    found = [*broken_links(page, text), *command_problems(text), *missing_files(page, text), *unknown_names(page, text)]
    assert any(problem in line for line in found), found


def test_the_page_of_variables_is_up_to_date() -> None:
    assert variables.PAGE.read_text(encoding="utf-8") == variables.page(), "Run scripts/reference, and read what changed."


def test_every_variable_has_a_description() -> None:
    rows = [line.split(" | ") for line in variables.page().splitlines() if line.startswith("| `")]
    assert len(rows) > 200
    assert [row[0] for row in rows if len(row[2].strip(" |")) < 10] == []


def test_the_page_of_variables_has_markdown_in_place_of_the_markup_of_ansible() -> None:
    # https://docs.ansible.com/ansible/latest/dev_guide/ansible_markup.html
    assert re.findall(r"\b[A-Z]\(.*", variables.page()) == []
    assert "so the default is `127.0.0.1`, which only the client reaches; the client's `node_address` opens" in variables.page()


def test_readme_names_every_role_and_playbook() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in (ROOT / "roles").iterdir() if f"roles/{path.name}" not in text] == []
    assert [path.stem for path in (ROOT / "playbooks").glob("*.yml") if not re.search(rf"\b{path.stem}\b", text)] == []


def test_the_version_is_the_same_everywhere() -> None:
    versions = {
        yaml.safe_load((ROOT / "galaxy.yml").read_text())["version"],
        tomllib.loads((ROOT / "workloads/pyproject.toml").read_text())["project"]["version"],
        bramble.__version__,
    }
    assert len(versions) == 1 and versions.pop() in (ROOT / "CHANGELOG.md").read_text()


def test_contributing_names_every_scenario() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert [path.parent.name for path in Path(ROOT).glob("molecule/*/molecule.yml") if f"`{path.parent.name}`" not in text] == []
