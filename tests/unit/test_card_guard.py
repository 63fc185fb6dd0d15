"""The guard: which cards may be overwritten, on fake machines and on this machine."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bramble.cluster.plugins.module_utils.card import exclusive
from ansible_collections.bramble.cluster.plugins.module_utils.card import guard as guard_module
from ansible_collections.bramble.cluster.plugins.module_utils.card.facts import Facts, controller_warnings, table
from ansible_collections.bramble.cluster.plugins.module_utils.card.guard import LARGEST_CARD, Guard
from ansible_collections.bramble.cluster.plugins.module_utils.card.mounts import Mounts, overlay_folders
from ansible_collections.bramble.cluster.plugins.module_utils.card.sysfs import Reader, find_reader, loop_backing_file
from hypothesis import given
from hypothesis import strategies as st

GB = 10**9


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards in use are refused sooner than for a user."""
    monkeypatch.setattr(exclusive, "PATIENCE", 0.3)


SD_READER = "pci0000:00/0000:00:14.0/usb1/1-1/1-1:1.0/host2/target2:0:0/2:0:0:0/block"
SD_SLOT = "platform/emmc2bus/fe340000.mmc/mmc_host/mmc0/mmc0:aaaa/block"
SATA = "pci0000:00/0000:00:17.0/ata1/host0/target0:0:0/0:0:0:0/block"


class FakeMachine:
    """A fake /sys and /proc."""

    def __init__(self, folder: Path) -> None:
        self.sys, self.proc = folder / "sys", folder / "proc"
        for place in ("class/block", "dev/block", "block"):
            (self.sys / place).mkdir(parents=True)
        (self.proc / "self").mkdir(parents=True)
        self._minor = 0
        self.mounts: list[str] = []
        self.swaps = ["Filename Type Size Used Priority"]
        self.disk("sda", SATA, 500 * GB, parts=["sda1", "sda2"])
        self.mount("sda2", "/")

    def disk(self, name: str, place: str, size: int, parts: list[str] | None = None, **files: str) -> None:
        """Add a disk; `place` is its path in /sys/devices, which ends with the folder "block"."""
        node = self.sys / "devices" / place / name
        for member, home in {name: node, **{part: node / part for part in parts or []}}.items():
            (home / "holders").mkdir(parents=True)
            number = f"8:{self._minor}"
            self._minor += 1
            (home / "dev").write_text(number + "\n")
            (home / "size").write_text(f"{size // 512}\n")
            if member != name:
                (home / "partition").write_text("1\n")
            for link in (self.sys / "class/block" / member, self.sys / "dev/block" / number):
                link.symlink_to(home)
        (node / "ro").write_text("0\n")
        (node / "queue").mkdir()
        (node / "queue/logical_block_size").write_text("512\n")
        for file, text in files.items():
            path = node / file.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text + "\n")

    def sysfs_folder(self, name: str) -> Path:
        """Return the folder of a disk or partition."""
        return (self.sys / "class/block" / name).resolve()

    def mount(
        self, name: str, point: str, kind: str = "ext4", device: str | None = None, source: str | None = None, options: str = "rw"
    ) -> None:
        """Mount a disk or partition."""
        device = device or (self.sysfs_folder(name) / "dev").read_text().strip()
        self.mounts.append(f"{22 + len(self.mounts)} 1 {device} / {point} rw - {kind} {source or f'/dev/{name}'} {options}")

    def verdict(
        self, name: str, needed: int = 8 * GB, image: str | None = None, is_named: bool = False, **options: int
    ) -> tuple[str, str]:
        """Return the verdict and the reason of the guard for a disk."""
        (self.proc / "self/mountinfo").write_text("\n".join(self.mounts) + "\n")
        (self.proc / "swaps").write_text("\n".join(self.swaps) + "\n")
        return Guard(image, str(self.sys), str(self.proc), **options).evaluate_disk(name, needed, is_named)


@pytest.fixture
def fake(tmp_path: Path) -> FakeMachine:
    """A machine with / on sda2, a USB card reader sdb with a partitioned card, and a built-in SD slot."""
    fake = FakeMachine(tmp_path)
    fake.disk("sdb", SD_READER, 31_914_983_424, parts=["sdb1", "sdb2"], device__vendor="Generic", device__model="STORAGE")
    fake.disk("mmcblk0", SD_SLOT, 31_914_983_424, device__type="SD", device__name="SC32G")
    return fake


