"""Find the bytes of an image that the files of a node change. Sizes are in bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ansible_collections.bramble.cluster.plugins.module_utils.card.boot_files import (
    check_boot,
    read_boot_file,
    readable_by_mtools,
    write_boot_files,
)
from ansible_collections.bramble.cluster.plugins.module_utils.card.content import Overlay
from ansible_collections.bramble.cluster.plugins.module_utils.card.root_files import RootFile, write_root_files
from ansible_collections.bramble.cluster.plugins.module_utils.card.workbench import Workbench
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

# debugfs scripts have no reliable quoting, so names with other characters are refused.
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9_@+.-]+)+")
_BOOT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
CMDLINE = "cmdline.txt"
# An argument of the kernel's command line; a quoted part can contain spaces.
_ARGUMENT = re.compile(r'(?:[^\s"]|"[^"\n]*")+')


def check_names(boot_files: Mapping[str, str], root_files: Sequence[RootFile]) -> None:
    """Check that all files can be written to a card under their exact names. Raises BrambleError."""
    for name in boot_files:
        if not _BOOT_NAME.fullmatch(name):
            raise BrambleError(
                f"The boot file name {name!r} is invalid: it may have letters, digits and _ . + - only, and no folders"
            )
    texts = {**boot_files, **{file.path: file.content for file in root_files}}
    for name, text in texts.items():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BrambleError(f"The text of {name} cannot be written as UTF-8: it has half of a surrogate pair") from None
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


def build_overlay(
    bench: Workbench, boot_files: Mapping[str, str], root_files: Sequence[RootFile], arguments: Mapping[str, str] | None = None
) -> Overlay:
    """Return the bytes of a card that are not those of its image, because of the files of its node.

    The same input always has the same result. The workbench can be used for the next node afterwards.

    :param boot_files: text by name, for the boot partition
    :param arguments: new values for arguments that the image has on the kernel's command line
    :raises BrambleError: when a file is not read back as it was written, or a file system is damaged
    """
    check_names(boot_files, root_files)
    if root_files:
        bench.prepare_root()
    if arguments:
        boot_files = {**_changed_cmdline(bench, arguments), **boot_files}
    if boot_files:
        check_boot(bench)
        with readable_by_mtools(bench):
            write_boot_files(bench, boot_files)
    if root_files:
        write_root_files(bench, root_files)
    overlay = bench.overlay()
    bench.restore(overlay)
    return overlay


def _changed_cmdline(bench: Workbench, arguments: Mapping[str, str]) -> dict[str, str]:
    """Return cmdline.txt as a boot file, with new values, if the image has these arguments with other values."""
    with readable_by_mtools(bench):
        before = read_boot_file(bench, CMDLINE)
    after = set_arguments(before, arguments)
    return {CMDLINE: after} if after != before else {}
