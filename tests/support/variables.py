"""docs/variables.md: every variable that a user can set, from argument_specs, defaults, group_vars and playbooks.

scripts/reference writes it; tests/unit/test_pages.py fails when it is out of date.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

from tests.support import ROOT
from tests.support.yaml_files import argument_specs

PAGE = ROOT / "docs/variables.md"
INTRODUCTION = """\
# Variables

All variables of the cluster and of its roles, with their defaults. Set them in `inventory/group_vars/`, for one node in
`inventory/hosts.yml`, or with `-e` for one run. Each [playbook](#playbooks) also has options of its own, such as `node` of
`swap.yml`.

`scripts/reference` writes this page from `roles/*/meta/argument_specs.yml`, `inventory/group_vars/all/` and the comments of
`playbooks/`.
"""
# https://docs.ansible.com/ansible/latest/dev_guide/ansible_markup.html
MARKUP = re.compile(r"\b[CVO]\(([^)]*)\)")
LONGEST_DEFAULT = 60  # characters; a longer one is better read in the file


def _row(name: str, default: str, description: str) -> str:
    """Return a line of a table. A vertical bar would end its column."""
    cells = (f"`{name}`", default, " ".join(description.split()))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _default(text: str, file: Path) -> str:
    """Return a default as code, or a link to its file where it is long; text is its YAML."""
    text = text.strip()
    if not text or text in {">-", ">", "|"} or len(text) > LONGEST_DEFAULT:
        return f"[see the file](../{file.relative_to(ROOT)})"
    return f"`{text}`"


def _written(source: str) -> dict[str, tuple[str, str]]:
    """Return name -> (default as it is written, the comment above it) of a file of variables."""
    found: dict[str, tuple[str, str]] = {}
    comments: list[str] = []
    for line in source.splitlines():
        if match := re.match(r"([a-z]\w*):(.*)", line):
            value = match[2].strip()
            found[match[1]] = ("" if value.startswith("#") else value.split(" #")[0], " ".join(comments))
            comments = []
        elif line.startswith("# "):
            comments.append(line.removeprefix("# "))
        elif not line.strip():
            comments = []
    return found


def _description(option: dict[str, Any]) -> str:
    """Return the description of an option, with Ansible's markup for code, values and options as code in Markdown."""
    text = option.get("description", "")
    return MARKUP.sub(r"`\1`", " ".join(text) if isinstance(text, list) else str(text))


def page() -> str:
    """Return docs/variables.md."""
    parts = [INTRODUCTION]
    head = "| variable | default | what it is |\n|---|---|---|\n"
    for file in sorted((ROOT / "inventory/group_vars/all").glob("*.yml")):
        rows = [_row(name, _default(value, file), comment) for name, (value, comment) in _written(file.read_text()).items()]
        parts += [f"\n## {file.relative_to(ROOT)}\n\n", head, *rows]
    for role in sorted((ROOT / "roles").iterdir()):
        specs = argument_specs(role)
        defaults = role / "defaults/main.yml"
        written = _written(defaults.read_text()) if defaults.exists() else {}
        options = {name: option for spec in specs.values() for name, option in (spec.get("options") or {}).items()}
        rows = [
            _row(name, _default(written[name][0], defaults) if name in written else "", _description(option))
            for name, option in sorted(options.items())
        ]
        if rows:
            parts += [f"\n## roles/{role.name}\n\n", head, *rows]
    parts.append("\n## Playbooks\n")
    for playbook in sorted((ROOT / "playbooks").glob("*.yml")):
        comment = itertools.takewhile(lambda line: line.startswith("#"), playbook.read_text().splitlines())
        lines = "\n".join(line.removeprefix("#").removeprefix(" ") for line in comment)
        parts.append(f"\n### {playbook.relative_to(ROOT)}\n\n```text\n{lines}\n```\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
