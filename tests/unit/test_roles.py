"""Every role says what it takes, the same in its defaults and in its specification."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ROLES = sorted((ROOT / "roles").iterdir())


def options(role: Path) -> dict:
    return yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"].get("options", {})


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
    for path in (ROOT / "playbooks").glob("*.yml"):
        for play in yaml.safe_load(path.read_text()):
            for role in play.get("roles", []):
                assert (ROOT / "roles" / (role["role"] if isinstance(role, dict) else role)).is_dir(), path
