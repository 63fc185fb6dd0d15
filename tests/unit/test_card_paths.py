"""A path is taken literally wherever it names something to write to, or it is refused before anything is touched."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.bramble.cluster.plugins.module_utils.card.guard import Guard
from ansible_collections.bramble.cluster.plugins.module_utils.card.paths import slot_problem
from hypothesis import given
from hypothesis import strategies as st

from tests.support import ROOT
from tests.support.load_plugin import load_plugin
from tests.support.tiny_image import SIZE

from .test_card_writer import read_identity, results_by_node, write_arguments

RunModule = Callable[..., dict[str, Any]]
NAMES = [
    *("$HOME.img", "${HOME}", "$NAME", "~", "~root", "a b", " a ", "it's", 'a "card"', "[a]*?", "für Übung", "50%d", "%s", "-rf"),
    *("a\nb", "a\\b", "a\\040b", "a:b,c", "{{ x }}", "a (deleted)", "$(id)", "`id`", "#1", "ein\u2028satz"),
]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_literal(
    image: Path, sha256: str, run_module: RunModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A new and an existing card with this name are written, and no other file."""
    home = tmp_path / "home"
    home.mkdir()
    for variable in ("HOME", "NAME"):
        monkeypatch.setenv(variable, str(home / "precious"))
    (home / "precious").write_text("precious")
    (home / "precious.img").write_text("precious")
    folder = tmp_path / name
    folder.mkdir()
    slot, ledger = folder / name, folder / "cards.json"
    arguments = write_arguments(image, sha256, pi_01=slot) | {"ledger": str(ledger), "progress_file": str(folder / "events")}
    arguments["cards"][0]["virtual_bytes"] = 32 * 2**20
    outcome = run_module("card_write", arguments)
    assert results_by_node(outcome) == {"pi-01": "written"}, outcome
    slot.write_bytes(b"other content".ljust(32 * 2**20, b"\0"))
    assert results_by_node(run_module("card_write", arguments)) == {"pi-01": "written"}
    assert sorted(os.listdir(folder)) == sorted([name, "cards.json", "events"])
    assert json.loads(ledger.read_text())["pi-01"]["slot"] == str(slot)
    assert sorted(os.listdir(home)) == ["precious", "precious.img"] and sorted(os.listdir(tmp_path)) == sorted(["home", name])
    assert {path.read_text() for path in home.iterdir()} == {"precious"}
    plain = tmp_path / "plain"
    plain.hardlink_to(slot)
    assert read_identity(plain)[0] == "#cloud-config\nhostname: pi-01\n"


@pytest.mark.parametrize("name", NAMES)
def test_loop_device_on_a_file_of_any_name(tmp_path: Path, machine: Any, name: str) -> None:
    path = tmp_path / name
    with path.open("wb") as file:
        file.truncate(2**20)
    cards = [{"node": "pi-01", "slot": str(machine.loop(path))}, {"node": "pi-02", "slot": str(path)}]
    (one,) = Guard().facts(cards[:1], 1)
    assert (one.verdict, one.reason) == ("OK", "")
    (other,) = Guard().facts(cards[1:], 1)
    assert other.verdict == "IN USE"


REFUSED = {
    "~/cards/pi-01.img": ["begins with '~'", "/home/NAME/cards/pi-01.img"],
    "~": ["begins with '~'", "/home/NAME/"],
    "~me/card": ["begins with '~'", "/home/NAME/card"],
    "pi-01.img": ["not an absolute path", "/home/NAME/pi-01.img", "/dev/disk/by-path"],
    "./pi-01.img": ["not an absolute path"],
    "$HOME/pi-01.img": ["not an absolute path"],
    "": ["not an absolute path"],
    "/tmp/cards/": ["ends with '/'"],
    "/tmp/a\0b": ["null byte"],
}


