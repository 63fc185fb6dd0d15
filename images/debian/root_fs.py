"""The root file system of a card: a new Debian tree, without an identity, and with the files in rootfs/."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from ansible_collections.bramble.cluster.images.debian.recipe import HERE, Recipe

BLOCK = 4096
INODE = 256


def remove_excluded(root: Path) -> None:
    """Remove files that were unpacked before dpkg had its configuration, and the configuration of the build."""
    share = root / "usr/share"
    for directory in ("info", "locale", "man"):
        shutil.rmtree(share / directory, ignore_errors=True)
    for path in (share / "doc").rglob("*"):
        if not path.is_dir() and path.name != "copyright":
            path.unlink()
    (root / "etc/dpkg/dpkg.cfg.d/99mmdebstrap").unlink(missing_ok=True)


def remove_identity(root: Path) -> None:
    """Remove all files that two nodes with the same image must not share."""
    for path in [
        *root.glob("etc/ssh/ssh_host_*"),
        root / "var/lib/dbus/machine-id",
        root / "etc/resolv.conf",
        root / "var/lib/systemd/random-seed",
        *root.glob("var/log/*.log"),
        *root.glob("var/cache/ldconfig/*"),
    ]:
        path.unlink(missing_ok=True)
    (root / "etc/machine-id").write_text("uninitialized\n")


def mark_updated(root: Path) -> None:
    """Mark the caches of this tree as current, so that systemd does not create them again at the first boot."""
    now = time.time()
    for path in (root / "etc/.updated", root / "var/.updated"):
        path.touch()
        os.utime(path, (now, now))
    os.utime(root / "usr", (now, now))


def copy_templates(source: Path, target: Path, values: dict[str, str]) -> None:
    """Copy a tree of text files, and replace @NAME@ by its value. Files get mode 0644, or 0600 for netplan."""
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir(exist_ok=True)
            continue
        text = path.read_text()
        for name, value in values.items():
            text = text.replace(f"@{name}@", value)
        copy.write_text(text)
        copy.chmod(0o600 if "netplan" in path.parts else 0o644)


def configure_root(recipe: Recipe, root: Path, values: dict[str, str]) -> None:
    """Change a new Debian tree into the root file system of a card."""
    remove_excluded(root)
    copy_templates(HERE / "rootfs", root, values)
    for path in [path for pattern in recipe.without for path in root.glob(pattern)]:
        path.unlink()
    units = root / "etc/systemd/system"
    for unit in recipe.masked_units:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    (root / "boot/firmware").mkdir(parents=True, exist_ok=True)
    # The identity of a node has its host key in this folder.
    (root / "etc/bramble/ssh").mkdir(parents=True)
    (root / "etc/bramble/ssh").chmod(0o700)
    remove_identity(root)
    mark_updated(root)


def tree_size(root: Path) -> int:
    """Return the size of a tree in an ext4 file system, in bytes: its whole blocks and inodes."""
    total = 0
    for directory, _, files in os.walk(root):
        total += BLOCK + INODE
        for name in files:
            size = os.lstat(os.path.join(directory, name)).st_size
            total += -(-size // BLOCK) * BLOCK + INODE
    return total
