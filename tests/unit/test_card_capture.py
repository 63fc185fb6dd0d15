"""Capture: the image has the content of the card without the identity of its node, and the card is only read."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bramble.cluster.plugins.module_utils.capture.archive import resize_root_entry
from ansible_collections.bramble.cluster.plugins.module_utils.capture.capture import capture
from ansible_collections.bramble.cluster.plugins.module_utils.capture.grow import GROW_ARGUMENT
from ansible_collections.bramble.cluster.plugins.module_utils.capture.request import CaptureRequest
from ansible_collections.bramble.cluster.plugins.module_utils.capture.root_file_system import RootFileSystem
from ansible_collections.bramble.cluster.plugins.module_utils.capture.shrink import clear_journal
from ansible_collections.bramble.cluster.plugins.module_utils.capture.source_card import inspect_card, open_card
from ansible_collections.bramble.cluster.plugins.module_utils.capture.tools import check_tools
from ansible_collections.bramble.cluster.plugins.module_utils.capture.workspace import private_workspace
from ansible_collections.bramble.cluster.plugins.module_utils.card.device import Card
from ansible_collections.bramble.cluster.plugins.module_utils.card.partition import parse_mbr
from ansible_collections.bramble.cluster.plugins.module_utils.card.progress import Progress
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import SECTOR
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.rehearsal import HARDWARE, play

from .conftest import Machine

RunModule = Callable[..., dict[str, Any]]
MIB = 1024 * 1024
BOOT, ROOT = MIB, 9 * MIB  # the offsets of the partitions
SIZE = 121 * MIB
SECRET = b"a secret of this node"
DELETED = b"the content of a deleted file"
SEEDS = {"user-data": "#cloud-config\n", "meta-data": "instance-id: neutral\n", "network-config": "network: {version: 2}\n"}
MAX_BYTES = 30_400_000_000

# Files of the root file system: those that a capture must remove, change, and keep.
IDENTITY = {
    "etc/ssh/ssh_host_ed25519_key": SECRET,
    "etc/ssh/ssh_host_rsa_key.pub": SECRET,
    "etc/ssh/sshd_config.d/10-bramble-hostkey.conf": SECRET,
    "etc/ssh/sshd_config.d/10-bramble.conf": SECRET,
    "etc/bramble/ssh/ssh_host_ed25519_key": SECRET,
    "etc/bramble/tls/node.key": SECRET,
    "etc/NetworkManager/system-connections/Wired connection 1.nmconnection": SECRET,
    'etc/NetworkManager/system-connections/a "quoted" näme': SECRET,
    "etc/netplan/50-cloud-init.yaml": SECRET,
    "var/lib/cloud/instances/pi-01-0a1b/user-data.txt": SECRET,
    "var/lib/cloud/data/instance-id": SECRET,
    "var/lib/dhcp/dhclient.eth0.leases": SECRET,
    "var/lib/systemd/random-seed": SECRET,
    "var/lib/dbus/machine-id": SECRET,
    "var/log/syslog": SECRET * 500,
    "var/log/nginx/access.log": SECRET,
    "var/log/journal/0a1b2c3d/system.journal": SECRET * 900,
    "home/pi/.bash_history": SECRET,
    "root/.python_history": SECRET,
    "tmp/some folder/deep/file": SECRET,
    "var/cache/apt/archives/big.deb": SECRET * 9000,
}
CHANGED = {
    "etc/machine-id": (b"0a1b2c3d" * 4 + b"\n", b"uninitialized\n"),
    "etc/hostname": (b"pi-01\n", b"raspberrypi\n"),
    "etc/hosts": (b"127.0.0.1 localhost\n127.0.1.1 pi-01\n10.0.0.9 printer\n", b"127.0.0.1 localhost\n10.0.0.9 printer\n"),
}
CLOUD = {"usr/bin/cloud-init": b"#!/usr/bin/python3\n", "usr/bin/growpart": b"#!/bin/sh\n"}
KEPT = {
    **CLOUD,
    "etc/ssh/sshd_config": b"Port 22\n",
    "etc/fstab": b"PARTUUID=1-02 / ext4 defaults 0 1\n",
    "home/pi/.ssh/authorized_keys": b"ssh-ed25519 AAAA\n",
    "home/pi/notes about history": b"x" * 5000,
    "var/lib/data/blob": os.urandom(3 * MIB),
    **{f"usr/share/doc/package{number}/copyright": os.urandom(number * 37) for number in range(150)},
}
BOOT_FILES = {
    "cmdline.txt": b"console=tty1 root=PARTUUID=0badcafe-02 rootwait ds=nocloud;i=pi-01 quiet\n",
    "config.txt": b"arm_64bit=1\n",
    "user-data": SECRET,
    "meta-data": SECRET,
    "userconf.txt": SECRET,
    "Long Name With ünicode.dtbo": b"d" * 3000,
    "overlays/vc4.dtbo": b"o" * 70_000,
}


def run(*command: str | Path, stdin: str = "", exit_codes: tuple[int, ...] = (0,)) -> str:
    """Return the standard output of a command."""
    done = subprocess.run(command, input=stdin.encode(), capture_output=True, check=False)
    assert done.returncode in exit_codes, f"{command}: {done.stdout!r} {done.stderr!r}"
    return done.stdout.decode()


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write files below a folder, content by path."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def make_card(
    path: Path,
    files: dict[str, bytes],
    folder: Path,
    size: int = SIZE,
    boot_size: int = ROOT - BOOT,
    root_size: int = 0,
    boot_files: dict[str, bytes] | None = None,
    ext: str = "-b 1024",
) -> None:
    """Create a card of `size` bytes with files."""
    tree, top, root_start = folder / "tree", folder / "top", BOOT + boot_size
    root_size = root_size or size - root_start
    write_files(tree, files)
    write_files(top, BOOT_FILES if boot_files is None else boot_files)
    if "usr/share/doc/package5/copyright" in files:
        (tree / "usr/bin/cloud-init").chmod(0o4755)
        (tree / "bin").symlink_to("usr/bin")
        os.link(tree / "etc/fstab", tree / "etc/fstab.linked")
        os.mkfifo(tree / "home/pi/fifo")
    with path.open("wb") as file:
        file.truncate(size)
    table = f"label: dos\nlabel-id: 0x0badcafe\nstart={BOOT // 512}, size={boot_size // 512}, type=c\n"
    run("sfdisk", "-q", path, stdin=f"{table}start={root_start // 512}, size={root_size // 512}, type=83\n")
    fat = [
        "-F",
        "16" if boot_size < 32 * MIB else "32",
        "-s",
        "1",
        "-n",
        "bootfs",
        "-i",
        "0badcafe",
        "-h",
        str(BOOT // 512),
        "--offset",
        str(BOOT // 512),
    ]
    run("mkfs.vfat", *fat, path, str(boot_size // 1024))
    drive = f"{path}@@{BOOT}"
    run("mcopy", "-s", "-m", "-i", drive, *sorted(top.iterdir()), "::/")
    (folder / "gone.txt").write_bytes(DELETED * 900)
    run("mcopy", "-i", drive, folder / "gone.txt", "::/")
    run("mdel", "-i", drive, "::/gone.txt")
    run("mke2fs", "-q", "-F", "-t", "ext4", *ext.split(), "-E", f"offset={root_start}", "-d", tree, path, f"{root_size // 1024}k")
    script = f"write {folder}/gone.txt /gone-by-name\nrm /gone-by-name\n"
    run("debugfs", "-w", "-f", "-", f"{path}?offset={root_start}", stdin=script)
    run("e2fsck", "-fn", f"{path}?offset={root_start}")
    shutil.rmtree(tree)
    shutil.rmtree(top)


@pytest.fixture(scope="session")
def source_card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A card with all kinds of files, which tests must not change."""
    folder = tmp_path_factory.mktemp("source")
    original = {name: before for name, (before, _) in CHANGED.items()}
    make_card(folder / "source.img", {**IDENTITY, **original, **KEPT}, folder)
    (folder / "source.img").chmod(0o444)
    return folder / "source.img"


