"""The module card_care: fstab, and mounts and swap as the kernel reports them."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.bramble.cluster.plugins.module_utils.boot import fstab
from ansible_collections.bramble.cluster.plugins.modules import card_care
from hypothesis import given
from hypothesis import strategies as st

RPI = """proc            /proc           proc    defaults          0       0
PARTUUID=6f3c9a12-01  /boot/firmware  vfat    defaults          0       2
PARTUUID=6f3c9a12-02  /               ext4    defaults,noatime  0       1
# a swapfile is not a swap partition, no line here
"""
UBUNTU = """LABEL=writable\t/\text4\tdiscard,errors=remount-ro\t0 1
LABEL=system-boot       /boot/firmware  vfat    defaults  0       1
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (RPI, RPI),
        (UBUNTU, UBUNTU.replace("remount-ro", "remount-ro,noatime")),
        ("/dev/a / ext4 relatime,ro", "/dev/a / ext4 ro,noatime 0 1"),
        ("/dev/a / ext4 defaults,noatime 0 0 \r\n", "/dev/a / ext4 defaults,noatime 0 1 \r\n"),
        ("/dev/a  /  ext4  noatime  1  2\n", "/dev/a  /  ext4  noatime  1  1\n"),
        ("/dev/b /data ext4 defaults\n", "/dev/b /data ext4 defaults 0 2\n"),
        (
            "/dev/b /data xfs defaults 0 0\n/dev/c /x vfat noauto 0 0\n",
            "/dev/b /data xfs defaults 0 0\n/dev/c /x vfat noauto 0 0\n",
        ),
        (
            "/swapfile none swap sw 0 0\n#/swap none swap sw\n",
            f"{fstab.SWAP_OFF}/swapfile none swap sw 0 0\n#/swap none swap sw\n",
        ),
    ],
)
def test_only_requested_options_change(before: str, after: str) -> None:
    assert fstab.edit_fstab(before, swap=False) == after
    assert fstab.edit_fstab(after, swap=False) == after
    assert fstab.has_root_entry(before) == (" / " in before.replace("\t", " ").replace("  ", " "))


def test_swap_is_restored_unchanged() -> None:
    text = "\t/dev/b none swap sw\n/swap.img none  swap sw 0 0"
    assert fstab.edit_fstab(fstab.edit_fstab(text, swap=False), swap=True) == text


@given(st.text())
def test_comments_are_not_changed(text: str) -> None:
    assert fstab.edit_fstab(f"# {text}".replace("\n", "\n#"), swap=False) == f"# {text}".replace("\n", "\n#")


def test_last_of_several_mounts_counts() -> None:
    assert card_care.is_mounted_noatime("rootfs / rootfs rw 0 0\n/dev/mmcblk0p2 / ext4 rw,noatime 0 0\nproc /proc proc rw 0 0\n")
    assert not card_care.is_mounted_noatime(
        "/dev/a / ext4 rw,noatime 0 0\n/dev/b / ext4 rw,relatime 0 0\n/dev/c /x ext4 rw,noatime 0 0\n"
    )


def test_swap_of_another_machine_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "swap").touch()
    header = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
    assert card_care.active_swap(f"{header}{tmp_path}/swap file 1 0 -2\n{tmp_path}/theirs partition 1 0 -3\n") == [
        f"{tmp_path}/swap"
    ]
    assert card_care.active_swap(header) == []