def test_usable_cards(fake: FakeMachine) -> None:
    assert fake.verdict("sdb") == fake.verdict("mmcblk0") == ("OK", "")
    guard = Guard(None, str(fake.sys), str(fake.proc))
    assert (guard.bus("sdb"), guard.model("sdb"), guard.size("sdb")) == ("usb", "Generic STORAGE", 31_914_983_424)
    assert (guard.bus("mmcblk0"), guard.model("mmcblk0")) == ("mmc", "SC32G")


def test_readers_on_one_usb_2_controller(fake: FakeMachine) -> None:
    fake.disk("sdc", SD_READER.replace("1-1", "1-2"), 32 * GB)
    fake.disk("sdd", SD_READER.replace("usb1/1-1/1-1", "usb2/2-1/2-1"), 32 * GB)
    pci = fake.sys / "devices/pci0000:00/0000:00:14.0"
    for folder, speed, serial in (
        ("usb1", "480", ""),
        ("usb1/1-1", "480", "0001"),
        ("usb1/1-2", "480", ""),
        ("usb2", "5000", ""),
    ):
        (pci / folder / "busnum").write_text(folder[3] + "\n")
        (pci / folder / "speed").write_text(speed + "\n")
        if serial:
            (pci / folder / "serial").write_text(serial + "\n")
    assert find_reader(str(fake.sysfs_folder("sdb"))) == Reader("0001", "usb1", 480)
    assert find_reader(str(fake.sysfs_folder("sdd"))).controller_speed == 5000
    assert find_reader(str(fake.sysfs_folder("mmcblk0"))) == Reader()
    batch = [
        Facts(name, "", controller=found.controller, controller_speed=found.controller_speed)
        for name in ("sdb", "sdc", "sdd", "mmcblk0")
        for found in [find_reader(str(fake.sysfs_folder(name)))]
    ]
    (warning,) = controller_warnings(batch)
    assert "sdb, sdc share one USB 2 controller (usb1)" in warning
    assert controller_warnings(batch[1:]) == []


def test_sectors_of_4_kib_are_refused(fake: FakeMachine) -> None:
    (fake.sysfs_folder("sdb") / "queue/logical_block_size").write_text("4096\n")
    (fake.sysfs_folder("sdb") / "ro").write_text(
        "1\n"
    )  # reported before the write protection, as a write-protected card can be captured
    assert fake.verdict("sdb") == ("NOT A CARD", "its sectors are 4,096 bytes; a Raspberry Pi's card has 512")


def test_size_to_the_byte(fake: FakeMachine) -> None:
    assert fake.verdict("sdb", 31_914_983_424)[0] == "OK"
    assert fake.verdict("sdb", 31_914_983_425) == ("TOO SMALL", "by 1 byte")
    assert fake.verdict("sdb", 31_914_984_658) == ("TOO SMALL", "by 1,234 bytes")


def test_other_disks(fake: FakeMachine) -> None:
    fake.disk("sdc", SATA.replace("ata1", "ata2"), 32 * GB)
    fake.disk("sdd", SD_READER.replace("1-1", "1-2"), LARGEST_CARD + 512)
    fake.disk("sde", SD_READER.replace("1-1", "1-3"), 0)
    fake.disk("mmcblk1", SD_SLOT.replace("mmc0", "mmc1"), 32 * GB, device__type="MMC")
    fake.disk("nvme0n1", "virtual/block", 32 * GB)
    assert fake.verdict("sda") == fake.verdict("sda1") == ("SYSTEM DISK", "it holds /")
    assert fake.verdict("sdb1") == ("NOT A CARD", "a partition; the card is /dev/sdb")
    for name, verdict in {"sdc": "NOT REMOVABLE", "sdd": "NOT A CARD", "sde": "ABSENT", "mmcblk1": "NOT REMOVABLE"}.items():
        assert fake.verdict(name)[0] == verdict
    assert fake.verdict("nvme0n1")[0] == fake.verdict("gone")[0] == "NOT REMOVABLE"


