#!/usr/bin/env python3
"""Build a card image from Debian packages, laid out as a Raspberry Pi OS image is.

    build.py --architecture amd64 --cache .cache/images

One file holds the master boot record, the FAT partition `bootfs` and the ext4 partition `rootfs`. It is never mounted: mtools and
`mke2fs -d` write the partitions in place. The image is kept in the cache under the hash of everything that shapes it, so a second
run finds it; it gets its name only when it is complete and on the disk, so an interrupted build can simply be run again.

Programs of an architecture that is not this machine's are run by qemu. The kernel is told so in a user namespace of the build's
own, where it holds for this build alone and ends with it (binfmt_misc, Linux 6.7).

The last line of standard output is a JSON object for Ansible; what goes on is told on standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import tomllib
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

HERE = Path(__file__).resolve().parent
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
# What a build needs, and the Debian package that brings it.
TOOLS = {
    "mcopy": "mtools",
    "mke2fs": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "mmdebstrap": "mmdebstrap",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}
# In namespaces of its own: what is mounted there is mounted for nobody else and needs no unmounting. All of it is killed if the
# builder is.
APART = ["setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
NEEDED_BYTES = 2_500_000_000
# With this much free memory, the tree is made there: it has twenty thousand small files.
MEMORY_BYTES = 2_500_000_000
MIB = 1 << 20
SECTOR = 512
BLOCK = 4096
INODE = 256
# What this builds for on a machine of another architecture: its name in qemu's words, and how the kernel knows its programs: the
# first 20 bytes of ELF files (64 bits, little-endian, any ABI, an executable or a library) and the bits of them that count.
FOREIGN = {
    "arm64": (
        "aarch64",
        b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xb7\x00",
        b"\xff" * 7 + b"\x00" + b"\xff" * 8 + b"\xfe\xff\xff\xff",
    )
}
# The first Linux whose user namespaces have a binfmt_misc of their own.
FOREIGN_KERNEL = (6, 7)
# Partition types of the master boot record.
FAT32_LBA, LINUX = 0x0C, 0x83


class BuildError(Exception):
    """A failure that is explained to the user: what, where, what next."""


@dataclass(frozen=True)
class Recipe:
    """What an image is made of, for one architecture. Sizes are in MiB."""

    name: str
    suite: str
    init_format: str
    architectures: tuple[str, ...]
    components: tuple[str, ...]
    packages: tuple[str, ...]
    masked_units: tuple[str, ...]
    first_partition: int
    bootfs: int
    slack: int
    customize: tuple[str, ...] = ()  # shell commands at the end of mmdebstrap; "$1" is the tree
    without: tuple[str, ...] = ()  # files of rootfs/ that this image does not have, as globs

    @classmethod
    def load(cls, path: Path, architecture: str) -> Recipe:
        """Read a recipe file. In a table named after an architecture, lists are added to and numbers replace those for all."""
        try:
            data = tomllib.loads(path.read_text())
            tables = {key: data.pop(key) for key, value in list(data.items()) if isinstance(value, dict)}
            for key, value in tables.get(architecture, {}).items():
                data[key] = data[key] + value if isinstance(value, list) else value
            fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
            return cls(**fields)
        except (OSError, tomllib.TOMLDecodeError, LookupError, TypeError) as error:
            raise BuildError(f"The recipe {path} can not be used: {error}. Name another one with --recipe.") from error


class Partition(NamedTuple):
    """A partition of an image, in bytes."""

    type: int
    start: int
    size: int


def say(message: str) -> None:
    """Tell what is going on."""
    print(message, file=sys.stderr, flush=True)


def run(*command: str | Path) -> None:
    """Run a command; its output is shown only if it fails."""
    words = [str(word) for word in command]
    result = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode:
        tail = "\n".join(result.stdout.splitlines()[-20:])
        raise BuildError(
            f"{' '.join(words)}\nfailed with exit code {result.returncode}. Its last words:\n{tail}\n"
            "What was half-built has been removed: when the cause is gone, run the same command again."
        )


# What is to be built


def native_architecture() -> str:
    """Tell what programs this machine runs by itself, in Debian's words."""
    return ARCHITECTURES.get(platform.machine(), platform.machine())


