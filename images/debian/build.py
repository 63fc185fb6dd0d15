#!/usr/bin/env python3
"""Build a card image from Debian packages, laid out as a Raspberry Pi OS image is.

    build.py --architecture amd64 --cache .cache/images

One file holds the master boot record, the FAT partition `bootfs` and the ext4 partition `rootfs`. It is never mounted: mtools and
`mke2fs -d` write the partitions in place. The image is kept in the cache under the hash of everything that shapes it, so a second
run finds it; it gets its name only when it is complete and on the disk, so an interrupted build can simply be run again.

Programs of another architecture are run by qemu. That is registered in a user namespace of the build's own, where it holds for
this build alone and ends with it (binfmt_misc, Linux 6.7).

The last line of standard output is a JSON object for Ansible; each step is reported on standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from ansible_collections.bramble.cluster.images.debian.boot_fs import gather_boot
from ansible_collections.bramble.cluster.images.debian.cache import CacheEntry, link_current, publish, workspace
from ansible_collections.bramble.cluster.images.debian.disk import partuuid, write_image
from ansible_collections.bramble.cluster.images.debian.emulation import emulate, run_in_user_namespace
from ansible_collections.bramble.cluster.images.debian.packages import mmdebstrap_command
from ansible_collections.bramble.cluster.images.debian.recipe import HERE, Recipe
from ansible_collections.bramble.cluster.images.debian.requirements import (
    available_memory,
    check_architecture,
    check_space,
    check_tools,
)
from ansible_collections.bramble.cluster.images.debian.root_fs import copy_templates, finish_root
from ansible_collections.bramble.cluster.images.host import fingerprint, native_architecture, report_step, run
from ansible_collections.bramble.cluster.plugins.module_utils.core.digest import file_sha256
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

# What is mounted in namespaces of its own is mounted for nobody else and needs no unmounting. All is killed if the builder is.
OWN_NAMESPACES = ["setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
# With this much free memory, the tree is made there: it has twenty thousand small files.
MEMORY_BYTES = 2_500_000_000


def build(args: argparse.Namespace, recipe: Recipe, entry: CacheEntry) -> None:
    """Build an image into the cache. Raises BrambleError."""
    if os.geteuid():
        raise BrambleError("Building an image needs root, to own the files in it. Run the same command with sudo.")
    check_tools()
    check_space(entry.cache)
    with workspace(entry.cache) as work:
        if entry.is_complete():  # by another build, while this one waited for the lock
            return
        again = ["--recipe", args.recipe, "--architecture", args.architecture, "--cache", entry.cache, "--inside", work]
        command = [*OWN_NAMESPACES, sys.executable, __file__, *map(str, again)]
        native = args.architecture == native_architecture()
        if subprocess.run(command, check=False).returncode if native else run_in_user_namespace(command):
            raise SystemExit(1)
        image = work / "image.img"
        publish(
            entry,
            image,
            {
                "name": recipe.name,
                "architecture": args.architecture,
                "file": entry.image.name,
                "sha256": file_sha256(image),
                "bytes": image.stat().st_size,
                "init_format": recipe.init_format,
                "recipe": entry.recipe_hash,
                "built": datetime.now(UTC).isoformat(timespec="seconds"),
            },
        )


def build_inside(recipe: Recipe, architecture: str, recipe_hash: str, work: Path) -> None:
    """Build the image file in a work folder, in namespaces of its own. Raises BrambleError."""
    root, boot, early = work / "root", work / "boot", work / "early"
    for path in (root, boot, early):
        path.mkdir()
    values = {"PARTUUID": partuuid(recipe_hash)}
    copy_templates(HERE / f"rootfs-{architecture}", early, values)
    if available_memory(Path("/proc/meminfo").read_text()) >= MEMORY_BYTES:
        run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", root)
    name = f"{recipe.name} {architecture}"
    if architecture != native_architecture():
        report_step(f"{name}: qemu, as this machine is of another architecture")
        emulate(recipe, architecture, work)
    report_step(f"{name}: packages of Debian {recipe.suite}")
    run(*mmdebstrap_command(recipe, architecture, root, early))
    report_step(f"{name}: file systems")
    finish_root(recipe, root, values)
    gather_boot(root, boot, values)
    write_image(recipe, recipe_hash, root, boot, work / "image.img")


def exit_on_signal(signum: int, _frame: object) -> NoReturn:
    """Exit by an exception, so that the workspace is removed."""
    raise SystemExit(128 + signum)


def main(arguments: list[str] | None = None) -> int:
    """Build one image, or find it in the cache, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=HERE / "debian-trixie.toml")
    parser.add_argument("--architecture", default=native_architecture(), help="in Debian's words")
    parser.add_argument("--cache", type=Path, required=True, help="where images are kept")
    parser.add_argument("--check", action="store_true", help="only tell whether there is something to do")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, exit_on_signal)
    os.umask(0o022)
    started = time.monotonic()
    try:
        recipe = Recipe.load(args.recipe, args.architecture)
        sources = [*sorted(HERE.glob("*.py")), HERE / "bootfs", HERE / "rootfs", HERE / f"rootfs-{args.architecture}"]
        recipe_hash = fingerprint([args.recipe, *sources], args.architecture)
        if args.inside:
            build_inside(recipe, args.architecture, recipe_hash, args.inside)
            return 0
        entry = CacheEntry(args.cache.resolve(), f"{recipe.name}-{args.architecture}", recipe_hash)
        found = entry.is_complete()
        changed = not (found and entry.is_current())
        if not found:
            check_architecture(recipe, args.architecture, native_architecture(), platform.release())
        if changed and not args.check:
            entry.cache.mkdir(parents=True, exist_ok=True)
            if not found:
                build(args, recipe, entry)
            link_current(entry)
    except BrambleError as error:
        report_step(f"build.py: {error}")
        return 1
    seconds = round(time.monotonic() - started, 1)
    print(json.dumps({"changed": changed, "image": str(entry.image), "manifest": str(entry.manifest), "seconds": seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
