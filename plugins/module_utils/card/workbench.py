"""Files of a node, laid on a private copy of the image to see which bytes they change. Every size and offset is in bytes."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.bramble.cluster.plugins.module_utils.card.content import Content, Overlay
from ansible_collections.bramble.cluster.plugins.module_utils.card.image import Image
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import CHUNK, PAGE, extents, read_exactly
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.tools import TOOL_ENV

# Files laid on a card carry this time (2024-01-01 UTC), so that the same input always gives the same bytes.
EPOCH = "1704067200"
_TOOL_ENV = TOOL_ENV | {
    "SOURCE_DATE_EPOCH": EPOCH,  # mtools
    "E2FSPROGS_FAKE_TIME": EPOCH,  # https://git.kernel.org/pub/scm/fs/ext2/e2fsprogs.git, lib/ext2fs/openfs.c
}
# No quoting exists in debugfs scripts that would be worth trusting: names with anything else are refused.
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9_@+.-]+)+")
_BOOT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
CMDLINE = "cmdline.txt"
# An argument of the kernel's command line; a quoted part may hold spaces.
_ARGUMENT = re.compile(r'(?:[^\s"]|"[^"\n]*")+')


@dataclass(frozen=True)
class RootFile:
    """A file for the root file system, owned by root; `mode` as in chmod (0o600)."""

    path: str
    content: str
    mode: int


def check_names(boot_files: Mapping[str, str], root_files: Sequence[RootFile]) -> None:
    """Raises BrambleError for a name that cannot be laid on a card exactly as it is written."""
    for name in boot_files:
        if not _BOOT_NAME.fullmatch(name):
            raise BrambleError(f"boot file name {name!r}: letters, digits and _ . + - only, and no folders")
    names = [name.lower() for name in boot_files] + [file.path for file in root_files]
    if twice := {name for name in names if names.count(name) > 1}:
        raise BrambleError(f"two files of one name: {', '.join(sorted(twice))}")
    for file in root_files:
        if not _ROOT_PATH.fullmatch(file.path) or {".", ".."} & set(file.path.split("/")):
            raise BrambleError(f"root file path {file.path!r}: absolute, and letters, digits and _ @ + . - only")
        if not 0 <= file.mode <= 0o7777:
            raise BrambleError(f"root file {file.path}: mode {file.mode:o} is not between 0 and 7777")


def set_arguments(cmdline: str, values: Mapping[str, str]) -> str:
    """A kernel command line (what is in cmdline.txt) with new values for the arguments that it has; none is added.

    Everything else stays as it is: order, spacing, lines that are comments. Raises BrambleError for a value that is not one word.
    Source: https://docs.kernel.org/admin-guide/kernel-parameters.html
    """
    for name, value in values.items():
        if not re.fullmatch(r'[^\s"]*', value):
            raise BrambleError(f"kernel argument {name}: {value!r} is not one word")

    def new(found: re.Match[str]) -> str:
        name, equals, _ = found[0].partition("=")
        return f"{name}={values[name]}" if equals and name in values else found[0]

    lines = cmdline.splitlines(keepends=True)
    return "".join(line if line.lstrip().startswith("#") else _ARGUMENT.sub(new, line) for line in lines)


def _folders_above(path: str) -> list[str]:
    """The folders above a path, the outermost first: /a and /a/b for /a/b/c."""
    names = path.split("/")[1:-1]
    return ["/" + "/".join(names[: depth + 1]) for depth in range(len(names))]


class Workbench:
    """A private sparse copy of an image in which a node's files are laid to see which bytes they change.

    The copy has no name (O_TMPFILE, or unlinked at once), and neither have the files on their way into it: even a crash
    leaves no private key behind. Use it with `with`; it takes as much disk as the image has data.
    """

    def __init__(self, image: Image, folder: str) -> None:
        self.image = image
        self.boot, self.root = image.partitions()
        self._file = tempfile.TemporaryFile(dir=folder, prefix=".card-")  # noqa: SIM115 (closed by __exit__)
        self.fd = self._file.fileno()
        os.ftruncate(self.fd, image.size)
        for run in Content(image, {}).runs():
            if run.data:
                os.pwrite(self.fd, read_exactly(image.fd, run.offset, run.length), run.offset)

    def __enter__(self) -> Workbench:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def overlay(
        self, boot_files: Mapping[str, str], root_files: Sequence[RootFile], arguments: Mapping[str, str] | None = None
    ) -> Overlay:
        """The bytes that change when these files are laid on the image; the same every time.

        `arguments` are new values for those of the kernel's command line that the image has.
        Every file is read back, and the root file system checked. Raises BrambleError when a file does not arrive.
        """
        check_names(boot_files, root_files)
        boot_files = {**self._cmdline(arguments or {}), **boot_files}
        if boot_files:
            self._lay_boot(boot_files)
        if root_files:
            self._lay_root(root_files)
        changed = self._changed()
        for offset, data in changed.items():
            os.pwrite(self.fd, read_exactly(self.image.fd, offset, len(data)), offset)
        return changed

    def _run(self, *command: str, stdin: bytes = b"", keep: Sequence[int] = ()) -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run(
                command, input=stdin, capture_output=True, check=False, env=_TOOL_ENV, pass_fds=(self.fd, *keep)
            )
        except FileNotFoundError:
            package = "mtools" if command[0].startswith("m") else "e2fsprogs"
            raise BrambleError(f"{command[0]} is not installed on this machine: apt install {package}") from None

    @property
    def _drive(self) -> str:
        """The boot partition, for mtools."""
        return f"/proc/self/fd/{self.fd}@@{self.boot.start}"

    def _cmdline(self, arguments: Mapping[str, str]) -> dict[str, str]:
        """The image's cmdline.txt, as a boot file, if it has these arguments with other values."""
        found = self._run("mtype", "-i", self._drive, f"::{CMDLINE}").stdout if arguments else b""
        try:
            before = found.decode()
        except UnicodeDecodeError:
            raise BrambleError(f"{CMDLINE} on partition 1 of {self.image.path} is not text") from None
        after = set_arguments(before, arguments)
        return {CMDLINE: after} if after != before else {}

    def _lay_boot(self, files: Mapping[str, str]) -> None:
        drive = self._drive
        for name, text in sorted(files.items()):
            content = text.encode()
            result = self._run("mcopy", "-o", "-i", drive, "-", f"::{name}", stdin=content)
            if result.returncode or self._run("mtype", "-i", drive, f"::{name}").stdout != content:
                why = "; ".join(result.stderr.decode(errors="replace").splitlines()) or "it does not read back"
                raise BrambleError(f"boot file {name} cannot be laid on partition 1 of {self.image.path}: {why}")

    def _lay_root(self, files: Sequence[RootFile]) -> None:
        device = f"/proc/self/fd/{self.fd}?offset={self.root.start}"

        def look(request: str) -> bytes:
            return self._run("debugfs", "-R", request, device).stdout

        # Only what is not there is made: debugfs' mkdir of a folder that exists leaves a lost inode behind.
        folders = {folder: None for file in files for folder in _folders_above(file.path)}
        script = [f"mkdir {folder}" for folder in folders if b"Inode:" not in look(f"stat {folder}")]
        sources = []
        try:
            for file in files:
                sources.append(os.memfd_create("card"))
                with open(sources[-1], "wb", closefd=False) as source:
                    source.write(file.content.encode())
                if b"Inode:" in look(f"stat {file.path}"):
                    script.append(f"rm {file.path}")
                script.append(f"write /proc/self/fd/{sources[-1]} {file.path}")
                fields = {"mode": f"0{0o100000 | file.mode:o}", "uid": "0", "gid": "0"}
                script += [f"set_inode_field {file.path} {field} {value}" for field, value in fields.items()]
            laid = self._run("debugfs", "-w", "-f", "-", device, stdin="\n".join([*script, ""]).encode(), keep=sources)
        finally:
            for fd in sources:
                os.close(fd)
        notes = "; ".join(laid.stderr.decode(errors="replace").splitlines()[1:])  # the first is the version
        for file in files:
            right = rf"Type: regular\s+Mode:\s+0*{file.mode:o}\s.*User:\s+0\s+Group:\s+0\s"
            stat = look(f"stat {file.path}").decode(errors="replace")
            if not re.search(right, stat, re.DOTALL) or look(f"cat {file.path}") != file.content.encode():
                why = notes or "it does not read back"
                raise BrambleError(f"root file {file.path} cannot be laid on partition 2 of {self.image.path}: {why}")
        check = self._run("e2fsck", "-fn", device)
        if check.returncode:
            lines = check.stdout.decode(errors="replace").split("\n")
            why = "; ".join(line for line in lines if line and not line.startswith("Pass"))
            raise BrambleError(f"partition 2 of {self.image.path} is not a clean ext4 file system: {why}")

    def _changed(self) -> Overlay:
        overlay = {}
        for start, end in extents(self.fd, 0, self.image.size):
            stop = min(-(-end // PAGE) * PAGE, self.image.size)
            for at in range(start - start % PAGE, stop, CHUNK):
                length = min(CHUNK, stop - at)
                ours, theirs = read_exactly(self.fd, at, length), read_exactly(self.image.fd, at, length)
                if ours != theirs:
                    for inner in range(0, length, PAGE):
                        page = ours[inner : inner + PAGE]
                        if page != theirs[inner : inner + PAGE]:
                            overlay[at + inner] = page
        return overlay
