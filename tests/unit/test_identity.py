"""The files of a card that the role identity renders, for each init format.

After an intended change, run EXPECTED=write pytest tests/unit/test_identity.py, and review the diff of identity/*.expected.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.bramble.cluster.plugins.filter.port_files import keyfile
from ansible_collections.bramble.cluster.plugins.module_utils.card.image import Image
from ansible_collections.bramble.cluster.plugins.module_utils.card.overlay import (
    build_overlay,
    check_names,
    set_arguments,
)
from ansible_collections.bramble.cluster.plugins.module_utils.card.root_files import RootFile
from ansible_collections.bramble.cluster.plugins.module_utils.card.workbench import Workbench
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

from tests.support import ROOT
from tests.support.tiny_image import BOOT_START, ROOT_START

HERE = Path(__file__).parent / "identity"
HASH = "$y$j9T$0123456789abcdef$0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"
CASES: list[dict[str, Any]] = [
    {"name": "debian-trixie", "init_format": "cloudinit", "whole": True},
    {"name": "rpi-trixie", "init_format": "cloudinit-rpi", "hash": HASH},
    {
        "name": "ubuntu",
        "init_format": "cloudinit",
        "network_renderer": "networkd",
        "gateway": "10.77.77.1",
        "dns": ["10.77.77.1", "9.9.9.9"],
    },
    {"name": "rpi-bookworm", "init_format": "systemd"},
    {"name": "kali", "init_format": "systemd", "user": "kali", "hash": HASH, "gateway": "10.77.77.1", "dns": ["10.77.77.1"]},
]
NAMES = [case["name"] for case in CASES]
CLOUDINIT = [case["name"] for case in CASES if case["init_format"] != "systemd"]
FURTHER_CASES: list[dict[str, Any]] = [
    {"name": "again", "init_format": "cloudinit", "whole": True},
    {"name": "other-keys", "init_format": "cloudinit", "state": "other-state", "whole": True},
]
REFUSED: list[dict[str, Any]] = [
    {
        "name": "preseed",
        "init_format": "rpi-preseed",
        "whole": True,
        "words": ["init format rpi-preseed", "cloudinit, cloudinit-rpi, systemd"],
    },
    {"name": "root", "init_format": "cloudinit", "user": "root", "words": ["cluster_user, which is root"]},
    {"name": "script", "init_format": "systemd", "user": "x; reboot", "words": ["cluster_user, which is x; reboot"]},
    {"name": "clear", "init_format": "systemd", "hash": "secret", "words": ["identity_console_password_hash", "mkpasswd"]},
]
Answers = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def results_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the results of the role, which runs once for all cases."""
    folder = tmp_path_factory.mktemp("identity")
    cases = [{"state": "state", **case} for case in CASES + FURTHER_CASES] + [{**case, "state": "refused"} for case in REFUSED]
    for case in cases:
        (folder / f"{case['name']}.manifest").write_text(json.dumps(case))
    inventories = [f"--inventory={ROOT / path}" for path in ("inventory/hosts.yml", "inventory/rehearsal")]
    variables = json.dumps({"cases": cases, "results_folder": str(folder)})
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), *inventories, "--extra-vars", variables, HERE / "render.yml"],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def answers(results_folder: Path) -> Answers:
    """{identity} or {error} by (case, node)."""
    found = {node: json.loads((results_folder / f"{node}.json").read_text()) for node in ("pi-01", "pi-02")}
    return {(case, node): answer for node, cases in found.items() for case, answer in cases.items()}


@pytest.fixture(scope="module")
def identities(answers: Answers) -> Answers:
    """identity_content by (case, node)."""
    return {key: answer["identity"] for key, answer in answers.items() if "identity" in answer}


@pytest.fixture(scope="module")
def state(results_folder: Path) -> Path:
    """The folder of the keys."""
    return results_folder / "state"


def secrets(state: Path) -> list[str]:
    """Return what the FAT partition must not contain: the lines of all private keys, and the hash of the password."""
    keys = [state / "ssh/id_ed25519", *(state / "host_keys").glob("pi-0?")]
    assert len(keys) == 3
    return ["PRIVATE KEY", HASH, *(line for key in keys for line in key.read_text().splitlines()[1:-1])]


def identity_text(identity: dict[str, Any], state: Path) -> str:
    """Return an identity as text, with placeholders for values that differ between runs."""
    parts = [f"#### boot {name}\n{content}" for name, content in sorted(identity["boot_files"].items())]
    parts += [f"#### root {file['path']} {file['mode']}\n{file['content']}" for file in identity["root_files"]]
    parts += [f"#### argument {name}={value}\n" for name, value in identity.get("arguments", {}).items()]
    whole = "\n".join(parts)
    for path, name in ((state / "ssh/id_ed25519", "LOGIN"), (state / "host_keys/pi-01", "HOST")):
        whole = whole.replace(path.read_text(), f"<{name} PRIVATE KEY>\n")
        whole = whole.replace(Path(f"{path}.pub").read_text().split()[1], f"<{name} KEY>")
    return re.sub(r"\bpi-01-[0-9a-f]{12}\b", "pi-01-<SEED>", whole)


