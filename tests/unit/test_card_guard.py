"""The guard: which cards may be overwritten, on fake machines and on this machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bramble.cluster.plugins.module_utils.card.facts import Facts, controller_warnings, table
from ansible_collections.bramble.cluster.plugins.module_utils.card.guard import LARGEST_CARD, Guard
from ansible_collections.bramble.cluster.plugins.module_utils.card.sysfs import Reader, find_reader, loop_backing_file

GB = 10**9
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

    def mount(self, name: str, point: str, kind: str = "ext4", device: str | None = None, source: str | None = None) -> None:
        """Mount a disk or partition."""
        device = device or (self.sysfs_folder(name) / "dev").read_text().strip()
        self.mounts.append(f"22 1 {device} / {point} rw - {kind} {source or f'/dev/{name}'} rw")

    def verdict(self, name: str, needed: int = 8 * GB, image: str | None = None) -> tuple[str, str]:
        """Return the verdict and the reason of the guard for a disk."""
        (self.proc / "self/mountinfo").write_text("\n".join(self.mounts) + "\n")
        (self.proc / "swaps").write_text("\n".join(self.swaps) + "\n")
        return Guard(image, str(self.sys), str(self.proc)).evaluate_disk(name, needed)


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
    ("kind", "verdict"), [("overlay", "SYSTEM DISK"), ("zfs", "SYSTEM DISK"), ("nfs4", "OK"), ("tmpfs", "OK")]
)
def test_system_on_an_unknown_disk(fake: FakeMachine, kind: str, verdict: str) -> None:
    fake.mounts.clear()
    fake.mount("", "/", kind, device="0:29", source="somewhere")
    assert fake.verdict("sdb")[0] == verdict
    fake.mounts.clear()
    assert fake.verdict("sdb")[0] == "SYSTEM DISK"


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
