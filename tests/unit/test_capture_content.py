"""Capture, then write: the new card has the same bytes that matter, whatever file systems the old one has."""

from __future__ import annotations

import os
import random
import stat
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bramble.cluster.plugins.module_utils.capture.boot_file_system import remove_boot_identity
from ansible_collections.bramble.cluster.plugins.module_utils.capture.fat_tree import FatFile, FatTree
from ansible_collections.bramble.cluster.plugins.module_utils.capture.identity import find_identity
from ansible_collections.bramble.cluster.plugins.module_utils.capture.root_file_system import RootFileSystem
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import Machine, Run
from .test_card_capture import capture_error, extract_partition, module_arguments, partitions, patch, run

MIB = 2**20
START = MIB  # the offset of the boot partition
GAP = MIB  # between the partitions
TAIL = 2 * MIB  # behind the root partition
CMDLINE = b"console=tty1 root=PARTUUID=0badcafe-02 rootwait\n"
NEW_CMDLINE = b"console=tty1 root=PARTUUID=0badcafe-02 rootwait resize\n"
SECRET = b"a secret of this node"


def make_fat(path: Path, options: str = "-F 16 -s 1 -n BOOT", size: int = 8 * MIB) -> Path:
    """Create a FAT file system with a cmdline.txt."""
    with path.open("wb") as file:
        file.truncate(size)
    run("mkfs.vfat", *options.split(), path)
    cmdline = path.with_name("cmdline.txt")
    cmdline.write_bytes(CMDLINE)
    run("mcopy", "-i", path, cmdline, "::/")
    return path


def make_ext(path: Path, tree: Path, options: str = "-t ext4 -b 1024", size: int = 24 * MIB) -> Path:
    """Create an ext file system with the files of a folder."""
    path.unlink(missing_ok=True)
    run("mke2fs", "-q", "-F", *options.split(), "-d", tree, path, f"{size // 1024}k")
    return path


def make_card(path: Path, boot: Path, root: Path, gap: int = GAP) -> Path:
    """Create a card of two file systems, with random bytes outside of them where boot loaders are."""
    root_start = START + boot.stat().st_size + gap
    size = root_start + root.stat().st_size + TAIL
    with path.open("wb") as file:
        file.truncate(size)
    table = f"start={START // 512}, size={boot.stat().st_size // 512}, type=c\n"
    table += f"start={root_start // 512}, size={root.stat().st_size // 512}, type=83\n"
    run("sfdisk", "-q", path, stdin=f"label: dos\nlabel-id: 0x0badcafe\n{table}")
    for source, start in ((boot, START), (root, root_start)):
        run("dd", f"if={source}", f"of={path}", "bs=64K", "oflag=seek_bytes", f"seek={start}", "conv=notrunc,sparse")
    loader = random.Random(1).randbytes
    patch(path, 0, loader(440))
    patch(path, 512, loader(300_000))  # a boot loader such as U-Boot's, which begins at sector 1
    patch(path, START - 512, loader(512))
    if gap:
        patch(path, START + boot.stat().st_size, loader(5000))
        patch(path, root_start - 512, loader(512))
    return path


def write_card(run_module: Run, outcome: dict[str, Any], card: Path) -> Path:
    """Write a captured image to a new file card, which is larger than the image."""
    assert not outcome.get("failed"), outcome["msg"]
    with card.open("wb") as file:
        file.truncate(outcome["bytes"] + 3 * MIB)
    batch = {"image": outcome["image"], "image_sha256": outcome["sha256"], "confirm": True}
    written = run_module("card_write", {**batch, "cards": [{"node": "pi-02", "slot": str(card)}]})
    assert [result["result"] for result in written["results"]] == ["written"], written
    return card


