"""The root file system of a captured card: an ext2, ext3 or ext4 in a file, changed with debugfs and never mounted."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.bramble.cluster.plugins.module_utils.capture.tools import run_tool
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError


@dataclass(frozen=True)
class PathsToRemove:
    """Paths to remove: files, and folders, the innermost first."""

    files: list[str]
    folders: list[str]

    @property
    def paths(self) -> list[str]:
        """The files, then the folders."""
        return [*self.files, *self.folders]


@dataclass
class RootFileSystem:
    """An ext file system in the file `path`, read and changed with debugfs."""

    path: Path
    _entries: dict[str, dict[str, bool]] = field(default_factory=dict)

    def run_debugfs(self, request: str) -> str:
        """Return the output of debugfs for a request; its first line is the version of debugfs."""
        return run_tool("debugfs", "-R", request, self.path)

    def exists(self, path: str) -> bool:
        """Return whether a path exists, after symbolic links."""
        return bool(re.search(r"^Inode: \d", self.run_debugfs(f"stat {quote_path(path)}"), re.MULTILINE))

    def read_text(self, path: str) -> str:
        """Return the text of a file; "" if it does not exist."""
        return self.run_debugfs(f"cat {quote_path(path)}").partition("\n")[2] if self.exists(path) else ""

    def entries(self, folder: str) -> dict[str, bool]:
        """Return the names in a folder, and whether each is a folder; no names if the path is not a folder.

        Raises BrambleError for a name with a line break, which debugfs cannot handle.
        """
        if folder in self._entries:
            return self._entries[folder]
        # With "/." at its end, debugfs follows a symbolic link to the folder.
        lines = self.run_debugfs(f"ls -p {quote_path(folder + '/.')}").split("\n")[1:]
        found = self._entries[folder] = {}
        if re.search("not a directory|not found by ext2_lookup", lines[0]) and not lines[0].endswith("/"):
            return found
        for line in filter(None, lines):
            fields = line.split("/")
            if len(fields) != 8 or not fields[1].isdigit():
                raise BrambleError(
                    f"a name in {folder} has a line break, which debugfs does not support: rename the file on the card"
                )
            if fields[5] not in (".", ".."):
                found[fields[5]] = fields[2].startswith("04")
        return found

    def glob(self, pattern: str) -> dict[str, bool]:
        """Return the paths that match a pattern with * in its names, and whether each is a folder."""
        found = {"": True}
        for name in pattern.split("/")[1:]:
            found = {
                f"{folder}/{entry}": is_folder
                for folder in found
                for entry, is_folder in self.entries(folder).items()
                if fnmatch.fnmatchcase(entry, name)
            }
        return found

    def descendants(self, folder: str) -> dict[str, bool]:
        """Return all paths below a folder, the outermost first, and whether each is a folder."""
        found = {}
        for name, is_folder in self.entries(folder).items():
            found[f"{folder}/{name}"] = is_folder
            if is_folder:
                found |= self.descendants(f"{folder}/{name}")
        return found

    def contains(self, path: str) -> bool:
        """Return whether a path is an entry of its folder, also if it is a symbolic link to nothing."""
        folder, _, name = path.rpartition("/")
        return name in self.entries(folder)

    def apply_changes(self, removed: PathsToRemove, files: Mapping[str, str], links: Mapping[str, str], work: Path) -> None:
        """Remove files and folders, then write files and links, and check the result. Raises BrambleError.

        Files are owned by root. They have mode 0755 in a folder called sbin, and 0644 elsewhere. Existing links are kept.

        :param files: text by path
        :param links: target by path
        :param work: a folder for temporary files
        """
        script = [f"rm {quote_path(path)}" for path in removed.files] + [f"rmdir {quote_path(path)}" for path in removed.folders]
        folders = {os.fspath(folder): None for path in [*files, *links] for folder in reversed(Path(path).parents)}
        script += [f"mkdir {quote_path(folder)}" for folder in folders if not self.exists(folder)]
        for number, (path, text) in enumerate(files.items()):
            source = work / f"file{number}"
            source.write_text(text, errors="surrogateescape")
            if self.exists(path):
                script.append(f"rm {quote_path(path)}")
            script.append(f"write {quote_path(os.fspath(source))} {quote_path(path)}")
            mode = "0100755" if "/sbin/" in path else "0100644"
            script += [
                f"set_inode_field {quote_path(path)} {name} {value}" for name, value in (("mode", mode), ("uid", 0), ("gid", 0))
            ]
        script += [f"symlink {quote_path(path)} {quote_path(target)}" for path, target in links.items() if not self.exists(path)]
        self._entries.clear()
        output = run_tool("debugfs", "-w", "-f", "-", self.path, input="\n".join([*script, ""]))
        failed = [path for path in removed.paths if self.contains(path)]
        failed += [path for path, text in files.items() if self.read_text(path) != text]
        failed += [path for path in links if not self.exists(path)]
        if failed:
            notes = [line for line in output.splitlines()[1:] if line and not line.startswith("debugfs: ")]
            raise BrambleError(f"{', '.join(failed[:5])} on the root file system cannot be changed: {'; '.join(notes[:5])}")

    def superblock_number(self, name: str, default: int | None = None) -> int:
        """Return a number of the superblock by its name in dumpe2fs. Raises BrambleError if it is missing and has no default."""
        found = re.search(rf"^{name}:\s+(\d+)", run_tool("dumpe2fs", "-h", self.path), re.MULTILINE)
        if found:
            return int(found[1])
        if default is None:
            raise BrambleError(f"dumpe2fs does not show the {name.lower()} of its root file system")
        return default

    def check(self) -> None:
        """Check the file system with e2fsck, and change nothing. Raises BrambleError when it is damaged."""
        run_tool("e2fsck", "-fn", self.path)


def quote_path(path: str) -> str:
    """Return a path as a quoted word of a debugfs script. Raises BrambleError for a path with a line break."""
    if "\n" in path or "\r" in path:
        raise BrambleError(f"{path!r} has a line break in its name, which debugfs does not support: rename the file on the card")
    return '"' + path.replace('"', '""') + '"'