@pytest.fixture
def card_copy(source_card: Path, tmp_path: Path) -> Path:
    """A copy of the source card, which a test can change."""
    path = tmp_path / "pi-01.img"
    run("cp", "--sparse=always", source_card, path)
    path.chmod(0o644)
    return path


def module_arguments(slot: Path, folder: Path, **more: Any) -> dict[str, Any]:
    """Return arguments of the module card_capture."""
    return {"slot": str(slot), "node": "pi-01", "folder": str(folder), "name": "captured", "boot_files": SEEDS, **more}


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def partitions(path: Path) -> list[Any]:
    """Return the partitions of a card."""
    with path.open("rb") as file:
        return parse_mbr(file.read(SECTOR), path.stat().st_size)


def extract_partition(path: Path, number: int, target: Path) -> Path:
    """Copy a partition to a file."""
    part = partitions(path)[number - 1]
    run(
        "dd",
        f"if={path}",
        f"of={target}",
        "bs=64K",
        "iflag=skip_bytes,count_bytes",
        f"skip={part.start}",
        f"count={part.size}",
        "conv=sparse",
    )
    os.truncate(target, part.size)
    return target


def root_files(card: Path, folder: Path) -> dict[str, tuple[Any, ...]]:
    """Return mode, owner, group, time and content of all files in the root file system of a card, by path."""
    folder.mkdir()
    part = extract_partition(card, 2, folder / "part")
    run("debugfs", "-R", f"rdump / {folder}", part)
    part.unlink()
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content: Any = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        time = 0 if path.is_dir() or path.is_symlink() else int(status.st_mtime)
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_uid, status.st_gid, time, content)
    return found


