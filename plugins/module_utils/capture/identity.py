"""The identity of a node on its root file system: which paths belong to it, and how to remove them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ansible_collections.bramble.cluster.plugins.module_utils.capture.grow import growth_changes
from ansible_collections.bramble.cluster.plugins.module_utils.capture.root_file_system import PathsToRemove, RootFileSystem
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

# What distinguishes one node from another. A folder is removed with its content; a link with the file that it leads to.
IDENTITY_PATHS = (
    # keys and identifiers
    "/etc/ssh/ssh_host_*",
    "/etc/ssh/sshd_config.d/10-bramble*.conf",
    "/etc/bramble/ssh/*",
    "/etc/bramble/tls/*",
    "/var/lib/dbus/machine-id",
    "/var/lib/cloud/*",
    "/var/lib/systemd/random-seed",
    "/var/lib/systemd/credential.secret",
    "/var/lib/urandom/random-seed",
    # network settings
    "/etc/NetworkManager/system-connections/*",
    "/etc/cloud/cloud.cfg.d/99-bramble-network.cfg",
    "/etc/netplan/50-cloud-init.yaml",
    "/etc/netplan/90-NM-*",
    "/etc/network/interfaces.d/50-cloud-init",
    "/etc/network/interfaces.d/bramble-*",
    "/etc/systemd/network/05-bramble-*",
    "/var/lib/bramble/network",
    "/var/lib/NetworkManager/*",
    "/var/lib/dhcp/*",
    "/var/lib/dhcpcd/*",
    "/var/lib/dhcpcd5/*",
    # histories
    "/root/.*_history",
    "/root/.lesshst",
    "/root/.viminfo",
    "/home/*/.*_history",
    "/home/*/.lesshst",
    "/home/*/.viminfo",
)
# What is useless on another node. A folder is removed with its content; of a link, only the link, as anything can be behind it.
DISPOSABLE_PATHS = (
    "/var/log/journal/*",
    "/tmp/*",
    "/var/tmp/*",
    "/var/swap",
    # downloads that can be fetched again
    "/var/cache/apt/*.bin",
    "/var/cache/apt/archives/*.deb",
    "/var/cache/apt/archives/partial/*",
)
EMPTIED_FOLDERS = ("/var/log",)  # only the files in them are removed, as services need their folders
# No other folder may lead to one of these; "" is the top folder.
SYSTEM_FOLDERS = frozenset(
    f"/{name}".rstrip("/")
    for name in (
        *("", "bin", "boot", "dev", "etc", "home", "lib", "media", "mnt", "opt", "root", "run", "sbin", "srv", "sys"),
        *("usr", "usr/bin", "usr/lib", "usr/sbin", "usr/share", "var", "var/cache", "var/lib"),
    )
)
# This file must not be missing or empty, or else systemd would not treat the next boot as a first boot.
MACHINE_ID = "/etc/machine-id"
HOSTNAME = "/etc/hostname"
HOSTS = "/etc/hosts"
# Files on the boot partition that give a card its identity.
BOOT_IDENTITY_FILES = (
    "custom.toml",
    "firstrun.sh",
    "rpi-preseed.toml",
    "ssh",
    "ssh.txt",
    "userconf",
    "userconf.txt",
    "wpa_supplicant.conf",
)
IDENTITY_ARGUMENTS = ("systemd.run=", "systemd.run_success_action=", "systemd.unit=kernel-command-line.target", "ds=nocloud")


def find_identity(root: RootFileSystem) -> PathsToRemove:
    """Return the paths of IDENTITY_PATHS, DISPOSABLE_PATHS and EMPTIED_FOLDERS that exist on a root file system.

    Raises BrambleError when one of these folders is a link to a folder of the system, which must keep its files.
    """
    found: dict[str, int] = {}
    for pattern in (*IDENTITY_PATHS, *DISPOSABLE_PATHS):
        _check_folder(root, os.path.dirname(pattern))
        for path, mode in root.glob(pattern).items():
            found[path] = mode
            if stat.S_ISDIR(mode):
                found |= root.descendants(path)
            elif stat.S_ISLNK(mode) and pattern in IDENTITY_PATHS and root.is_file(target := root.resolve(path)):
                found[target] = stat.S_IFREG
    for folder in EMPTIED_FOLDERS:
        _check_folder(root, folder)
        found |= {path: mode for path, mode in root.descendants(folder).items() if not stat.S_ISDIR(mode)}
    files = sorted(path for path, mode in found.items() if not stat.S_ISDIR(mode))
    folders = sorted((path for path, mode in found.items() if stat.S_ISDIR(mode)), key=lambda path: -path.count("/"))
    return PathsToRemove(files, folders)


def _check_folder(root: RootFileSystem, folder: str) -> None:
    """Check that a folder is no link to a folder of the system, whose files would be removed. Raises BrambleError."""
    target = root.resolve(folder)
    if target != folder and target in SYSTEM_FOLDERS:
        raise BrambleError(
            f"{folder} on the root file system is a link to {target or '/'}, whose files would be removed, too: "
            "replace the link on the card by a folder"
        )


def remove_identity(root: RootFileSystem, grow: str, work: Path) -> list[str]:
    """Remove the identity of a node, and return the paths that were removed or changed. Raises BrambleError.

    :param grow: how the file system grows at the first boot (`grow_method`); the files for it are written as well
    :param work: a folder for temporary files
    """
    removed = find_identity(root)
    files = {MACHINE_ID: "uninitialized\n"}
    if root.exists(HOSTNAME):
        files[HOSTNAME] = "raspberrypi\n"
    hosts = root.read_text(HOSTS).splitlines(keepends=True)
    others = [line for line in hosts if line.split()[:1] != ["127.0.1.1"]]
    if others != hosts:
        files[HOSTS] = "".join(others)
    grow_files, links = growth_changes(root, grow)
    changed = root.apply_changes(removed, files | grow_files, links, work)
    if remaining := [path for path in find_identity(root).paths if path not in changed]:
        raise BrambleError(f"{', '.join(remaining[:5])} on the root file system cannot be removed")
    return sorted({*removed.paths, *changed})
