"""The order of the roles is stated once, and whatever sets up or clears a node follows it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import ROOT
from tests.support.local_play import run_locally


def group_vars(root: Path) -> dict[str, Any]:
    variables: dict[str, Any] = yaml.safe_load((root / "inventory/group_vars/all/cluster.yml").read_text())
    return variables


def cluster_roles(root: Path) -> list[str]:
    """The roles of a node, in their order."""
    variables = group_vars(root)
    assert variables["cluster_roles"] == "{{ cluster_node_roles + cluster_engine_roles }}"
    return [*variables["cluster_node_roles"], *variables["cluster_engine_roles"]]


def listed(root: Path, playbook: str) -> dict[str, list[str]]:
    """What `ansible-playbook --list-tasks` shows: the plays in their order, each with its tasks."""
    command = ["ansible-playbook", f"playbooks/{playbook}.yml", "--list-tasks"]
    output = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    found: dict[str, list[str]] = {}
    for line in output.splitlines():
        if play := re.match(r"  play #\d+ \(.*\): (.*)\tTAGS", line):
            tasks = found.setdefault(play[1], [])
        elif line.startswith("      "):
            tasks.append(line.split("\t")[0].strip())
    return found


def imported(path: Path) -> list[dict[str, Any]]:
    """The playbooks that a playbook imports."""
    return [play for play in yaml.safe_load(path.read_text()) if "ansible.builtin.import_playbook" in play]


def included(path: Path) -> list[dict[str, Any]]:
    """The tasks of a playbook, or of a file of tasks, that include other files or roles."""
    tasks = yaml.safe_load(path.read_text())
    if path.parent.name != "tasks":
        tasks = [task for play in tasks for task in play.get("tasks", [])]
    return [task for task in tasks if any(key.startswith("ansible.builtin.include_") for key in task)]


def check_order(root: Path) -> None:
    """Fail if site.yml, swap.yml, upgrade.yml or the way back of site.yml leaves a role out, or runs it in another order."""
    roles = cluster_roles(root)
    site = listed(root, "site")
    assert [play.removeprefix("Role ") for play in site if play.startswith("Role ")] == roles
    for role in roles:
        assert any(task.startswith(f"{role} : ") for task in site[f"Role {role}"]), f"parts/role.yml does not run {role}"
    tags = {play["vars"]["part"]: play["tags"] for play in imported(root / "playbooks/site.yml") if "tags" in play}
    assert {role for role in roles if role in tags[role]} == set(roles), "site.yml --tags ROLE does not run the role"
    # swap.yml and upgrade.yml: one loop over the list.
    (loop,) = included(root / "playbooks/tasks/node.yml")
    assert loop["loop"] == "{{ node_roles | default(cluster_roles) }}"
    (include,) = included(root / "playbooks/tasks/role.yml")
    assert include["ansible.builtin.include_role"] == {"name": f"{{{{ {loop['loop_control']['loop_var']} }}}}"}
    for playbook, given in (("upgrade", ""), ("swap", "{{ cluster_roles if profile_name == 'base' else cluster_node_roles }}")):
        nodes = [task for task in included(root / f"playbooks/{playbook}.yml") if "tasks/node.yml" in task.values()]
        assert nodes[-1].get("vars", {}).get("node_roles", "") == given
    # The way back.
    (back,) = included(root / "playbooks/parts/absent.yml")
    assert back["loop"] == "{{ (cluster_roles + cluster_comparison_roles) | reverse }}"
    for role in [*roles, *group_vars(root)["cluster_comparison_roles"]]:
        assert (root / f"roles/{role}/tasks/absent.yml").exists(), f"{role} is not removed by site.yml -e cluster_state=absent"


def test_every_playbook_runs_the_roles_in_one_order() -> None:
    check_order(ROOT)


def test_microk8s_removes_the_engine_in_reverse_order() -> None:
    (back,) = [task for task in included(ROOT / "playbooks/parts/microk8s_present.yml") if "loop" in task]
    assert back["loop"] == "{{ (cluster_engine_roles + cluster_comparison_roles) | reverse }}"


@pytest.mark.parametrize("part", sorted((ROOT / "playbooks/parts").glob("*.yml")), ids=lambda path: path.stem)
def test_a_part_is_not_run_without_validation(part: Path) -> None:
    if part.stem == "validate":
        return
    run = subprocess.run(["ansible-playbook", part], cwd=ROOT, capture_output=True, text=True, check=False)
    said = " ".join((run.stdout + run.stderr).split())
    assert run.returncode and "This part is not run by itself. T" in said and "playbook" in said


def test_who_imports_a_part_validates_first() -> None:
    for path in (ROOT / "playbooks").glob("*.yml"):
        names = [play["ansible.builtin.import_playbook"] for play in imported(path)]
        parts = [name for name in names if name.startswith("parts/")]
        if parts:
            assert parts[0] == "parts/validate.yml", path


@pytest.mark.parametrize(
    "state, part, refused", [("absent", "present", True), ("present", "absent", True), ("absent", "absent", False)]
)
def test_a_state_in_the_inventory_does_not_run_the_part_of_the_other(
    tmp_path: Path, state: str, part: str, refused: bool
) -> None:
    tasks = [{"ansible.builtin.import_tasks": str(ROOT / "playbooks/tasks/check_state.yml"), "vars": {"part_state": part}}]
    book = tmp_path / "play.yml"
    book.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "vars": {"cluster_state": state}, "tasks": tasks}]))
    run = run_locally(book, {})
    assert (run.returncode != 0) == refused, run.stdout
    assert refused == (f"Nothing was changed. Run it again with -e cluster_state={state}" in " ".join(run.stdout.split()))


@pytest.mark.parametrize("state", ["present", "absent"])
@pytest.mark.parametrize("name", ["isolated_lab", "microk8s"])
def test_a_part_that_was_chosen_by_the_command_line_checks_the_state_first(name: str, state: str) -> None:
    first = yaml.safe_load((ROOT / f"playbooks/parts/{name}_{state}.yml").read_text())[0]["tasks"][0]
    assert first["ansible.builtin.import_tasks"] == "../tasks/check_state.yml"
    assert first["vars"] == {"part_state": state} and first["tags"] == ["always"]


def test_typed_playbooks_say_how_they_are_typed() -> None:
    for path in (ROOT / "playbooks").glob("*.yml"):
        assert f"playbooks/{path.name}" in path.read_text(), path
