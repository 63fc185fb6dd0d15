"""Cards from random images, whole and damaged: e2fsprogs, dosfstools and mtools say what is on a card that is called `written`.

The seed of an image is in the message of a failure: FUZZ_SEED=N runs only this one. FUZZ_SECONDS is the time (600 s).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.bramble.cluster.plugins.modules import card_write

MIB = 2**20
KEY, KEY_PATH = "the host key of this node\n", "/etc/ssh/ssh_host_ed25519_key"
USER_DATA = "#cloud-config\nhostname: pi-01\n"
EXT_OPTIONS = ["^has_journal", "^64bit", "^metadata_csum", "^flex_bg", "^resize_inode", "^extent", "^dir_index", "^sparse_super"]
EXT_OPTIONS += ["inline_data", "sparse_super2,^resize_inode", "meta_bg,^resize_inode", "quota", "bigalloc", "^uninit_bg", "mmp"]
OTHER_TYPES = [0x05, 0x0F, 0x07, 0x0C, 0x82, 0x83, 0x8E, 0xFD]


@dataclass(frozen=True)
class Part:
    """A partition of the image, in bytes."""

    start: int
    size: int
    type: int


def run(*command: str | Path, stdin: bytes = b"", check: bool = True) -> subprocess.CompletedProcess[bytes]:
    """Run a program."""
    return subprocess.run(command, input=stdin, capture_output=True, check=check)


class RandomImage:
    """An image with random partitions, file systems, features, files, free space and damage."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.random, self.folder, self.path = random.Random(seed), folder, folder / "image.img"
        choose = self.random
        self.gpt = choose.random() < 0.3
        boot = Part(choose.choice([1, 2, 4]) * MIB, choose.choice([4, 9, 36]) * MIB, 0x0C)
        root = Part(boot.start + boot.size + choose.choice([0, 1]) * MIB, choose.choice([12, 20, 33]) * MIB, 0x83)
        self.parts = [boot, root]
        if choose.random() < 0.4:
            kind = 0x83 if self.gpt else choose.choice(OTHER_TYPES)
            self.parts.append(Part(root.start + root.size, choose.choice([2, 8]) * MIB, kind))
        self.size = self.parts[-1].start + self.parts[-1].size + choose.choice([1, 2]) * MIB
        garbage = choose.randbytes(self.size) if choose.random() < 0.6 else bytes(self.size)
        self.path.write_bytes(garbage)
        with self.path.open("r+b") as file:
            file.write(bytes(512))
        self._write_table()
        self._write_boot(boot)
        self._write_root(root)
        for part in self.parts[2:]:
            if choose.random() < 0.7:  # the remains of a file system whose partition is now something else
                self._write_root(part, has_files=False)
        if choose.random() < 0.6:
            self._damage()

    def _write_table(self) -> None:
        names = {0x0C: "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7", 0x83: "0FC63DAF-8483-4772-8E79-3D69D8477DE4"}
        lines = [f"label: {'gpt' if self.gpt else 'dos'}"]
        for part in self.parts:
            kind = names[part.type] if self.gpt else f"{part.type:x}"
            lines.append(f"start={part.start // 512}, size={part.size // 512}, type={kind}")
        run("sfdisk", "-q", "--force", self.path, stdin="\n".join([*lines, ""]).encode())

    def _tree(self) -> Path:
        """Return a new folder with random files, of which some are large, and one is an empty folder."""
        tree = self.folder / f"tree{self.random.random()}"
        (tree / "etc/ssh").mkdir(parents=True)
        (tree / "empty").mkdir()
        for number in range(self.random.randrange(2, 25)):
            place = tree / self.random.choice(["", "etc", "a", "a/b"])
            place.mkdir(parents=True, exist_ok=True)
            size = self.random.choice([0, 1, 100, 4096, 30_000, 700_000])
            (place / f"file {number}").write_bytes(self.random.randbytes(size))
        return tree

    def _get(self, part: Part) -> Path:
        """Return a copy of a partition, for programs that need a file of their own."""
        path = self.folder / "part"
        path.write_bytes(self.path.read_bytes()[part.start : part.start + part.size])
        return path

    def _write_boot(self, part: Part) -> None:
        path, choose = self._get(part), self.random
        smaller = choose.choice([0, 0, 3 * 512, MIB])
        bits = choose.choice(["12", "16", "32"] if part.size > 8 * MIB else ["12", "32"])
        words = ["-F", bits, "-f", choose.choice(["1", "2"]), "-s", choose.choice(["1", "2", "4", "8"]), "-a"]
        if run("mkfs.vfat", *words, path, str((part.size - smaller) // 1024), check=False).returncode:
            run("mkfs.vfat", path, str((part.size - smaller) // 1024))
        for file in sorted(self._tree().iterdir()):
            run("mcopy", "-s", "-Q", "-i", path, file, "::/", check=False)
        for number in range(0, 25, 3):
            run("mdel", "-i", path, f"::/file {number}", check=False)
        run("mcopy", "-o", "-i", path, "-", "::cmdline.txt", stdin=b"console=tty1 root=/dev/mmcblk0p2\n", check=False)
        self._overwrite(path, part)

    def _write_root(self, part: Part, has_files: bool = True) -> None:
        path, choose = self._get(part), self.random
        smaller = choose.choice([0, 0, 0, MIB])
        block = choose.choice(["1024", "2048", "4096", "4096"])
        features = ",".join(choose.sample(EXT_OPTIONS, choose.randrange(4)))
        words = [
            "-q",
            "-F",
            "-t",
            choose.choice(["ext2", "ext3", "ext4", "ext4"]),
            "-b",
            block,
            "-I",
            choose.choice(["128", "256"]),
        ]
        source: list[str | Path] = ["-d", self._tree()] if has_files else []
        size = f"{(part.size - smaller) // 1024}k"
        if run("mke2fs", *words, "-O", features or "^quota", *source, path, size, check=False).returncode:
            run("mke2fs", "-q", "-F", "-t", "ext4", *source, path, size)
        requests = [f'rm "/file {number}"' for number in range(0, 25, 4)]
        run("debugfs", "-w", "-f", "-", path, stdin="\n".join([*requests, ""]).encode(), check=False)
        self._overwrite(path, part)

    def _overwrite(self, path: Path, part: Part) -> None:
        with self.path.open("r+b") as file:
            file.seek(part.start)
            file.write(path.read_bytes())

    def _damage(self) -> None:
        """Change some bytes, mostly of the metadata of a file system."""
        with self.path.open("r+b") as file:
            for _ in range(self.random.choice([1, 1, 2, 10])):
                part = self.random.choice(self.parts)
                limit = self.random.choice([512, 2048, 64 * 1024, part.size])
                file.seek(part.start + self.random.randrange(limit))
                file.write(self.random.randbytes(self.random.choice([1, 1, 2, 64])))


def write(image: RandomImage, card: Path) -> dict[str, Any]:
    """Write an image to a card with the identity of a node, and return the result of the module."""
    one: dict[str, Any] = {"node": "pi-01", "slot": str(card), "boot_files": {"user-data": USER_DATA}}
    one["root_files"] = [{"path": KEY_PATH, "content": KEY, "mode": "0600"}]
    sha256 = hashlib.sha256(image.path.read_bytes()).hexdigest()
    arguments = {"image": str(image.path), "image_sha256": sha256, "cards": [one], "confirm": True}
    with contextlib.redirect_stdout(io.StringIO()) as stdout, patch_module_args(arguments), contextlib.suppress(SystemExit):
        card_write.main()
    result: dict[str, Any] = json.loads(stdout.getvalue())
    return result


def ext_files(path: Path, folder: Path) -> dict[str, str]:
    """Return what debugfs reads from a file system: kind and digest by path, without the identity of the node."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    run("debugfs", "-R", f"rdump / {folder}", path)
    found = {}
    for entry in sorted(folder.rglob("*")):
        name = f"/{entry.relative_to(folder)}"
        found[name] = hashlib.sha256(entry.read_bytes()).hexdigest() if entry.is_file() else "folder"
    return {name: digest for name, digest in found.items() if not KEY_PATH.startswith(name)}


def fat_files(path: Path, folder: Path) -> dict[str, str]:
    """Return what mtools read from a file system: digest by path, without the identity of the node."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    run("mcopy", "-s", "-n", "-Q", "-i", path, "::/", folder, check=False)
    names = [entry for entry in sorted(folder.rglob("*")) if entry.is_file() and entry.name != "user-data"]
    return {str(entry.relative_to(folder)): hashlib.sha256(entry.read_bytes()).hexdigest() for entry in names}


def part_of(path: Path, part: Part, target: Path) -> Path:
    """Copy a partition to a file, and return its path."""
    with path.open("rb") as file:
        file.seek(part.start)
        target.write_bytes(file.read(part.size))
    return target


def problems(image: RandomImage, card: Path, folder: Path) -> Iterator[str]:
    """Yield what is wrong with a card that was reported as written."""
    content, original = card.read_bytes(), image.path.read_bytes()
    at = 0
    for number, part in enumerate(image.parts):
        if content[at : part.start] != original[at : part.start]:
            yield f"the bytes before partition {number + 1} differ"
        if (
            number >= 2
            and part.type != 0x83
            and content[part.start : part.start + part.size] != original[part.start : part.start + part.size]
        ):
            yield f"partition {number + 1} of type {part.type:#x} differs"
        at = part.start + part.size
    if content[at : image.size] != original[at:]:
        yield "the bytes behind the last partition differ"
    if any(content[-MIB:]):
        yield "the end of the card is not empty"
    boot, root = image.parts[:2]
    card_root, image_root = part_of(card, root, folder / "card.ext"), part_of(image.path, root, folder / "image.ext")
    check = run("e2fsck", "-fn", card_root, check=False)
    if check.returncode:
        yield f"e2fsck on the card: {check.stdout.decode(errors='replace')[-400:]}"
    run("e2fsck", "-fp", image_root, check=False)
    if ext_files(card_root, folder / "a") != ext_files(image_root, folder / "b"):
        yield "the files of the root file system differ"
    # For a file that is stored in its inode (inline_data), debugfs (1.47) returns all the space of the inode.
    if run("debugfs", "-R", f"cat {KEY_PATH}", card_root).stdout.rstrip(b"\0") != KEY.encode():
        yield "the host key is not on the card"
    card_boot, image_boot = part_of(card, boot, folder / "card.fat"), part_of(image.path, boot, folder / "image.fat")
    before, after = (run("fsck.vfat", "-n", path, check=False) for path in (image_boot, card_boot))
    if after.returncode > before.returncode:
        yield f"fsck.vfat on the card: {after.stdout.decode(errors='replace')[-400:]}"
    if fat_files(card_boot, folder / "a") != fat_files(image_boot, folder / "b"):
        yield "the files of the boot file system differ"
    if USER_DATA.encode() not in card_boot.read_bytes():
        yield "user-data is not on the card"


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_written_cards_are_right(tmp_path: Path) -> None:
    only, end = os.environ.get("FUZZ_SEED"), time.monotonic() + float(os.environ.get("FUZZ_SECONDS", "600"))
    seeds = iter([int(only)] if only else range(random.randrange(2**40), 2**62))
    results = {"written": 0, "refused": 0}
    while (seed := next(seeds, None)) is not None and (only or time.monotonic() < end):
        folder = tmp_path / str(seed)
        folder.mkdir()
        image, card = RandomImage(seed, folder), folder / "card.img"
        card.write_bytes(random.Random(seed).randbytes(image.size + 3 * MIB))
        outcome = write(image, card)
        if outcome.get("failed"):
            message = str(outcome.get("msg", ""))
            assert not any(word in message for word in ("Traceback", "Error:", "Errno")), (seed, message)
            assert outcome.get("results") is None or not any(card.read_bytes()[:512]), (seed, message)
            results["refused"] += 1
        else:
            assert outcome["results"][0]["result"] == "written", (seed, outcome)
            assert not (wrong := list(problems(image, card, folder))), (seed, wrong)
            results["written"] += 1
        shutil.rmtree(folder)
    print(results)
    assert only or min(results.values()) > 10, results