def tree_of(files: Mapping[str, bytes], folder: Path) -> Path:
    """Write files to a new folder, content by path."""
    for name, content in {"etc/hostname": b"pi-01\n", **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(autouse=True, scope="module")
def utf8_locale() -> Iterator[None]:
    """The locale by which mtools names files."""
    with pytest.MonkeyPatch.context() as patch_environment:
        patch_environment.setenv("LC_ALL", "C.UTF-8")
        yield


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root file system with few files."""
    return make_ext(tmp_path / "root.part", tree_of({"var/log/syslog": SECRET}, tmp_path / "tree"))


def fat_listing(path: Path) -> dict[str, tuple[bytes, bytes]]:
    """Return the records and the content of each file and folder of a FAT file system, by path.

    The records are read by the code under test, but their paths and contents must be those that mtools finds. mcopy (4.0.32)
    ignores that a short name is in lower case if it is not ASCII, so the case of letters is not compared here.
    """
    with tempfile.TemporaryDirectory() as folder, FatTree(path) as tree:
        run("mcopy", "-s", "-n", "-Q", "-i", path, "::/", folder)
        found = {}
        paths = {os.fspath(item.relative_to(folder)).lower(): item for item in Path(folder).rglob("*")}
        for name, file in tree.walk():
            content = b"" if file.is_folder else paths[name.lower()].read_bytes()
            assert file.is_folder or tree.read(file) == content
            found[name] = (file.long_records + bytes(file.record), content)
    assert set(paths) == {name.lower() for name in found}
    return found


# The boot file system

GEOMETRIES = [
    "-F 12 -s 8 -n FAT12",
    "-F 12 -s 8 -f 1 -r 64 -n TWELVE",
    "-F 16 -s 1 -R 3 -h 2048 -n SIXTEEN",
    "-F 16 -s 2 -f 1 -n ONE",
    "-F 16 -S 1024 -s 1 -n KIB",
    "-F 12 -S 4096 -s 1 -n SECTOR4K",
    "-F 12 -S 2048 -s 2 -R 7",
]


@pytest.mark.parametrize("options", GEOMETRIES)
def test_any_fat_geometry_is_kept(options: str, tmp_path: Path, root: Path, run_module: Run) -> None:
    boot = make_fat(tmp_path / "boot.part", options)
    (tmp_path / "userconf.txt").write_bytes(SECRET * 500)
    (tmp_path / "kernel.img").write_bytes(os.urandom(70_001))
    run("mcopy", "-i", boot, tmp_path / "userconf.txt", tmp_path / "kernel.img", "::/")
    patch(boot, 90, b"\xb8\x13\x00boot code")
    card = make_card(tmp_path / "pi-01.img", boot, root)
    outcome = run_module("card_capture", module_arguments(card, tmp_path / "out"))
    new = extract_partition(write_card(run_module, outcome, tmp_path / "pi-02.img"), 1, tmp_path / "new.part")
    run("fsck.vfat", "-n", new)
    before, after = fat_listing(boot), fat_listing(new)
    assert after.pop("cmdline.txt")[1] == NEW_CMDLINE
    assert before.pop("userconf.txt") and before.pop("cmdline.txt")
    assert after == before and len(after) == 1
    assert new.read_bytes()[:512] == boot.read_bytes()[:512] and b"boot code" in new.read_bytes()[:512]
    assert SECRET in boot.read_bytes() and SECRET not in new.read_bytes() and b"USERCONF" not in new.read_bytes()


def test_fat32_keeps_its_information_sector(tmp_path: Path, root: Path, run_module: Run) -> None:
    boot = make_fat(tmp_path / "boot.part", "-F 32 -s 1 -n bootfs", 36 * MIB)
    (tmp_path / "ssh.txt").write_bytes(SECRET * 500)
    run("mcopy", "-i", boot, tmp_path / "ssh.txt", "::/")
    patch(boot, 65, b"\x01")  # the Pi was unplugged
    outcome = run_module("card_capture", module_arguments(make_card(tmp_path / "pi-01.img", boot, root), tmp_path / "out"))
    new = extract_partition(Path(outcome["image"]), 1, tmp_path / "new.part")
    assert not {"Dirty", "differences", "summary"} & set(run("fsck.vfat", "-n", new).replace(":", " ").split())
    assert run("fatlabel", new) == run("fatlabel", boot).splitlines(keepends=True)[-1] == "bootfs\n"
    data = new.read_bytes()
    assert SECRET not in data and data[:512] == data[6 * 512 : 7 * 512]


@pytest.mark.parametrize("options", ["-F 32 -s 1 -n SMALL32", "-F 32 -s 2 -f 1 -R 9 -S 1024"])
def test_fat32_with_few_clusters(options: str, tmp_path: Path, root: Path, run_module: Run) -> None:
    """Linux reads these, but mtools (4.0.32) does not: the file is written by hand, to the cluster behind the top folder's."""
    with (boot := tmp_path / "boot.part").open("wb") as file:
        file.truncate(8 * MIB)
    run("mkfs.vfat", *options.split(), boot)
    with FatTree(boot) as tree:
        fat = tree._fat
    record = b"CMDLINE TXT\x01\x18" + bytes(13) + struct.pack("<HI", 3, len(CMDLINE))
    start = fat.data * fat.sector_size
    patch(boot, start + 32, record)
    patch(boot, start + fat.sectors_per_cluster * fat.sector_size, CMDLINE + SECRET)
    for copy in range(fat.copies):
        patch(boot, (fat.reserved_sectors + copy * fat.table) * fat.sector_size + 12, struct.pack("<I", 0x0FFFFFFF))
    patch(boot, fat.sector_size + 488, b"\xff" * 4)  # the number of free clusters is unknown
    if "-n" not in options:
        patch(boot, start, record + bytes(32))
    run("fsck.vfat", "-n", boot)
    outcome = run_module("card_capture", module_arguments(make_card(tmp_path / "pi-01.img", boot, root), tmp_path / "out"))
    new = extract_partition(write_card(run_module, outcome, tmp_path / "pi-02.img"), 1, tmp_path / "new.part")
    run("fsck.vfat", "-n", new)
    with FatTree(new) as tree:
        ((name, found),) = tree.walk()
        assert (name, tree.read(found), found.record[:14]) == ("cmdline.txt", NEW_CMDLINE, record[:14])
    assert SECRET not in new.read_bytes()
    before = boot.read_bytes()[:512]
    assert new.read_bytes()[:512] == before


LABELS = {
    "none": lambda boot: None,
    "in the boot sector only": lambda boot: patch(boot, 43, b"SECTOR ONLY"),
    "lower case": lambda boot: run("fatlabel", boot, "boot fs"),
    "code page 850": lambda boot: patch_label(boot, b"B\x9aROT \x8e    "),
    "in the folder only": lambda boot: patch_label(boot, b"FOLDER ONLY", b"NO NAME    "),
}


def patch_label(boot: Path, label: bytes, sector: bytes | None = None) -> None:
    """Write a volume label to the folder and the boot sector of a FAT16 file system that has the label PLACEHOLDER."""
    run("fatlabel", boot, "PLACEHOLDER")
    patch(boot, boot.read_bytes().index(b"PLACEHOLDER", 512), label)
    patch(boot, 43, sector or label)


@pytest.mark.parametrize("kind", LABELS)
def test_any_label_is_kept(kind: str, tmp_path: Path, root: Path, run_module: Run) -> None:
    boot = make_fat(tmp_path / "boot.part", "-F 16 -s 1 -i 12345678")
    LABELS[kind](boot)

    def labels(path: Path) -> tuple[bytes, list[bytes]]:
        with FatTree(path) as tree:
            return path.read_bytes()[39:62], [bytes(file.record) for file in tree.root.members if file.is_label]

    card = make_card(tmp_path / "pi-01.img", boot, root)
    outcome = run_module("card_capture", module_arguments(card, tmp_path / "out"))
    assert not outcome.get("failed"), outcome["msg"]
    new = extract_partition(Path(outcome["image"]), 1, tmp_path / "new.part")
    assert labels(new) == labels(boot)
    assert len(labels(new)[1]) == (kind in ("lower case", "code page 850", "in the folder only"))


def test_fat_attributes_names_and_times_are_kept(tmp_path: Path, root: Path, run_module: Run) -> None:
    boot = make_fat(tmp_path / "boot.part")
    files = tmp_path / "files"
    deep = files / "/".join(["a folder with a long name"] * 4) / "leaf.bin"
    deep.parent.mkdir(parents=True)
    deep.write_bytes(os.urandom(5000))
    for name in (
        "empty",
        "lower.txt",
        "UPPER.TXT",
        "Mixed Case.Text",
        "ünïcödé – ☃.dtb",
        "long name one.txt",
        "long name two.txt",
    ):
        (files / name).write_bytes(b"" if name == "empty" else name.encode() * 99)
    (files / "empty folder").mkdir()
    for number, path in enumerate(sorted(files.rglob("*"), reverse=True)):
        os.utime(path, (1_000_000_000 + number * 7777, 1_000_000_000 + number * 7777))
    run("mcopy", "-s", "-m", "-Q", "-i", boot, *sorted(files.iterdir()), "::/")
    run("mattrib", "-i", boot, "+r", "+h", "+s", "::/lower.txt", "::/empty folder")
    run("mattrib", "-i", boot, "-a", "::/UPPER.TXT", "::/cmdline.txt")
    run("mattrib", "-i", boot, "+r", "+h", "::/cmdline.txt")
    with FatTree(boot) as tree:
        record = next(bytes(file.record) for file in tree.root.members if file.name == "UPPER.TXT")
    at = boot.read_bytes().index(record)
    patch(boot, at + 12, b"\x18" + b"\x63" + struct.pack("<HH", 0x6789, 0x4A21))  # lower case, and the time of creation
    run("fsck.vfat", "-n", boot)
    outcome = run_module("card_capture", module_arguments(make_card(tmp_path / "pi-01.img", boot, root), tmp_path / "out"))
    new = extract_partition(write_card(run_module, outcome, tmp_path / "pi-02.img"), 1, tmp_path / "new.part")
    before, after = fat_listing(boot), fat_listing(new)
    assert "upper.txt" in after and "ünïcödé – ☃.dtb" in after and len(after) == len(before) == 14
    old_record, new_record = before.pop("cmdline.txt")[0], after.pop("cmdline.txt")[0]
    assert before == after
    assert new_record[:26] == old_record[:26] and new_record[11] == 0x03  # read-only and hidden, as before
    listings = [run("mdir", "-/", "-a", "-i", part, "::/").replace(str(part), "") for part in (boot, new)]
    changed = [line for line in listings[0].splitlines() if line not in listings[1].splitlines()]
    assert all("cmdline" in line or "bytes" in line for line in changed), changed


def test_deleted_names_and_slack_are_erased(tmp_path: Path) -> None:
    boot = make_fat(tmp_path / "boot.part", "-F 16 -s 2", 12 * MIB)
    for name, content in (("gone.txt", SECRET * 9000), ("config.txt", b"arm_64bit=1\n")):
        (tmp_path / name).write_bytes(content)
        run("mcopy", "-i", boot, tmp_path / name, "::/")
    run("mmd", "-i", boot, "::/overlays")
    run("mcopy", "-i", boot, tmp_path / "gone.txt", "::/overlays/long secret name.txt")
    run("mdel", "-i", boot, "::/gone.txt", "::/overlays/long secret name.txt")
    at = boot.read_bytes().index(b"arm_64bit=1\n") + 12
    patch(boot, at, SECRET)  # behind the end of the file, within its cluster
    with FatTree(boot) as tree:
        (config,) = (file for file in tree.root.members if file.name == "config.txt")
        bad = tree._fat.clusters  # the last but one
    patch(boot, 512 * tree._fat.reserved_sectors + bad * 2, b"\xf7\xff")
    patch(boot, 512 * (tree._fat.reserved_sectors + tree._fat.table) + bad * 2, b"\xf7\xff")
    assert remove_boot_identity(boot, {}) == ["cmdline.txt"]
    data = boot.read_bytes()
    assert b"ONG SECRE" not in data and b"ONE    TXT" not in data and "secret".encode("utf-16-le") not in data
    assert data[at : at + len(SECRET)] == bytes(len(SECRET))
    assert data[512 * tree._fat.reserved_sectors + bad * 2 :][:2] == b"\0\0"  # marks of bad blocks are those of the old card
    assert config.size == 12 and fat_listing(boot)["config.txt"][1] == b"arm_64bit=1\n"


def test_boot_file_system_without_space(tmp_path: Path, root: Path, run_module: Run) -> None:
    boot = make_fat(tmp_path / "boot.part", "-F 12 -s 4", 2 * MIB)
    (tmp_path / "user-data").write_bytes(b"")
    run("mcopy", "-i", boot, tmp_path / "user-data", "::/")
    card = make_card(tmp_path / "pi-01.img", boot, root)
    message = capture_error(run_module, card, boot_files={"user-data": "x" * 3_000_000})
    assert "no space for the 3,000,000 bytes of user-data" in message and "Nothing was captured" in message


@st.composite
def fat_changes(draw: st.DrawFn) -> tuple[str, list[tuple[str, int, int]], list[int]]:
    """Draw a geometry, files (name, size, attributes), and which of them are deleted."""
    letters = st.sampled_from("aZ9 _üÄ☃-+,;=")
    names = st.text(letters, min_size=1, max_size=30).map(str.strip).filter(lambda name: name.strip(". "))
    chosen = draw(st.lists(names, max_size=12, unique_by=str.lower))
    files = [(name, draw(st.integers(0, 9000)), draw(st.sampled_from([0, 1, 2, 4, 7, 32, 39]))) for name in chosen]
    return draw(st.sampled_from(GEOMETRIES)), files, draw(st.lists(st.integers(0, max(0, len(files) - 1)), max_size=4))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=fat_changes(), seed=st.integers(0, 20_000))