def fingerprint(paths: Iterable[Path], *words: str) -> str:
    """Hash file trees (names, contents, links) and words."""
    digest = hashlib.sha256()
    for word in words:
        digest.update(f"{len(word)} {word}\n".encode())
    for root in paths:
        for path in [root] if root.is_file() else sorted(root.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                continue
            content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
            digest.update(f"{path.relative_to(root.parent)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def disk_id(recipe_hash: str) -> int:
    """Give the image's disk identifier: derived from the recipe, never 0."""
    return int(recipe_hash[:8], 16) or 1


def partuuid(recipe_hash: str) -> str:
    """Give the disk identifier as PARTUUID= wants it, without the partition number."""
    return f"{disk_id(recipe_hash):08x}"


def layout(recipe: Recipe, tree_bytes: int) -> tuple[Partition, Partition]:
    """Place the two partitions; the second one holds a tree of the given size with some slack."""
    boot = Partition(FAT32_LBA, recipe.first_partition * MIB, recipe.bootfs * MIB)
    wanted = tree_bytes + tree_bytes // 16 + recipe.slack * MIB
    unit = 8 * MIB
    return boot, Partition(LINUX, boot.start + boot.size, -(-wanted // unit) * unit)


def master_boot_record(identifier: int, partitions: Iterable[Partition]) -> bytes:
    """Write the first sector of the image."""
    sector = bytearray(SECTOR)
    struct.pack_into("<I", sector, 440, identifier)
    beyond_chs = b"\xfe\xff\xff"
    for number, part in enumerate(partitions):
        entry = (0, beyond_chs, part.type, beyond_chs, part.start // SECTOR, part.size // SECTOR)
        struct.pack_into("<B3sB3sII", sector, 446 + 16 * number, *entry)
    sector[510:] = b"\x55\xaa"
    return bytes(sector)


def mmdebstrap_command(recipe: Recipe, architecture: str, root: Path, early: Path) -> list[str]:
    """Give the command that turns packages into a tree.

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
        f"--extract-hook=copy-in {HERE}/rootfs/etc/dpkg/dpkg.cfg.d/bramble /etc/dpkg/dpkg.cfg.d",
        *(f"--essential-hook=copy-in {path} /" for path in sorted(early.iterdir())),
        "--dpkgopt=force-confold",
        # It knows only the programs that the whole machine can run.
        "--skip=check/qemu",
        *(f"--customize-hook={command}" for command in recipe.customize),
        recipe.suite,
        str(root),
    ]


# The tree


def lean(root: Path) -> None:
    """Remove what was unpacked before dpkg had read its configuration, and what belongs to the build."""
    share = root / "usr/share"
    for directory in ("info", "locale", "man"):
        shutil.rmtree(share / directory, ignore_errors=True)
    for path in (share / "doc").rglob("*"):
        if not path.is_dir() and path.name != "copyright":
            path.unlink()
    (root / "etc/dpkg/dpkg.cfg.d/99mmdebstrap").unlink(missing_ok=True)


def forget_identity(root: Path) -> None:
    """Remove everything that two nodes of one image must not share."""
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
    """Tell systemd that the caches it would otherwise make again at the first boot are those of this tree."""
    now = time.time()
    for path in (root / "etc/.updated", root / "var/.updated"):
        path.touch()
        os.utime(path, (now, now))
    os.utime(root / "usr", (now, now))


def lay(source: Path, target: Path, values: dict[str, str]) -> None:
    """Copy a tree of text files, with @NAME@ replaced by its value. Only owner and mode 0644 or, for netplan, 0600."""
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


def finish_tree(recipe: Recipe, root: Path, values: dict[str, str]) -> None:
    """Turn a fresh Debian tree into the root file system of a card."""
    lean(root)
    lay(HERE / "rootfs", root, values)
    for path in [path for pattern in recipe.without for path in root.glob(pattern)]:
        path.unlink()
    units = root / "etc/systemd/system"
    for unit in recipe.masked_units:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    (root / "boot/firmware").mkdir(parents=True, exist_ok=True)
    # The card's own host key goes here.
    (root / "etc/bramble/ssh").mkdir(parents=True)
    (root / "etc/bramble/ssh").chmod(0o700)
    forget_identity(root)
    mark_updated(root)


def gather_boot(root: Path, boot: Path, values: dict[str, str]) -> None:
    """Make the tree of the boot partition: our files, then what the packages in the root tree have put there, if any.

    :raises BuildError: if its config.txt names a file that is not there
    """
    lay(HERE / "bootfs", boot, values)
    for path in sorted((root / "boot/firmware").iterdir()):
        (boot / path.name).unlink(missing_ok=True)
        shutil.move(path, boot)
    words = [line.replace("=", " ").split() for line in (boot / "config.txt").read_text().splitlines()]
    missing = [word[1] for word in words if word[:1] in (["kernel"], ["initramfs"]) and not (boot / word[1]).is_file()]
    if missing:
        raise BuildError(
            f"A Raspberry Pi would not start: config.txt names {', '.join(missing)}, which is not on the boot partition."
        )


def tree_size(root: Path) -> int:
    """Count the bytes a tree takes in an ext4 file system: whole blocks and inodes."""
    total = 0
    for directory, _, files in os.walk(root):
        total += BLOCK + INODE
        for name in files:
            size = os.lstat(os.path.join(directory, name)).st_size
            total += -(-size // BLOCK) * BLOCK + INODE
    return total


# The image


def write_image(recipe: Recipe, recipe_hash: str, root: Path, boot: Path, image: Path) -> None:
    """Write a root tree and a boot tree as one image file. Its identifiers come from the recipe's hash: the same every time."""
    part1, part2 = layout(recipe, tree_size(root))
    with image.open("wb") as file:
        file.write(master_boot_record(disk_id(recipe_hash), [part1, part2]))
        file.truncate(part2.start + part2.size)
    first_sector = str(part1.start // SECTOR)
    fat = ["-F", "32", "-s", "1", "-n", "bootfs", "-i", partuuid(recipe_hash), "-h", first_sector, "--offset", first_sector]
    run("mkfs.vfat", *fat, image, str(part1.size // 1024))
    run("mcopy", "-i", f"{image}@@{part1.start}", "-s", "-Q", "-m", *sorted(boot.iterdir()), "::/")
    seed = str(uuid.uuid5(uuid.NAMESPACE_OID, recipe_hash))
    extended = f"offset={part2.start},nodiscard,lazy_itable_init=1,hash_seed={seed}"
    ext4 = ["-L", "rootfs", "-U", seed, "-b", str(BLOCK), "-I", str(INODE), "-i", "16384", "-m", "1", "-E", extended]
    run("mke2fs", "-q", "-F", "-t", "ext4", *ext4, "-d", root, image, f"{part2.size // 1024}k")


def sha256(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# The cache


@dataclass(frozen=True)
class Entry:
    """The place of an image in the cache."""

    cache: Path
    stem: str
    recipe_hash: str

    @property
    def image(self) -> Path:
        """The image file."""
        return self.cache / f"{self.stem}-{self.recipe_hash[:12]}.img"

    @property
    def manifest(self) -> Path:
        """What is known about the image."""
        return self.image.with_suffix(".json")

    @property
    def current(self) -> Path:
        """A link to the manifest of the image in use; its name does not change with the recipe."""
        return self.cache / f"{self.stem}.json"

    def complete(self) -> bool:
        """Tell whether the image is there. The manifest is written last."""
        try:
            return self.image.stat().st_size == json.loads(self.manifest.read_text())["bytes"]
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def is_current(self) -> bool:
        """Tell whether the link names this image."""
        return self.current.is_symlink() and os.readlink(self.current) == self.manifest.name


def sync(path: Path) -> None:
    """Wait until a file or directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(entry: Entry, image: Path, facts: dict[str, object]) -> None:
    """Give a finished image its name in the cache, then its manifest."""
    manifest = image.with_suffix(".json")
    manifest.write_text(json.dumps(facts, indent=2) + "\n")
    for source, target in ((image, entry.image), (manifest, entry.manifest)):
        source.chmod(0o644)
        sync(source)
        source.rename(target)
        sync(entry.cache)


def point(entry: Entry) -> None:
    """Make the link name this image, in one step."""
    temporary = entry.current.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(entry.manifest.name)
    temporary.rename(entry.current)


@contextlib.contextmanager
def workspace(cache: Path) -> Iterator[Path]:
    """Give a directory for one build: one at a time in a cache; what a killed build left is removed first."""
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in cache.glob(".build-*"):
            shutil.rmtree(leftover)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=cache, ignore_cleanup_errors=True) as directory:
            yield Path(directory)


# What must be so before anything is written


def check_architecture(recipe: Recipe, architecture: str, native: str, release: str) -> None:
    """Refuse what can not be built on a machine of the architecture `native` with such a release of Linux."""
    own = "or give an image of your own: -e image_file=FILE -e image_sha256=SUM."
    if architecture not in recipe.architectures:
        known = ", ".join(recipe.architectures)
        raise BuildError(f"{recipe.name} can not be built for {architecture}, only for {known}. Set cluster_architecture, {own}")
    if architecture == native:
        return
    here = f"{recipe.name} for {architecture} can not be built on this machine, which is {native}"
    if architecture not in FOREIGN:
        raise BuildError(f"{here}. Build it on a machine that is {architecture}, {own}")
    if tuple(int(number) for number in re.findall(r"\d+", release)[:2]) < FOREIGN_KERNEL:
        needed = ".".join(map(str, FOREIGN_KERNEL))
        raise BuildError(
            f"{here} and runs Linux {release}: that needs Linux {needed} or newer (Debian 13, Ubuntu 24.04, or the kernel of "
            f"bookworm-backports on Debian 12). Build it on such a machine or on one that is {architecture}, {own}"
        )


def check_tools(keyring: Path = KEYRING) -> None:
    """Refuse to start without the tools."""
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    if not keyring.exists():
        missing.append("debian-archive-keyring")
    if missing:
        raise BuildError(f"Missing on this machine: {', '.join(missing)}. Next: apt-get install {' '.join(missing)}")


def check_space(cache: Path, needed: int = NEEDED_BYTES) -> None:
    """Refuse to start a build that would fill the disk."""
    free = shutil.disk_usage(cache).free
    if free < needed:
        raise BuildError(
            f"Too little space in {cache}: {free:,} bytes are free, a build needs {needed:,}. "
            "Free some, or set cluster_cache_dir to a place with more."
        )


def build(args: argparse.Namespace, recipe: Recipe, entry: Entry) -> None:
    """Build an image into the cache."""
    if os.geteuid():
        raise BuildError("Building an image needs root, to own the files in it. Run the same command with sudo.")
    check_tools()
    check_space(entry.cache)
    with workspace(entry.cache) as work:
        if entry.complete():  # by another build, while this one waited for the lock
            return
        again = ["--recipe", args.recipe, "--architecture", args.architecture, "--cache", entry.cache, "--inside", work]
        command = [*APART, sys.executable, __file__, *map(str, again)]
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
                "sha256": sha256(image),
                "bytes": image.stat().st_size,
                "init_format": recipe.init_format,
                "recipe": entry.recipe_hash,
                "built": datetime.now(UTC).isoformat(timespec="seconds"),
            },
        )


def run_in_user_namespace(command: list[str]) -> int:
    """Run a command in a user namespace in which everybody is who they are outside. Returns its exit code."""
    waiting = ["unshare", "--user", "sh", "-c", 'echo; read -r _ && exec "$@"', "sh", *command]
    with subprocess.Popen(waiting, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout and process.stdout.readline():
                # Only from outside can it be told of more than one user.
                for table in ("uid_map", "gid_map"):
                    Path(f"/proc/{process.pid}/{table}").write_text("0 0 4294967295\n")
                process.communicate("\n")
        except BaseException:
            process.kill()
            raise
    return process.returncode


def emulate(recipe: Recipe, architecture: str, work: Path) -> None:
    """Let the kernel run programs of another architecture, in this user namespace, by the qemu of the recipe's Debian.

    That of this machine may be too old: 7.2 hangs in a build.
    """
    machine, magic, mask = FOREIGN[architecture]
    tools, binfmt = work / "tools", work / "binfmt"
    options = ["--variant=extract", "--format=directory", f"--keyring={KEYRING}", "--include=qemu-user"]
    run("mmdebstrap", *options, recipe.suite, tools)
    binfmt.mkdir()
    run("mount", "-t", "binfmt_misc", "binfmt_misc", binfmt)
    escaped = ["".join(f"\\x{byte:02x}" for byte in word) for word in (magic, mask)]
    # P: programs see their own argv[0]. C: sudo and the like work. F: qemu is opened now and need not be found later.
    fields = ["", architecture, "M", "", *escaped, f"{tools}/usr/bin/qemu-{machine}", "PCF"]
    # The first character separates: one that no path has.
    (binfmt / "register").write_text("\t".join(fields))
    shutil.rmtree(tools)


def build_inside(recipe: Recipe, architecture: str, recipe_hash: str, work: Path) -> None:
    """Make the image file in a work directory."""
    root, boot, early = work / "root", work / "boot", work / "early"
    for path in (root, boot, early):
        path.mkdir()
    values = {"PARTUUID": partuuid(recipe_hash)}
    lay(HERE / f"rootfs-{architecture}", early, values)
    if memory_available(Path("/proc/meminfo").read_text()) >= MEMORY_BYTES:
        run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", root)
    name = f"{recipe.name} {architecture}"
    if architecture != native_architecture():
        say(f"{name}: qemu, as this machine is of another architecture")
        emulate(recipe, architecture, work)
    say(f"{name}: packages of Debian {recipe.suite}")
    run(*mmdebstrap_command(recipe, architecture, root, early))
    say(f"{name}: file systems")
    finish_tree(recipe, root, values)
    gather_boot(root, boot, values)
    write_image(recipe, recipe_hash, root, boot, work / "image.img")


def memory_available(meminfo: str) -> int:
    """Read the bytes of memory that can be taken, from /proc/meminfo."""
    return next((int(line.split()[1]) * 1024 for line in meminfo.splitlines() if line.startswith("MemAvailable:")), 0)


def stop(signum: int, _frame: object) -> NoReturn:
    """End as an exception does, so that the workspace is removed."""
    raise SystemExit(128 + signum)


def main(arguments: list[str] | None = None) -> int:
    """Build, or find, one image."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=HERE / "debian-trixie.toml")
    parser.add_argument("--architecture", default=native_architecture(), help="in Debian's words")
    parser.add_argument("--cache", type=Path, required=True, help="where images are kept")
    parser.add_argument("--check", action="store_true", help="only tell whether there is something to do")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    os.umask(0o022)
    started = time.monotonic()
    try:
        recipe = Recipe.load(args.recipe, args.architecture)
        sources = [HERE / "build.py", HERE / "bootfs", HERE / "rootfs", HERE / f"rootfs-{args.architecture}"]
        recipe_hash = fingerprint([args.recipe, *sources], args.architecture)
        if args.inside:
            build_inside(recipe, args.architecture, recipe_hash, args.inside)
            return 0
        entry = Entry(args.cache.resolve(), f"{recipe.name}-{args.architecture}", recipe_hash)
        found = entry.complete()
        changed = not (found and entry.is_current())
        if not found:
            check_architecture(recipe, args.architecture, native_architecture(), platform.release())
        if changed and not args.check:
            entry.cache.mkdir(parents=True, exist_ok=True)
            if not found:
                build(args, recipe, entry)
            point(entry)
    except BuildError as error:
        say(f"build.py: {error}")
        return 1
    seconds = round(time.monotonic() - started, 1)
    print(json.dumps({"changed": changed, "image": str(entry.image), "manifest": str(entry.manifest), "seconds": seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
