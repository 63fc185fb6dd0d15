"""Turn Debian packages into a tree, with mmdebstrap."""

from __future__ import annotations

import shlex
from pathlib import Path

from ansible_collections.bramble.cluster.images.debian.recipe import HERE, Recipe

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def mmdebstrap_command(recipe: Recipe, architecture: str, root: Path, early: Path) -> list[str]:
    """Return the command that turns packages into a tree.

    :param early: a tree of configuration files that the packages find when they are configured
    """
    return [
        "mmdebstrap",
        f"--architectures={architecture}",
        "--variant=minbase",
        "--format=directory",
        f"--keyring={KEYRING}",
        f"--components={','.join(recipe.components)}",
        f"--include={','.join(recipe.packages)}",
        # The tree is not worth keeping if the machine fails meanwhile: nothing waits for the disk. (Not kept in the image.)
        "--dpkgopt=force-unsafe-io",
        # By a hook, as --dpkgopt would send every essential package through a slow filter. `lean` removes what came before it.
        f"--extract-hook=copy-in {shlex.quote(f'{HERE}/rootfs/etc/dpkg/dpkg.cfg.d/bramble')} /etc/dpkg/dpkg.cfg.d",
        *(f"--essential-hook=copy-in {shlex.quote(str(path))} /" for path in sorted(early.iterdir())),
        "--dpkgopt=force-confold",
        # It knows only the programs that the whole machine can run.
        "--skip=check/qemu",
        *(f"--customize-hook={command}" for command in recipe.customize),
        recipe.suite,
        str(root),
    ]