def boot_files(card: Path, folder: Path) -> dict[str, bytes]:
    """Return all files in the boot partition of a card, content by path."""
    folder.mkdir()
    run("mcopy", "-s", "-n", "-i", f"{card}@@{BOOT}", "::/", folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def captured(source_card: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The capture of the source card: its folder and the result."""
    folder = tmp_path_factory.mktemp("captured")
    before = digest(source_card), source_card.stat()
    request = CaptureRequest(folder, "captured", architecture="arm64", seeds=SEEDS)
    with open_card("pi-01", str(source_card)) as card:
        outcome = capture(card, inspect_card(card, MAX_BYTES), request, Progress(str(folder / "progress")))
    after = digest(source_card), source_card.stat()
    assert before[0] == after[0] and before[1].st_mtime_ns == after[1].st_mtime_ns
    yield folder, outcome


# The captured image


def test_capture_writes_image_archive_and_manifest(captured: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, outcome = captured
    assert {path.name for path in folder.iterdir()} == {"captured.img", "captured.img.zst", "captured.json", "progress"}
    manifest = json.loads((folder / "captured.json").read_text())
    assert manifest == {name: value for name, value in outcome.items() if name != "cleaned"}
    image = folder / "captured.img"
    assert (manifest["file"], manifest["architecture"], manifest["init_format"]) == ("captured.img", "arm64", "cloudinit")
    assert (manifest["bytes"], manifest["sha256"]) == (image.stat().st_size, digest(image))
    assert manifest["archive"]["sha256"] == digest(folder / "captured.img.zst")
    run("zstd", "-q", "-d", folder / "captured.img.zst", "-o", tmp_path / "again.img")
    assert digest(tmp_path / "again.img") == manifest["sha256"]
    assert all(stat.S_IMODE((folder / name).stat().st_mode) == 0o600 for name in ("captured.img", "captured.img.zst"))
    phases = [json.loads(line)["phase"] for line in (folder / "progress").read_text().splitlines()]
    assert list(dict.fromkeys(phases)) == ["read", "check", "clean", "shrink", "compress"]


def test_captured_image_keeps_all_files_but_the_identity(
    captured: tuple[Path, dict[str, Any]], source_card: Path, tmp_path: Path, run_module: RunModule
) -> None:
    folder, outcome = captured
    card = tmp_path / "card.img"
    with card.open("wb") as file:
        file.truncate(SIZE - 20 * MIB)  # smaller than the source card
    batch = [{"node": "pi-02", "slot": str(card)}]
    written = run_module(
        "card_write", {"image": str(folder / "captured.img"), "image_sha256": outcome["sha256"], "cards": batch, "confirm": True}
    )
    assert [result["result"] for result in written["results"]] == ["written"]

    before, after = root_files(source_card, tmp_path / "before"), root_files(card, tmp_path / "after")
    gone = set(before) - set(after)
    assert {name for name in gone if name in IDENTITY} == set(IDENTITY)
    emptied = ("var/lib/cloud/", "var/log/journal/", "tmp/", "var/lib/dhcp", "etc/bramble", "etc/NetworkManager")
    assert all(name in IDENTITY or name.startswith(emptied) for name in gone)
    assert {"var/log/nginx", "var/log/journal", "var/lib/cloud", "tmp", "etc/NetworkManager/system-connections"} <= set(after)
    assert {name for name in after if after[name] != before.get(name)} == set(CHANGED)
    for name, (_, content) in CHANGED.items():
        assert after[name][4] == content and after[name][:3] == (0o100644, 0, 0)

    assert boot_files(card, tmp_path / "boot") == {
        **{name: text for name, text in BOOT_FILES.items() if name not in ("userconf.txt", "cmdline.txt")},
        "user-data": b"#cloud-config\n",
        "meta-data": b"instance-id: neutral\n",
        "cmdline.txt": b"console=tty1 root=PARTUUID=0badcafe-02 rootwait quiet resize\n",
    }
    named = {"cmdline.txt", "meta-data", "user-data", "userconf.txt"} | {f"/{name}" for name in [*IDENTITY, *CHANGED]}
    assert named <= set(outcome["cleaned"])


def test_captured_image_has_no_deleted_data(captured: tuple[Path, dict[str, Any]], source_card: Path) -> None:
    folder, _ = captured
    before, after = source_card.read_bytes(), (folder / "captured.img").read_bytes()
    for trace in (SECRET, DELETED, b"gone-by-name", b"GONE", b"ssh_host_ed25519_key"):
        assert trace in before or trace == b"GONE"
        assert trace not in after, trace


def test_captured_image_is_valid_and_small(captured: tuple[Path, dict[str, Any]], source_card: Path, tmp_path: Path) -> None:
    folder, outcome = captured
    image = folder / "captured.img"
    boot, root = partitions(image)
    assert (boot.start, boot.size, root.start) == (BOOT, ROOT - BOOT, ROOT)
    assert outcome["bytes"] == root.end == image.stat().st_size
    assert root.size < 45 * MIB  # 3 MiB of files, the journal, 16 MiB of free space, and the reserve of resize2fs
    assert (
        image.read_bytes()[440:446] == source_card.read_bytes()[440:446]
    )  # the disk identifier, to which cmdline.txt and fstab refer
    fat, old = extract_partition(image, 1, tmp_path / "fat"), extract_partition(source_card, 1, tmp_path / "old")
    run("fsck.vfat", "-n", fat)
    assert run("fatlabel", fat) == run("fatlabel", old) and run("fatlabel", "-i", fat) == run("fatlabel", "-i", old)
    assert fat.read_bytes()[11:24] == old.read_bytes()[11:24] and fat.read_bytes()[28:36] == old.read_bytes()[28:36]  # geometry
    ext = extract_partition(image, 2, tmp_path / "ext")
    run("e2fsck", "-fn", ext)

    def read_superblock(path: Path) -> list[str]:
        names = ("Filesystem UUID", "Filesystem features", "Total journal size", "Block size", "Inode size")
        return [line for line in run("dumpe2fs", "-h", path).splitlines() if line.startswith(names)]

    assert read_superblock(ext) == read_superblock(extract_partition(source_card, 2, tmp_path / "oldext"))
    # The file system can grow to the size of a larger card.
    os.truncate(ext, 300 * MIB)
    run("resize2fs", ext)
    run("e2fsck", "-fn", ext)


@pytest.mark.parametrize("ext", ["-b 1024", "-b 4096", "-b 1024 -O ^extent,^64bit"])
def test_old_journal_is_cleared(ext: str, tmp_path: Path) -> None:
    card = tmp_path / "card.img"
    make_card(card, {"etc/passwd": b"x" * 70_000}, tmp_path, ext=ext)
    root = RootFileSystem(extract_partition(card, 2, tmp_path / "part"))
    blocks, size = run("debugfs", "-R", "stat <8>", root.path), root.superblock_number("Block size")
    assert ("(IND)" in blocks) == ("^extent" in ext)
    last = int(re.findall(r"\(\d+-\d+\):\d+-(\d+)", blocks)[-1])
    with root.path.open("r+b") as file:
        file.seek(last * size)
        file.write(SECRET)
    clear_journal(root)
    assert SECRET not in root.path.read_bytes() and b"x" * size in root.path.read_bytes()
    run("e2fsck", "-fn", root.path)


def test_check_mode_writes_nothing(source_card: Path, tmp_path: Path, run_module: RunModule) -> None:
    outcome = run_module("card_capture", module_arguments(source_card, tmp_path / "new/folder"), check=True)
    assert outcome["changed"] and outcome["image"] == str(tmp_path / "new/folder/captured.img")
    assert 3 * MIB < outcome["used_bytes"] < 30 * MIB and outcome["card_size"] == SIZE
    assert list(tmp_path.iterdir()) == []


def test_xz_compression(tmp_path: Path, run_module: RunModule) -> None:
    make_card(tmp_path / "card.img", {"etc/passwd": b""}, tmp_path, size=ROOT + 16 * MIB)
    outcome = run_module("card_capture", module_arguments(tmp_path / "card.img", tmp_path, compression="xz", name=""))
    assert outcome["archive"].endswith(".img.xz") and Path(outcome["archive"]).name.startswith("pi-01-20")
    assert hashlib.sha256(subprocess.check_output(["xz", "-dc", outcome["archive"]])).hexdigest() == outcome["sha256"]


@pytest.mark.parametrize(
    ("files", "grow", "init_format"),
    [
        ({}, "unit", "systemd"),
        ({**CLOUD, "etc/rpi-issue": b"Pi\n"}, "cloud-init", "cloudinit-rpi"),
        ({**CLOUD, "etc/growroot-disabled": b""}, "unit", "cloudinit"),
        (
            {
                **CLOUD,
                "usr/share/initramfs-tools/scripts/local-premount/resize_early": b"",
                "usr/lib/systemd/system/rpi-resize.service": b"",
            },
            "initramfs",
            "cloudinit",
        ),
    ],
)
def test_captured_image_grows_at_first_boot(
    files: dict[str, bytes], grow: str, init_format: str, tmp_path: Path, run_module: RunModule
) -> None:
    cmdline = {"cmdline.txt": b"root=/dev/mmcblk0p2 systemd.run=/boot/firstrun.sh resize init=/x"}
    make_card(tmp_path / "card.img", {"etc/passwd": b"", **files}, tmp_path, boot_files=cmdline)
    outcome = run_module("card_capture", module_arguments(tmp_path / "card.img", tmp_path))
    assert (outcome["grow"], outcome["init_format"]) == (grow, init_format)
    assert boot_files(tmp_path / "captured.img", tmp_path / "boot") == {
        "cmdline.txt": f"root=/dev/mmcblk0p2 init=/x {GROW_ARGUMENT}\n".encode()
    }
    after = root_files(tmp_path / "captured.img", tmp_path / "root")
    grow_files = {name for name in after if "bramble-grow" in name}
    if grow != "unit":
        assert not grow_files
        wanted = after.get("etc/systemd/system/sysinit.target.wants/rpi-resize.service")
        assert (wanted is not None and wanted[4] == "/usr/lib/systemd/system/rpi-resize.service") == (grow == "initramfs")
        return
    script, unit, link = sorted(grow_files, key=lambda name: ("usr" not in name, "wants" in name))
    assert after[link][4] == f"/{unit}" and after[script][0] == 0o100755 and after[unit][0] == 0o100644
    assert f"ExecStart=/{script}\n".encode() in after[unit][4]
    run("sh", "-n", "-c", after[script][4].decode())


# Cards that cannot be captured


def capture_error(run_module: RunModule, slot: Path, **more: Any) -> str:
    """Return the message of a failed capture. Check that the card was not changed and that no files are left."""
    folder = slot.parent / "out"
    folder.mkdir(exist_ok=True)
    before, names = (digest(slot), slot.stat().st_mtime_ns) if slot.is_file() else None, sorted(folder.iterdir())
    outcome = run_module("card_capture", module_arguments(slot, folder, **more))
    assert outcome.get("failed"), outcome
    assert sorted(folder.iterdir()) == names
    assert before == ((digest(slot), slot.stat().st_mtime_ns) if slot.is_file() else None)
    return str(outcome["msg"])


def patch(path: Path, offset: int, data: bytes) -> None:
    """Overwrite bytes of a card."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def debugfs(card: Path, *commands: str) -> None:
    """Change the root file system of a card with debugfs commands."""
    run("debugfs", "-w", "-f", "-", f"{card}?offset={ROOT}", stdin="\n".join([*commands, ""]))


def test_a_damaged_bitmap(card_copy: Path, run_module: RunModule) -> None:
    where = next(line for line in run("dumpe2fs", f"{card_copy}?offset={ROOT}").splitlines() if "Block bitmap at" in line)
    patch(card_copy, ROOT + int(where.split()[3]) * 1024, b"\xaa" * 8)
    message = capture_error(run_module, card_copy)
    assert "Partition 2" in message and "damaged" in message and f"e2fsck -f $(losetup --find --show --offset {ROOT} " in message


def test_damage_that_only_a_full_check_finds(card_copy: Path, run_module: RunModule) -> None:
    debugfs(card_copy, "clri /usr/share/doc/package140/copyright")
    message = capture_error(run_module, card_copy)
    assert (
        "Partition 2" in message
        and "deleted/unused inode" in message
        and "e2fsck -f" in message
        and "card was not changed" in message
    )


def test_a_damaged_boot_partition(card_copy: Path, run_module: RunModule) -> None:
    (reserved,) = struct.unpack("<H", card_copy.read_bytes()[BOOT + 14 : BOOT + 16])
    patch(card_copy, BOOT + reserved * SECTOR + 100, b"\x77\x77")
    message = capture_error(run_module, card_copy)
    assert "Partition 1" in message and "differ" in message and "fsck.vfat -a" in message


def test_a_boot_partition_with_lost_clusters(card_copy: Path, run_module: RunModule) -> None:
    reserved, _, _, _, _, fat = struct.unpack("<HBHHBH", card_copy.read_bytes()[BOOT + 14 : BOOT + 24])
    for copy in range(2):
        patch(card_copy, BOOT + (reserved + copy * fat) * SECTOR + 3000 * 2, b"\xff\xff")
    assert "Reclaimed 1 unused cluster" in capture_error(run_module, card_copy)


def test_a_boot_partition_that_was_not_unmounted(card_copy: Path, tmp_path: Path, run_module: RunModule) -> None:
    """This is no damage: the Pi was unplugged."""
    patch(card_copy, BOOT + 37, b"\x01")
    assert run_module("card_capture", module_arguments(card_copy, tmp_path))["changed"]


def test_a_root_that_was_not_unmounted(card_copy: Path, tmp_path: Path, machine: Machine, run_module: RunModule) -> None:
    part = extract_partition(card_copy, 2, tmp_path / "part")
    point = machine.mount("-o", "loop", part)
    (point / "late").write_bytes(b"just before the plug was pulled" * 10)
    (point / "etc/fstab.linked").unlink()
    run("sync", "-f", point)
    with card_copy.open("r+b") as card, part.open("rb") as source:
        card.seek(ROOT)
        shutil.copyfileobj(source, card)
    assert "needs_recovery" in run("dumpe2fs", "-h", f"{card_copy}?offset={ROOT}")
    message = capture_error(run_module, card_copy)
    assert "journal" in message and "shut the Pi down" in message
    try:
        run("sh", "-c", message.rpartition(": ")[2].replace("e2fsck -f", "e2fsck -fp"), exit_codes=(0, 1))  # as the message says
    finally:
        for disk in run("losetup", "--noheadings", "--output", "NAME", "--associated", card_copy).split():
            run("losetup", "--detach", disk)
    assert run_module("card_capture", module_arguments(card_copy, tmp_path))["changed"]
    after = root_files(tmp_path / "captured.img", tmp_path / "after")
    assert after["late"][4] == b"just before the plug was pulled" * 10
    assert "etc/fstab.linked" not in after


def test_missing_tools(tmp_path: Path) -> None:
    check_tools()
    with pytest.raises(BrambleError, match="apt install dosfstools e2fsprogs util-linux xz-utils zstd"):
        check_tools(str(tmp_path))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda card: patch(card, 450, b"\xee"), "GPT"),
        (lambda card: patch(card, 510, b"\0\0"), "no partition table"),
        (lambda card: patch(card, 446 + 32, struct.pack("<B3xB3xII", 0, 0x83, 8, 8)), "more than two partitions"),
        (lambda card: patch(card, BOOT, bytes(512)), "partition 1 holds no valid FAT"),
        (lambda card: patch(card, ROOT + 1024, bytes(512)), "partition 2 holds no valid ext2, ext3 or ext4"),
        (lambda card: os.truncate(card, 100 * MIB), "beyond the end"),
        (lambda card: run("mdel", "-i", f"{card}@@{BOOT}", "::/cmdline.txt"), "no cmdline.txt"),
    ],
)
def test_unsupported_card_is_refused(
    damage: Callable[[Path], None], complaint: str, card_copy: Path, run_module: RunModule, tmp_path: Path
) -> None:
    damage(card_copy)
    assert complaint in capture_error(run_module, card_copy)


