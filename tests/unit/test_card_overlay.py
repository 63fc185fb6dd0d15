"""The overlay of a node: the bytes of a card that are not those of its image."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bramble.cluster.plugins.module_utils.card import workbench
from ansible_collections.bramble.cluster.plugins.module_utils.card.content import Content
from ansible_collections.bramble.cluster.plugins.module_utils.card.fat import Fat
from ansible_collections.bramble.cluster.plugins.module_utils.card.image import Image
from ansible_collections.bramble.cluster.plugins.module_utils.card.overlay import build_overlay, set_arguments
from ansible_collections.bramble.cluster.plugins.module_utils.card.root_files import RootFile
from ansible_collections.bramble.cluster.plugins.module_utils.card.workbench import Workbench
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import BLOCK, PAGE
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

from tests.support.tiny_image import BOOT_SIZE, BOOT_START, ROOT_SIZE, ROOT_START, SIZE

KEY = RootFile("/etc/ssh/ssh_host_ed25519_key", "-----BEGIN OPENSSH PRIVATE KEY-----\nnot really\n", 0o600)
FILES = [
    KEY,
    RootFile("/var/lib/new/deep.conf", "a = 1\n", 0o4755),
    RootFile("/etc/hostname", "pi-01\n", 0o644),  # replaces an existing file
    RootFile("/lib/systemd/empty.conf", "", 0o644),  # through a symbolic link to an existing folder
]


def test_overlay_is_the_same_every_time_and_reads_back(image: Path, tmp_path: Path) -> None:
    boot = {"user-data": "#cloud-config\nhostname: pi-01\n", "cmdline.txt": "console=tty1\n"}
    with Image(str(image)) as opened, Workbench(opened, str(tmp_path)) as bench:
        first = build_overlay(bench, boot, FILES)
        build_overlay(bench, {"user-data": "another node\n" * 9999}, [RootFile("/etc/hostname", "pi-02\n", 0o644)])
        assert build_overlay(bench, boot, FILES) == first
        assert build_overlay(bench, {}, []) == {}
        copy = tmp_path / "copy.img"
        content = Content(opened, first)
        copy.write_bytes(os.urandom(content.size))  # unused space can have any content
        with copy.open("r+b") as file:
            for run in content.runs():
                os.pwrite(file.fileno(), content.read(run.offset, run.length), run.offset)
        with Workbench(opened, str(tmp_path)) as other:
            assert Content(opened, build_overlay(other, boot, FILES)).fingerprint == content.fingerprint
        assert Content(opened, {}).fingerprint != content.fingerprint
    assert 0 < sum(map(len, first.values())) < 256 * 1024
    assert os.listdir(tmp_path) == ["copy.img"]  # no working copy is left

    def output(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    for name, text in boot.items():
        assert output("mtype", "-i", f"{copy}@@{BOOT_START}", f"::{name}") == text
    for root_file in FILES:
        assert output("debugfs", "-R", f"cat {root_file.path}", f"{copy}?offset={ROOT_START}") == root_file.content
        stat = output("debugfs", "-R", f"stat {root_file.path}", f"{copy}?offset={ROOT_START}")
        assert f"{root_file.mode:04o} " in stat and "User:     0   Group:     0" in stat
    for folder in ("/var", "/var/lib/new"):
        assert "Mode:  0755" in output("debugfs", "-R", f"stat {folder}", f"{copy}?offset={ROOT_START}")
    output("e2fsck", "-fn", f"{copy}?offset={ROOT_START}")


def test_root_file_does_not_change_the_boot_partition(image: Path, tmp_path: Path) -> None:
    with Image(str(image)) as opened, Workbench(opened, str(tmp_path)) as bench:
        assert min(build_overlay(bench, {}, [KEY])) >= ROOT_START


@pytest.mark.parametrize(
    ("boot", "root", "complaint"),
    [
        ({"../user-data": ""}, [], "boot file name '../user-data'"),
        ({"overlays/x.dtbo": ""}, [], "no folders"),
        ({"user-data": "\ud800"}, [], "half of a surrogate pair"),
        ({"a.txt": "", "A.TXT": ""}, [], "Two files have the same name: a.txt"),
        ({}, [KEY, KEY], "Two files have the same name: /etc/ssh"),
        ({}, [RootFile("etc/motd", "", 0o644)], "absolute"),
        ({}, [RootFile("/etc/../x", "", 0o644)], "absolute"),
        ({}, [RootFile("/etc/a b", "", 0o644)], "absolute"),
        ({}, [RootFile("/etc/x\nrm /etc/hostname", "", 0o644)], "absolute"),
        ({}, [RootFile("/etc/x", "", 0o200000)], "mode 200000"),
        ({}, [RootFile("/etc", "a folder", 0o644)], "root file /etc cannot be written"),
        ({}, [RootFile("/etc/hostname/x", "a file above", 0o644)], "root file /etc/hostname/x cannot be written"),
        ({}, [RootFile("/lib/new/x", "/lib is a symbolic link", 0o644)], "is not a directory"),
        ({"big": "x" * BOOT_SIZE}, [], "boot file big cannot be written .*No space left"),
        ({}, [RootFile("/big", "x" * ROOT_SIZE, 0o644)], "root file /big cannot be written"),
    ],
)
def test_files_that_cannot_be_written(
    image: Path, tmp_path: Path, boot: dict[str, str], root: list[RootFile], complaint: str
) -> None:
    with (
        Image(str(image)) as opened,
        Workbench(opened, str(tmp_path)) as bench,
        pytest.raises(BrambleError, match=complaint),
    ):
        build_overlay(bench, boot, root)


def copy_with(image: Path, path: Path, *, root: Path | None = None, boot: Path | None = None) -> Path:
    """Copy the tiny image to a path, with other file systems in its partitions, and return the path."""
    shutil.copyfile(image, path)
    with path.open("r+b") as file:
        for start, source in ((BOOT_START, boot), (ROOT_START, root)):
            if source:
                file.seek(start)
                file.write(source.read_bytes())
    return path


def extract(image: Path, start: int, size: int, path: Path) -> Path:
    """Copy a range of an image to a file, and return its path."""
    with image.open("rb") as file:
        file.seek(start)
        path.write_bytes(file.read(size))
    return path


def debugfs(path: Path, *requests: str) -> str:
    """Change a file system with debugfs, and return the output."""
    script = "\n".join([*requests, ""])
    return subprocess.run(["debugfs", "-w", "-f", "-", path], input=script, capture_output=True, text=True, check=True).stdout


def written_card(image: Path, folder: Path, boot: dict[str, str], root: list[RootFile], dirt: bytes = b"") -> Path:
    """Return a card with the content of an image and the files of a node; `dirt` is what was on it before, at every page."""
    card = folder / "written.img"
    with Image(str(image)) as opened, Workbench(opened, str(folder)) as bench, card.open("wb") as file:
        content = Content(opened, build_overlay(bench, boot, root))
        file.write((dirt or bytes(PAGE)) * (content.size // PAGE))
        for run in content.runs():
            os.pwrite(file.fileno(), content.read(run.offset, run.length), run.offset)
    return card


def read_root_file(card: Path, path: str) -> str:
    """Return the text of a file on the root file system of a card."""
    command = ["debugfs", "-R", f"cat {path}", f"{card}?offset={ROOT_START}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def running(image: Path, tmp_path: Path, machine: Any) -> Path:
    """The tiny image as dd reads it from a running Pi: its journal has transactions that the next mount replays."""
    mounted, read = tmp_path / "mounted.img", tmp_path / "running.img"
    shutil.copyfile(image, mounted)
    point = machine.mount("-o", f"loop,offset={ROOT_START},sizelimit={ROOT_SIZE}", mounted)
    for number in range(3):
        (point / f"etc/log{number}").write_text("x" * 5000)
        with (point / KEY.path[1:]).open("w") as file:
            file.write("an old key\n")
            file.flush()
            os.fsync(file.fileno())
    shutil.copyfile(mounted, read)
    header = ["dumpe2fs", "-h", f"{read}?offset={ROOT_START}"]
    assert "needs_recovery" in subprocess.run(header, capture_output=True, text=True, check=True).stdout
    return read


def test_journal_is_replayed_before_the_identity_is_laid(running: Path, tmp_path: Path, machine: Any) -> None:
    card = written_card(running, tmp_path, {}, [KEY])
    header = ["dumpe2fs", "-h", f"{card}?offset={ROOT_START}"]
    assert "needs_recovery" not in subprocess.run(header, capture_output=True, text=True, check=True).stdout
    point = machine.mount("-o", f"loop,offset={ROOT_START},sizelimit={ROOT_SIZE}", card)
    assert (point / KEY.path[1:]).read_text() == KEY.content


def test_overlay_of_a_replayed_journal_is_the_same_every_time(running: Path, tmp_path: Path) -> None:
    with Image(str(running)) as opened:
        with Workbench(opened, str(tmp_path)) as bench:
            first = build_overlay(bench, {}, [KEY])
            build_overlay(bench, {}, [RootFile("/etc/x", "x" * 9999, 0o600)])
            assert build_overlay(bench, {}, [KEY]) == first
        with Workbench(opened, str(tmp_path)) as bench:
            assert build_overlay(bench, {}, [KEY]) == first


def test_orphaned_inodes_are_removed_before_the_identity_is_laid(image: Path, tmp_path: Path, machine: Any) -> None:
    """The next mount removes a file that was open when it was deleted, and frees its blocks."""
    mounted, read = tmp_path / "mounted.img", tmp_path / "orphan.img"
    shutil.copyfile(image, mounted)
    point = machine.mount("-o", f"loop,offset={ROOT_START},sizelimit={ROOT_SIZE}", mounted)
    with (point / "blob").open("rb"):
        (point / "blob").unlink()
        os.sync()
        shutil.copyfile(mounted, read)
    card = written_card(read, tmp_path, {}, [KEY])
    header = subprocess.run(["dumpe2fs", "-h", f"{card}?offset={ROOT_START}"], capture_output=True, text=True, check=True).stdout
    assert "orphan" not in header.replace("orphan_file", "")
    subprocess.run(["e2fsck", "-fn", f"{card}?offset={ROOT_START}"], check=True, capture_output=True)
    assert read_root_file(card, KEY.path) == KEY.content


def test_files_are_laid_in_a_file_system_with_inline_data(image: Path, tmp_path: Path, machine: Any) -> None:
    root = make_root(tmp_path / "root.ext", "-O inline_data")
    files = [KEY, RootFile("/etc/short", "x", 0o644), RootFile("/etc/empty", "", 0o644), RootFile("/etc/long", "y" * 9000, 0o644)]
    card = written_card(copy_with(image, tmp_path / "inline.img", root=root), tmp_path, {}, files)
    point = machine.mount("-o", f"loop,ro,offset={ROOT_START},sizelimit={ROOT_SIZE}", card)
    assert [(point / file.path[1:]).read_text() for file in files] == [file.content for file in files]


def test_damaged_root_file_system_is_refused(image: Path, tmp_path: Path) -> None:
    """Only a file in it is refused: without one, it is copied whole."""
    root = extract(image, ROOT_START, ROOT_SIZE, tmp_path / "root.ext")
    debugfs(root, "clri /etc")
    broken = copy_with(image, tmp_path / "broken.img", root=root)
    with Image(str(broken)) as opened, Workbench(opened, str(tmp_path)) as bench:
        assert build_overlay(bench, {"user-data": "x"}, [])
        with pytest.raises(BrambleError, match=r"is not a clean ext4 file system: .*e2fsck -f '"):
            build_overlay(bench, {}, [KEY])
    card = written_card(broken, tmp_path, {}, [], dirt=b"\xa5" * PAGE)
    assert extract(card, ROOT_START, ROOT_SIZE, tmp_path / "read.ext").read_bytes() == root.read_bytes()


def make_root(path: Path, options: str) -> Path:
    """Create an ext4 file system with options of mke2fs for the root partition, and return its path."""
    with path.open("wb") as file:
        file.truncate(ROOT_SIZE)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", *options.split(), path], check=True)
    return path


@pytest.mark.parametrize(
    ("options", "request_", "sign"),
    [
        ("-O orphan_file", "feature orphan_present", "orphan_present"),
        ("-b 4096", "set_super_value last_orphan 11", "First orphan inode"),
    ],
)
def test_signs_of_orphans_are_removed(image: Path, tmp_path: Path, options: str, request_: str, sign: str) -> None:
    root = make_root(tmp_path / "root.ext", options)
    debugfs(root, request_)
    card = written_card(copy_with(image, tmp_path / "orphan.img", root=root), tmp_path, {}, [KEY])
    header = ["dumpe2fs", "-h", f"{card}?offset={ROOT_START}"]
    assert sign not in subprocess.run(header, capture_output=True, text=True, check=True).stdout
    assert read_root_file(card, KEY.path) == KEY.content


def test_quotas_are_counted_again(image: Path, tmp_path: Path) -> None:
    """debugfs does not count the files that it writes."""
    root = make_root(tmp_path / "root.ext", "-O quota -E quotatype=usrquota:grpquota:prjquota")
    quota = copy_with(image, tmp_path / "quota.img", root=root)
    card = written_card(quota, tmp_path, {}, [KEY], dirt=b"\xa5" * PAGE)
    subprocess.run(["e2fsck", "-fn", f"{card}?offset={ROOT_START}"], check=True, capture_output=True)
    assert read_root_file(card, KEY.path) == KEY.content
    with Image(str(quota)) as opened:
        assert Content(opened, {}).needed_bytes < opened.size
        overlays = []
        for _ in range(2):
            with Workbench(opened, str(tmp_path)) as bench:
                overlays.append(build_overlay(bench, {}, [KEY]))
        assert overlays[0] == overlays[1]


def test_only_files_in_a_root_file_system_with_mmp_are_refused(image: Path, tmp_path: Path) -> None:
    mmp = copy_with(image, tmp_path / "mmp.img", root=make_root(tmp_path / "root.ext", "-O mmp"))
    with (
        Image(str(mmp)) as opened,
        Workbench(opened, str(tmp_path)) as bench,
        pytest.raises(BrambleError, match=r"Partition 2 of .* has the feature mmp, .* tune2fs -O \^mmp"),
    ):
        build_overlay(bench, {}, [KEY])
    card = written_card(mmp, tmp_path, {"user-data": "x"}, [], dirt=b"\xa5" * PAGE)
    assert card.read_bytes()[ROOT_START:] == mmp.read_bytes()[ROOT_START:]


@pytest.mark.parametrize("arguments", [{}, {"root": "/dev/mmcblk0p2"}])
def test_only_files_in_a_fat_with_three_tables_are_refused(image: Path, tmp_path: Path, arguments: dict[str, str]) -> None:
    boot = tmp_path / "boot.fat"
    boot.write_bytes(bytes(BOOT_SIZE))
    subprocess.run(["mkfs.vfat", "-f", "3", boot], check=True, capture_output=True)
    three = copy_with(image, tmp_path / "three.img", boot=boot)
    with (
        Image(str(three)) as opened,
        Workbench(opened, str(tmp_path)) as bench,
        pytest.raises(BrambleError, match=r"Partition 1 of .* has 3 copies of its file allocation table, .* mkfs.vfat"),
    ):
        build_overlay(bench, {} if arguments else {"user-data": "x"}, [KEY], arguments)
    card = written_card(three, tmp_path, {}, [KEY], dirt=b"\xa5" * PAGE)
    assert extract(card, BOOT_START, BOOT_SIZE, tmp_path / "read.fat").read_bytes() == boot.read_bytes()
    assert read_root_file(card, KEY.path) == KEY.content


def test_free_blocks_with_the_bytes_of_a_file_are_written(image: Path, tmp_path: Path) -> None:
    """The image was in a node before: its free blocks still hold the host key that is laid now."""
    key = RootFile(KEY.path, "k" * 800 * 1024, 0o600)  # so large that it needs blocks that the image does not use
    with Image(str(image)) as opened, Workbench(opened, str(tmp_path)) as bench:
        overlay = build_overlay(bench, {"user-data": "u" * 3 * PAGE}, [key])
    stale = tmp_path / "stale.img"
    shutil.copyfile(image, stale)
    with Image(str(image)) as opened, stale.open("r+b") as file:
        assert sum(offset // BLOCK not in opened.needed_blocks for offset in overlay) > 100
        for offset, data in overlay.items():
            if offset // BLOCK not in opened.needed_blocks:
                file.seek(offset)
                file.write(data)
    with Image(str(stale)) as opened, Workbench(opened, str(tmp_path)) as bench:
        again = build_overlay(bench, {"user-data": "u" * 3 * PAGE}, [key])
        assert {offset: again.get(offset) for offset in overlay} == overlay
    card = written_card(stale, tmp_path, {"user-data": "u" * 3 * PAGE}, [key], dirt=b"\xa5" * PAGE)
    assert read_root_file(card, key.path) == key.content
    boot = subprocess.run(["mtype", "-i", f"{card}@@{BOOT_START}", "::user-data"], capture_output=True, text=True, check=True)
    assert boot.stdout == "u" * 3 * PAGE


def fill_free_blocks(image: Path) -> None:
    """Fill the blocks that no file system uses with the letter k."""
    with Image(str(image)) as opened, image.open("r+b") as file:
        for block in sorted(set(range(opened.size // BLOCK)) - opened.needed_blocks):
            file.seek(block * BLOCK)
            file.write(b"k" * BLOCK)


@pytest.mark.parametrize("part", ["boot", "root"])
def test_blocks_that_only_one_file_system_newly_uses_are_written(image: Path, tmp_path: Path, part: str) -> None:
    """The image has the same bytes there, but not the card. The partitions begin and end inside of a page."""
    odd = tmp_path / "odd.img"
    shift = 3 * 512
    content = image.read_bytes()
    with odd.open("wb") as file:
        file.truncate(SIZE + 5 * 512)
        file.write(content[:BOOT_START] + bytes(shift) + content[BOOT_START : ROOT_START + ROOT_SIZE])
    table = f"start={(BOOT_START + shift) // 512}, size={BOOT_SIZE // 512}, type=c\n"
    table += f"start={(ROOT_START + shift) // 512}, size={ROOT_SIZE // 512}, type=83\n"
    subprocess.run(["sfdisk", "-q", "--no-reread", odd], input=table.encode(), check=True)
    fill_free_blocks(odd)
    text = "k" * (3 if part == "boot" else 6) * 2**20
    boot, root = ({"letters": text}, []) if part == "boot" else ({}, [RootFile("/letters", text, 0o600)])
    with Image(str(odd)) as opened, Workbench(opened, str(tmp_path)) as bench:
        overlay = build_overlay(bench, boot, root)
        new = {offset: data for offset, data in overlay.items() if offset // BLOCK not in opened.needed_blocks}
        assert len(new) > 100 and {len(data) for data in new.values()} == {PAGE}
        assert {offset // BLOCK for offset in new} <= set(range(ROOT_START // BLOCK)) or part == "root"
    card = written_card(odd, tmp_path, boot, root, dirt=b"\xa5" * PAGE)
    if part == "boot":
        read = ["mtype", "-i", f"{card}@@{BOOT_START + shift}", "::letters"]
    else:
        read = ["debugfs", "-R", "cat /letters", f"{card}?offset={ROOT_START + shift}"]
    assert subprocess.run(read, capture_output=True, check=True).stdout == text.encode()


def test_newly_used_pages_are_those_of_the_used_ranges(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A range can begin and end inside of a block."""
    with Image(str(image)) as opened, Workbench(opened, str(tmp_path)) as bench:
        free = next(block for block in range(ROOT_START // BLOCK, SIZE // BLOCK) if not {block, block + 1} & opened.needed_blocks)
        low, high = free * BLOCK + 3 * PAGE, (free + 1) * BLOCK + 2 * PAGE
        monkeypatch.setattr(workbench, "used_ranges", lambda fd, part, **_: [(low, high)] if part == bench.root else [])
        assert [offset for offset, _ in bench._newly_used_pages()] == list(range(low, high, PAGE))


def test_blocks_of_the_root_are_written_though_the_boot_partition_is_copied_whole(image: Path, tmp_path: Path) -> None:
    boot = extract(image, BOOT_START, BOOT_SIZE, tmp_path / "boot.fat")
    with boot.open("r+b") as file:
        fat = Fat.parse(file.read(512))
        file.seek((fat.reserved_sectors + fat.table) * fat.sector_size + 90)
        file.write(b"\xff")  # the copies of the table differ
    whole = copy_with(image, tmp_path / "whole.img", boot=boot)
    fill_free_blocks(whole)
    text = "k" * 6 * 2**20
    card = written_card(whole, tmp_path, {}, [RootFile("/letters", text, 0o600)], dirt=b"\xa5" * PAGE)
    assert read_root_file(card, "/letters") == text


@pytest.fixture
def small_fat32(image: Path, tmp_path: Path) -> Path:
    """The tiny image with a FAT32 boot partition that has fewer clusters than mtools demands of FAT32."""
    boot = tmp_path / "boot.fat"
    with boot.open("wb") as file:
        file.truncate(BOOT_SIZE)
    subprocess.run(["mkfs.vfat", "-F", "32", "-s", "1", "-S", "512", boot], check=True, capture_output=True)
    return copy_with(image, tmp_path / "fat32.img", boot=boot)


def test_small_fat32_is_written(small_fat32: Path, tmp_path: Path) -> None:
    files = {"user-data": "#cloud-config\n" + "x" * 5000, "meta-data": "instance-id: 1\n"}
    card = written_card(small_fat32, tmp_path, files, [], dirt=b"\xa5" * PAGE)
    boot = extract(card, BOOT_START, BOOT_SIZE, tmp_path / "read.fat")
    check = subprocess.run(["fsck.vfat", "-n", "-v", boot], capture_output=True, text=True, check=False)
    assert check.returncode == 0 and "2 files" in check.stdout and "FAT32" in check.stdout + check.stderr
    contents = boot.read_bytes()
    assert all(text.encode() in contents for text in files.values())


def test_small_fat32_is_written_whatever_its_hint(small_fat32: Path, tmp_path: Path) -> None:
    """Its FSInfo sector says that the next free cluster is the last one, so mtools would go on behind the file system."""
    with small_fat32.open("r+b") as file:
        file.seek(BOOT_START)
        fat = Fat.parse(file.read(512))
        file.seek(BOOT_START + 512 + 492)
        file.write(struct.pack("<I", fat.clusters + 1))
    text = "x" * 5000
    card = written_card(small_fat32, tmp_path, {"user-data": text}, [])
    assert text.encode() in extract(card, BOOT_START, BOOT_SIZE, tmp_path / "read.fat").read_bytes()


@pytest.mark.parametrize(
    ("excess", "complaint"),
    [
        (1, r"boot partition of .* is full, so the files of the node cannot be written"),
        (BOOT_SIZE, r"boot file big cannot be written to partition 1 of .*: No space left"),
    ],
)
def test_full_small_fat32_is_refused(small_fat32: Path, tmp_path: Path, excess: int, complaint: str) -> None:
    """mtools writes behind the end of the file system, where other data is."""
    fat = Fat.parse(extract(small_fat32, BOOT_START, 512, tmp_path / "sector").read_bytes())
    text = "x" * ((fat.clusters - 1) * fat.sectors_per_cluster * fat.sector_size + excess)  # one cluster is the top folder
    with (
        Image(str(small_fat32)) as opened,
        Workbench(opened, str(tmp_path)) as bench,
        pytest.raises(BrambleError, match=complaint),
    ):
        build_overlay(bench, {"big": text}, [])


def test_damaged_boot_file_system_is_refused(image: Path, tmp_path: Path) -> None:
    """A cluster that a file has and that is free in the FAT would be given to the identity."""
    boot = extract(image, BOOT_START, BOOT_SIZE, tmp_path / "boot.fat")
    kernel = tmp_path / "kernel8.img"
    kernel.write_bytes(b"K" * 10_000)
    subprocess.run(["mcopy", "-i", boot, kernel, "::kernel8.img"], check=True)
    with boot.open("r+b") as file:
        fat = Fat.parse(file.read(512))
        assert fat.bits == 12
        for copy in range(fat.copies):
            file.seek((fat.reserved_sectors + copy * fat.table) * fat.sector_size + 3)
            file.write(bytes(6))  # the entries of clusters 2 to 5
    damaged = copy_with(image, tmp_path / "damaged.img", boot=boot)
    with (
        Image(str(damaged)) as opened,
        Workbench(opened, str(tmp_path)) as bench,
        pytest.raises(BrambleError, match=r"Partition 1 of .* cannot get the files of a node: its FAT file system is damaged"),
    ):
        build_overlay(bench, {"user-data": "x"}, [])


def test_boot_file_system_of_a_running_system_is_accepted(image: Path, tmp_path: Path) -> None:
    boot = extract(image, BOOT_START, BOOT_SIZE, tmp_path / "boot.fat")
    with boot.open("r+b") as file:
        file.seek(37)  # the state of a FAT12 or FAT16: Microsoft's specification, BS_Reserved1
        file.write(b"\1")
    in_use = copy_with(image, tmp_path / "in_use.img", boot=boot)
    card = written_card(in_use, tmp_path, {"user-data": "x"}, [])
    content = subprocess.run(["mtype", "-i", f"{card}@@{BOOT_START}", "::user-data"], capture_output=True, check=True).stdout
    assert content == b"x"


def test_folder_with_the_name_of_a_boot_file_is_refused(image: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder.img"
    shutil.copyfile(image, folder)
    subprocess.run(["mmd", "-i", f"{folder}@@{BOOT_START}", "::User-Data"], check=True)
    with (
        Image(str(folder)) as opened,
        Workbench(opened, str(tmp_path)) as bench,
        pytest.raises(BrambleError, match=r"user-data cannot be written .* because a folder has this name"),
    ):
        build_overlay(bench, {"user-data": ""}, [])


def test_missing_tool_is_named(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Image(str(image)) as opened, Workbench(opened, str(tmp_path)) as bench:
        monkeypatch.setattr(workbench, "_TOOL_ENV", {"PATH": str(tmp_path)})
        with pytest.raises(BrambleError, match="apt-get install mtools"):
            build_overlay(bench, {"user-data": ""}, [])
        with pytest.raises(BrambleError, match="apt-get install e2fsprogs"):
            build_overlay(bench, {}, [KEY])


# What the tools do wrong


Result = subprocess.CompletedProcess[bytes]


@pytest.fixture
def change_run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets a program of the workbench fail: change_run("mcopy", result=...) changes its result, and stdin=... its input."""

    def change(
        name: str, result: Callable[[Result], Result] = lambda same: same, stdin: Callable[[bytes], bytes] = bytes
    ) -> None:
        real = Workbench.run

        def run(self: Workbench, *command: str, **options: Any) -> Result:
            if command[0] != name:
                return real(self, *command, **options)
            if "stdin" in options:
                options["stdin"] = stdin(options["stdin"])
            return result(real(self, *command, **options))

        monkeypatch.setattr(Workbench, "run", run)

    return change


def test_boot_file_that_mcopy_reports_as_failed(image: Path, tmp_path: Path, change_run: Callable[..., None]) -> None:
    """Although it is read back right."""
    change_run("mcopy", result=lambda same: Result(same.args, 1, b"", b"plain_io: Input/output error\n"))
    with (
        Image(str(image)) as opened,
        Workbench(opened, str(tmp_path)) as bench,
        pytest.raises(BrambleError, match=r"boot file user-data cannot be written .*: plain_io: Input/output error"),
    ):
        build_overlay(bench, {"user-data": "x"}, [])


def test_file_system_that_debugfs_damages(image: Path, tmp_path: Path, change_run: Callable[..., None]) -> None:
    """Although each file is read back right."""
    change_run("debugfs", stdin=lambda script: script + b"set_inode_field <2> links_count 99\n")
    with (
        Image(str(image)) as opened,
        Workbench(opened, str(tmp_path)) as bench,
        pytest.raises(BrambleError, match="is not a clean ext4 file system: Inode 2 ref count is 99"),
    ):
        build_overlay(bench, {}, [KEY])


def test_files_belong_to_root_whatever_debugfs_sets(image: Path, tmp_path: Path, change_run: Callable[..., None]) -> None:
    """As a version would that copies the owner of its source."""
    owner = rb"\1set_inode_field \2 uid 1000\nset_inode_field \2 gid 1000\n"
    change_run("debugfs", stdin=lambda script: re.sub(rb"(write \S+ (\S+)\n)", owner, script))
    card = written_card(image, tmp_path, {}, [KEY])
    stat = ["debugfs", "-R", f"stat {KEY.path}", f"{card}?offset={ROOT_START}"]
    assert "User:     0   Group:     0" in subprocess.run(stat, capture_output=True, text=True, check=True).stdout


def test_comments_of_the_command_line_are_not_changed() -> None:
    text = "# root=/dev/sda2\n  # root=/dev/sdb2\nroot=/dev/sdc2 quiet # root\n"
    assert set_arguments(text, {"root": "/dev/x"}) == text.replace("/dev/sdc2", "/dev/x")
