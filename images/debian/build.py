#!/usr/bin/env python3
"""Build a card image from Debian packages, with the layout of a Raspberry Pi OS image.

    build.py --architecture amd64 --cache .cache/images

The image has a master boot record, the FAT partition `bootfs` and the ext4 partition `rootfs`. It is never mounted: mtools and
`mke2fs -d` write the partitions in place. Its name in the cache contains the hash of all its sources, so that a second run finds
it. It gets this name only when it is complete and on the disk, so an interrupted build can be run again.

qemu runs programs of another architecture. It is registered in a user namespace of the build (binfmt_misc, Linux 6.7), so that
the registration has no effect outside of the build, and ends with it.

The last line of standard output is a JSON object for Ansible. Each step is reported on standard error.
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
from ansible_collections.bramble.cluster.images.debian.emulation import register_emulator, run_in_user_namespace
from ansible_collections.bramble.cluster.images.debian.packages import mmdebstrap_command
from ansible_collections.bramble.cluster.images.debian.recipe import HERE, Recipe
from ansible_collections.bramble.cluster.images.debian.requirements import (
    available_memory,
    check_architecture,
    check_space,
    check_tools,
)
from ansible_collections.bramble.cluster.images.debian.root_fs import configure_root, copy_templates
from ansible_collections.bramble.cluster.images.host import fingerprint, native_architecture, report_step, run
from ansible_collections.bramble.cluster.plugins.module_utils.core.digest import file_sha256
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

# Mounts in these namespaces are not visible outside, and end with the build. If the builder is killed, so are all its processes.
NEW_NAMESPACES = ["setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
# With this much available memory, the tree is created in memory, which is faster, as it has twenty thousand small files.
MIN_MEMORY_BYTES = 2_500_000_000


def build(args: argparse.Namespace, recipe: Recipe, entry: CacheEntry) -> None:
    """Build an image, and move it into the cache. Raises BrambleError."""
    if os.geteuid():
        raise BrambleError("Building an image needs root, which owns the files in it. Run the same command with sudo.")
    check_tools()
    check_space(entry.cache)
    with workspace(entry.cache) as work:
        if entry.is_complete():  # another build has finished while this one waited for the lock
            return
        options = ["--recipe", args.recipe, "--architecture", args.architecture, "--cache", entry.cache, "--inside", work]
        command = [*NEW_NAMESPACES, sys.executable, __file__, *map(str, options)]
        is_native = args.architecture == native_architecture()
        exit_code = subprocess.run(command, check=False).returncode if is_native else run_in_user_namespace(command)
        if exit_code:
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


def build_in_namespaces(recipe: Recipe, architecture: str, recipe_hash: str, work: Path) -> None:
    """Build the image file in a work folder. This runs inside the new namespaces. Raises BrambleError."""
    root, boot, early = work / "root", work / "boot", work / "early"
    for path in (root, boot, early):
        path.mkdir()
    values = {"PARTUUID": partuuid(recipe_hash)}
    copy_templates(HERE / f"rootfs-{architecture}", early, values)
    if available_memory(Path("/proc/meminfo").read_text()) >= MIN_MEMORY_BYTES:
        run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", root)
    name = f"{recipe.name} {architecture}"
    if architecture != native_architecture():
        report_step(f"{name}: installing qemu, as this machine has another architecture")
        register_emulator(recipe, architecture, work)
    report_step(f"{name}: installing packages of Debian {recipe.suite}")
    run(*mmdebstrap_command(recipe, architecture, root, early))
    report_step(f"{name}: writing the file systems")
    configure_root(recipe, root, values)
    gather_boot(root, boot, values)
    write_image(recipe, recipe_hash, root, boot, work / "image.img")


def exit_on_signal(signum: int, _frame: object) -> NoReturn:
    """Raise SystemExit, so that the workspace is removed."""
    raise SystemExit(128 + signum)


def main(arguments: list[str] | None = None) -> int:
    """Build one image, or find it in the cache, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=HERE / "debian-trixie.toml", help="recipe file of the image")
    parser.add_argument(
        "--architecture", default=native_architecture(), help="Debian architecture of the image (default: that of this machine)"
    )
    parser.add_argument("--cache", type=Path, required=True, help="folder of images")
    parser.add_argument("--check", action="store_true", help="only report whether the image would be built")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        recipe = Recipe.load(args.recipe, args.architecture)
        sources = [*sorted(HERE.glob("*.py")), HERE / "bootfs", HERE / "rootfs", HERE / f"rootfs-{args.architecture}"]
        recipe_hash = fingerprint([args.recipe, *sources], args.architecture)
        if args.inside:
            build_in_namespaces(recipe, args.architecture, recipe_hash, args.inside)
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
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, exit_on_signal)
    os.umask(0o022)
    sys.exit(main())
