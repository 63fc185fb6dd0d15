"""Adding a node, a role or an image: how many files must be changed by hand, and that everything else is derived."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.support import ROOT
from tests.support.web import Site

from .conftest import Run
from .test_image_catalog import entry, publish
from .test_order import check_order

COPIED = ("ansible.cfg", "galaxy.yml", "images", "inventory", "meta", "playbooks", "plugins", "roles")


class Clone:
    """A copy of the repository, and the names of the files that a test has written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.written: set[str] = set()

    def write(self, name: str, text: str) -> None:
        """Create or change a file, as a user does."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.written.add(name)

    def replace(self, name: str, old: str, new: str) -> None:
        """Replace a text that occurs once in a file."""
        text = (self.root / name).read_text()
        assert text.count(old) == 1, (name, old)
        self.write(name, text.replace(old, new))


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    root = tmp_path / "bramble"
    root.mkdir()
    for name in COPIED:
        copy: Callable[[Path, Path], object] = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, root / name)
    link = root / ".config/ansible_collections/bramble/cluster"
    link.parent.mkdir(parents=True)
    link.symlink_to(root)
    return Clone(root)


# A play that writes all values that are derived from the number of a node.
DERIVED = """
- hosts: {node}
  connection: local
  gather_facts: false
  tasks:
    - ansible.builtin.copy:
        content: "{{{{ derived | to_json }}}}"
        dest: {dest}
      delegate_to: localhost
      vars:
        ansible_become: false
        image_manifest: ""
        derived:
          address: "{{{{ node_address }}}}"
          network: "{{{{ node_network }}}}"
          hosts: "{{{{ lookup('ansible.builtin.template', cluster_project_dir ~ '/roles/network/templates/hosts.j2') }}}}"
          workers: "{{{{ groups['worker'] | intersect(cluster_nodes) }}}}"
          certificate: "{{{{ inventory_hostname in groups['certificate'] }}}}"
          problems: "{{{{ hostvars | bramble.cluster.cluster_problems(groups, cluster_subnet, cluster_groups) }}}}"
"""


def test_adding_a_node_changes_one_file(clone: Clone, tmp_path: Path) -> None:
    clone.replace(
        "inventory/hosts.yml", "pi-08: {node_number: 8}\n", "pi-08: {node_number: 8}\n        pi-09: {node_number: 9}\n"
    )
    assert len(clone.written) == 1
    (tmp_path / "derived.yml").write_text(DERIVED.format(node="pi-09", dest=tmp_path / "derived.json"))
    subprocess.run(["ansible-playbook", tmp_path / "derived.yml"], cwd=clone.root, check=True, capture_output=True)
    derived = json.loads((tmp_path / "derived.json").read_text())
    assert derived["address"] == "192.168.1.109"
    assert derived["network"]["ethernets"]["eth0"]["addresses"] == ["192.168.1.109/24"]
    assert "192.168.1.109 pi-09" in derived["hosts"]
    assert sorted(derived["workers"]) == [f"pi-0{number}" for number in range(1, 10)]
    assert derived["certificate"] and derived["problems"] == []


def add_role(clone: Clone) -> None:
    """Add a role for every node between two other roles."""
    clone.write("roles/fan/README.md", "# fan\n\n" + "Sets the speed of the fan.\n" * 10)
    clone.write("roles/fan/meta/argument_specs.yml", "argument_specs: {main: {options: {}}, absent: {options: {}}}\n")
    for name in ("main", "absent"):
        tasks = [{"name": "Set the speed", "ansible.builtin.debug": {"msg": name}}]
        clone.write(f"roles/fan/tasks/{name}.yml", yaml.safe_dump(tasks, sort_keys=False))
    clone.replace("inventory/group_vars/all/cluster.yml", "[profile, network, base, ", "[profile, network, base, fan, ")


def test_adding_a_role_changes_six_files(clone: Clone) -> None:
    add_role(clone)
    with pytest.raises(AssertionError):  # site.yml does not run it
        check_order(clone.root)
    site = yaml.safe_load((clone.root / "playbooks/site.yml").read_text())
    names = [play.get("vars", {}).get("part") for play in site]
    title = "Configure the fan"
    values = {"part": "fan", "part_title": title}
    part = {"name": title, "ansible.builtin.import_playbook": "parts/role.yml", "vars": values, "tags": ["fan"]}
    site.insert(names.index("base") + 1, part)
    clone.write("playbooks/site.yml", yaml.safe_dump(site, sort_keys=False))
    assert len(clone.written) == 6
    check_order(clone.root)
    (clone.root / "roles/fan/tasks/absent.yml").unlink()
    with pytest.raises(AssertionError, match="fan is not removed"):
        check_order(clone.root)


def test_adding_an_image_changes_one_file(clone: Clone, site: Site, run_module: Run) -> None:
    """The new entry has a name and a source; `image.yml -e image_update=true` adds the pinned values in the same file."""
    url = "https://downloads.raspberrypi.com/raspios_full_arm64/images/{}-raspios-trixie-arm64-full.img.xz"
    image = {
        "description": "Raspberry Pi OS with desktop, Debian 13",
        "architectures": ["arm64"],
        "init_format": "cloudinit-rpi",
        "release_date": "",
        "url": "",
        "download": {"bytes": None, "sha256": None},
        "extracted": {"bytes": None, "sha256": None},
        "source": {"publisher": "raspberrypi", "url": url.format("*")},
    }
    text = (clone.root / "images/catalog.yml").read_text()
    lines = yaml.safe_dump({"raspios-trixie-full": image}, sort_keys=False).splitlines(keepends=True)
    clone.write("images/catalog.yml", text + "\n" + "".join("  " + line for line in lines))
    assert len(clone.written) <= 3
    os_list = publish(site, "/v4.json", entry(url.format("2026-11-10")))
    result = run_module(
        "image_catalog",
        {
            "path": str(clone.root / "images/catalog.yml"),
            "names": ["raspios-trixie-full"],
            "raspberrypi_url": os_list,
            "ubuntu_url": site.url,
            "keyring": "/nowhere",
            "key_url": site.url,
            "allow_http": True,
        },
    )
    assert result["changed"], result
    entry_after = yaml.safe_load((clone.root / "images/catalog.yml").read_text())["images"]["raspios-trixie-full"]
    assert entry_after["url"] == url.format("2026-11-10") and entry_after["download"] == {"bytes": 1000, "sha256": "a" * 64}
