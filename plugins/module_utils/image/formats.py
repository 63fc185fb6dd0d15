"""Recognise the format of a file by its first bytes, never by its name."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import SECTOR
from ansible_collections.bramble.cluster.plugins.module_utils.image.error import NotCardImage

RAW, ZIP, LZMA = "raw", "zip", "lzma"
HEAD_BYTES = 64 * 1024  # enough for the magic of every format below; that of ISO 9660 is at 32 KiB
# The formats that are decoded. The frames of zstd are described in RFC 8878, those of lz4 in its doc/lz4_Frame_format.md.
_COMPRESSIONS = {
    "xz": re.compile(rb"\xfd7zXZ\0"),
    "zst": re.compile(rb"\x28\xb5\x2f\xfd"),
    "gz": re.compile(rb"\x1f\x8b\x08"),
    "bz2": re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"),
    "lz4": re.compile(rb"(\x04\x22\x4d|\x02\x21\x4c)\x18"),
    ZIP: re.compile(rb"PK(\x03\x04|\x05\x06|\x07\x08)"),
}
# It has no data; zstd and lz4 share it (RFC 8878, 3.1.2).
_SKIPPABLE_FRAME = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18.{4}", re.DOTALL)
_MAX_SKIPPABLE_FRAMES = 1000


@dataclass(frozen=True)
class OtherFormat:
    """A format that is not decoded: its name, its magic at `offset`, and what the user can do; {path} stands for the file."""

    name: str
    offset: int
    magic: bytes
    advice: str


_UNPACK = "Unpack it, and set image_file to the image in it: "
_CONVERT = "Convert it, and set image_file to the result: qemu-img convert -O raw {path} pi.img"
_USE_CARD_IMAGE = "Set image_file to an image for the SD card of a Raspberry Pi"
OTHER_FORMATS = (
    OtherFormat("a 7z archive", 0, b"7z\xbc\xaf\x27\x1c", _UNPACK + "7z x {path}"),
    OtherFormat("a RAR archive", 0, b"Rar!\x1a\x07", _UNPACK + "7z x {path}"),
    OtherFormat("a cabinet archive", 0, b"MSCF\0\0\0\0", _UNPACK + "7z x {path}"),
    OtherFormat("a tar archive", 257, b"ustar", _UNPACK + "tar xf {path}"),
    OtherFormat("a cpio archive", 0, b"070701", _UNPACK + "cpio -id < {path}"),
    OtherFormat("a Debian package or another ar archive", 0, b"!<arch>\n", _USE_CARD_IMAGE),
    OtherFormat("a file that lzip compressed", 0, b"LZIP", _UNPACK + "lzip -d {path}"),
    OtherFormat("a file that lzop compressed", 0, b"\x89LZO\0\r\n\x1a\n", _UNPACK + "lzop -d {path}"),
    OtherFormat("a file that lrzip compressed", 0, b"LRZI", _UNPACK + "lrzip -d {path}"),
    OtherFormat("a file that compress (.Z) compressed", 0, b"\x1f\x9d", _UNPACK + "gzip -dc < {path} > pi.img"),
    OtherFormat("a qcow2 disk of a virtual machine", 0, b"QFI\xfb", _CONVERT),
    OtherFormat("a VMDK disk of a virtual machine", 0, b"KDMV", _CONVERT),
    OtherFormat("a VMDK disk of a virtual machine", 0, b"COWD", _CONVERT),
    OtherFormat("the description of a VMDK disk of a virtual machine", 0, b"# Disk DescriptorFile", _CONVERT),
    OtherFormat("a VDI disk of a virtual machine", 64, b"\x7f\x10\xda\xbe", _CONVERT),
    OtherFormat("a VHDX disk of a virtual machine", 0, b"vhdxfile", _CONVERT),
    OtherFormat("a VHD disk of a virtual machine", 0, b"conectix", _CONVERT),
    OtherFormat(
        "an Android sparse image", 0, b"\x3a\xff\x26\xed", "Convert it, and set image_file to the result: simg2img {path} pi.img"
    ),
    OtherFormat("a partclone image of one partition", 0, b"partclone-image", _USE_CARD_IMAGE),
    OtherFormat("a Windows image (WIM)", 0, b"MSWIM\0\0\0", _USE_CARD_IMAGE),
    OtherFormat("a SquashFS file system", 0, b"hsqs", _USE_CARD_IMAGE),
    OtherFormat("an ISO 9660 image, for a CD or a PC", 32769, b"CD001", _USE_CARD_IMAGE),
    OtherFormat("firmware for a Raspberry Pi Pico (UF2)", 0, b"UF2\n", _USE_CARD_IMAGE),
    OtherFormat("a program (ELF)", 0, b"\x7fELF", _USE_CARD_IMAGE),
    OtherFormat("a PDF document", 0, b"%PDF-", _USE_CARD_IMAGE),
)
# These are considered only if the file has no partition table, whose first 440 bytes can be anything.
_WEB_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|script)", re.IGNORECASE)
_NOT_TEXT = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")
_EXT_MAGIC = slice(1024 + 56, 1024 + 58)


def detect_compression(file: IO[bytes]) -> str:
    """Return the compression of an open file: xz, zst, gz, bz2, lz4, LZMA, ZIP or RAW. Its position is the start afterwards.

    Skippable frames before the first frame of zstd or lz4 are passed over; pzstd writes one, for example.
    """
    file.seek(0)
    head = file.read(16)
    has_frames, at, count = _SKIPPABLE_FRAME.match(head), 0, 0
    while _SKIPPABLE_FRAME.match(head) and count < _MAX_SKIPPABLE_FRAMES:
        at, count = at + 8 + int.from_bytes(head[4:8], "little"), count + 1
        file.seek(at)
        head = file.read(16)
    file.seek(0)
    found = next((name for name, magic in _COMPRESSIONS.items() if magic.match(head)), LZMA if _is_lzma(head) else RAW)
    return "zst" if has_frames and found not in ("zst", "lz4") else found


def _is_lzma(head: bytes) -> bool:
    """Return whether a file can be .lzma, which has no magic: usual properties, a usual dictionary, and a plausible size.

    Source: lzma-file-format.txt of XZ Utils. liblzma and file(1) recognise it in the same way.
    """
    dictionary, size = int.from_bytes(head[1:5], "little"), int.from_bytes(head[5:13], "little")
    is_usual = dictionary == 2**32 - 1 or (dictionary >= 4096 and f"{dictionary:b}".rstrip("0") in ("1", "11"))
    return len(head) > 13 and head[0] == 0x5D and is_usual and (size < 2**40 or size == 2**64 - 1)


def check_head(head: bytes, path: str, is_decoded: bool) -> None:
    """Check that a card image can begin with some bytes. Raises NotCardImage, which names their format and what to do.

    :param head: the first HEAD_BYTES of the image; fewer if it is shorter
    :param path: the file that has the image
    :param is_decoded: whether the bytes were decoded from this file; they are its own first bytes otherwise
    """
    if not head:
        raise NotCardImage(
            f"{path} is not a card image: {'it contains nothing' if is_decoded else 'it is empty'}. Download it again"
        )
    name, advice = next(_other_formats(head), ("", ""))
    if name and is_decoded:
        command = advice.format(path="FILE")
        raise NotCardImage(f"{path} is not a card image: it contains {name}. Decompress it to FILE first. {command}")
    if name:
        raise NotCardImage(f"{path} is not a card image, but {name}. {advice.format(path=shlex.quote(path))}")
    if head[SECTOR - 2 : SECTOR] != b"\x55\xaa":
        what = "its content does not begin" if is_decoded else "it does not begin"
        raise NotCardImage(f"{path} is not a card image: {what} with a partition table (MBR). {_USE_CARD_IMAGE}")


def _other_formats(head: bytes) -> Iterator[tuple[str, str]]:
    """Yield the names of the formats that can begin with some bytes and are not a card image's, and what to do."""
    for other in OTHER_FORMATS:
        if head[other.offset : other.offset + len(other.magic)] == other.magic:
            yield other.name, other.advice
    compression = detect_compression(io.BytesIO(head))
    if compression != RAW:
        yield f"a compressed file ({compression})", "Set image_file to {path}"
    if head[SECTOR - 2 : SECTOR] == b"\x55\xaa":
        return
    if _WEB_PAGE.match(head):
        yield "a web page", "Download the image itself, and set image_file to it"
    if not _NOT_TEXT.search(head[:4096]):
        yield "a text file", _USE_CARD_IMAGE
    if head[_EXT_MAGIC] == b"\x53\xef":
        yield "a single ext file system without a partition table", _USE_CARD_IMAGE