@pytest.mark.parametrize("case", NAMES)
def test_files_are_as_expected(identities: Answers, state: Path, case: str) -> None:
    expected_file = HERE / f"{case}.expected"
    found = identity_text(identities[case, "pi-01"], state)
    if os.environ.get("EXPECTED") == "write":
        expected_file.write_text(found)
    assert found == expected_file.read_text()


@pytest.mark.parametrize("case", NAMES)
def test_secrets_are_only_in_files_of_root(identities: Answers, state: Path, case: str) -> None:
    for node in ("pi-01", "pi-02"):
        identity = identities[case, node]
        public = json.dumps(identity["boot_files"]) + json.dumps(identity.get("arguments", {}))
        for secret in secrets(state):
            assert secret not in public
            assert all(file["mode"] in ("0600", "0700") for file in identity["root_files"] if secret in file["content"])
        check_names(
            identity["boot_files"],
            [RootFile(file["path"], file["content"], int(file["mode"], 8)) for file in identity["root_files"]],
        )


def instance(identity: dict[str, Any]) -> str:
    meta: str = yaml.safe_load(identity["boot_files"]["meta-data"])["instance-id"]
    assert identity["arguments"] == {"ds": f"nocloud;i={meta}"}
    return meta


def test_instance_id_depends_on_node_and_files(identities: Answers) -> None:
    ids = [instance(identities[case, node]) for case in [*CLOUDINIT, "other-keys"] for node in ("pi-01", "pi-02")]
    assert len(set(ids)) == len(ids), "name, renderer, gateway, password and keys all change the instance-id"
    for node in ("pi-01", "pi-02"):
        assert identities["again", node] == identities["debian-trixie", node]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case["name"])
def test_invalid_input_is_refused_before_anything_is_written(
    answers: Answers, results_folder: Path, case: dict[str, Any]
) -> None:
    for node in ("pi-01", "pi-02"):
        for word in [*case["words"], "Nothing was written"]:
            assert word in answers[case["name"], node]["error"]
    assert not (results_folder / "refused").exists()


# cloud-init and netplan check the files, if they are installed. tests/e2e uses those of the images.


@pytest.mark.skipif(not shutil.which("cloud-init"), reason="cloud-init is not installed")
@pytest.mark.parametrize("case", CLOUDINIT)
def test_cloud_init_accepts_user_data(identities: Answers, tmp_path: Path, case: str) -> None:
    file = tmp_path / "user-data"
    file.write_text(identities[case, "pi-01"]["boot_files"]["user-data"])
    subprocess.run(["cloud-init", "schema", "--config-file", file], check=True, capture_output=True)


@pytest.mark.skipif(not shutil.which("netplan"), reason="netplan is not installed")
@pytest.mark.parametrize("case", CLOUDINIT)
def test_netplan_accepts_the_network(identities: Answers, tmp_path: Path, case: str) -> None:
    (tmp_path / "etc/netplan").mkdir(parents=True)
    file = tmp_path / "etc/netplan/50-cloud-init.yaml"
    file.write_text(identities[case, "pi-01"]["boot_files"]["network-config"])
    file.chmod(0o600)
    subprocess.run(["netplan", "generate", "--root-dir", tmp_path], check=True, capture_output=True)
    made = "".join(path.read_text() for path in tmp_path.glob("run/systemd/network/*.network"))
    assert ("Address=10.77.77.101/24" in made) and (("Gateway=10.77.77.1" in made) == (case == "ubuntu"))


# Keyfiles


def sections(**port: Any) -> dict[str, dict[str, str]]:
    parser = configparser.ConfigParser(delimiters="=", interpolation=None)
    parser.read_string(keyfile(port, "eth0", "0b5e0a35-0000-5000-8000-000000000000"))
    return {name: dict(parser[name]) for name in parser.sections()}


@pytest.mark.parametrize(
    ("port", "ipv4", "ipv6"),
    [
        (
            {"dhcp4": False, "dhcp6": False, "accept-ra": False, "addresses": ["10.0.0.5/24"]},
            {"method": "manual", "address1": "10.0.0.5/24", "never-default": "true"},
            {"method": "link-local"},
        ),
        (
            {
                "addresses": ["10.0.0.5/24", "fd00::5/64"],
                "routes": [{"to": "default", "via": "10.0.0.1"}, {"to": "10.9.0.0/16", "via": "10.0.0.2", "metric": 7}],
                "nameservers": {"addresses": ["10.0.0.1", "fd00::1"], "search": ["lan"]},
            },
            {
                "method": "manual",
                "address1": "10.0.0.5/24",
                "route1": "0.0.0.0/0,10.0.0.1",
                "route2": "10.9.0.0/16,10.0.0.2,7",
                "dns": "10.0.0.1;",
                "dns-search": "lan;",
            },
            {"method": "manual", "address1": "fd00::5/64", "never-default": "true", "dns": "fd00::1;", "dns-search": "lan;"},
        ),
        ({"dhcp4": True, "accept-ra": True}, {"method": "auto"}, {"method": "auto"}),
        ({}, {"method": "disabled"}, {"method": "link-local"}),
    ],
)
def test_keyfile_equals_that_of_netplan(port: dict[str, Any], ipv4: dict[str, str], ipv6: dict[str, str]) -> None:
    found = sections(**port)
    assert found["connection"]["interface-name"] == "eth0"
    assert (found["ipv4"], found["ipv6"]) == (ipv4, ipv6)