@pytest.mark.parametrize("slot", REFUSED)
@pytest.mark.parametrize("module", ["card_facts", "card_write", "card_capture"])
def test_slots_that_are_no_literal_names(
    image: Path, sha256: str, run_module: RunModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slot: str, module: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    options: dict[str, dict[str, Any]] = {
        "card_facts": {"cards": [{"node": "pi-07", "slot": slot}]},
        "card_capture": {"node": "pi-07", "slot": slot, "folder": str(tmp_path)},
        "card_write": write_arguments(image, sha256, pi_07=Path("x")),
    }
    arguments = options[module]
    if module == "card_write":
        arguments["cards"][0] |= {"slot": slot, "virtual_bytes": 2**25}
    outcome = run_module(module, arguments)
    assert outcome["failed"] and "Nothing was written" in outcome["msg"] and "pi-07: " in outcome["msg"]
    assert all(word in outcome["msg"] for word in REFUSED[slot]), outcome["msg"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["image", "ledger", "map_file", "progress_file"])
def test_paths_with_a_tilde(image: Path, sha256: str, run_module: RunModule, card: Callable[..., Path], option: str) -> None:
    arguments = write_arguments(image, sha256, pi_01=card("card")) | {option: "~/x"}
    outcome = run_module("card_write", arguments)
    assert outcome["failed"] and f"{option}: The path '~/x' begins with '~'" in outcome["msg"]


def test_other_modules_refuse_a_tilde(run_module: RunModule, tmp_path: Path) -> None:
    assert "begins with '~'" in run_module("card_ledger", {"path": "~/cards.json", "nodes": {}})["msg"]
    assert "begins with '~'" in run_module("card_facts", {"image": "~/image", "cards": []})["msg"]
    for option in ("folder", "progress_file"):
        arguments = {"slot": "/dev/x", "folder": str(tmp_path)} | {option: "~/x"}
        assert f"{option}: The path '~/x' begins" in run_module("card_capture", arguments)["msg"]


def test_ledger_with_a_variable_in_its_name(run_module: RunModule, tmp_path: Path) -> None:
    path = tmp_path / "$HOME.json"
    run_module("card_ledger", {"path": str(path), "nodes": {"pi-01": {"cid": "1"}}})
    assert json.loads(path.read_text()) == {"pi-01": {"cid": "1"}}


def test_two_dots_after_a_link(run_module: RunModule, tmp_path: Path) -> None:
    """The kernel follows the link first, so that the name is not that of a file beside the link."""
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a/b")
    run_module("card_ledger", {"path": f"{tmp_path}/link/../cards.json", "nodes": {"pi-01": {"cid": "1"}}})
    assert (tmp_path / "a/cards.json").exists() and not (tmp_path / "cards.json").exists()
    for path in (tmp_path / "card.img", tmp_path / "a/card.img"):
        with path.open("wb") as file:
            file.truncate(512 if path.parent == tmp_path else 1024)
    (facts,) = Guard().facts([{"node": "pi-01", "slot": f"{tmp_path}/link/../card.img"}], 1)
    assert facts.device == str(tmp_path / "a/card.img") and facts.bytes == 1024


def test_two_dots_after_a_folder_that_does_not_exist(tmp_path: Path, card: Callable[..., Path]) -> None:
    """For the kernel, there is no such file."""
    card("card")
    cards = [{"node": "pi-01", "slot": f"{tmp_path}/gone/../{name}", "virtual_bytes": SIZE} for name in ("card.img", "new.img")]
    assert [(facts.verdict, facts.reason) for facts in Guard().facts(cards, 1)] == [("ABSENT", "no such file")] * 2


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_any_other_name_is_valid(name: str) -> None:
    assert (slot_problem(f"/{name}") == "") == (not f"/{name}".endswith("/"))
    assert slot_problem(f"~{name}") and (name.startswith("/") or slot_problem(name))


@pytest.mark.parametrize("name", ["card_care", "card_capture", "card_facts", "card_ledger", "card_write"])
def test_no_option_has_the_type_that_expands(name: str) -> None:
    module = load_plugin("modules", name)
    documentation = yaml.safe_load(module.DOCUMENTATION)
    assert "'path'" not in repr([option.get("type") for option in documentation["options"].values()])
    assert "type: path" not in module.DOCUMENTATION and '"type": "path"' not in Path(str(module.__file__)).read_text()


def test_slots_of_rehearsals_are_valid() -> None:
    """The slots that the inventories, scenarios and tests of this repository name."""
    files = subprocess.run(
        ["git", "grep", "-hE", '^ *"?(card|capture)_slot"?: '], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    values = [line.split(":", 1)[1].strip(" \",'") for line in files.splitlines()]
    literal = [value for value in values if value and not value.startswith(("type", 'f"', "{{"))]
    state = yaml.safe_load((ROOT / "inventory/group_vars/all/cluster.yml").read_text())
    assert state["cluster_project_dir"] == "{{ ansible_config_file | dirname }}"
    assert state["cluster_state_dir"].startswith("{{ cluster_project_dir }}/")
    assert (
        all(value.startswith("/") for value in literal) and "{{ cluster_state_dir }}/cards/{{ inventory_hostname }}.img" in values
    )


def test_swap_file_with_a_space(tmp_path: Path) -> None:
    path = tmp_path / "a swap\u00a0file"
    path.touch()
    text = f"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n{str(path).replace(' ', chr(92) + '040')} file\t\t1\t0\t-2\n"
    assert load_plugin("modules", "card_care").active_swap(text) == [str(path)]