def test_any_fat_keeps_its_files(drawn: tuple[str, list[tuple[str, int, int]], list[int]], seed: int) -> None:
    options, files, deleted = drawn
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        boot = make_fat(top / "boot.part", options)
        (top / "files").mkdir()
        for name, size, _ in files:
            (top / "files" / name).write_bytes(os.urandom(size))
        (top / "user-data").write_bytes(SECRET)
        run("mmd", "-i", boot, "::/sub")
        for name, _, attributes in files:
            target = f"::/sub/{name}" if len(name) % 2 else f"::/{name}"
            run("mcopy", "-Q", "-i", boot, top / "files" / name, target)
            letters = [f"+{letter}" for bit, letter in ((1, "r"), (2, "h"), (4, "s"), (32, "a")) if attributes & bit]
            run("mattrib", "-i", boot, "-a", *letters, target)
        run("mcopy", "-i", boot, top / "user-data", "::/")
        for index in set(deleted) if files else ():
            name = files[index][0]
            path = f"::/sub/{name}" if len(name) % 2 else f"::/{name}"
            run("mattrib", "-i", boot, "-r", path)
            run("mdel", "-i", boot, path)
        before = fat_listing(boot)
        neutral = "n" * seed
        assert sorted(remove_boot_identity(boot, {"user-data": neutral})) == ["cmdline.txt", "user-data"]
        after = fat_listing(boot)
        assert after.pop("cmdline.txt")[1] == NEW_CMDLINE and after.pop("user-data")[1] == neutral.encode()
        assert after == {name: value for name, value in before.items() if name not in ("cmdline.txt", "user-data")}
        run("fsck.vfat", "-n", boot)


