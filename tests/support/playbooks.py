"""What each playbook reaches: its files and roles, and from these its tags and variables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import typer
import yaml

from bramble.cli import app
from tests.support import ROOT
from tests.support.yaml_files import argument_specs, mappings

# Variables that hold names of roles (inventory/group_vars/all/cluster.yml): include_role with a template runs these.
ROLE_LISTS = ("cluster_node_roles", "cluster_engine_roles")


@cache
def group_vars() -> dict[str, Any]:
    """Return the variables of all nodes, as they are written."""
    found: dict[str, Any] = {}
    for file in (ROOT / "inventory/group_vars/all").glob("*.yml"):
        found |= yaml.safe_load(file.read_text(encoding="utf-8"))
    return found


@cache
def roles() -> set[str]:
    return {path.name for path in (ROOT / "roles").iterdir()}


def _role_files(role: str) -> Iterator[Path]:
    return (path for path in (ROOT / "roles" / role).rglob("*.yml") if path.parent.name not in {"meta"})


def _named(value: Any, key: str) -> list[str]:
    """Return the names in the value of a keyword: `a`, `{KEY: a}`, `[a, {KEY: b}]`."""
    values = value if isinstance(value, list) else [value]
    return [str(item.get(key, "") if isinstance(item, dict) else item) for item in values]


def _links(mapping: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a play or task leads to: kind (file, role or tag) and name."""
    for key, value in mapping.items():
        match key.removeprefix("ansible.builtin."):
            case "import_playbook" | "import_tasks" | "include_tasks":
                yield from (("file", name.removeprefix("{{ playbook_dir }}/")) for name in _named(value, "file"))
            case "import_role" | "include_role":
                yield from (("role", name) for name in _named(value, "name"))
            case "roles":
                yield from (("role", name) for name in _named(value, "role"))
            case "part":
                yield "role", str(value)
            case "tags":
                yield from (("tag", name.strip()) for names in _named(value, "") for name in names.split(","))


@cache
def reached(playbook: str) -> tuple[frozenset[Path], frozenset[str], frozenset[str]]:
    """Return what a playbook reaches: its files, roles and tags."""
    waiting, files, found, named = [ROOT / playbook], set[Path](), set[str](), {"all", "always", "never", "tagged", "untagged"}
    while waiting:
        file = waiting.pop()
        if file in files or not file.is_file():
            continue
        files.add(file)
        for mapping in mappings(list(yaml.load_all(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader))):
            for kind, name in _links(mapping):
                if kind == "file":
                    pattern = re.sub(r"\{\{.*?\}\}", "*", name)
                    waiting += [path for folder in (file.parent, ROOT / "playbooks") for path in folder.glob(pattern)]
                elif kind == "tag":
                    named.add(name)
                else:
                    # parts/role.yml is given its role by the play that imports it.
                    several = [role for key in ROLE_LISTS for role in group_vars()[key]] if file.name != "role.yml" else []
                    for role in {name, *(several if "{{" in name else [])} & roles() - found:
                        found.add(role)
                        waiting += _role_files(role)
    return frozenset(files), frozenset(found), frozenset(named)


def tags(playbook: str) -> frozenset[str]:
    """Return the tags of a playbook, with Ansible's own."""
    return reached(playbook)[2]


@cache
def options() -> dict[str, dict[str, Any]]:
    """Return the options of all roles, by name."""
    found: dict[str, dict[str, Any]] = {}
    for role in roles():
        for spec in argument_specs(ROOT / "roles" / role).values():
            found |= spec.get("options") or {}
    return found


@cache
def variables(playbook: str) -> set[str]:
    """Return the variables that -e can set: those that a playbook, its roles and the variables of the cluster read."""
    files, used, _ = reached(playbook)
    texts = [file.read_text(encoding="utf-8") for file in files] + [str(value) for value in group_vars().values()]
    read = {word for text in texts for word in re.findall(r"\b[a-z]\w*\b", text)}
    known = {name for name in options() if any(name.startswith(f"{role}_") for role in used)}
    return {word for word in read if "_" in word or word in {"node", "workload"}} | known


def commands() -> set[str]:
    """Return the workloads: the commands of `bramble`."""
    return set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@cache
def values() -> dict[str, set[str]]:
    """Return the values of variables that have a few: by argument_specs, the catalogue and the registry of programs."""
    found = {name: {str(value) for value in option["choices"]} for name, option in options().items() if option.get("choices")}
    found |= {name: {"true", "false"} for name, option in options().items() if option.get("type") == "bool"}
    images = yaml.safe_load((ROOT / "images/catalog.yml").read_text(encoding="utf-8"))["images"]
    found |= {"workload": commands(), "cluster_image": set(images)}
    return found | {"cluster_state": {"present", "absent"}}
