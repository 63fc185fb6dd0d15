"""Every role says what it takes, the same in its defaults and in its specification."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.support import ROOT

ROLES = sorted((ROOT / "roles").iterdir())
# What they do, they do on the control machine and to cards.
CONTROL_MACHINE = {"capture", "card", "identity", "image"}


def entry_points(role: Path) -> dict:
    return yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]


def options(role: Path) -> dict:
    """What the role takes, to install and to remove."""
    found = entry_points(role)
    return {**found.get("absent", {}).get("options", {}), **found["main"].get("options", {})}


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_the_specification_is_the_defaults(role: Path) -> None:
    defaults = role / "defaults/main.yml"
    given = yaml.safe_load(defaults.read_text()) or {} if defaults.exists() else {}
    optional = {name for name, option in options(role).items() if not option.get("required")}
    given = {name: value for name, value in given.items() if not name.startswith("__")}
    assert set(given) <= set(options(role))
    assert optional - set(given) <= {name for name, option in options(role).items() if option.get("default") is None}
    assert all(name.startswith(f"{role.name}_") for name in options(role) if name in given)


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_everything_is_described(role: Path) -> None:
    for name, option in options(role).items():
        assert option["type"] and len(option["description"]) > 10, name
    lines = (role / "README.md").read_text().splitlines()
    assert 8 <= len(lines) <= 40
    assert lines[0] == f"# {role.name}"


def test_playbooks_only_use_roles_that_exist() -> None:
    for path in (ROOT / "playbooks").rglob("*.yml"):
        for play in yaml.safe_load(path.read_text()):
            named = [role["role"] if isinstance(role, dict) else role for role in play.get("roles", [])]
            named += [part for part in [play.get("vars", {}).get("part")] if part not in (None, "absent", "nodes")]
            for role in named:
                assert role.startswith("{{") or (ROOT / "roles" / role).is_dir(), path


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_what_a_role_installs_its_tasks_absent_remove(role: Path) -> None:
    """Playbooks choose between the two; no role has a variable for it."""
    assert (role / "tasks/main.yml").exists() and "main" in entry_points(role)
    assert (role / "tasks/absent.yml").exists() == ("absent" in entry_points(role))
    if role.name not in CONTROL_MACHINE:
        assert (role / "tasks/absent.yml").exists()
    assert [name for name in options(role) if name.endswith("_state")] == []


def test_a_service_that_is_gone_is_tolerated_in_one_place() -> None:
    files = [path for role in ROLES for path in role.rglob("*.yml")]
    found = [path for path in files if "Could not find" in path.read_text()]
    assert found == [ROOT / "roles/service/tasks/absent.yml"]


def test_no_role_reads_what_is_another_ones_own() -> None:
    """Names that begin with __ROLE_ are private to the role."""
    names = sorted((role.name for role in ROLES), key=len, reverse=True)
    private = re.compile(rf"__({'|'.join(names)})_\w+")
    found = []
    for folder in ("roles", "playbooks", "inventory"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix in (".yml", ".j2"):
                name = path.relative_to(ROOT)
                own = name.parts[1] if folder == "roles" else ""
                found += [f"{name}: {match[0]}" for match in private.finditer(path.read_text()) if match[1] != own]
    assert found == []