def test_contradictions_in_a_fat_are_refused(tmp_path: Path) -> None:
    """fsck.vfat refuses these cards before; this must not hang or write what is wrong."""
    boot = make_fat(tmp_path / "boot.part")
    with FatTree(boot) as tree:
        (cmdline,) = (file for file in tree.root.members if not file.is_label)
        first, table = cmdline.cluster(16), 512 * tree._fat.reserved_sectors
    for entry in (0, 1, first, 0xFFF0):
        patch(boot, table + first * 2, struct.pack("<H", entry))
        with pytest.raises(BrambleError, match=r"run fsck\.vfat"):
            remove_boot_identity(boot, {})
    record = bytearray(32)
    record[:11], record[11] = b"OS2        ", 0x20
    struct.pack_into("<H", record, 20, 0xFFFF)
    assert FatFile(record, b"").cluster(16) == 0 and FatFile(record, b"").name == "OS2"


# What is outside the file systems


@pytest.mark.parametrize("gap", [0, GAP])
def test_boot_loaders_are_in_the_image(gap: int, tmp_path: Path, root: Path, run_module: Run) -> None:
    card = make_card(tmp_path / "pi-01.img", make_fat(tmp_path / "boot.part"), root, gap)
    old, (boot, system) = card.read_bytes(), partitions(card)
    outcome = run_module("card_capture", module_arguments(card, tmp_path / "out"))
    new = write_card(run_module, outcome, tmp_path / "pi-02.img").read_bytes()
    assert new[:462] == old[:462] and new[510 : boot.start] == old[510 : boot.start]  # all but the size of partition 2
    assert new[boot.end : system.start] == old[boot.end : system.start]
    assert any(new[512 : boot.start]) and any(new[boot.end : system.start]) == bool(gap)


def make_two_file_systems(part: Path) -> None:
    """Create a swap area, and around it what an ext4 file system has."""
    run("mkfs.ext4", "-q", "-F", part)
    run("mkswap", part)  # this erases the signature of the other
    patch(part, 1080, b"\x53\xef")