def test_card_in_use(fake: FakeMachine) -> None:
    fake.mount("sdb2", "/media/me/my\\040card")
    assert fake.verdict("sdb") == ("IN USE", "sdb2 is mounted on /media/me/my card: umount /media/me/my card")
    fake.mounts.pop()
    fake.mount("sdb1", "/mnt", "btrfs", device="0:42")
    assert fake.verdict("sdb")[0] == "IN USE"
    fake.mounts.pop()
    fake.swaps.append("/dev/sdb2 partition 1 0 -2")
    assert fake.verdict("sdb") == ("IN USE", "sdb2 is swap: swapoff /dev/sdb2")
    fake.swaps.pop()
    (fake.sysfs_folder("sdb1") / "holders" / "md0").touch()
    assert fake.verdict("sdb") == ("IN USE", "sdb1 is part of md0 (RAID)")
    (fake.sysfs_folder("sdb1") / "holders" / "md0").unlink()
    fake.disk("dm-0", "virtual/block", 8 * GB, dm__uuid="LVM-abc")
    (fake.sysfs_folder("sdb1") / "holders" / "dm-0").touch()
    assert fake.verdict("sdb") == ("IN USE", "sdb1 is part of dm-0 (LVM)")


def test_lock_switch(fake: FakeMachine) -> None:
    (fake.sysfs_folder("sdb") / "ro").write_text("1\n")
    assert fake.verdict("sdb") == ("READ ONLY", "look at the card's lock switch")


@pytest.mark.parametrize(("file", "verdict"), [("ro", "READ ONLY"), ("dev", "IN USE"), ("size", "NOT REMOVABLE")])
def test_unknown_state_counts_against_the_card(fake: FakeMachine, file: str, verdict: str) -> None:
    (fake.sysfs_folder("sdb") / file).unlink()
    assert fake.verdict("sdb")[0] == verdict


def test_missing_holders_folder_is_an_error(fake: FakeMachine) -> None:
    (fake.sysfs_folder("sdb") / "holders").rmdir()
    with pytest.raises(OSError):
        fake.verdict("sdb")


def test_system_on_lvm_on_usb(fake: FakeMachine) -> None:
    """Disks below a logical volume are system disks, too, and so is the disk with the image."""
    fake.disk("dm-0", "virtual/block", 8 * GB, dm__uuid="LVM-abc")
    slaves = fake.sysfs_folder("dm-0") / "slaves"
    slaves.mkdir()
    (slaves / "sdb2").touch()
    fake.mount("dm-0", "/home")
    assert fake.verdict("sdb") == ("SYSTEM DISK", "it holds /home")
    fake.mounts.pop()
    fake.mount("sdb1", "/images")
    assert fake.verdict("sdb", image="/images/raspios.img") == ("SYSTEM DISK", "it holds /images/raspios.img")


def test_system_on_btrfs(fake: FakeMachine) -> None:
    fake.mounts.clear()
    fake.mount("sdb2", "/", "btrfs", device="0:29")
    assert fake.verdict("sdb") == ("SYSTEM DISK", "it holds /")


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("nfs4", "server:/home"),
        ("cifs", "//server/home"),
        ("tmpfs", "tmpfs"),
        ("fuse.sshfs", "me@server:/home"),
        ("fuse", "/dev/fuse"),
        ("vboxsf", "/shared"),
        ("virtiofs", "root"),
        ("9p", "hostshare"),
        ("autofs", "/etc/auto.home"),
        ("aufs", "none"),
        ("zfs", "rpool/ROOT/debian"),
        ("overlay", "overlay"),
        ("ext4", "/dev/root"),
        ("a file system of the future", "somewhere"),
    ],
)
@pytest.mark.parametrize("place", ["/", "/home", "/images"])
def test_system_on_no_disk_or_an_unknown_one(fake: FakeMachine, kind: str, source: str, place: str) -> None:
    """A card is not refused for it: a disk with a mounted file system cannot be opened exclusively, which the guard does."""
    if place == "/":
        fake.mounts.clear()
    fake.mount("", place, kind.replace(" ", "\\040"), device="0:29", source=source)
    assert fake.verdict("sdb", image="/images/raspios.img") == ("OK", "")
    if place != "/":
        assert fake.verdict("sda") == ("SYSTEM DISK", "it holds /")