@pytest.mark.parametrize(
    "port", [{"mtu": 9000}, {"routes": [{"to": "default", "via": "10.0.0.1", "table": 5}]}, {"nameservers": {"options": []}}]
)
def test_unsupported_setting_is_refused(port: dict[str, Any]) -> None:
    with pytest.raises(AnsibleFilterError, match=r"mtu|table|options"):
        keyfile(port, "eth0", "")


def test_masked_unit_can_be_masked_again(image: Path, tmp_path: Path) -> None:
    """An empty file replaces the link to /dev/null that `systemctl mask` creates."""
    copy, name = tmp_path / "copy.img", "/etc/userconfig.service"
    shutil.copyfile(image, copy)
    root = f"{copy}?offset={ROOT_START}"
    subprocess.run(["debugfs", "-w", "-R", f"symlink {name} /dev/null", root], check=True, capture_output=True)
    with Image(str(copy)) as opened, Workbench(opened, str(tmp_path)) as bench:
        assert build_overlay(bench, {}, [RootFile(name, "", 0o644)])


# The kernel's command line

ROOTS = "root=PARTUUID=4d8fd085-02 rootfstype=ext4 fsck.repair=yes rootwait"
CMDLINES = {
    "rpi-trixie": f"console=serial0,115200 console=tty1 {ROOTS} resize\n",
    "rpi-bookworm": f"console=serial0,115200 console=tty1 {ROOTS} quiet init=/usr/lib/raspberrypi-sys-mods/firstboot\n",
    "ubuntu": "multipath=off dwc_otg.lpm_enable=0 console=tty1 root=LABEL=writable rootfstype=ext4 rootwait fixrtc\n",
    "debian": (ROOT / "images/debian/bootfs/cmdline.txt").read_text(),
    "quoted": 'dyndbg="file ds=x.c +p" kds=1 ds\n',
    "empty": "",
}


@pytest.mark.parametrize("name", CMDLINES)
def test_command_line_without_the_argument_is_not_changed(name: str) -> None:
    assert set_arguments(CMDLINES[name], {"ds": "nocloud;i=new"}) == CMDLINES[name]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            f"console=tty1 {ROOTS} resize cfg80211.ieee80211_regdom=GB ds=nocloud;i=rpi-imager-1786770245730\n",
            f"console=tty1 {ROOTS} resize cfg80211.ieee80211_regdom=GB ds=nocloud;i=new\n",
        ),
        ("ds=nocloud-net;s=http://10.0.0.1/  quiet\tds=x", "ds=nocloud;i=new  quiet\tds=nocloud;i=new"),
        ("# ds=as it was\r\na ds=x b\r\n", "# ds=as it was\r\na ds=nocloud;i=new b\r\n"),
    ],
)
def test_old_instance_id_is_replaced(before: str, after: str) -> None:
    assert set_arguments(before, {"ds": "nocloud;i=new"}) == after
    assert set_arguments(after, {"ds": "nocloud;i=new"}) == after


@pytest.mark.parametrize("value", ["two words", "two\nlines", 'a"quote'])
def test_argument_must_be_one_word(value: str) -> None:
    with pytest.raises(BrambleError, match="kernel argument ds"):
        set_arguments("ds=x", {"ds": value})


@pytest.mark.parametrize("on_card", ["quiet ds=nocloud;i=old resize\n", "quiet resize\n", None])
def test_command_line_of_the_image_is_edited(image: Path, tmp_path: Path, on_card: str | None) -> None:
    copy = tmp_path / "copy.img"
    shutil.copyfile(image, copy)
    drive = f"{copy}@@{BOOT_START}"
    if on_card:
        subprocess.run(["mcopy", "-i", drive, "-", "::cmdline.txt"], input=on_card.encode(), check=True)
    with Image(str(copy)) as opened, Workbench(opened, str(tmp_path)) as bench:
        overlay = build_overlay(bench, {}, [], {"ds": "nocloud;i=new"})
    with copy.open("r+b") as file:
        for offset, data in overlay.items():
            file.seek(offset)
            file.write(data)
    found = subprocess.run(["mtype", "-i", drive, "::cmdline.txt"], capture_output=True, text=True, check=False).stdout
    assert found == (on_card or "").replace("i=old", "i=new")
    assert bool(overlay) == ("ds=" in (on_card or ""))