KINDS = {
    "swap": lambda part: run("mkswap", part),
    "ext4": lambda part: run("mkfs.ext4", "-q", "-F", part),
    "vfat": lambda part: run("mkfs.vfat", part),
    "dos": lambda part: run("sfdisk", "-q", part, stdin="label: dos\n2048,,83\n"),
    "several file systems": make_two_file_systems,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("aligned", [False, True])
def test_data_behind_the_root_partition_is_not_dropped(
    kind: str, aligned: bool, tmp_path: Path, root: Path, run_module: Run
) -> None:
    card = make_card(tmp_path / "a card's.img", make_fat(tmp_path / "boot.part"), root, GAP + 512 * 7)
    end = partitions(card)[1].end
    start = -(-end // MIB) * MIB if aligned else end  # where partition programs begin the next partition
    os.truncate(card, start + 8 * MIB)
    with (part := tmp_path / "more.part").open("wb") as file:
        file.truncate(8 * MIB)
    KINDS[kind](part)
    run("dd", f"if={part}", f"of={card}", "bs=64K", "oflag=seek_bytes", f"seek={start}", "conv=notrunc,sparse")
    message = capture_error(run_module, card)
    assert f"at byte {start:,}, there is data of the kind {kind}" in message and "Nothing was captured" in message
    command = message.rpartition("erase it: ")[2].removesuffix(". Nothing was captured.")
    run("sh", "-c", command)  # as the message says
    assert run_module("card_capture", module_arguments(card, tmp_path / "out"))["changed"]


def test_unused_space_behind_the_root_partition_is_left_out(tmp_path: Path, root: Path, run_module: Run) -> None:
    card = make_card(tmp_path / "pi-01.img", make_fat(tmp_path / "boot.part"), root)
    patch(card, partitions(card)[1].end + 5, SECRET)
    patch(card, card.stat().st_size - 512, b"EFI PART" + SECRET)  # of a former partition table, without one at the beginning
    outcome = run_module("card_capture", module_arguments(card, tmp_path / "out"))
    assert SECRET not in Path(outcome["image"]).read_bytes()


def test_logical_partitions_are_named(tmp_path: Path, root: Path, run_module: Run) -> None:
    card = make_card(tmp_path / "pi-01.img", make_fat(tmp_path / "boot.part"), root)
    end = partitions(card)[1].end
    patch(card, 446 + 32, struct.pack("<B3xB3xII", 0, 0x0F, end // 512, TAIL // 512))
    message = capture_error(run_module, card)
    assert "partition 3 is an extended partition" in message and "logical partitions" in message


def test_a_card_whose_time_of_change_is_put_back(
    tmp_path: Path, root: Path, run_module: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ansible_collections.bramble.cluster.plugins.module_utils.card.device import Card

    card = make_card(tmp_path / "pi-01.img", make_fat(tmp_path / "boot.part"), root)
    read, before = Card.read, card.stat()

    def change_card(self: Card, offset: int, length: int) -> bytes:
        patch(card, before.st_size - 1, b"x")
        os.utime(card, ns=(before.st_atime_ns, before.st_mtime_ns))
        return read(self, offset, length)

    monkeypatch.setattr(Card, "read", change_card)
    assert "was changed while it was read" in run_module("card_capture", module_arguments(card, tmp_path / "out"))["msg"]


# The root file system

FEATURES = [
    "-t ext2 -b 1024",
    "-t ext3 -b 1024",
    "-r 0 -t ext2 -O none",
    "-t ext4 -b 1024 -O inline_data",
    "-t ext4 -b 4096 -O inline_data -I 1024",
    "-t ext4 -b 1024 -O casefold -E encoding=utf8",
    "-t ext4 -b 1024 -O encrypt",
    "-t ext4 -b 1024 -O ea_inode",
    "-t ext4 -b 1024 -O large_dir,metadata_csum_seed,orphan_file,verity",
    "-t ext4 -b 1024 -O quota,project",
    "-t ext4 -b 1024 -O ^64bit,^metadata_csum,uninit_bg,^flex_bg",
    "-t ext4 -b 1024 -O sparse_super2",
    "-t ext4 -b 2048 -O meta_bg,^resize_inode,^has_journal",
    "-t ext4 -b 1024 -O ^filetype,^dir_index,^extent,^64bit",
    "-t ext4 -b 1024 -O encrypt,stable_inodes",
]


@pytest.mark.parametrize("options", FEATURES)
def test_any_usual_feature_of_ext_is_captured(options: str, tmp_path: Path, run_module: Run) -> None:
    files = {
        "var/log/syslog": SECRET,
        "root/.bash_history": SECRET * 300,
        "home/pi/small": b"inline",
        "etc/machine-id": b"0" * 32,
    }
    tree = tree_of(files, tmp_path / "tree")
    (tree / "tmp").mkdir()
    (tree / "tmp/link").symlink_to(SECRET.decode())
    (tree / "home/pi/link").symlink_to("l" * 120)
    system = make_ext(tmp_path / "root.part", tree, options)
    if "quota" in options:
        run("e2fsck", "-fp", system, exit_codes=(0, 1))  # mke2fs does not count for quotas
    if "ea_inode" in options:
        (tmp_path / "value").write_bytes(SECRET * 200)
        script = [f"ea_set -f {tmp_path}/value /{name} user.big" for name in ("root/.bash_history", "home/pi/small")]
        run("debugfs", "-w", "-f", "-", system, stdin="\n".join([*script, ""]))
        run("e2fsck", "-fp", system, exit_codes=(0, 1))
    if "casefold" in options:
        run("debugfs", "-w", "-f", "-", system, stdin="mkdir /srv\nset_inode_field /srv flags 0x40080000\nmkdir /srv/Ünicode\n")
    card = make_card(tmp_path / "pi-01.img", make_fat(tmp_path / "boot.part"), system)
    outcome = run_module("card_capture", module_arguments(card, tmp_path / "out"))
    assert not outcome.get("failed"), outcome["msg"]
    new = extract_partition(write_card(run_module, outcome, tmp_path / "pi-02.img"), 2, tmp_path / "new.part")
    run("e2fsck", "-fn", new)
    result = RootFileSystem(new)
    assert result.read_text("/etc/hostname") == "raspberrypi\n" and result.read_text("/home/pi/small") == "inline"
    assert result.resolve("/home/pi/link") == "/home/pi/" + "l" * 120
    assert not any(map(result.exists, ("/var/log/syslog", "/root/.bash_history")))
    assert result.features == RootFileSystem(system).features
    # debugfs cuts an attribute to 1,024 bytes: that of the file which is kept.
    assert new.read_bytes().count(SECRET) == (1024 // len(SECRET) if "ea_inode" in options else 0)


def set_feature(card: Path, field: int, bit: int) -> None:
    """Set a feature in the superblock of a root file system without checksums."""
    at = partitions(card)[1].start + 1024 + field
    patch(card, at, struct.pack("<I", struct.unpack("<I", card.read_bytes()[at : at + 4])[0] | bit))


@pytest.mark.parametrize(
    ("options", "field", "bit", "complaint"),
    [
        ("-O ^metadata_csum", 0x60, 0x2000_0000, "features that e2fsprogs of this machine lacks: FEATURE_I29"),
        ("-O ^metadata_csum", 0x64, 0x4000, "features that e2fsprogs of this machine lacks: shared_blocks"),
        ("-O ^metadata_csum", 0x5C, 0x8000_0000, "features that e2fsprogs of this machine lacks: FEATURE_C31"),
        ("-O bigalloc", 0, 0, "has the feature bigalloc, with which Bramble cannot tell used from free space"),
        ("-O fast_commit", 0, 0, "tune2fs -O ^fast_commit PARTITION"),
        ("-O encrypt,stable_inodes", 0, 0, "resize2fs cannot shrink it, and ends at byte"),
    ],
)
def test_other_features_of_ext_are_refused_in_plain_words(
    options: str, field: int, bit: int, complaint: str, tmp_path: Path, run_module: Run
) -> None:
    system = make_ext(tmp_path / "root.part", tree_of({}, tmp_path / "tree"), f"-t ext4 -b 1024 {options}")
    card = make_card(tmp_path / "pi-01.img", make_fat(tmp_path / "boot.part"), system)
    if bit:
        set_feature(card, field, bit)
    limit = {"card_bytes": 20 * MIB} if "stable" in options else {}
    message = capture_error(run_module, card, **limit)
    assert complaint in message and "damaged" not in message and "Nothing was captured" in message


def test_a_journal_on_another_disk(tmp_path: Path, root: Path, run_module: Run) -> None:
    system = make_ext(tmp_path / "root.part", tree_of({}, tmp_path / "tree"), "-t ext4 -b 1024 -O ^metadata_csum")
    card = make_card(tmp_path / "pi-01.img", make_fat(tmp_path / "boot.part"), system)
    patch(card, partitions(card)[1].start + 1024 + 0xE0, struct.pack("<II", 0, 0x0811))  # s_journal_inum, s_journal_dev
    assert "tune2fs -O ^has_journal" in capture_error(run_module, card)


def test_links_in_the_paths_of_the_identity_are_resolved_within_the_card(tmp_path: Path, run_module: Run) -> None:
    outside = tmp_path / "outside"
    outside.write_text("of the control machine")
    tree = tree_of(
        {
            "data/log/syslog": SECRET,
            "data/log/journal/1/system.journal": SECRET,
            "data/host_key": SECRET,
            "data/id": b"0" * 32,
            "tmp/x": SECRET,
            "tmp/a folder\nwith a line break/b\r": SECRET,
            "srv/pool/kept.deb": b"kept",
            "data/pi/.bash_history": SECRET,
        },
        tmp_path / "tree",
    )
    links = {
        "var/log": "/data/log",
        "var/tmp": "../tmp",
        "etc/machine-id": "/data/id",
        "etc/ssh/ssh_host_rsa_key": "../../../../data/host_key",
        "etc/ssh/ssh_host_ed25519_key": "/data/nowhere",
        "etc/hosts": str(outside),
        "home/pi": "/data/pi",
        "home/loop": "loop",
        "var/cache/apt/archives/kept.deb": "/srv/pool/kept.deb",
        "tmp/passwd": "/etc/hostname",
        "root/.bash_history": "/dev/null",
        "etc/systemd/system/multi-user.target.wants": "/data/wants",
    }
    for path, target in links.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).symlink_to(target)
    os.mkfifo(tree / "tmp/fifo")
    os.mknod(tree / "data/log/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (tree / "data/wants").mkdir()
    system = make_ext(tmp_path / "root.part", tree)
    card = make_card(tmp_path / "pi-01.img", make_fat(tmp_path / "boot.part"), system)
    outcome = run_module("card_capture", module_arguments(card, tmp_path / "out"))
    assert not outcome.get("failed"), outcome["msg"]
    new = RootFileSystem(extract_partition(Path(outcome["image"]), 2, tmp_path / "new.part"))
    run("e2fsck", "-fn", new.path)
    assert SECRET not in Path(outcome["image"]).read_bytes()
    paths = new.descendants("")
    gone = {path for path in paths if path.startswith("/tmp/") or path.startswith("/data/log/")}
    assert gone == {"/data/log/journal"}  # services need their folders
    assert "/data/host_key" not in paths and "/data/wants/bramble-grow.service" in paths
    assert new.read_text("/data/id") == "uninitialized\n" and new.resolve("/etc/machine-id") == "/data/id"
    assert new.read_text("/srv/pool/kept.deb") == "kept" and new.read_text("/etc/hostname") == "raspberrypi\n"
    assert outside.read_text() == "of the control machine"


@pytest.mark.parametrize(("link", "target"), [("var/tmp", "/usr"), ("tmp", "/"), ("var/log", "../etc")])
def test_links_to_folders_of_the_system_are_refused(link: str, target: str, tmp_path: Path, run_module: Run) -> None:
    tree = tree_of({"usr/bin/true": b"", "var/x": b"", "home/x/y": b""}, tmp_path / "tree")
    (tree / link).symlink_to(target)
    card = make_card(tmp_path / "pi-01.img", make_fat(tmp_path / "boot.part"), make_ext(tmp_path / "root.part", tree))
    assert f"/{link} on the root file system is a link to /" in capture_error(run_module, card)


def test_an_encrypted_folder_is_refused(tmp_path: Path) -> None:
    """e2fsck refuses an encrypted folder without its key identifier, and only the kernel creates that."""
    system = make_ext(tmp_path / "root.part", tree_of({"home/x/y": b""}, tmp_path / "tree"), "-t ext4 -b 1024 -O encrypt")
    assert find_identity(RootFileSystem(system)).paths == []
    run("debugfs", "-w", "-f", "-", system, stdin="mkdir /home/pi\nset_inode_field /home/pi flags 0x80800\n")
    with pytest.raises(BrambleError, match=r"/home/pi on the root file system is encrypted .* Move its files"):
        find_identity(RootFileSystem(system))


@pytest.mark.parametrize(("path", "kind"), [("etc/hosts", "a folder"), ("etc/machine-id", "a named pipe")])
def test_a_path_of_another_kind_is_named(path: str, kind: str, tmp_path: Path, run_module: Run) -> None:
    tree = tree_of({}, tmp_path / "tree")
    (tree / path).mkdir() if kind == "a folder" else os.mkfifo(tree / path)
    system = make_ext(tmp_path / "root.part", tree)
    card = make_card(tmp_path / "pi-01.img", make_fat(tmp_path / "boot.part"), system)
    assert f"/{path} on the root file system is {kind}, where a file is expected" in capture_error(run_module, card)


# Names on the control machine


@pytest.mark.parametrize(
    "folder", ["with spaces", "quo'te\"d", "$HOME", "ümläut", "-leading", "what?offset=9", "a@@b", "new\nline"]
)
def test_any_folder_works_literally(folder: str, tmp_path: Path, root: Path, run_module: Run) -> None:
    place = tmp_path / folder
    place.mkdir()
    card = make_card(place / "card.img", make_fat(tmp_path / "boot.part"), root)
    options = module_arguments(card, place / "out")
    outcome = run_module("card_capture", options)
    assert not outcome.get("failed"), outcome["msg"]
    assert Path(outcome["image"]) == place / "out/captured.img" and Path(outcome["image"]).is_file()


@pytest.mark.parametrize("name", ["with space", "quo'te", "$x", "ümläut", "-dash", ".dot", "a/b", "new\n", "x" * 201])
def test_other_names_are_refused_before_anything_is_read(name: str, tmp_path: Path, run_module: Run) -> None:
    outcome = run_module("card_capture", module_arguments(tmp_path / "no card", tmp_path, name=name))
    assert "begins with a letter or digit" in outcome["msg"] and list(tmp_path.iterdir()) == []


def test_longest_name(tmp_path: Path, root: Path, run_module: Run) -> None:
    card = make_card(tmp_path / "pi-01.img", make_fat(tmp_path / "boot.part"), root)
    assert run_module("card_capture", module_arguments(card, tmp_path / "out", name="x" * 200))["changed"]


# Any root file system

NAMES = st.text(st.sampled_from("aB1 .-_'\"$#\\äß\n\t;*?"), min_size=1, max_size=20).filter(lambda name: name not in (".", ".."))
FOLDERS = ["srv", "home/pi", "usr/share/x y", "var/log", "tmp/deep", "etc/ssh", "var/lib/dhcp"]
KINDS_OF_FILES = [
    "file",
    "empty",
    "sparse",
    "link",
    "long link",
    "hard link",
    "device",
    "pipe",
    "folder",
    "capability",
    "acl",
    "xattr",
]
XATTRS = {  # in the formats of linux/capability.h and linux/posix_acl_xattr.h
    "capability": ("security.capability", struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)),
    "acl": (
        "system.posix_acl_access",
        struct.pack("<I", 2)
        + b"".join(struct.pack("<HHi", *entry) for entry in ((1, 6, -1), (2, 5, 1000), (4, 4, -1), (16, 7, -1), (32, 0, -1))),
    ),
    "xattr": ("user.comment", "grün".encode() * 20),
}


def is_identity(path: str) -> bool:
    """Return whether a file or folder of a drawn tree is removed by a capture."""
    name = path.rpartition("/")[2]
    return (
        path.startswith(("tmp/", "var/lib/dhcp/"))
        or (path.startswith("etc/ssh/ssh_host_") and path.count("/") == 2)
        or (path.startswith("home/pi/.") and name.endswith("_history") and path.count("/") == 2)
    )


def snapshot(image: Path, start: int, size: int, machine: Path) -> dict[str, tuple[Any, ...]]:
    """Return all that the kernel tells about each file of an ext file system, by path."""
    options = f"loop,ro,noload,offset={start},sizelimit={size}"
    subprocess.run(["mount", "-t", "ext4", "-o", options, image, machine], check=True)
    try:
        first_names: dict[int, str] = {}
        found = {}
        for path in sorted(machine.rglob("*")):
            status, name = path.lstat(), os.fspath(path.relative_to(machine))
            xattrs = {key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)}
            content = os.readlink(path) if path.is_symlink() else path.read_bytes() if stat.S_ISREG(status.st_mode) else None
            same = first_names.setdefault(status.st_ino, name)
            sizes = () if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_blocks, status.st_nlink, same)
            found[name] = (
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_rdev,
                status.st_mtime_ns,
                xattrs,
                content,
                *sizes,
            )
        return found
    finally:
        subprocess.run(["umount", machine], check=True)


Drawn = list[tuple[str, str, str, int, int, int]]


def draw_tree(tree: Path, drawn: Drawn) -> None:
    """Create files of drawn kinds, with their owners, modes and times."""
    for folder in FOLDERS:
        (tree / folder).mkdir(parents=True)
    (tree / "etc/hostname").write_text("raspberrypi\n")
    for kind, folder, name, mode, owner, time in drawn:
        path = tree / folder / name
        if os.path.lexists(path):
            continue
        if "link" in kind and kind != "hard link":
            path.symlink_to("t" * 900 if kind == "long link" else "../näme with spaces")
        elif kind == "hard link":
            os.link(tree / "etc/hostname", path)
            continue
        elif kind in ("device", "pipe"):
            os.mknod(path, stat.S_IFBLK if kind == "device" else stat.S_IFIFO, os.makedev(259, 65_000))
        elif kind == "folder":
            path.mkdir()
        else:
            path.write_bytes(b"" if kind == "empty" else os.urandom(mode * 3))
            if kind == "sparse":
                with path.open("r+b") as file:
                    file.seek(900_000)
                    file.write(b"end")
        os.chown(path, owner, owner, follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(mode)
        if kind in XATTRS:
            os.setxattr(path, *XATTRS[kind])
        os.utime(path, (time, time), follow_symlinks=False)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    drawn=st.lists(
        st.tuples(
            st.sampled_from(KINDS_OF_FILES),
            st.sampled_from(FOLDERS),
            NAMES | st.sampled_from([".bash_history", "ssh_host_x_key"]),
            st.integers(0, 0o7777),
            st.integers(0, 70_000),
            st.integers(0, 2**32),
        ),
        max_size=40,
    ),
    options=st.sampled_from(
        ["-t ext4 -b 1024 -U 01234567-89ab-cdef-0123-456789abcdef -L rootfs", "-t ext4 -O inline_data,quota", "-t ext3"]
    ),
)
def test_any_tree_is_captured_and_written(run_module: Run, machine: Machine, drawn: Drawn, options: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        draw_tree(top / "tree", drawn)
        system = make_ext(top / "root.part", top / "tree", options)
        run("e2fsck", "-fp", system, exit_codes=(0, 1))  # mke2fs does not count for quotas
        card = make_card(top / "pi-01.img", make_fat(top / "boot.part", "-F 16 -s 1 -n BOOTFS -i deadbeef"), system)
        outcome = run_module("card_capture", module_arguments(card, top / "out"))
        assert not outcome.get("failed"), outcome["msg"]
        new = write_card(run_module, outcome, top / "pi-02.img")
        (top / "mount").mkdir()
        parts = [partitions(path)[1] for path in (card, new)]
        before, after = (
            snapshot(path, part.start, part.size, top / "mount") for path, part in zip((card, new), parts, strict=True)
        )
        kept = {path: facts for path, facts in before.items() if not is_identity(path)}
        kept = {path: facts for path, facts in kept.items() if not (path.startswith("var/log/") and not stat.S_ISDIR(facts[0]))}
        added = {path for path in set(after) - set(before)}
        assert all("bramble-grow" in path or after[path][6] is None or path == "etc/machine-id" for path in added), added
        assert not (set(before) - set(kept)) & set(after)
        names = {"etc/hostname"} | {path for path in before if before[path][-1] == "etc/hostname"}
        for path in set(kept) - names:
            assert after[path] == kept[path], path
        for path in names & set(kept):  # a hard link to a file that is rewritten keeps its content
            assert after[path][6] == b"raspberrypi\n" and after[path][:4] == kept[path][:4]
        assert new.read_bytes()[440:446] == card.read_bytes()[440:446]  # PARTUUID
        fields = ["Filesystem UUID", "Filesystem volume name", "Filesystem features"]
        heads = [run("dumpe2fs", "-h", f"{path}?offset={part.start}") for path, part in zip((card, new), parts, strict=True)]
        lines = [[line for line in head.splitlines() if line.startswith(tuple(fields))] for head in heads]
        assert lines[0] == lines[1] and len(lines[0]) == 3
        run("e2fsck", "-fn", extract_partition(new, 2, top / "new.part"))
        run("fsck.vfat", "-n", extract_partition(new, 1, top / "new.boot"))
        assert run("fatlabel", "-i", top / "new.boot").endswith("deadbeef\n") and "BOOTFS" in run("fatlabel", top / "new.boot")