def test_without_mounts_nothing_is_certain(fake: FakeMachine) -> None:
    fake.mounts.clear()
    assert fake.verdict("sdb")[0] == "SYSTEM DISK"


def roots(fake: FakeMachine) -> dict[str, Callable[[], None]]:
    """Return kinds of root file systems: each function mounts one that is on the USB disk sdc, without a mount of sdc1 itself."""
    fake.disk("sdc", SD_READER.replace("1-1", "1-2"), 32 * GB, parts=["sdc1"])
    fake.disk("dm-0", "virtual/block", 8 * GB, dm__uuid="CRYPT-abc")
    (fake.sysfs_folder("dm-0") / "slaves").mkdir()
    (fake.sysfs_folder("dm-0") / "slaves/sdc1").touch()
    fake.disk("loop7", "virtual/block", 2 * GB, loop__backing_file="/cdrom/file system.squashfs")

    def overlay(options: str, point: str = "/data\\040disk") -> None:
        fake.mount("sdc1", point)
        fake.mount("", "/", "overlay", device="0:29", source="overlay", options=options)

    def on_loop() -> None:
        fake.mount("sdc1", "/cdrom")
        fake.mount("loop7", "/rofs", "squashfs")
        fake.mount(
            "", "/", "overlay", device="0:29", source="/cow", options="ro,lowerdir=/rofs,upperdir=/cow/up,workdir=/cow/work"
        )

    def composefs() -> None:
        fake.mount("sdc1", "/sysroot")
        fake.mount("", "/run/lower", "erofs", device="0:30", source="/sysroot/ostree/root.cfs")
        fake.mount("", "/", "overlay", device="0:29", source="composefs", options="ro,lowerdir+=/run/lower,datadir+=/objects")

    def erofs() -> None:
        fake.mount("sdc1", "/sysroot")
        fake.mount("", "/", "erofs", device="0:30", source="/sysroot/image")

    def second_of_btrfs() -> None:
        for name in ("sda2", "sdc1"):
            (fake.sys / "fs/btrfs/1111/devices").mkdir(parents=True, exist_ok=True)
            (fake.sys / "fs/btrfs/1111/devices" / name).symlink_to(fake.sysfs_folder(name))
        (fake.sys / "fs/btrfs/features").mkdir()
        fake.mount("sda2", "/", "btrfs", device="0:29")

    def second_of_bcachefs() -> None:
        for number, name in enumerate(("sda2", "sdc1")):
            folder = fake.sys / f"fs/bcachefs/2222/dev-{number}"
            folder.mkdir(parents=True)
            (folder / "block").symlink_to(fake.sysfs_folder(name))
        fake.mount("sda2", "/", "bcachefs", device="0:29", source="/dev/sda2")

    return {
        "lower folder": lambda: overlay("rw,lowerdir=/nowhere:/data\\040disk/a,upperdir=/up,workdir=/work"),
        "upper folder": lambda: overlay("rw,lowerdir=/nowhere,upperdir=/data\\040disk/up,workdir=/work"),
        "work folder": lambda: overlay("rw,lowerdir=/nowhere,upperdir=/up,workdir=/data\\040disk/work"),
        "colon": lambda: overlay("rw,lowerdir=/no:/with\\134:colon/a::/data", "/with:colon"),
        "comma": lambda: overlay("rw,lowerdir=/no:/with\\054comma/a", "/with,comma"),
        "new mount API": lambda: overlay("rw,lowerdir+=/no,lowerdir+=/with:colon/a", "/with:colon"),
        "squashfs in a file": on_loop,
        "composefs": composefs,
        "btrfs of two disks": second_of_btrfs,
        "bcachefs of two disks": second_of_bcachefs,
        "bcachefs in mountinfo": lambda: fake.mount("", "/", "bcachefs", device="0:29", source="/dev/sda2:/dev/sdc1"),
        "erofs file": erofs,
        "encrypted": lambda: fake.mount("dm-0", "/"),
        "bind mount": lambda: fake.mounts.append(
            f"90 1 {(fake.sysfs_folder('sdc1') / 'dev').read_text().strip()} /deep / rw - ext4 x rw"
        ),
    }