def test_sectors_of_4096_bytes(card_copy: Path, tmp_path: Path, machine: Machine, run_module: RunModule) -> None:
    table = bytearray(card_copy.read_bytes()[:SECTOR])
    for at in (454, 458, 470, 474):
        struct.pack_into("<I", table, at, struct.unpack_from("<I", table, at)[0] // 8)
    patch(card_copy, 0, bytes(table))
    assert "4,096 bytes" in capture_error(run_module, card_copy)
    disk = run("losetup", "--find", "--show", "--sector-size", "4096", card_copy).strip()
    try:
        assert "4,096 bytes" in run_module("card_capture", module_arguments(Path(disk), tmp_path / "out"))["msg"]
    finally:
        run("losetup", "--detach", disk)


def test_a_card_in_use(card_copy: Path, machine: Machine, run_module: RunModule) -> None:
    disk = machine.loop(card_copy)
    assert "IN USE" in capture_error(run_module, card_copy)
    holder = os.open(disk, os.O_RDONLY | os.O_EXCL)
    try:
        outcome = run_module("card_capture", module_arguments(disk, card_copy.parent))
    finally:
        os.close(holder)
    assert "IN USE" in outcome["msg"] and not (card_copy.parent / "captured.json").exists()


def test_a_disk_is_captured_as_a_file_is(source_card: Path, tmp_path: Path, machine: Machine, run_module: RunModule) -> None:
    outcome = run_module("card_capture", module_arguments(machine.loop(source_card), tmp_path))
    assert outcome["changed"] and outcome["bytes"] < SIZE


def test_image_that_is_too_large(source_card: Path, card_copy: Path, run_module: RunModule) -> None:
    message = capture_error(run_module, card_copy, card_bytes=11 * MIB)
    assert "11,534,336 bytes" in message and "capture_card_bytes" in message and "Nothing was captured" in message
    assert "The image would need a card of" in capture_error(
        run_module, card_copy, card_bytes=30 * MIB
    )  # this size is known only after shrinking


def test_existing_files_are_not_overwritten(card_copy: Path, run_module: RunModule) -> None:
    (card_copy.parent / "out").mkdir()
    (card_copy.parent / "out/captured.img.zst").write_text("precious")
    assert "already exists" in capture_error(run_module, card_copy)
    assert "begins with a letter or digit" in capture_error(run_module, card_copy, name="../captured")


def test_too_little_space(source_card: Path, machine: Machine, run_module: RunModule) -> None:
    full = machine.mount("-t", "tmpfs", "-o", "size=4m", "none")
    message = run_module("card_capture", module_arguments(source_card, full))["msg"]
    assert "No space" in message and "4,194,304 bytes (0.00 GiB) are free" in message and list(full.iterdir()) == []


def test_card_changed_during_capture(card_copy: Path, run_module: RunModule, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Card.read

    def change_card(card: Card, offset: int, length: int) -> bytes:
        os.utime(card_copy, ns=(0, os.stat(card_copy).st_mtime_ns + 1))
        return read(card, offset, length)

    monkeypatch.setattr(Card, "read", change_card)
    outcome = run_module("card_capture", module_arguments(card_copy, card_copy.parent / "out"))
    assert "was changed while it was read" in outcome["msg"] and list((card_copy.parent / "out").iterdir()) == []


def test_files_of_a_killed_capture_are_removed(tmp_path: Path) -> None:
    dead, alive = tmp_path / ".capture-dead", tmp_path / ".capture-alive"
    write_files(tmp_path, {".capture-dead/root.ext": b"secret", ".capture-alive/root.ext": b""})
    fd = os.open(alive, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with private_workspace(tmp_path) as work:
            assert not dead.exists() and alive.exists() and stat.S_IMODE(work.stat().st_mode) == 0o700
        assert not work.exists()
    finally:
        os.close(fd)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_damage_raises_only_bramble_error(source_card: Path, data: st.DataObject) -> None:
    """With any damage in the metadata of a card, inspect_card returns a result or raises BrambleError."""
    folder = Path("/dev/shm" if os.path.isdir("/dev/shm") else "/tmp")
    path = folder / f"bramble-any-{os.getpid()}.img"
    try:
        run("cp", "--sparse=always", "--no-preserve=mode", source_card, path)
        for _ in range(data.draw(st.integers(1, 8))):
            start, length = data.draw(
                st.sampled_from([(440, 72), (BOOT, 64), (BOOT, 4096), (ROOT + 1024, 256), (ROOT, 9 * 1024)])
            )
            patch(path, start + data.draw(st.integers(0, length - 1)), bytes([data.draw(st.integers(0, 255))]))
        with contextlib.suppress(BrambleError), open_card("x", str(path)) as card:
            source = inspect_card(card, MAX_BYTES)
            assert 0 < source.used_bytes <= SIZE
    finally:
        path.unlink(missing_ok=True)


def test_partition_table_gets_the_new_size() -> None:
    table = (
        bytes(446)
        + struct.pack("<B3xB3xII", 0x80, 0x0C, 8, 8)
        + struct.pack("<B3xB3xII", 0, 0x83, 16, 900)
        + bytes(32)
        + b"\x55\xaa"
    )
    boot, root = parse_mbr(resize_root_entry(table, 100 * SECTOR), 200 * SECTOR)
    assert (boot.start, boot.size, root.start, root.size) == (8 * SECTOR, 8 * SECTOR, 16 * SECTOR, 100 * SECTOR)


def test_links_are_followed_and_names_quoted(card_copy: Path, tmp_path: Path) -> None:
    root = RootFileSystem(extract_partition(card_copy, 2, tmp_path / "part"))
    run("debugfs", "-w", "-f", "-", root.path, stdin="mkdir /data\nmkdir /data/log\nsymlink /var/elsewhere /data/log\n")
    assert root.resolve("/var/elsewhere") == "/data/log" and root.entries("/data/log") == {}
    assert root.entries("/data") == {"log": 0o40755}
    assert root.entries("/nowhere") == {} and root.entries("/etc/fstab") == {}
    assert 'a "quoted" näme' in root.entries("/etc/NetworkManager/system-connections")
    assert set(root.glob("/home/*/.*_history")) == {"/home/pi/.bash_history"}
    assert not root.exists("/a\nb")


# The case that led to captures


def test_copy_of_a_larger_card_fits_after_capture(tmp_path: Path, run_module: RunModule) -> None:
    """A 31.2 GB copy of a whole card does not fit one of two "32 GB" cards, but the capture of the same card fits both."""
    whole, small, large = tmp_path / "whole.img", tmp_path / "small.img", tmp_path / "large.img"
    make_card(whole, KEPT, tmp_path, size=31_268_536_320, boot_size=64 * MIB, ext="-b 4096")
    for card, size in ((small, 30_908_350_464), (large, 31_914_983_424)):
        with card.open("wb") as file:
            file.truncate(size)
    cards = [{"node": "pi-01", "slot": str(small)}, {"node": "pi-02", "slot": str(large)}]

    message = run_module("card_write", {"image": str(whole), "image_sha256": "0" * 64, "cards": cards})["msg"]
    assert "Nothing was written: 1 of 2" in message and "TOO SMALL by 360,185,856 bytes" in message
    assert "ansible-playbook playbooks/capture.yml" in message
    assert small.stat().st_blocks == large.stat().st_blocks == 0

    outcome = run_module("card_capture", module_arguments(whole, tmp_path))
    assert not outcome.get("failed"), outcome["msg"]
    assert outcome["bytes"] < 1_000_000_000 and outcome["used_bytes"] < 250 * MIB
    written = run_module(
        "card_write", {"image": outcome["image"], "image_sha256": outcome["sha256"], "cards": cards, "confirm": True}
    )
    assert [result["result"] for result in written["results"]] == ["written", "written"]
    for card in (small, large):
        assert boot_files(card, tmp_path / f"boot-{card.stem}")["config.txt"] == BOOT_FILES["config.txt"]
        start = partitions(card)[1].start
        run("e2fsck", "-fn", f"{card}?offset={start}")
        for name in ("var/lib/data/blob", "etc/fstab"):
            done = subprocess.run(["debugfs", "-R", f"cat /{name}", f"{card}?offset={start}"], capture_output=True, check=True)
            assert done.stdout == KEPT[name]


def test_capture_playbook(source_card: Path, tmp_path: Path) -> None:
    """Run the playbooks as a user does: capture the card of one node, and write the image to the card of another."""
    variables = {
        "cluster_name": "capture-test",
        "cluster_state_dir": str(tmp_path / "state"),
        "cluster_cache_dir": str(tmp_path / "the cache"),
        "card_slot": f"{tmp_path}/{{{{ inventory_hostname }}}}.img",
        "capture_name": "captured",
    }
    run("cp", "--sparse=always", source_card, tmp_path / "pi-01.img")
    several = play("capture", inventory=HARDWARE, variables=variables, arguments="--limit servers", check=False)
    assert "8 nodes of this play have a card_slot" in "".join(several.failed.values())
    dry = play("capture", inventory=HARDWARE, variables=variables, arguments="--limit pi-01 --check")
    assert dry.changes() == ["pi-01: Capture the card"] and not (tmp_path / "the cache").exists()
    done = play("capture", inventory=HARDWARE, variables=variables, arguments="--limit pi-01")
    facts = json.loads((tmp_path / "the cache/images/captured.json").read_text())
    printed = "\n".join(event.get("stdout", "") for event in done.events)
    assert (
        f"{facts['bytes']:,} bytes" in printed and f"-e image_sha256={facts['sha256']}" in printed and "pi-01 compress" in printed
    )
    # The command can be copied: it is a whole line.
    option = f"""-e '{{"image_file": "{tmp_path}/the cache/images/captured.img"}}' -e image_sha256={facts["sha256"]}"""
    pattern = rf"^\W*(\x1b\[[0-9;]*m)?\s*ansible-playbook playbooks/cards.yml {re.escape(option)}\W"
    assert re.search(pattern, printed, re.MULTILINE)
    flash = {
        "image_file": str(tmp_path / "the cache/images/captured.img"),
        "image_sha256": facts["sha256"],
        "card_virtual_bytes": SIZE,
    }
    play("cards", inventory=HARDWARE, variables=variables | flash, arguments="--limit pi-02")
    new = root_files(tmp_path / "pi-02.img", tmp_path / "new")
    assert new["etc/bramble/ssh/ssh_host_ed25519_key"][4] == (tmp_path / "state/host_keys/pi-02").read_bytes()
    assert new["var/lib/data/blob"][4] == KEPT["var/lib/data/blob"]
