"""Capture a card: create an image of its used bytes, without the identity of its node, and as small as possible.

The card is only read. All changes are made to a private copy of its two file systems, which are not mounted: the root file system
is changed with e2fsprogs, and the FAT in place. Deleted data is not in the image. What is before and between the partitions is
copied as it is, as it can be a boot loader.

All sizes and offsets are in bytes.
"""

from __future__ import annotations

import json
import time

from ansible_collections.bramble.cluster.plugins.module_utils.capture.archive import image_chunks, resize_root_entry, write_image
from ansible_collections.bramble.cluster.plugins.module_utils.capture.boot_file_system import check_boot, remove_boot_identity
from ansible_collections.bramble.cluster.plugins.module_utils.capture.grow import grow_method
from ansible_collections.bramble.cluster.plugins.module_utils.capture.identity import remove_identity
from ansible_collections.bramble.cluster.plugins.module_utils.capture.request import CaptureRequest
from ansible_collections.bramble.cluster.plugins.module_utils.capture.root_file_system import RootFileSystem
from ansible_collections.bramble.cluster.plugins.module_utils.capture.shrink import shrink
from ansible_collections.bramble.cluster.plugins.module_utils.capture.source_card import (
    SourceCard,
    explain_damage,
    image_too_large,
)
from ansible_collections.bramble.cluster.plugins.module_utils.capture.workspace import copy_card, private_workspace
from ansible_collections.bramble.cluster.plugins.module_utils.card.device import Card
from ansible_collections.bramble.cluster.plugins.module_utils.card.partition import Partition
from ansible_collections.bramble.cluster.plugins.module_utils.card.progress import Progress
from ansible_collections.bramble.cluster.plugins.module_utils.core.digest import file_sha256
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError


def capture(card: Card, source: SourceCard, request: CaptureRequest, progress: Progress) -> dict[str, object]:
    """Write the image of a card, its archive and its manifest. Raises BrambleError.

    :returns: the values of the manifest, and as `cleaned` the paths that were removed or changed
    """
    node, slot = card.facts.node, card.facts.slot
    request.folder.mkdir(parents=True, exist_ok=True)
    with private_workspace(request.folder) as work:
        gaps, boot, root = work / "gaps", work / "boot.fat", RootFileSystem(work / "root.ext")
        copy_card(card, source, gaps, boot, root.path, progress)
        progress.report(node, "check")
        with explain_damage(source.facts, source.boot):
            check_boot(boot)
        with explain_damage(source.facts, source.root):
            root.check()
        progress.report(node, "clean")
        grow, init_format = grow_method(root), request.init_format or _init_format(root)
        try:
            cleaned = remove_boot_identity(boot, request.seeds) + remove_identity(root, grow, work)
            progress.report(node, "shrink")
            size = shrink(root)
        except BrambleError as error:
            raise BrambleError(f"{slot}: {error}. Nothing was captured.") from None
        end = source.root.start + size
        if end > request.max_bytes:
            raise image_too_large(end, request.max_bytes)
        image, archive, manifest = (work / path.name for path in (request.image, request.archive, request.file_path(".json")))
        small = Partition(2, source.root.type, source.root.start, size)
        content = image_chunks(resize_root_entry(source.mbr, size), gaps, [(source.boot, boot), (small, root.path)])
        sha256 = write_image(image, archive, end, content, progress, node)
        facts = {
            "name": request.name,
            "architecture": request.architecture,
            "file": request.image.name,
            "sha256": sha256,
            "bytes": end,
            "init_format": init_format,
            "recipe": "",
            "built": "",
            "captured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "archive": {"file": request.archive.name, "sha256": file_sha256(archive), "bytes": archive.stat().st_size},
            "grow": grow,
        }
        manifest.write_text(json.dumps(facts, indent=2) + "\n")
        # The manifest comes last, so that the other files exist whenever it does.
        for path in (image, archive, manifest):
            path.chmod(0o600)  # a captured card can contain private data
            path.rename(request.folder / path.name)
    return {**facts, "cleaned": cleaned}


def _init_format(root: RootFileSystem) -> str:
    """Return how a card of this system gets its identity, as an init_format of the catalogue of images."""
    if not root.exists("/usr/bin/cloud-init"):
        return "systemd"
    return "cloudinit-rpi" if root.exists("/etc/rpi-issue") else "cloudinit"
