"""The methods that grow the root file system to the end of its card at the first boot."""

from __future__ import annotations

from ansible_collections.bramble.cluster.plugins.module_utils.capture.root_file_system import RootFileSystem

GROW_ARGUMENT = "resize"  # the word in cmdline.txt that requests a larger root partition
# Raspberry Pi OS from trixie on: https://github.com/RPi-Distro/raspberrypi-sys-mods, initramfs-tools and rpi-resize.service.
PI_RESIZE = "/usr/share/initramfs-tools/scripts/local-premount/resize_early"
PI_UNIT = "/usr/lib/systemd/system/rpi-resize.service"
PI_LINK = "/etc/systemd/system/sysinit.target.wants/rpi-resize.service"
GROW_SCRIPT = "/usr/local/sbin/bramble-grow"
GROW_UNIT = "/etc/systemd/system/bramble-grow.service"
GROW_LINK = "/etc/systemd/system/multi-user.target.wants/bramble-grow.service"
GROW_FILES = {
    GROW_SCRIPT: """\
#!/bin/sh
# Grow the root partition and its file system to the end of the card, once: this image was captured and shrunk by Bramble.
set -eu
part=$(readlink -f "/sys/dev/block/$(mountpoint -d /)")
disk=/dev/$(basename "$(dirname "$part")")
number=$(cat "$part/partition")
echo ',+' | sfdisk --quiet --force --no-reread --no-tell-kernel -N "$number" "$disk"
partx --update --nr "$number" "$disk"
resize2fs "/dev/$(basename "$part")"
systemctl disable bramble-grow.service
""",
    GROW_UNIT: f"""\
[Unit]
Description=Grow the root file system to the card
ConditionVirtualization=!container

[Service]
Type=oneshot
ExecStart={GROW_SCRIPT}

[Install]
WantedBy=multi-user.target
""",
}


def grow_method(root: RootFileSystem) -> str:
    """Return what will grow a root file system at the first boot: initramfs, cloud-init, or unit (which Bramble adds)."""
    if root.exists(PI_RESIZE):
        return "initramfs"
    disabling_files = ("/etc/growroot-disabled", "/etc/cloud/cloud-init.disabled")
    if all(map(root.exists, ("/usr/bin/cloud-init", "/usr/bin/growpart"))) and not any(map(root.exists, disabling_files)):
        return "cloud-init"
    return "unit"


def growth_changes(root: RootFileSystem, method: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the files (text by path) and links (target by path) that a method needs on the root file system."""
    if method == "unit":
        return dict(GROW_FILES), {GROW_LINK: GROW_UNIT}
    if method == "initramfs" and root.exists(PI_UNIT):
        return {}, {PI_LINK: PI_UNIT}  # the unit disables itself
    return {}, {}
