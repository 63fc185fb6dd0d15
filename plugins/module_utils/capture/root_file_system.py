"""The root file system of a captured card: an ext2, ext3 or ext4 in a file, changed with debugfs and never mounted.

debugfs follows symbolic links when it reads, but not when it removes. So all paths are resolved here first, and never lead out of
the file system.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.bramble.cluster.plugins.module_utils.capture.tools import run_tool
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

_MAX_LINKS = 40  # path_resolution(7)
_MAX_LINE = 4096  # of a script of debugfs, which reads 8,192 bytes (BUFSIZ of glibc)
# "/INODE/MODE/UID/GID/NAME/SIZE/"; a name can have any character but a slash.
_ENTRY = re.compile(r"/(?P<inode>\d+)/(?P<mode>\d{6})/\d+/\d+/(?P<name>[^/]*)/\d*/\n")
_NO_FOLDER = re.compile(r"not a directory|not found by ext2_lookup|Too many symbolic links")
# The flag EXT4_ENCRYPT_FL of an inode: https://docs.kernel.org/filesystems/ext4/inodes.html
_ENCRYPTED = 0x800
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}


@dataclass(frozen=True)
class PathsToRemove:
    """Paths to remove, without symbolic links in their folders: files, and folders, the innermost first."""

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
    _entries: dict[str, dict[str, int]] = field(default_factory=dict)
    _features: frozenset[str] | None = None

    def run_debugfs(self, request: str) -> str:
        """Return the output of debugfs for a request; its first line is the version of debugfs."""
        return run_tool("debugfs", "-R", request, self.path)

    @property
    def features(self) -> frozenset[str]:
        """The names of the features, as dumpe2fs shows them."""
        if self._features is None:
            found = re.search(r"^Filesystem features:(.*)", run_tool("dumpe2fs", "-h", self.path), re.MULTILINE)
            self._features = frozenset(found[1].split() if found else ())
        return self._features

    def entries(self, folder: str) -> dict[str, int]:
        """Return the names in a folder, and the mode of each (as in stat(2)); no names if the path is not a folder.

        Raises BrambleError for a folder that cannot be read.

        :param folder: a path without symbolic links in it; "" for the top folder
        """
        if folder in self._entries:
            return self._entries[folder]
        _, _, text = self.run_debugfs(f"ls -p {quote_path(folder or '/')}").partition("\n")
        found, at = dict[str, int](), 0
        while entry := _ENTRY.match(text, at):
            if entry["inode"] != "0":  # debugfs also shows the deleted first entry of a folder within an inode (inline_data)
                found[entry["name"]] = int(entry["mode"], 8)
            at = entry.end()
        if rest := text[at:].strip():
            if found or not _NO_FOLDER.search(rest):
                raise BrambleError(f"{folder or '/'} on the root file system cannot be read: {rest.splitlines()[0]}")
        elif "encrypt" in self.features:
            flags = re.search(r"Flags: (0x[0-9a-f]+)", self.run_debugfs(f"stat {quote_path(folder or '/')}"))
            if flags and int(flags[1], 16) & _ENCRYPTED:
                raise BrambleError(
                    f"{folder or '/'} on the root file system is encrypted (fscrypt), so it is unknown what in it belongs to one "
                    "node only. Move its files to a folder that is not encrypted, and remove the folder"
                )
        self._entries[folder] = {name: mode for name, mode in found.items() if name not in (".", "..")}
        return self._entries[folder]

    def mode(self, path: str) -> int | None:
        """Return the mode of a path without symbolic links in its folder; None if it does not exist."""
        folder, _, name = path.rpartition("/")
        return self.entries(folder).get(name) if name else stat.S_IFDIR

    def resolve(self, path: str) -> str:
        """Return a path as the node resolves it: without symbolic links, and "" for the top folder.

        What does not exist stays in the path. A link that leads to itself is returned as its own path.
        """
        rest, done, links = path.split("/")[::-1], list[str](), 0
        while rest:
            name = rest.pop()
            if name in ("", "."):
                continue
            if name == "..":
                del done[-1:]  # the top folder is its own parent
                continue
            done.append(name)
            here = "/" + "/".join(done)
            if stat.S_ISLNK(self.mode(here) or 0) and links < _MAX_LINKS:
                links += 1
                target = self._link_target(here)
                done = [] if target.startswith("/") else done[:-1]
                rest += target.split("/")[::-1]
        return "/" + "/".join(done) if done else ""

    def _link_target(self, path: str) -> str:
        """Return the target of a symbolic link."""
        found = re.search(r'^Fast link dest: "(.*)"$', self.run_debugfs(f"stat {quote_path(path)}"), re.MULTILINE | re.DOTALL)
        return found[1] if found else self._cat(path)

    def _cat(self, path: str) -> str:
        """Return the text of a file or symbolic link. debugfs (1.47) also shows the unused space of one within its inode."""
        text = self.run_debugfs(f"cat {quote_path(path)}").partition("\n")[2]
        size = re.search(r"  Size: (\d+)$", self.run_debugfs(f"stat {quote_path(path)}"), re.MULTILINE)
        return text.encode(errors="surrogateescape")[: int(size[1]) if size else None].decode(errors="surrogateescape")

    def exists(self, path: str) -> bool:
        """Return whether a path exists, after symbolic links."""
        mode = self.mode(self.resolve(path))
        return mode is not None and not stat.S_ISLNK(mode)

    def is_file(self, path: str) -> bool:
        """Return whether a path without symbolic links is a regular file."""
        return stat.S_ISREG(self.mode(path) or 0)

    def read_text(self, path: str) -> str:
        """Return the text of a file, after symbolic links; "" if it does not exist. Raises BrambleError for a folder."""
        path = self.resolve(path)
        self._check_replaceable(path)
        return self._cat(path) if self.is_file(path) else ""

    def _check_replaceable(self, path: str) -> None:
        """Check that a path is a regular file, a symbolic link, or free. Raises BrambleError."""
        if kind := _KINDS.get(stat.S_IFMT(self.mode(path) or 0)):
            raise BrambleError(f"{path} on the root file system is {kind}, where a file is expected: replace it on the card")

    def glob(self, pattern: str) -> dict[str, int]:
        """Return the paths that match a pattern with * in its names, and their modes. Links in their folders are resolved."""
        found = {"": stat.S_IFDIR}
        for name in pattern.split("/")[1:]:
            folders = {self.resolve(path) for path in found}
            found = {
                f"{folder}/{entry}": mode
                for folder in sorted(folders)
                for entry, mode in self.entries(folder).items()
                if fnmatch.fnmatchcase(entry, name)
            }
        return found

    def descendants(self, folder: str) -> dict[str, int]:
        """Return all paths below a folder, and their modes. Symbolic links are resolved in `folder` only."""
        found, waiting = dict[str, int](), [self.resolve(folder)]
        while waiting:
            parent = waiting.pop()
            members = {f"{parent}/{name}": mode for name, mode in self.entries(parent).items()}
            found |= members
            waiting += [path for path, mode in members.items() if stat.S_ISDIR(mode)]
        return found

    def apply_changes(self, removed: PathsToRemove, files: Mapping[str, str], links: Mapping[str, str], work: Path) -> list[str]:
        """Remove files and folders, then write files and links, and check the result. Raises BrambleError.

        The file system must be repaired afterwards (`shrink` does so), as debugfs neither releases the blocks with extended
        attributes of what it removes, nor counts for quotas.

        Files are owned by root. They have mode 0755 in a folder called sbin, and 0644 elsewhere. Existing links are kept, and
        a file is written to where they lead.

        :param files: text by path
        :param links: target by path
        :param work: the folder of the file system, for temporary files
        :returns: the paths of the files and links, after symbolic links
        """
        files = {self.resolve(path): text for path, text in files.items()}
        links = {self.resolve(os.path.dirname(path)) + "/" + os.path.basename(path): target for path, target in links.items()}
        gone = set(removed.paths)
        requests = [
            f"ea_rm {quote_path(path)} {quote_path(name)}"
            for path in (removed.paths if "ea_inode" in self.features else ())
            for name in self._attribute_names(path)
        ]
        requests += [f"rm {quote_path(path)}" for path in removed.files] + [
            f"rmdir {quote_path(path)}" for path in removed.folders
        ]
        folders = {os.fspath(folder): None for path in [*files, *links] for folder in reversed(Path(path).parents)}
        requests += [f"mkdir {quote_path(path)}" for path in folders if path != "/" and (self.mode(path) is None or path in gone)]
        for number, (path, text) in enumerate(files.items()):
            self._check_replaceable(path)
            (work / f"file{number}").write_text(text, errors="surrogateescape")
            if self.mode(path) is not None and path not in gone:
                requests.append(f"rm {quote_path(path)}")
            requests.append(f"write file{number} {quote_path(path)}")
            mode = "0100755" if "/sbin/" in path else "0100644"
            requests += [
                f"set_inode_field {quote_path(path)} {name} {value}" for name, value in (("mode", mode), ("uid", 0), ("gid", 0))
            ]
        links = {path: target for path, target in links.items() if self.mode(path) is None}
        requests += [f"symlink {quote_path(path)} {quote_path(target)}" for path, target in links.items()]
        self._entries.clear()
        output = self._change(requests)
        failed = [path for path in removed.paths if path not in files and self.mode(path) is not None]
        failed += [path for path, text in files.items() if self.read_text(path) != text]
        failed += [path for path in links if self.mode(path) is None]
        if failed:
            notes = [line for line in output.splitlines()[1:] if line and not line.startswith("debugfs: ")]
            raise BrambleError(f"{', '.join(failed[:5])} on the root file system cannot be changed: {'; '.join(notes[:5])}")
        return [*files, *links]

    def _attribute_names(self, path: str) -> list[str]:
        """Return the names of the extended attributes of a file. If they have inodes, debugfs does not remove these with it."""
        return re.findall(r"^  (\S+) \(\d+\)", self.run_debugfs(f"ea_list {quote_path(path)}"), re.MULTILINE)

    def _change(self, requests: Iterable[str]) -> str:
        """Run requests of debugfs that change the file system, in order, and return their output.

        A script has one request per line, so a request with a line break in a name is run on its own.
        """
        output, script = "", list[str]()

        def run_script() -> None:
            nonlocal output
            if script:
                output += run_tool("debugfs", "-w", "-f", "-", self.path, input="\n".join([*script, ""]))
                script.clear()

        for request in requests:
            if "\n" in request or "\r" in request or len(request) > _MAX_LINE:
                run_script()
                output += run_tool("debugfs", "-w", "-R", request, self.path)
            else:
                script.append(request)
        run_script()
        return output

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
    """Return a path as a quoted word of a request of debugfs."""
    return '"' + path.replace('"', '""') + '"'
