"""Install Debian packages into a tree with mmdebstrap."""

from __future__ import annotations

import shlex
from pathlib import Path

from ansible_collections.bramble.cluster.images.debian.recipe import HERE, Recipe

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def mmdebstrap_command(recipe: Recipe, architecture: str, root: Path, early: Path) -> list[str]:
    """Return the command that installs packages into a tree.

    :param early: a tree of configuration files that must exist before the packages are configured
    """
    return [
        "mmdebstrap",
        f"--architectures={architecture}",
        "--variant=minbase",
        "--format=directory",
        f"--keyring={KEYRING}",
        f"--components={','.join(recipe.components)}",
        f"--include={','.join(recipe.packages)}",
        # If the machine fails, the tree is built again, so dpkg need not wait for the disk. The image does not get this option.
        "--dpkgopt=force-unsafe-io",
        # With --dpkgopt, every essential package would pass a slow filter. Files unpacked before the hook: remove_excluded().
        f"--extract-hook=copy-in {shlex.quote(f'{HERE}/rootfs/etc/dpkg/dpkg.cfg.d/bramble')} /etc/dpkg/dpkg.cfg.d",
        *(f"--essential-hook=copy-in {shlex.quote(str(path))} /" for path in sorted(early.iterdir())),
        "--dpkgopt=force-confold",
        # This check does not recognise an emulator that is registered only in the user namespace.
        "--skip=check/qemu",
        *(f"--customize-hook={command}" for command in recipe.customize),
        recipe.suite,
        str(root),
    ]
