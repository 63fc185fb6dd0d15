"""Wrong input of users results in a clear error, before anything is changed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.rehearsal import INVENTORY, Play

from .conftest import OVERLAY, playbook


@pytest.fixture
def variables(tmp_path: Path) -> dict:
    """Variables of a separate cluster, whose cards are in the folder of the test."""
    return {
        "cluster_name": "e2e-bad",
        "cluster_state_dir": str(tmp_path / "state"),
        "card_slot": f"{tmp_path}/{{{{ inventory_hostname }}}}.img",
    }


@pytest.fixture(scope="module")
def image() -> Path:
    """The image of the rehearsal's cards."""
    playbook("image")
    return next(path for path in sorted((ROOT / ".cache/images").glob("*.img")) if path.stat().st_size > 0)


def failure(run: Play) -> str:
    assert run.status == "failed", run.status
    return "\n".join(run.failed.values())


def test_a_card_one_byte_too_small_stops_the_batch(variables: dict, image: Path, tmp_path: Path) -> None:
    for node, size in (("pi-01", image.stat().st_size - 1), ("pi-02", 31_914_983_424)):
        with (tmp_path / f"{node}.img").open("wb") as card:
            card.truncate(size)
    message = failure(playbook("cards", variables=variables, arguments="--limit pi-01,pi-02", check=False))
    assert "TOO SMALL by 1 byte" in message
    assert f"{image.stat().st_size - 1:,}" in message
    assert all((tmp_path / f"{node}.img").stat().st_blocks == 0 for node in ("pi-01", "pi-02")), "something was written"


def test_card_is_overwritten_only_with_confirmation(variables: dict, image: Path, tmp_path: Path) -> None:
    card = tmp_path / "pi-01.img"
    with card.open("wb") as file:
        file.write(b"photographs")
        file.truncate(31_914_983_424)
    message = failure(playbook("cards", variables={**variables, "card_confirm": False}, arguments="--limit pi-01", check=False))
    assert "would be lost" in message and str(card) in message and "-e card_confirm=true" in message
    with card.open("rb") as file:
        assert file.read(11) == b"photographs"


def test_check_mode_shows_the_table_and_writes_nothing(variables: dict, image: Path, tmp_path: Path) -> None:
    run = playbook("cards", variables=variables, arguments="--check --limit pi-01")
    shown = [event["event_data"]["res"].get("msg") for event in run.events if event["event"] == "runner_on_ok"]
    assert any("31,914,983,424" in line and line.endswith("OK") for text in shown if text for line in text.splitlines())
    assert list(tmp_path.iterdir()) == []


def test_a_mounted_disk_is_refused(variables: dict, image: Path, tmp_path: Path) -> None:
    disk, folder = tmp_path / "disk", tmp_path / "mounted"
    folder.mkdir()
    with disk.open("wb") as file:
        file.truncate(2_000_000_000)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", disk], check=True)
    before = disk.stat().st_blocks
    loop = subprocess.run(["losetup", "--find", "--show", disk], capture_output=True, text=True, check=True).stdout.strip()
    try:
        subprocess.run(["mount", loop, folder], check=True)
        message = failure(playbook("cards", variables={**variables, "card_slot": loop}, arguments="--limit pi-01", check=False))
        assert "IN USE" in message and str(folder) in message
        subprocess.run(["umount", folder], check=True)
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)
    assert disk.stat().st_blocks == before
    subprocess.run(["e2fsck", "-fn", disk], capture_output=True, check=True)


def test_the_system_disk_is_refused(variables: dict, image: Path) -> None:
    """This test uses check mode, so that a defect of the guard does not destroy the machine."""
    root = subprocess.run(
        ["findmnt", "--noheadings", "--output", "MAJ:MIN", "/"], capture_output=True, text=True, check=True
    ).stdout.strip()
    disk = Path(f"/sys/dev/block/{root}").resolve()
    if not disk.exists():
        pytest.skip("the root file system is not on a disk")
    disk = disk.parent if (disk / "partition").exists() else disk
    message = failure(
        playbook(
            "cards", variables={**variables, "card_slot": f"/dev/{disk.name}"}, arguments="--check --limit pi-01", check=False
        )
    )
    assert "SYSTEM DISK" in message


def test_a_duplicate_address_is_named(tmp_path: Path) -> None:
    extra = tmp_path / "extra.yml"
    extra.write_text("servers:\n  hosts:\n    pi-09: {node_number: 3}\n")
    for name in ("cards", "site"):
        message = failure(playbook(name, inventory=[*INVENTORY, OVERLAY, extra], check=False))
        assert "pi-03 and pi-09 have the same address 10.77.79.103" in message.replace("pi-09 and pi-03", "pi-03 and pi-09")


def test_an_image_with_a_wrong_hash_is_refused(variables: dict, image: Path, tmp_path: Path) -> None:
    wrong = {**variables, "image_file": str(image), "image_sha256": "0" * 64}
    message = failure(playbook("cards", variables=wrong, arguments="--limit pi-01", check=False))
    assert "0" * 64 in message and "sha256" in message
    card = tmp_path / "pi-01.img"
    assert not card.exists() or card.stat().st_blocks == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    disk, folder = tmp_path / "small", tmp_path / "small.d"
    folder.mkdir()
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", disk], check=True)
    loop = subprocess.run(["losetup", "--find", "--show", disk], capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run(["mount", loop, folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)
    subprocess.run(["losetup", "--detach", loop], check=True)


def test_too_little_space_is_reported_before_anything_is_written(variables: dict, image: Path, small_disk: Path) -> None:
    cards = {**variables, "card_slot": f"{small_disk}/{{{{ inventory_hostname }}}}.img"}
    message = failure(playbook("cards", variables=cards, arguments="--limit pi-01,pi-02", check=False))
    assert "space" in message.lower() and str(small_disk) in message
    assert all(card.stat().st_blocks == 0 for card in small_disk.glob("*.img"))


def test_engine_that_cannot_be_installed(tmp_path: Path) -> None:
    """The machine has no docker and no dockerd, and apt has no packages."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for folder in ("/usr/sbin", "/usr/bin", "/sbin", "/bin"):
        for tool in Path(folder).iterdir():
            if "docker" not in tool.name and not (tools / tool.name).exists():
                (tools / tool.name).symlink_to(tool)
    (tmp_path / "empty").mkdir()
    (tmp_path / "status").touch()
    apt = {"Etc::SourceList": "/dev/null", "Etc::SourceParts": "empty", "State::Lists": "empty", "State::status": "status"}
    (tmp_path / "apt.conf").write_text("".join(f'Dir::{name} "{tmp_path / value}";\n' for name, value in apt.items()))
    # Use a copy of the script, whose state is separate from that of the engine of the tests.
    (tmp_path / "scripts").mkdir()
    script = shutil.copy(ROOT / "scripts/engine", tmp_path / "scripts/engine")
    environment = {
        **os.environ,
        "PATH": str(tools),
        "APT_CONFIG": str(tmp_path / "apt.conf"),
        "DOCKER_HOST": f"unix://{tmp_path}/none",
    }
    done = subprocess.run([script, "start"], env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode != 0
    assert "Docker" in done.stderr and "docker.io" in done.stderr
