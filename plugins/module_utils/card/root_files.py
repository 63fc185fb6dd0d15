"""Write the files of a node to the root file system of a workbench with debugfs (e2fsprogs)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ansible_collections.bramble.cluster.plugins.module_utils.card.workbench import Workbench
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError


@dataclass(frozen=True)
class RootFile:
    """A file for the root file system, owned by root; `mode` has the permissions, such as 0o600."""

    path: str
    content: str
    mode: int


def _folders_above(path: str) -> list[str]:
    """Return the parent folders of a path, the outermost first: /a and /a/b for /a/b/c."""
    names = path.split("/")[1:-1]
    return ["/" + "/".join(names[: depth + 1]) for depth in range(len(names))]


def write_root_files(bench: Workbench, files: Sequence[RootFile]) -> None:
    """Write files to the root file system, read them back, and check the file system. Raises BrambleError."""

    def ask_debugfs(request: str) -> bytes:
        return bench.run("debugfs", "-R", request, bench.root_device).stdout

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
        result = bench.run("debugfs", "-w", "-f", "-", bench.root_device, stdin="\n".join([*script, ""]).encode(), files=sources)
    finally:
        for fd in sources:
            os.close(fd)
    lines = result.stderr.decode(errors="replace").splitlines()[1:]  # the first line is the version
    if any("Filesystem not open" in line for line in lines):
        raise BrambleError(
            f"debugfs cannot write to partition 2 of {bench.image.path}: {lines[0].removeprefix(bench.root_device + ': ')}. "
            "Nothing was written. Use an image whose root file system has no unusual features"
        )
    notes = "; ".join(lines)
    for file in files:
        content = file.content.encode()
        expected = rf"Type: regular\s+Mode:\s+0*{file.mode:o}\s.*User:\s+0\s+Group:\s+0\s.*Size: {len(content)}\s"
        stat = ask_debugfs(f"stat {file.path}").decode(errors="replace")
        # For a file that is stored in its inode (inline_data), debugfs (1.47) returns all the space of the inode.
        is_right = ask_debugfs(f"cat {file.path}")[: len(content)] == content
        if not re.search(expected, stat, re.DOTALL) or not is_right:
            reason = notes or "it is not read back as it was written"
            raise BrambleError(f"The root file {file.path} cannot be written to partition 2 of {bench.image.path}: {reason}")
    bench.check_root()
