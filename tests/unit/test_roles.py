"""Every role describes its variables, and its defaults and its specification have the same ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.support import ROOT
from tests.support.yaml_files import argument_specs

ROLES = sorted((ROOT / "roles").iterdir())
# Roles that change the control machine and cards, but no nodes.
CONTROL_MACHINE = {"capture", "card", "identity", "image"}


def options(role: Path) -> dict:
    """Return the variables of a role, for installation and removal."""
    found = argument_specs(role)
    return {**found.get("absent", {}).get("options", {}), **found["main"].get("options", {})}


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_the_specification_has_the_same_variables_as_the_defaults(role: Path) -> None:
    defaults = role / "defaults/main.yml"
    given = yaml.safe_load(defaults.read_text()) or {} if defaults.exists() else {}
    optional = {name for name, option in options(role).items() if not option.get("required")}
    given = {name: value for name, value in given.items() if not name.startswith("__")}
    assert set(given) <= set(options(role))
    assert optional - set(given) <= {name for name, option in options(role).items() if option.get("default") is None}
    assert all(name.startswith(f"{role.name}_") for name in options(role) if name in given)


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_variable_is_described_and_the_readme_has_the_right_length(role: Path) -> None:
    for name, option in options(role).items():
        assert option["type"] and len(option["description"]) > 10, name
    lines = (role / "README.md").read_text().splitlines()
    assert 10 <= len(lines) <= 30
    assert lines[0] == f"# {role.name}"


def test_playbooks_use_only_roles_that_exist() -> None:
    for path in (ROOT / "playbooks").rglob("*.yml"):
        for play in yaml.safe_load(path.read_text()):
            named = [role["role"] if isinstance(role, dict) else role for role in play.get("roles", [])]
            named += [part for part in [play.get("vars", {}).get("part")] if part not in (None, "absent", "nodes")]
            for role in named:
                assert role.startswith("{{") or (ROOT / "roles" / role).is_dir(), path


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_a_role_that_installs_something_has_tasks_that_remove_it(role: Path) -> None:
    """Playbooks choose between tasks/main.yml and tasks/absent.yml, so no role has a variable for the state."""
    assert (role / "tasks/main.yml").exists() and "main" in argument_specs(role)
    assert (role / "tasks/absent.yml").exists() == ("absent" in argument_specs(role))
    if role.name not in CONTROL_MACHINE:
        assert (role / "tasks/absent.yml").exists()
    assert [name for name in options(role) if name.endswith("_state")] == []


def test_only_the_role_service_ignores_a_unit_that_does_not_exist() -> None:
    files = [path for role in ROLES for path in role.rglob("*.yml")]
    found = [path for path in files if "Could not find" in path.read_text()]
    assert found == [ROOT / "roles/service/tasks/absent.yml"]


def test_no_role_reads_private_variables_of_another_role() -> None:
    """Variables that begin with __ROLE_ are private to the role."""
    names = sorted((role.name for role in ROLES), key=len, reverse=True)
    private = re.compile(rf"__({'|'.join(names)})_\w+")
    found = []
    for folder in ("roles", "playbooks", "inventory"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix in (".yml", ".j2"):
                name = path.relative_to(ROOT)
                role_name = name.parts[1] if folder == "roles" else ""
                found += [f"{name}: {match[0]}" for match in private.finditer(path.read_text()) if match[1] != role_name]
    assert found == []
