"""A private copy of an image, in which the files of a node are laid to find the bytes that they change. Sizes are in bytes."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence

from ansible_collections.bramble.cluster.plugins.module_utils.card.content import Content, Overlay
from ansible_collections.bramble.cluster.plugins.module_utils.card.fat import check_fat
from ansible_collections.bramble.cluster.plugins.module_utils.card.image import Image
from ansible_collections.bramble.cluster.plugins.module_utils.card.space import used_ranges
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import BLOCK, CHUNK, PAGE, data_extents, read_exactly
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.process import first_error_lines, run_program
from ansible_collections.bramble.cluster.plugins.module_utils.core.tools import TOOL_ENV

# The time of the files of a node (2024-01-01 UTC). It is constant, so that the same input always results in the same bytes.
EPOCH = "1704067200"
_TOOL_ENV = TOOL_ENV | {
    "SOURCE_DATE_EPOCH": EPOCH,  # mtools
    "E2FSPROGS_FAKE_TIME": EPOCH,  # https://git.kernel.org/pub/scm/fs/ext2/e2fsprogs.git, lib/ext2fs/openfs.c
    "E2FSCK_TIME": EPOCH,  # the same repository, e2fsck/unix.c
}
_REPAIRED = (0, 1)  # e2fsck(8): the file system is clean, or was repaired
# Features with which the tools cannot write to a file system at an offset of an image.
_UNSAFE_FEATURES = {"mmp": "whose block e2fsprogs (1.47) cannot find in an image"}


def _copy_differences(source: int, source_start: int, target: int, target_start: int, size: int) -> None:
    """Copy the chunks of a range of one file to another file that does not have them."""
    for at in range(0, size, CHUNK):
        data = read_exactly(source, source_start + at, min(CHUNK, size - at))
        if data != read_exactly(target, target_start + at, len(data)):
            os.pwrite(target, data, target_start + at)


class Workbench:
    """A private sparse copy of an image, which programs can open and change. A context manager.

    The copy has no name (it is unlinked at once), so that a crash leaves no private key behind. It needs as much disk space as
    the image has data.
    """

    def __init__(self, image: Image, folder: str) -> None:
        self.image, self._folder = image, folder
        self.boot, self.root = image.partitions()
        self._file = tempfile.TemporaryFile(dir=folder, prefix=".card-")  # noqa: SIM115 (closed by __exit__)
        self.fd = self._file.fileno()
        self._original = Content(image, {})
        self._is_root_clean = self._has_quotas = False
        try:
            os.ftruncate(self.fd, image.size)
            for run in self._original.runs():
                if run.has_data:
                    os.pwrite(self.fd, self._original.read(run.offset, run.length), run.offset)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Workbench:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def run(self, *command: str, stdin: bytes = b"", files: Sequence[int] = ()) -> subprocess.CompletedProcess[bytes]:
        """Run a program that can open the copy and `files` below /proc/self/fd. Raises BrambleError if it is not installed."""
        return run_program(command, input=stdin, env=_TOOL_ENV, pass_fds=(self.fd, *files), exit_codes=None)

    @property
    def root_device(self) -> str:
        """The root file system, in the notation of e2fsprogs."""
        return f"/proc/self/fd/{self.fd}?offset={self.root.start}"

    def prepare_root(self) -> None:
        """Make the root file system of the copy clean, before anything else in the copy is changed.

        What the first mount would change by itself, such as the replay of a journal, would otherwise overwrite the files of the
        node. Raises BrambleError when the root file system is no ext file system, has a feature that makes changes unsafe, or is
        damaged in a way that cannot be repaired without loss.
        """
        if self._is_root_clean:
            return
        header = self.run("dumpe2fs", "-h", self.root_device).stdout.decode(errors="replace")
        found = re.search(r"^Filesystem features: *(.*)$", header, re.MULTILINE)
        features = found[1].split() if found else []
        for name, reason in _UNSAFE_FEATURES.items():
            if name in features:
                raise BrambleError(
                    f"Partition 2 of {self.image.path} cannot get the files of a node: its ext file system has the feature "
                    f"{name}, {reason}. Nothing was written. Use another image, or remove the feature from this one and set "
                    f"the new image_sha256: losetup --find --show --partscan '{self.image.path}' names a device; then run "
                    f"tune2fs -O ^{name} on its second partition, and losetup --detach on the device"
                )
        # e2fsck -n finds no error in these; but it does in the orphans of an orphan file (orphan_present).
        is_changed_by_mount = any(sign in header for sign in ("needs_recovery", "First orphan inode"))
        if is_changed_by_mount or self.run("e2fsck", "-fn", self.root_device).returncode:
            self._repair_root()
            self._original = Content(self.image, self._changed_pages())
        self._is_root_clean, self._has_quotas = True, "quota" in features

    def _repair_root(self) -> None:
        """Replay the journal of the root file system, and repair what e2fsck repairs without questions. Raises BrambleError."""
        # In a file of its own: after a replay, e2fsck (1.47) opens the file system again without its offset.
        with tempfile.TemporaryFile(dir=self._folder, prefix=".card-") as file:
            os.ftruncate(file.fileno(), self.root.size)
            _copy_differences(self.fd, self.root.start, file.fileno(), 0, self.root.size)
            result = self.run("e2fsck", "-fp", f"/proc/self/fd/{file.fileno()}", files=[file.fileno()])
            if result.returncode not in _REPAIRED:
                raise self.damage_error(result.stdout)
            _copy_differences(file.fileno(), 0, self.fd, self.root.start, self.root.size)

    @functools.cached_property
    def boot_damage(self) -> str:
        """What fsck.vfat finds wrong with the boot file system of the image, at the first use; "" if nothing."""
        try:
            check_fat(self.fd, self.boot.start, self.boot.size, [(self.boot.start, self.boot.end)], only_harmful=True)
        except BrambleError as error:
            return str(error)
        return ""

    def check_root(self) -> None:
        """Check that the root file system is clean. Raises BrambleError.

        Its quotas are counted again, as debugfs (1.47) does not count what it writes.
        """
        if self._has_quotas:
            self._repair_root()
        result = self.run("e2fsck", "-fn", self.root_device)
        if result.returncode:
            raise self.damage_error(result.stdout)

    def damage_error(self, output: bytes) -> BrambleError:
        """Return the error for a damaged root file system, with the output of e2fsck."""
        # The times of the copy are constant, so e2fsck finds those of the image in the future.
        times = re.compile(r".*(is in the future|now = ).*\n?")
        reason = "; ".join(first_error_lines(times.sub("", output.decode(errors="replace"))))
        repair = f"e2fsck -f '{self.image.path}?offset={self.root.start}'"
        return BrambleError(
            f"Partition 2 of {self.image.path} is not a clean ext4 file system: {reason}. Nothing was written. Use another copy "
            f"of the image, or repair this one and set its new image_sha256: {repair}"
        )

    def overlay(self) -> Overlay:
        """Return the pages that differ from the image, and those that only the copy uses, whatever they hold.

        A page that the file systems of the image do not use is not written to a card. If the copy uses it, it must be, even if
        the image happens to have the same bytes there.
        """
        return self._changed_pages() | dict(self._newly_used_pages())

    def _newly_used_pages(self) -> Iterator[tuple[int, bytes]]:
        """Yield the (offset, bytes) of the pages that the copy uses in blocks that the file systems of the image do not use."""
        for partition in (self.boot, self.root):
            if self.image.needed_blocks.issuperset(range(partition.start // BLOCK, -(-partition.end // BLOCK))):
                continue
            for low, high in used_ranges(self.fd, partition, strict=True, check=False):
                for block in range(low // BLOCK, -(-high // BLOCK)):
                    if block not in self.image.needed_blocks:
                        # These pages are whole: the first and last MiB of a partition and of the image are always needed.
                        for at in range(max(low, block * BLOCK) // PAGE * PAGE, min(high, (block + 1) * BLOCK), PAGE):
                            yield at, read_exactly(self.fd, at, PAGE)

    def _changed_pages(self) -> Overlay:
        """Return the pages of the copy that differ from the image."""
        overlay = {}
        for start, end in data_extents(self.fd, 0, self.image.size):
            stop = min(-(-end // PAGE) * PAGE, self.image.size)
            for at in range(start - start % PAGE, stop, CHUNK):
                length = min(CHUNK, stop - at)
                # The copy has verified content, so a page that was changed in the image meanwhile is only stored without need.
                copy, original = read_exactly(self.fd, at, length), self.image.read(at, length, check=False)
                if copy != original:
                    for inner in range(0, length, PAGE):
                        page = copy[inner : inner + PAGE]
                        if page != original[inner : inner + PAGE]:
                            overlay[at + inner] = page
        return overlay

    def restore(self, overlay: Overlay) -> None:
        """Restore the pages of an overlay, so that the files of the next node can be laid."""
        for offset, data in overlay.items():
            os.pwrite(self.fd, self._original.read(offset, len(data)), offset)