ROOTS = [
    *("lower folder", "upper folder", "work folder", "colon", "comma", "new mount API", "squashfs in a file", "composefs"),
    *("btrfs of two disks", "bcachefs of two disks", "bcachefs in mountinfo", "erofs file", "encrypted", "bind mount"),
]


@pytest.mark.parametrize("kind", ROOTS)
def test_disks_of_each_kind_of_root(fake: FakeMachine, kind: str) -> None:
    """Mounts that lead to the disk are taken away afterwards, so that only the root file system tells that it is in use."""
    fake.mounts.clear()
    kinds = roots(fake)
    assert list(kinds) == ROOTS
    kinds[kind]()
    assert fake.verdict("sdc") == ("SYSTEM DISK", "it holds /")
    assert fake.verdict("sdb") == ("OK", "")


def test_overlay_of_itself(fake: FakeMachine) -> None:
    """In a container, the paths in the options are those of the host."""
    fake.mounts.clear()
    fake.mount("", "/", "overlay", device="0:29", source="overlay", options="rw,lowerdir=/var/lib/docker/overlay2/l/A:l/B")
    assert fake.verdict("sdb") == ("OK", "")
    fake.mount("sdb2", "/etc/hosts")
    assert fake.verdict("sdb")[0] == "IN USE"


@given(st.lists(st.text("ab:\\\\, =\n/é", min_size=1, max_size=6).map("/".__add__), min_size=1, max_size=4))
def test_overlay_folders_with_any_name(folders: list[str]) -> None:
    """The kernel escapes the characters of mountinfo over overlayfs's own escapes."""

    def mangle(text: str) -> str:
        return "".join(f"\\{ord(letter):03o}" if letter in ",= \t\n\\" else letter for letter in text)

    lower = ":".join(folder.replace("\\", "\\\\").replace(":", "\\:") for folder in folders)
    assert list(overlay_folders(f"rw,lowerdir={mangle(lower)},index=off")) == folders
    options = ",".join(f"lowerdir+={mangle(folder)}" for folder in folders)
    assert list(overlay_folders(f"ro,{options}")) == folders


def test_disk_over_an_autofs(fake: FakeMachine) -> None:
    """The mount on top counts, in whichever order they are listed."""
    (number,) = [(fake.sysfs_folder("sdb1") / "dev").read_text().strip()]
    fake.mounts += [f"51 50 {number} / /home rw - ext4 /dev/x rw", "50 22 0:40 / /home rw - autofs /etc/auto.home rw"]
    assert fake.verdict("sdb") == ("SYSTEM DISK", "it holds /home")


