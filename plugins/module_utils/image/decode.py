"""Decode a compressed image into a sparse file. All sizes are in bytes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import BLOCK, CHUNK, SECTOR, is_zero
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.process import run_program
from ansible_collections.bramble.cluster.plugins.module_utils.core.tools import not_installed
from ansible_collections.bramble.cluster.plugins.module_utils.image.error import WrongImage
from ansible_collections.bramble.cluster.plugins.module_utils.image.progress import Report

RAW = "raw"
ZIP = "zip"


@dataclass(frozen=True)
class Decompressor:
    """A program that decompresses its standard input: the first of `commands` that is installed."""

    magic: re.Pattern[bytes]
    commands: tuple[tuple[str, ...], ...]


# A format is recognised by the first bytes of a file, never by its name. xz and lbzip2 use all cores if a file has several
# blocks. A dictionary of more than 1 GiB could exhaust the memory, so xz gets a limit; zstd and bzip2 have built-in limits.
DECOMPRESSORS = {
    "xz": Decompressor(re.compile(rb"\xfd7zXZ\0"), (("xz", "-dc", "-T0", "--memlimit-decompress=1GiB"),)),
    "zst": Decompressor(re.compile(rb"\x28\xb5\x2f\xfd"), (("zstd", "-dcq"),)),
    "gz": Decompressor(re.compile(rb"\x1f\x8b\x08"), (("gzip", "-dc"),)),
    "bz2": Decompressor(re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), (("lbzip2", "-dc"), ("bzip2", "-dc"))),
}
_ZIP_MAGIC = b"PK\x03\x04"


def detect_compression(path: str) -> str:
    """Return the compression of a file: a key of DECOMPRESSORS, ZIP, or RAW."""
    with open(path, "rb") as file:
        head = file.read(16)
    if head.startswith(_ZIP_MAGIC):
        return ZIP
    return next((name for name, decompressor in DECOMPRESSORS.items() if decompressor.magic.match(head)), RAW)


def hash_file(path: str, report: Report = lambda *_: None) -> str:
    """Return the SHA-256 of a file, in hexadecimal, and report the progress as phase "verify"."""
    digest, size = hashlib.sha256(), os.path.getsize(path)
    with open(path, "rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
            report("verify", file.tell(), size)
    return digest.hexdigest()


def decoded_size(path: str) -> int | None:
    """Return the decoded size that a file states; None if its format has no size. Raises BrambleError for a damaged file."""
    compression = detect_compression(path)
    if compression == RAW:
        return os.path.getsize(path)
    if compression == ZIP:
        with _zip_member(path) as (_, info):
            return info.file_size
    if compression != "xz":
        return None
    result = run_program([_decompressor_command(compression)[0], "--robot", "--list", path], exit_codes=None)
    lines = result.stdout.decode(errors="replace").splitlines()
    total = next((line.split("\t") for line in lines if line.startswith("totals\t")), None)
    if result.returncode or not total:
        raise WrongImage(f"{path} is damaged or incomplete: {_last_line(result.stderr.decode(errors='replace'))}")
    return int(total[4])


def decode(path: str, target: IO[bytes], expected: int | None, limit: int, report: Report) -> tuple[int, str]:
    """Decode a file into an empty file, with holes for zeros, and return the decoded size and its SHA-256.

    :param expected: the decoded size; None if it is unknown
    :param limit: the largest decoded size, if `expected` is None; no more than this is ever written
    :raises WrongImage: for another size, for a damaged file, and for a file that is not a card image
    """
    digest, at, max_bytes = hashlib.sha256(), 0, limit if expected is None else expected
    with _decoded_content(path) as source:
        while data := source.read(min(CHUNK, max_bytes + 1 - at)):
            if not at and data[SECTOR - 2 : SECTOR] != b"\x55\xaa":
                raise WrongImage(f"{path} is not a card image: its content does not begin with a partition table (MBR)")
            if at + len(data) > max_bytes:
                raise WrongImage(f"{path} decodes to more than the expected {max_bytes:,} bytes")
            digest.update(data)
            _write(target.fileno(), data, at)
            at += len(data)
            report("decode", at, expected or 0)
    if not at or expected not in (None, at):
        raise WrongImage(f"{path} decodes to {at:,} bytes, but {f'{expected:,}' if expected else 'more'} were expected")
    target.truncate(at)
    return at, digest.hexdigest()


def _write(fd: int, data: bytes, at: int) -> None:
    """Write those blocks of `data` that are not zero."""
    if is_zero(data):
        return
    view = memoryview(data)
    for low in range(0, len(data), BLOCK):
        block = view[low : low + BLOCK]
        if not is_zero(block.tobytes()):
            while block:
                done = os.pwrite(fd, block, at + low)
                block, low = block[done:], low + done  # noqa: PLW2901 (the rest of the block)


@contextlib.contextmanager
def _decoded_content(path: str) -> Iterator[IO[bytes]]:
    """Yield the decoded content of a file, for reading. Raises BrambleError at the end if the file is damaged."""
    compression = detect_compression(path)
    if compression == RAW:
        with open(path, "rb") as file:
            yield file
    elif compression == ZIP:
        with _zip_member(path) as (archive, info), archive.open(info) as file:
            yield file
    else:
        with _run_decompressor(path, compression) as file:
            yield file


@contextlib.contextmanager
def _run_decompressor(path: str, compression: str) -> Iterator[IO[bytes]]:
    """Yield the output of a decompressor. It ends when its reader does, or by its closed pipe if this process is killed."""
    with open(path, "rb") as source, tempfile.TemporaryFile() as errors:
        with subprocess.Popen(
            _decompressor_command(compression), stdin=source, stdout=subprocess.PIPE, stderr=errors, bufsize=CHUNK
        ) as process:
            assert process.stdout
            try:
                yield process.stdout
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            errors.seek(0)
            reason = _last_line(errors.read().decode(errors="replace"))
            raise WrongImage(f"{path} is damaged or incomplete: {reason or f'exit {process.returncode}'}")


@contextlib.contextmanager
def _zip_member(path: str) -> Iterator[tuple[zipfile.ZipFile, zipfile.ZipInfo]]:
    """Yield a zip archive and its only image. Raises BrambleError."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
            images = [info for info in members if info.filename.lower().endswith((".img", ".raw"))] or members
            if len(images) != 1:
                raise BrambleError(
                    f"{path} contains {len(images)} files instead of one image. Unpack it, and set image_file to the image itself"
                )
            if images[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise BrambleError(
                    f"{path} uses a compression method that is not supported. Unpack it, and set image_file to the image itself"
                )
            yield archive, images[0]
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise WrongImage(f"{path} is damaged or incomplete: {error}") from None


def _decompressor_command(compression: str) -> tuple[str, ...]:
    """Return the command of a decompressor. Raises BrambleError when it is not installed."""
    decompressor = DECOMPRESSORS[compression]
    command = next((command for command in decompressor.commands if shutil.which(command[0])), None)
    if not command:
        raise BrambleError(not_installed(decompressor.commands[-1][0]))
    return command


def _last_line(text: str) -> str:
    """Return the last line of the output of a program; "" if there is none."""
    return (text.strip().splitlines() or [""])[-1]
