"""Find the bytes of an image that the files of a node change, by writing them to a private copy. Sizes are in bytes."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.bramble.cluster.plugins.module_utils.card.content import Content, Overlay
from ansible_collections.bramble.cluster.plugins.module_utils.card.image import Image
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import CHUNK, PAGE, data_extents, read_exactly
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.process import run_program
from ansible_collections.bramble.cluster.plugins.module_utils.core.tools import TOOL_ENV

# The time of the files of a node (2024-01-01 UTC). It is constant, so that the same input always results in the same bytes.
EPOCH = "1704067200"
_TOOL_ENV = TOOL_ENV | {
    "SOURCE_DATE_EPOCH": EPOCH,  # mtools
    "E2FSPROGS_FAKE_TIME": EPOCH,  # https://git.kernel.org/pub/scm/fs/ext2/e2fsprogs.git, lib/ext2fs/openfs.c
}
# debugfs scripts have no reliable quoting, so names with other characters are refused.
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9_@+.-]+)+")
_BOOT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
CMDLINE = "cmdline.txt"
# An argument of the kernel's command line; a quoted part can contain spaces.
_ARGUMENT = re.compile(r'(?:[^\s"]|"[^"\n]*")+')


@dataclass(frozen=True)
class RootFile:
    """A file for the root file system, owned by root; `mode` has the permissions, such as 0o600."""

    path: str
    content: str
    mode: int


def check_names(boot_files: Mapping[str, str], root_files: Sequence[RootFile]) -> None:
    """Check that all files can be written to a card under their exact names. Raises BrambleError."""
    for name in boot_files:
        if not _BOOT_NAME.fullmatch(name):
            raise BrambleError(
                f"The boot file name {name!r} is invalid: it may have letters, digits and _ . + - only, and no folders"
            )
    names = [name.lower() for name in boot_files] + [file.path for file in root_files]
    if duplicates := {name for name in names if names.count(name) > 1}:
        raise BrambleError(f"Two files have the same name: {', '.join(sorted(duplicates))}")
    for file in root_files:
        if not _ROOT_PATH.fullmatch(file.path) or {".", ".."} & set(file.path.split("/")):
            raise BrambleError(
                f"The root file path {file.path!r} is invalid: it must be absolute, with letters, digits and _ @ + . - only"
            )
        if not 0 <= file.mode <= 0o7777:
            raise BrambleError(f"The root file {file.path} has the mode {file.mode:o}, which is not between 0 and 7777")


def set_arguments(cmdline: str, values: Mapping[str, str]) -> str:
    """Return a kernel command line (the text of cmdline.txt) with new values for arguments that it already has.

    No argument is added; order, spacing and comments are kept. Raises BrambleError for a value that is not one word.
    Source: https://docs.kernel.org/admin-guide/kernel-parameters.html
    """
    for name, value in values.items():
        if not re.fullmatch(r'[^\s"]*', value):
            raise BrambleError(f"The value {value!r} of the kernel argument {name} is not one word")

    def replace(found: re.Match[str]) -> str:
        name, equals, _ = found[0].partition("=")
        return f"{name}={values[name]}" if equals and name in values else found[0]

    lines = cmdline.splitlines(keepends=True)
    return "".join(line if line.lstrip().startswith("#") else _ARGUMENT.sub(replace, line) for line in lines)


def _folders_above(path: str) -> list[str]:
    """Return the parent folders of a path, the outermost first: /a and /a/b for /a/b/c."""
    names = path.split("/")[1:-1]
    return ["/" + "/".join(names[: depth + 1]) for depth in range(len(names))]


class OverlayBuilder:
    """A private sparse copy of an image, to which the files of a node are written to find the bytes that they change.

    Neither the copy nor the files that are written to it have a name (O_TMPFILE, or unlinked at once), so that a crash leaves no
    private key behind. A context manager; it needs as much disk space as the image has data.
    """

    def __init__(self, image: Image, folder: str) -> None:
        self.image = image
        self.boot, self.root = image.partitions()
        self._file = tempfile.TemporaryFile(dir=folder, prefix=".card-")  # noqa: SIM115 (closed by __exit__)
        self.fd = self._file.fileno()
        os.ftruncate(self.fd, image.size)
        for run in Content(image, {}).runs():
            if run.has_data:
                os.pwrite(self.fd, read_exactly(image.fd, run.offset, run.length), run.offset)

    def __enter__(self) -> OverlayBuilder:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def build(
        self, boot_files: Mapping[str, str], root_files: Sequence[RootFile], arguments: Mapping[str, str] | None = None
    ) -> Overlay:
        """Return the bytes that change when files are written to the image. The same input always has the same result.

        :param boot_files: text by name, for the boot partition
        :param arguments: new values for arguments that the image has on the kernel's command line
        :raises BrambleError: when a file is not read back as it was written, or the root file system is damaged
        """
        check_names(boot_files, root_files)
        boot_files = {**self._cmdline(arguments or {}), **boot_files}
        if boot_files:
            self._write_boot(boot_files)
        if root_files:
            self._write_root(root_files)
        changed = self._changed_pages()
        for offset, data in changed.items():
            os.pwrite(self.fd, read_exactly(self.image.fd, offset, len(data)), offset)
        return changed

    def _run(self, *command: str, stdin: bytes = b"", files: Sequence[int] = ()) -> subprocess.CompletedProcess[bytes]:
        """Run a program that can open the copy and `files` under /proc/self/fd. Raises BrambleError if it is not installed."""
        return run_program(command, input=stdin, env=_TOOL_ENV, pass_fds=(self.fd, *files), exit_codes=None)

    @property
    def _drive(self) -> str:
        """The boot partition, in the notation of mtools."""
        return f"/proc/self/fd/{self.fd}@@{self.boot.start}"

    def _cmdline(self, arguments: Mapping[str, str]) -> dict[str, str]:
        """Return cmdline.txt as a boot file, with new values, if the image has these arguments with other values."""
        found = self._run("mtype", "-i", self._drive, f"::{CMDLINE}").stdout if arguments else b""
        try:
            before = found.decode()
        except UnicodeDecodeError:
            raise BrambleError(f"{CMDLINE} on partition 1 of {self.image.path} is not a text file") from None
        after = set_arguments(before, arguments)
        return {CMDLINE: after} if after != before else {}

    def _write_boot(self, files: Mapping[str, str]) -> None:
        """Write files to the boot partition, and read them back. Raises BrambleError."""
        drive = self._drive
        for name, text in sorted(files.items()):
            content = text.encode()
            result = self._run("mcopy", "-o", "-i", drive, "-", f"::{name}", stdin=content)
            if result.returncode or self._run("mtype", "-i", drive, f"::{name}").stdout != content:
                reason = "; ".join(result.stderr.decode(errors="replace").splitlines()) or "it is not read back as it was written"
                raise BrambleError(f"The boot file {name} cannot be written to partition 1 of {self.image.path}: {reason}")

    def _write_root(self, files: Sequence[RootFile]) -> None:
        """Write files to the root file system, read them back, and check the file system. Raises BrambleError."""
        device = f"/proc/self/fd/{self.fd}?offset={self.root.start}"

        def ask_debugfs(request: str) -> bytes:
            return self._run("debugfs", "-R", request, device).stdout

        # Only missing folders are created: for an existing folder, mkdir of debugfs leaves a lost inode behind.
        folders = {folder: None for file in files for folder in _folders_above(file.path)}
        script = [f"mkdir {folder}" for folder in folders if b"Inode:" not in ask_debugfs(f"stat {folder}")]
        sources = []
        try:
            for file in files:
                sources.append(os.memfd_create("card"))
                with open(sources[-1], "wb", closefd=False) as source:
                    source.write(file.content.encode())
                if b"Inode:" in ask_debugfs(f"stat {file.path}"):
                    script.append(f"rm {file.path}")
                script.append(f"write /proc/self/fd/{sources[-1]} {file.path}")
                fields = {"mode": f"0{0o100000 | file.mode:o}", "uid": "0", "gid": "0"}
                script += [f"set_inode_field {file.path} {field} {value}" for field, value in fields.items()]
            result = self._run("debugfs", "-w", "-f", "-", device, stdin="\n".join([*script, ""]).encode(), files=sources)
        finally:
            for fd in sources:
                os.close(fd)
        notes = "; ".join(result.stderr.decode(errors="replace").splitlines()[1:])  # the first line is the version
        for file in files:
            expected = rf"Type: regular\s+Mode:\s+0*{file.mode:o}\s.*User:\s+0\s+Group:\s+0\s"
            stat = ask_debugfs(f"stat {file.path}").decode(errors="replace")
            if not re.search(expected, stat, re.DOTALL) or ask_debugfs(f"cat {file.path}") != file.content.encode():
                reason = notes or "it is not read back as it was written"
                raise BrambleError(f"The root file {file.path} cannot be written to partition 2 of {self.image.path}: {reason}")
        check = self._run("e2fsck", "-fn", device)
        if check.returncode:
            lines = check.stdout.decode(errors="replace").split("\n")
            reason = "; ".join(line for line in lines if line and not line.startswith("Pass"))
            raise BrambleError(f"Partition 2 of {self.image.path} is not a clean ext4 file system: {reason}")

    def _changed_pages(self) -> Overlay:
        """Return the pages of the copy that differ from the image."""
        overlay = {}
        for start, end in data_extents(self.fd, 0, self.image.size):
            stop = min(-(-end // PAGE) * PAGE, self.image.size)
            for at in range(start - start % PAGE, stop, CHUNK):
                length = min(CHUNK, stop - at)
                copy, original = read_exactly(self.fd, at, length), read_exactly(self.image.fd, at, length)
                if copy != original:
                    for inner in range(0, length, PAGE):
                        page = copy[inner : inner + PAGE]
                        if page != original[inner : inner + PAGE]:
                            overlay[at + inner] = page
        return overlay