def test_zfs_pool_by_its_signature(fake: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.mounts.clear()
    fake.mount("", "/", "zfs", device="0:29", source="rpool/ROOT/debian")
    fake.disk("sdc", SD_READER.replace("1-1", "1-2"), 32 * GB, parts=["sdc1", "sdc9"])
    pools = {"/dev/sdc1": {"rpool"}, "/dev/sdb2": {"an old pool"}}
    monkeypatch.setattr(guard_module, "zfs_pools", lambda device: pools.get(device, set()))
    assert fake.verdict("sdc") == ("SYSTEM DISK", "it holds /")
    assert fake.verdict("sdb") == ("OK", "")


def test_mount_points_with_any_white_space(fake: FakeMachine) -> None:
    """Python takes more characters for line and field ends than the kernel escapes."""
    for point in ("/media/me/a\u2028b", "/media/me/a\xa0b\x0c", "/media/me/\\012c"):
        fake.mount("sdb2", point)
        assert fake.verdict("sdb")[0] == "IN USE"
        fake.mounts.pop()
    assert fake.verdict("sdb") == ("OK", "")


def test_size_limit(fake: FakeMachine) -> None:
    fake.disk("sdc", SD_READER.replace("1-1", "1-2"), 256_060_514_304)  # an SSD or a card sold as 256 GB
    fake.disk("sdd", SD_READER.replace("1-1", "1-3"), 512 * GB)
    assert fake.verdict("sdc") == ("OK", "")
    verdict, reason = fake.verdict("sdd")
    assert verdict == "NOT A CARD" and "512,000,000,000 bytes" in reason and "-e card_max_bytes=512000000000" in reason
    assert fake.verdict("sdd", max_bytes=512 * GB) == ("OK", "")
    assert fake.verdict("sdd", max_bytes=512 * GB - 1)[0] == "NOT A CARD"


DISKS = {
    "nvme0n1": "pci0000:00/0000:00:1d.0/0000:03:00.0/nvme/nvme0",
    "sdc": SATA.replace("ata1", "ata2"),
    "sdd": SD_READER.replace("1-1", "1-2"),
}


@pytest.mark.parametrize("name", DISKS)
def test_disk_that_the_inventory_names_itself(fake: FakeMachine, name: str) -> None:
    """It may be large, fixed, and on other buses than a card; nothing else is allowed."""
    fake.disk(name, DISKS[name], 1000 * GB, parts=[f"{name}p1"], removable="0", device__model="SSD")
    subsystem = fake.sys / "class" / ("nvme" if name.startswith("nvme") else "scsi")
    subsystem.mkdir()
    (fake.sysfs_folder(name) / "device/subsystem").symlink_to(subsystem)
    assert fake.verdict(name, is_named=True) == ("OK", "")
    verdict, reason = fake.verdict(name)
    assert verdict == ("NOT A CARD" if name == "sdd" else "NOT REMOVABLE")
    assert ("/dev/disk/by-id" in reason) == (name != "sdd")
    assert fake.verdict(f"{name}p1", is_named=True)[0] == "NOT A CARD"
    fake.mount(f"{name}p1", "/mnt")
    assert fake.verdict(name, is_named=True)[0] == "IN USE"
    fake.mount(f"{name}p1", "/home")
    assert fake.verdict(name, is_named=True) == ("SYSTEM DISK", "it holds /home")
    del fake.mounts[-2:]
    fake.swaps.append(f"/dev/{name}p1 partition 1 0 -2")
    assert fake.verdict(name, is_named=True)[0] == "IN USE"
    fake.swaps.pop()
    (fake.sysfs_folder(f"{name}p1") / "holders/md0").touch()
    assert fake.verdict(name, is_named=True)[0] == "IN USE"
    (fake.sysfs_folder(f"{name}p1") / "holders/md0").unlink()
    for removable in ("1\n", ""):  # a reader has a name in by-id as well, whatever card is in it
        (fake.sysfs_folder(name) / "removable").write_text(removable)
        assert fake.verdict(name, is_named=True)[0] == verdict


def test_named_memory_that_is_soldered_in(fake: FakeMachine) -> None:
    fake.disk("mmcblk1", SD_SLOT.replace("mmc0", "mmc1"), 32 * GB, device__type="MMC", removable="0")
    fake.disk("mmcblk2", SD_SLOT.replace("mmc0", "mmc2"), 1000 * GB, device__type="SD", removable="0")
    fake.disk("vdb", "virtio1/block", 32 * GB, removable="0")
    assert fake.verdict("mmcblk1", is_named=True)[0] == "NOT REMOVABLE"
    assert fake.verdict("vdb", is_named=True)[0] == "NOT REMOVABLE"
    assert fake.verdict("mmcblk2", is_named=True) == ("OK", "")


# This machine


def find_verdicts(*slots: str | Path, needed: int = 1, image: Path | None = None) -> list[tuple[str, str]]:
    """Return the verdicts and reasons of slots of this machine."""
    cards = [{"node": f"pi-{number:02}", "slot": str(slot)} for number, slot in enumerate(slots)]
    return [(facts.verdict, facts.reason) for facts in Guard(str(image) if image else None).facts(cards, needed)]


def root_disk() -> str:
    """Return the name of the disk that holds / on this machine, if the kernel shows it."""
    device = os.stat("/").st_dev
    node = os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    return os.path.basename(os.path.dirname(node) if os.path.exists(f"{node}/partition") else node)


@pytest.mark.skipif(not os.path.exists(f"/dev/{root_disk()}"), reason="/ is not on a disk")
def test_real_system_disk(tmp_path: Path) -> None:
    (tmp_path / "slot").symlink_to(f"/dev/{root_disk()}")
    assert find_verdicts(f"/dev/{root_disk()}", tmp_path / "slot")[0][0] == "SAME CARD TWICE"
    assert find_verdicts(tmp_path / "slot") == [("SYSTEM DISK", "it holds /")]


def test_real_files(card: Callable[..., Path], tmp_path: Path, machine: Any) -> None:
    good, image = card("good"), card("image")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "trick").symlink_to("/etc/passwd")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    point = machine.mount("-t", "tmpfs", "a-card")
    wanted = {
        good: "OK",
        tmp_path / "absent": "ABSENT",
        tmp_path / "nowhere": "ABSENT",
        tmp_path / "loop": "ABSENT",
        Path("/dev/disk/by-path/none"): "ABSENT",
        tmp_path: "NOT A CARD",
        tmp_path / "pipe": "NOT A CARD",
        tmp_path / "trick": "NOT A CARD",
        Path("/dev/null"): "NOT A CARD",
        Path("/proc/version"): "NOT A CARD",
        card("empty", size=0): "TOO SMALL",
        image: "IN USE",
        point: "NOT A CARD",
    }
    found = find_verdicts(*wanted, image=image)
    assert [verdict for verdict, _ in found] == list(wanted.values())
    assert found[-1][1] == "a folder where a-card is mounted" and found[-2][1] == "it is the image itself"
    assert find_verdicts(good, needed=32 * 2**20 + 1) == [("TOO SMALL", "by 1 byte")]


