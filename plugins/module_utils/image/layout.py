"""Check that an image has what a card needs, by the functions with which the module card_write reads it. Sizes are in bytes."""

from __future__ import annotations

import os

from ansible_collections.bramble.cluster.plugins.module_utils.card.partition import boot_and_root, parse_partitions
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import SECTOR, read_exactly
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import format_bytes
from ansible_collections.bramble.cluster.plugins.module_utils.image.error import NotCardImage
from ansible_collections.bramble.cluster.plugins.module_utils.image.formats import HEAD_BYTES, check_head


def check_card_image(fd: int, path: str, is_decoded: bool) -> None:
    """Check that an open raw image has whole sectors, a partition table, and a boot and a root partition. Raises NotCardImage.

    :param path: the file that has the image, for the message
    :param is_decoded: whether the image was decoded from this file
    """
    size = os.fstat(fd).st_size
    check_head(os.pread(fd, HEAD_BYTES, 0), path, is_decoded)
    subject = f"the image in {path}" if is_decoded else path
    if size % SECTOR:
        raise NotCardImage(
            f"{subject} has {format_bytes(size)}, which is not a whole number of {SECTOR}-byte sectors, so it is incomplete or "
            "has other data at its end. Download it again, or use another image"
        )
    try:
        boot_and_root(parse_partitions(lambda offset, length: read_exactly(fd, offset, length), size))
    except BrambleError as error:
        raise NotCardImage(
            f"{subject} cannot be written to a card: {error}. Set image_file to an image for the SD card of a Raspberry Pi"
        ) from None
