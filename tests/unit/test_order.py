"""The order of the roles is stated once, and all playbooks that apply or remove roles follow it."""

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
    """Return the variables of the whole cluster."""
    variables: dict[str, Any] = yaml.safe_load((root / "inventory/group_vars/all/cluster.yml").read_text())
    return variables


def cluster_roles(root: Path) -> list[str]:
    """Return the roles of a node, in their order."""
    variables = group_vars(root)
    assert variables["cluster_roles"] == "{{ cluster_node_roles + cluster_engine_roles }}"
    return [*variables["cluster_node_roles"], *variables["cluster_engine_roles"]]


def listed_tasks(root: Path, playbook: str) -> dict[str, list[str]]:
    """Return the plays of a playbook in their order, each with its tasks, as `ansible-playbook --list-tasks` shows them."""
    command = ["ansible-playbook", f"playbooks/{playbook}.yml", "--list-tasks"]
    output = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    found: dict[str, list[str]] = {}
    for line in output.splitlines():
        if play := re.match(r"  play #\d+ \(.*\): (.*)\tTAGS", line):
            tasks = found.setdefault(play[1], [])
        elif line.startswith("      "):
            tasks.append(line.split("\t")[0].strip())
    return found


def playbook_imports(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a playbook that import other playbooks."""
    return [play for play in yaml.safe_load(path.read_text()) if "ansible.builtin.import_playbook" in play]


def task_includes(path: Path) -> list[dict[str, Any]]:
    """Return the tasks of a playbook, or of a file of tasks, that include files or roles."""
    tasks = yaml.safe_load(path.read_text())
    if path.parent.name != "tasks":
        tasks = [task for play in tasks for task in play.get("tasks", [])]
    return [task for task in tasks if any(key.startswith("ansible.builtin.include_") for key in task)]


def check_order(root: Path) -> None:
    """Fail if site.yml, swap.yml, upgrade.yml or the removal by site.yml leaves a role out, or has another order."""
    roles = cluster_roles(root)
    site = listed_tasks(root, "site")
    imports = playbook_imports(root / "playbooks/site.yml")
    titled = [play for play in imports if "part_title" in play.get("vars", {})]
    titles = {play["vars"]["part"]: play["vars"]["part_title"] for play in titled}
    assert [play["name"] for play in titled] == list(titles.values())
    assert [match[1] for play in site if (match := re.search(r" \((\w+)\)$", play))] == roles
    assert set(titles) == set(roles), "a play of site.yml has no part_title, or none is for a role"
    for role in roles:
        tasks = site[f"{titles[role]} ({role})"]
        assert any(task.startswith(f"{role} : ") for task in tasks), f"parts/role.yml does not apply {role}"
    tags = {play["vars"]["part"]: play["tags"] for play in imports if "tags" in play}
    assert {role for role in roles if role in tags[role]} == set(roles), "site.yml --tags ROLE does not run the role"
    # swap.yml and upgrade.yml have one loop over the list.
    (loop,) = task_includes(root / "playbooks/tasks/node.yml")
    assert loop["loop"] == "{{ node_roles | default(cluster_roles) }}"
    (include,) = task_includes(root / "playbooks/tasks/role.yml")
    assert include["ansible.builtin.include_role"] == {"name": f"{{{{ {loop['loop_control']['loop_var']} }}}}"}
    for playbook, given in (("upgrade", ""), ("swap", "{{ cluster_roles if profile_name == 'base' else cluster_node_roles }}")):
        nodes = [task for task in task_includes(root / f"playbooks/{playbook}.yml") if "tasks/node.yml" in task.values()]
        assert nodes[-1].get("vars", {}).get("node_roles", "") == given
    # The removal has one loop over the reversed list.
    (removal,) = task_includes(root / "playbooks/parts/absent.yml")
    assert removal["loop"] == "{{ (cluster_roles + cluster_comparison_roles) | reverse }}"
    for role in [*roles, *group_vars(root)["cluster_comparison_roles"]]:
        assert (root / f"roles/{role}/tasks/absent.yml").exists(), f"{role} is not removed by site.yml -e cluster_state=absent"


def test_every_playbook_applies_the_roles_in_the_same_order() -> None:
    check_order(ROOT)


def test_microk8s_applies_the_roles_that_every_profile_has() -> None:
    path = ROOT / "playbooks/parts/microk8s_present.yml"
    (included,) = [task for task in task_includes(path) if task.get("ansible.builtin.include_tasks") == "../tasks/node.yml"]
    assert included["vars"] == {"profile_name": "microk8s", "node_roles": "{{ cluster_node_roles }}"}
    assert [play["ansible.builtin.import_playbook"] for play in playbook_imports(path)] == ["nodes.yml"]


def test_microk8s_removes_the_engine_in_reverse_order() -> None:
    (removal,) = [task for task in task_includes(ROOT / "playbooks/parts/microk8s_present.yml") if "loop" in task]
    assert removal["loop"] == "{{ (cluster_engine_roles + cluster_comparison_roles) | reverse }}"


@pytest.mark.parametrize("part", sorted((ROOT / "playbooks/parts").glob("*.yml")), ids=lambda path: path.stem)
def test_a_part_that_is_run_by_itself_fails_and_names_the_playbook(part: Path) -> None:
    if part.stem == "validate":
        return
    run = subprocess.run(["ansible-playbook", part], cwd=ROOT, capture_output=True, text=True, check=False)
    output = " ".join((run.stdout + run.stderr).split())
    assert run.returncode and "This part is not run by itself. T" in output and "playbook" in output


def test_a_playbook_that_imports_parts_imports_the_validation_first() -> None:
    for path in (ROOT / "playbooks").glob("*.yml"):
        names = [play["ansible.builtin.import_playbook"] for play in playbook_imports(path)]
        parts = [name for name in names if name.startswith("parts/")]
        if parts:
            assert parts[0] == "parts/validate.yml", path


@pytest.mark.parametrize(
    "state, part, refused", [("absent", "present", True), ("present", "absent", True), ("absent", "absent", False)]
)
def test_a_state_that_only_the_inventory_sets_is_refused(tmp_path: Path, state: str, part: str, refused: bool) -> None:
    tasks = [{"ansible.builtin.import_tasks": str(ROOT / "playbooks/tasks/check_state.yml"), "vars": {"part_state": part}}]
    playbook_file = tmp_path / "play.yml"
    play = {"hosts": "localhost", "gather_facts": False, "vars": {"cluster_state": state}, "tasks": tasks}
    playbook_file.write_text(json.dumps([play]))
    run = run_locally(playbook_file, {})
    assert (run.returncode != 0) == refused, run.stdout
    assert refused == (f"Nothing was changed. Run it again with -e cluster_state={state}" in " ".join(run.stdout.split()))


@pytest.mark.parametrize("state", ["present", "absent"])
@pytest.mark.parametrize("name", ["isolated_lab", "microk8s"])
def test_a_part_that_depends_on_the_state_checks_it_first(name: str, state: str) -> None:
    first = yaml.safe_load((ROOT / f"playbooks/parts/{name}_{state}.yml").read_text())[0]["tasks"][0]
    assert first["ansible.builtin.import_tasks"] == "../tasks/check_state.yml"
    assert first["vars"] == {"part_state": state} and first["tags"] == ["always"]


def test_every_playbook_contains_its_command() -> None:
    for path in (ROOT / "playbooks").glob("*.yml"):
        assert f"playbooks/{path.name}" in path.read_text(), path