def test_real_loop_devices(card: Callable[..., Path], machine: Any) -> None:
    path, free = card("used"), card("free")
    device, other = machine.loop(path), machine.loop(free)
    status = path.stat()
    assert loop_backing_file(str(device)) == (status.st_dev, status.st_ino)
    assert find_verdicts(device, other) == [("OK", ""), ("OK", "")]
    assert find_verdicts(path) == [("IN USE", f"{device} uses it. If a stand-in runs from this card, power it off first")]
    alias = card("alias")
    machine.mount("--bind", path, on=alias)  # as in a container, under another name
    assert find_verdicts(alias)[0][0] == "IN USE"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", device], check=True)
    point = machine.mount(device)
    assert find_verdicts(device) == [("IN USE", f"{device.name} is mounted on {point}: umount {point}")]
    holder = os.open(other, os.O_RDONLY | os.O_EXCL)
    assert find_verdicts(other) == [("IN USE", "another program has it open; it may run in a container")]
    os.close(holder)
    second = machine.loop(free)
    assert find_verdicts(second)[0][0] == "IN USE"  # two loop devices on one file
    image = card("image")
    assert find_verdicts(machine.loop(image), image=image)[0] == ("IN USE", f"{image}: it is the image itself")


def test_same_card_twice(card: Callable[..., Path], tmp_path: Path, machine: Any) -> None:
    path = card("one")
    (tmp_path / "two").symlink_to(path)
    os.link(path, tmp_path / "three")
    found = find_verdicts(path, tmp_path / "two", card("other"), tmp_path / "three")
    assert [verdict for verdict, _ in found] == ["SAME CARD TWICE", "SAME CARD TWICE", "OK", "SAME CARD TWICE"]
    assert found[0][1] == f"also the card of pi-01, pi-03: {path}"
    assert [verdict for verdict, _ in find_verdicts(machine.loop(path), path)] == ["SAME CARD TWICE"] * 2


def test_table(card: Callable[..., Path]) -> None:
    cards = [{"node": "pi-client", "slot": str(card("good"))}, {"node": "pi-01", "slot": str(card("small", size=1000))}]
    head, first, second, third = table(Guard().facts([*cards, {"node": "pi-02", "slot": "/gone"}], 1024)).splitlines()
    assert head.split() == ["node", "slot", "bus", "bytes", "GB", "GiB", "needed", "verdict"]
    assert first.split()[2:] == ["file", "33,554,432", "0.03", "0.03", "1,024", "OK"]
    assert second.endswith("1,000  0.00  0.00   1,024  TOO SMALL by 24 bytes")
    assert third.endswith("ABSENT: no such file")
    assert len({line.index(word) for line, word in zip((head, first), ("verdict", "OK"), strict=True)}) == 1


