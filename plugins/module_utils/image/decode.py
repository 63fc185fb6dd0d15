"""Decode a compressed image once, into a sparse file. Every size is in bytes."""

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
class Tool:
    """A program that decodes its standard input: the first of `commands` that is installed."""

    magic: re.Pattern[bytes]
    commands: tuple[tuple[str, ...], ...]


# By what the file begins with, never by its name. All cores where the format allows it: xz and bzip2 made of many blocks do.
# A dictionary of more than a gigabyte is an attack on the memory of this machine; zstd and bzip2 have such a limit of their own.
TOOLS = {
    "xz": Tool(re.compile(rb"\xfd7zXZ\0"), (("xz", "-dc", "-T0", "--memlimit-decompress=1GiB"),)),
    "zst": Tool(re.compile(rb"\x28\xb5\x2f\xfd"), (("zstd", "-dcq"),)),
    "gz": Tool(re.compile(rb"\x1f\x8b\x08"), (("gzip", "-dc"),)),
    "bz2": Tool(re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), (("lbzip2", "-dc"), ("bzip2", "-dc"))),
}
_ZIP_MAGIC = b"PK\x03\x04"


def kind(path: str) -> str:
    """Return how a file is compressed: a key of TOOLS, ZIP, or RAW for not at all."""
    with open(path, "rb") as file:
        head = file.read(16)
    if head.startswith(_ZIP_MAGIC):
        return ZIP
    return next((name for name, tool in TOOLS.items() if tool.magic.match(head)), RAW)


def sha256(path: str, report: Report = lambda *_: None) -> str:
    """Return the SHA-256 of a file; the phase reported is "verify"."""
    digest, size = hashlib.sha256(), os.path.getsize(path)
    with open(path, "rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
            report("verify", file.tell(), size)
    return digest.hexdigest()


def decoded_size(path: str) -> int | None:
    """Return the size that a file says it decodes to; None where its format has none. Raises BrambleError for a damaged one."""
    form = kind(path)
    if form == RAW:
        return os.path.getsize(path)
    if form == ZIP:
        with _zip_member(path) as (_, info):
            return info.file_size
    if form != "xz":
        return None
    result = run_program([_installed(form)[0], "--robot", "--list", path], exit_codes=None)
    lines = result.stdout.decode(errors="replace").splitlines()
    total = next((line.split("\t") for line in lines if line.startswith("totals\t")), None)
    if result.returncode or not total:
        raise WrongImage(f"{path} is damaged, or not all of it is there: {_last_line(result.stderr.decode(errors='replace'))}")
    return int(total[4])


def decode(path: str, target: IO[bytes], expected: int | None, limit: int, report: Report) -> tuple[int, str]:
    """Decode a file into an empty file, with holes for zeros; return the size and the SHA-256 of what is in it.

    The target never gets more than `expected` bytes, or `limit` where None is expected. Raises WrongImage for more or fewer
    than expected, for a damaged file, and for what is no card image.
    """
    digest, at, most = hashlib.sha256(), 0, limit if expected is None else expected
    with _opened(path) as source:
        while data := source.read(min(CHUNK, most + 1 - at)):
            if not at and data[SECTOR - 2 : SECTOR] != b"\x55\xaa":
                raise WrongImage(f"{path} is no card image: what is in it does not begin with a partition table (MBR)")
            if at + len(data) > most:
                raise WrongImage(f"{path} decodes to more than the {most:,} bytes that it may have: stopped there")
            digest.update(data)
            _write(target.fileno(), data, at)
            at += len(data)
            report("decode", at, expected or 0)
    if not at or expected not in (None, at):
        raise WrongImage(f"{path} decodes to {at:,} bytes, and {f'{expected:,}' if expected else 'more'} were expected")
    target.truncate(at)
    return at, digest.hexdigest()


def _write(fd: int, data: bytes, at: int) -> None:
    """Write the blocks that are not zero."""
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
def _opened(path: str) -> Iterator[IO[bytes]]:
    """Yield the decoded content of a file, to be read. Raises BrambleError when what was read of it is damaged."""
    form = kind(path)
    if form == RAW:
        with open(path, "rb") as file:
            yield file
    elif form == ZIP:
        with _zip_member(path) as (archive, info), archive.open(info) as file:
            yield file
    else:
        with _decoder(path, form) as file:
            yield file


@contextlib.contextmanager
def _decoder(path: str, form: str) -> Iterator[IO[bytes]]:
    """Yield what a program decodes. It ends with the reader, or by its closed pipe when this process is killed."""
    with open(path, "rb") as source, tempfile.TemporaryFile() as errors:
        with subprocess.Popen(_installed(form), stdin=source, stdout=subprocess.PIPE, stderr=errors, bufsize=CHUNK) as process:
            assert process.stdout
            try:
                yield process.stdout
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            errors.seek(0)
            reason = _last_line(errors.read().decode(errors="replace"))
            raise WrongImage(f"{path} is damaged, or not all of it is there: {reason or f'exit {process.returncode}'}")


@contextlib.contextmanager
def _zip_member(path: str) -> Iterator[tuple[zipfile.ZipFile, zipfile.ZipInfo]]:
    """Yield the one image in a zip archive. Raises BrambleError."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
            images = [info for info in members if info.filename.lower().endswith((".img", ".raw"))] or members
            if len(images) != 1:
                raise BrambleError(
                    f"{path} holds {len(images)} files, and one image was expected. Unpack it, and give the image itself"
                )
            if images[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise BrambleError(f"{path} is packed with a method that is rare in a zip. Unpack it, and give the image itself")
            yield archive, images[0]
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise WrongImage(f"{path} is damaged, or not all of it is there: {error}") from None


def _installed(form: str) -> tuple[str, ...]:
    """Return the command of a tool. Raises BrambleError when it is not installed."""
    tool = TOOLS[form]
    command = next((command for command in tool.commands if shutil.which(command[0])), None)
    if not command:
        raise BrambleError(not_installed(tool.commands[-1][0]))
    return command


def _last_line(text: str) -> str:
    """Return the last line of a program's output; empty if there is none."""
    return (text.strip().splitlines() or [""])[-1]
