"""The boot file system of a card: the files in bootfs/, and the kernel and firmware of the packages."""

from __future__ import annotations

import shutil
from pathlib import Path

from ansible_collections.bramble.cluster.images.debian.recipe import HERE
from ansible_collections.bramble.cluster.images.debian.root_fs import copy_templates
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError


def gather_boot(root: Path, boot: Path, values: dict[str, str]) -> None:
    """Create the tree of the boot partition from bootfs/, then from the files that packages have installed in the root tree.

    :raises BrambleError: if its config.txt names a file that does not exist
    """
    copy_templates(HERE / "bootfs", boot, values)
    for path in sorted((root / "boot/firmware").iterdir()):
        (boot / path.name).unlink(missing_ok=True)
        shutil.move(path, boot)
    words = [line.replace("=", " ").split() for line in (boot / "config.txt").read_text().splitlines()]
    missing = [word[1] for word in words if word[:1] in (["kernel"], ["initramfs"]) and not (boot / word[1]).is_file()]
    if missing:
        raise BrambleError(
            f"This image would not boot a Raspberry Pi: its config.txt names {', '.join(missing)}, "
            "which is not on the boot partition."
        )