def test_card_facts_module(card: Callable[..., Path], run_module: Callable[..., dict[str, Any]]) -> None:
    image, good = card("image", size=512), card("good", size=512)
    before = good.stat()
    for check in (False, True):
        result = run_module("card_facts", {"image": str(image), "cards": [{"node": "pi-01", "slot": str(good)}]}, check=check)
        assert result["ok"] and not result["changed"] and "OK" in result["table"]
        assert result["cards"] == [
            dict(node="pi-01", slot=str(good), device=str(good), kind="file", bus="file", model="", bytes=512, gb=0.0)
            | dict(gib=0.0, needed_bytes=512, verdict="OK", reason="", serial="", controller="", controller_speed=0)
        ]
    assert good.stat().st_mtime_ns == before.st_mtime_ns
    result = run_module("card_facts", {"cards": [{"node": "pi-01", "slot": "/gone"}]})
    assert not result["ok"] and result["cards"][0]["needed_bytes"] == 0
    assert "playbooks/image.yml" in run_module("card_facts", {"image": "/gone", "cards": []})["msg"]


def test_named_slot_is_below_by_id(card: Callable[..., Path], machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name that the inventory gives counts, not that of the device, nor one that only begins like it."""
    seen: list[bool] = []
    evaluate = Guard.evaluate_disk

    def record(self: Guard, name: str, needed: int, is_named: bool = False) -> tuple[str, str]:
        seen.append(is_named)
        return evaluate(self, name, needed, is_named)

    monkeypatch.setattr(Guard, "evaluate_disk", record)
    device = machine.loop(card("card"))
    folder = Path("/dev/disk/by-id")
    made = [place for place in (folder.parent, folder) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / f"bramble-test-{os.getpid()}"
    link.symlink_to(device)
    try:
        names = [link, device, f"/dev/disk/by-id/../by-id/{link.name}"]
        assert [verdict for slot in names for verdict, _ in find_verdicts(slot)] == ["OK"] * 3
    finally:
        link.unlink()
        for place in reversed(made):
            place.rmdir()
    assert seen == [True, False, False]


def test_real_overlay_of_a_disk(card: Callable[..., Path], machine: Any, tmp_path: Path) -> None:
    """The options of a real overlay lead to its disk, also with names that need escapes."""
    device = machine.loop(card("card"))
    subprocess.run(["mke2fs", "-q", "-t", "ext4", device], check=True)
    disk = machine.mount(device)
    lower, upper, work, strange = (disk / name for name in ("lower", "upper", "work", "a, b=c é"))
    for folder in (lower, upper, work, strange):
        folder.mkdir()
    options = f"lowerdir={strange}:{lower},upperdir={upper},workdir={work}".replace("a, b", "a\\, b")
    point = machine.mount("-t", "overlay", "-o", options, "none")
    assert Mounts().holders(str(point)) >= {device.name}


def test_real_zfs_signature(card: Callable[..., Path]) -> None:
    path = card("card", size=64 * 2**20)
    assert guard_module.zfs_pools(str(path)) == set()
    # A label of ZFS has the name of its pool in XDR, and 128 uberblocks from 128 KiB on: libblkid, superblocks/zfs.c.
    name, value = b"name", b"rpool"
    pair = struct.pack(">I", len(name)) + name + struct.pack(">III", 9, 1, len(value)) + value.ljust(8, b"\0")
    pair = struct.pack(">II", len(pair) + 8, 64) + pair
    nvlist = b"\1\1\0\0" + struct.pack(">II", 0, 1) + pair + bytes(8)
    with path.open("r+b") as file:
        for label in (0, 256 * 1024):
            file.seek(label + 16 * 1024)
            file.write(nvlist)
            for uberblock in range(128):
                file.seek(label + 128 * 1024 + uberblock * 1024)
                file.write(struct.pack("<QQ", 0x00BAB10C, 5000))
    assert guard_module.zfs_pools(str(path)) == {"rpool"}
