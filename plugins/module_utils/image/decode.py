"""Decode a compressed image into a sparse file. All sizes are in bytes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import BLOCK, CHUNK, is_zero
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.process import run_program
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import format_bytes
from ansible_collections.bramble.cluster.plugins.module_utils.core.tools import not_installed
from ansible_collections.bramble.cluster.plugins.module_utils.image import formats
from ansible_collections.bramble.cluster.plugins.module_utils.image.archive import open_only_image
from ansible_collections.bramble.cluster.plugins.module_utils.image.error import NotCardImage, WrongImage
from ansible_collections.bramble.cluster.plugins.module_utils.image.formats import HEAD_BYTES, LZMA, RAW, ZIP, check_head
from ansible_collections.bramble.cluster.plugins.module_utils.image.memory import available_memory, too_little_memory
from ansible_collections.bramble.cluster.plugins.module_utils.image.progress import Report
from ansible_collections.bramble.cluster.plugins.module_utils.image.space import SizeLimit

# The programs that decompress their standard input, by the compression; the first that is installed is used. xz and lbzip2 use
# all cores if a file has several blocks. xz and zstd refuse windows above a limit, so their limit is the available memory in MiB.
COMMANDS = {
    "xz": (("xz", "-dc", "-T0", "--memlimit-decompress={memory}MiB"),),
    LZMA: (("xz", "--format=lzma", "-dc", "--memlimit-decompress={memory}MiB"),),
    "zst": (("zstd", "-dcq", "--memory={memory}MiB"),),
    "gz": (("gzip", "-dc"),),
    "bz2": (("lbzip2", "-dc"), ("bzip2", "-dc")),
    "lz4": (("lz4", "-dcq"),),
}
_MAX_ZSTD_MIB = 2048  # ZSTD_WINDOWLOG_MAX; zstd reads the limit as a 32-bit number
_ENGLISH = {"LC_ALL": "C"}  # the messages below are those of the programs without translation
# The program wrote all that it could decode, and then found other data: gzip, bzip2 and lbzip2, zstd, lz4
# (which says nothing about more than three bytes).
_TRAILING_DATA = re.compile(r"trailing garbage|unsupported format|unknown header|Unrecognized header")
# Memory: zstd (window, then allocation), xz (limit, then allocation).
_NEEDS_WINDOW = re.compile(r"Window size larger than maximum : (\d+)")
_NEEDS_MIB = re.compile(r"([\d,]+) MiB of memory is required")
_NEEDS_MEMORY = re.compile(
    r"Window log larger|too much memory|not enough memory|Memory usage limit|Cannot allocate memory|memory exhausted",
    re.IGNORECASE,
)
_CHUNKS_TO_FIND_DAMAGE = 64  # a few blocks of bzip2, which hold up to 45 MB of zeros each
_XZ_TAIL = 2**20  # where the end of the last xz stream is searched, if other data comes after it


@dataclass
class Decoded:
    """The result of decoding: the size and the SHA-256 of the image, and notes for the user."""

    size: int
    sha256: str
    notes: list[str] = field(default_factory=list)


class _HeadIsRead(Exception):
    """The first bytes of an image are read; its decompressor is ended."""


def detect_compression(path: str) -> str:
    """Return the compression of a file: a key of COMMANDS, ZIP, or RAW."""
    with open(path, "rb") as file:
        return formats.detect_compression(file)


def hash_file(path: str, report: Report = lambda *_: None) -> str:
    """Return the SHA-256 of a file, in hexadecimal, and report the progress as phase "verify"."""
    digest, size = hashlib.sha256(), os.path.getsize(path)
    with open(path, "rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
            report("verify", file.tell(), size)
    return digest.hexdigest()


def decoded_size(path: str) -> int | None:
    """Return the decoded size that a file states; None if it states none. Raises BrambleError for a damaged file."""
    compression = detect_compression(path)
    if compression == RAW:
        return os.path.getsize(path)
    if compression == ZIP:
        with open_only_image(path) as (member, content):
            return member.file_size if formats.detect_compression(content) == RAW else None
    if compression == "xz" and _xz_end(path) == os.path.getsize(path):
        return _list_xz(path)[0]
    return None


def check_content(path: str) -> None:
    """Check that the image in a file begins like a card image. Only its beginning is decoded. Raises BrambleError."""
    refusal = None
    with contextlib.suppress(_HeadIsRead), _decoded_content(path, []) as (source, is_decoded):
        head = source.read(HEAD_BYTES)
        refusal = _refusal(head, path, is_decoded, source)
        if not refusal and len(head) == HEAD_BYTES:
            raise _HeadIsRead
    if refusal:
        raise refusal


def decode(
    path: str, target: IO[bytes], expected: int | None, limit: SizeLimit, report: Report, wanted_sha256: str = ""
) -> Decoded:
    """Decode a file into an empty file, with holes for zeros.

    :param expected: the decoded size; None if it is unknown
    :param limit: the largest decoded size, if `expected` is None; no more than this is ever written
    :param wanted_sha256: if the image has this SHA-256, what its decompressor reports at the end is only noted
    :raises WrongImage: for another size, and for a damaged file
    :raises BrambleError: for a file that is not a card image or exceeds the limit, and for too little memory
    """
    digest, at, max_bytes, notes = hashlib.sha256(), 0, limit.bytes if expected is None else expected, list[str]()
    refusal = None
    try:
        with _decoded_content(path, notes) as (source, is_decoded):
            while data := source.read(min(CHUNK, max_bytes + 1 - at)):
                if not at and (refusal := _refusal(data[:HEAD_BYTES], path, is_decoded, source)):
                    break
                if at + len(data) > max_bytes:
                    if expected is None:
                        raise BrambleError(f"{path} decodes to more than {format_bytes(max_bytes)}, {limit.reason}")
                    raise WrongImage(f"{path} decodes to more than the expected {max_bytes:,} bytes")
                digest.update(data)
                _write(target.fileno(), data, at)
                at += len(data)
                report("decode", at, expected or 0)
    except WrongImage as error:
        if digest.hexdigest() != wanted_sha256:
            raise
        notes.append(f"{error}.")
    if refusal:
        raise refusal
    if not at:
        check_head(b"", path, is_decoded)
    if expected not in (None, at):
        raise WrongImage(f"{path} decodes to {at:,} bytes, but {expected:,} were expected")
    target.truncate(at)
    return Decoded(at, digest.hexdigest(), notes)


def _refusal(head: bytes, path: str, is_decoded: bool, source: IO[bytes]) -> NotCardImage | None:
    """Return why the first bytes of an image cannot be those of a card image, None if they can.

    A damaged file can decode to anything before its decompressor notices the damage, so the next bytes are read, too. If the
    image goes on after these, the reason is raised. Otherwise it is returned, and the decompressor's own error comes before it.
    """
    try:
        check_head(head, path, is_decoded)
    except NotCardImage as error:
        if not is_decoded or any(not source.read(CHUNK) for _ in range(_CHUNKS_TO_FIND_DAMAGE)):
            return error
        raise
    return None


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
def _decoded_content(path: str, notes: list[str]) -> Iterator[tuple[IO[bytes], bool]]:
    """Yield the decoded content of a file, for reading, and whether it differs from the file itself.

    Raises BrambleError at the end if the file is damaged. What the user should know about the file is added to `notes`.
    """
    compression = detect_compression(path)
    if compression == ZIP:
        with open_only_image(path) as (member, content):
            inner, name = formats.detect_compression(content), f"{member.filename!r} in {path}"
            if inner == RAW:
                yield content, True
            elif inner == ZIP:
                raise BrambleError(
                    f"{name} is a zip archive, too. Unpack {path} (7z x FILE), and set image_file to what it contains"
                )
            else:
                with _run_decompressor(inner, name, notes, pipe_from=content) as output:
                    yield output, True
        return
    # Without a buffer, the decompressor begins where this process has stopped to read.
    with open(path, "rb", buffering=0) as file:
        if compression == RAW:
            yield file, False
            return
        size = os.path.getsize(path)
        end = _xz_end(path) if compression == "xz" else size
        if end < size:
            notes.append(_trailing_data_note(path, size - end))
            decompressor = _run_decompressor(compression, path, notes, pipe_from=file, length=end)
        else:
            if compression == "xz" and (needed := _list_xz(path)[1]) > (available := available_memory()):
                raise too_little_memory(path, needed, available)
            decompressor = _run_decompressor(compression, path, notes, file=file)
        with decompressor as output:
            yield output, True


def _trailing_data_note(name: str, size: int | None = None) -> str:
    """Return the note about data after the end of the compressed data; `size` is None if it is not known how much."""
    return f"{format_bytes(size) if size else 'Some data'} after the end of the compressed image in {name} cannot be decoded."


@contextlib.contextmanager
def _run_decompressor(
    compression: str,
    name: str,
    notes: list[str],
    *,
    file: IO[bytes] | None = None,
    pipe_from: IO[bytes] | None = None,
    length: int | None = None,
) -> Iterator[IO[bytes]]:
    """Yield the output of a decompressor. It ends when its reader does, or by its closed pipe if this process is killed.

    :param name: what is decompressed, for messages
    :param file: the file that the decompressor reads itself
    :param pipe_from: or what is read here and piped to it: the content of an archive, or `length` bytes of a file
    """
    memory = available_memory()
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            decompressor_command(compression, memory),
            stdin=file or subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=CHUNK,
            env=os.environ | _ENGLISH,
        ) as process,
    ):
        assert process.stdout
        feeder = _Feeder(pipe_from, process.stdin, length) if pipe_from and process.stdin else None
        try:
            yield process.stdout
        except BaseException:
            process.kill()
            raise
        finally:
            if feeder:
                feeder.join()
        if feeder and feeder.error:
            raise feeder.error
        returncode = process.wait()
        errors.seek(0)
        _check_result(compression, name, returncode, errors.read().decode(errors="replace"), memory, notes)


class _Feeder(threading.Thread):
    """Copies a stream to the standard input of a decompressor, from its creation on. After its end, `error` says what failed."""

    def __init__(self, source: IO[bytes], target: IO[bytes], length: int | None) -> None:
        super().__init__(daemon=True)
        self._source, self._target, self._length = source, target, length
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        """Copy the stream."""
        left = self._length
        try:
            with self._target as target:
                while data := self._source.read(CHUNK if left is None else min(CHUNK, left)):
                    target.write(data)
                    left = None if left is None else left - len(data)
        except BrokenPipeError:
            pass  # the decompressor has ended, and its exit code says why
        except Exception as error:
            self.error = error


def _check_result(compression: str, name: str, returncode: int, stderr: str, memory: int, notes: list[str]) -> None:
    """Check the result of a decompressor, and add a note if it ignored data after the end. Raises BrambleError.

    :param memory: how much memory it was allowed to use
    """
    if returncode == -signal.SIGKILL:
        raise BrambleError(
            f"The program that decoded {name} was killed, which happens when the memory of a machine is exhausted. Close other "
            "programs, then run the same command again"
        )
    if window := _NEEDS_WINDOW.search(stderr):
        raise too_little_memory(name, int(window[1]), memory)
    if returncode and _NEEDS_MEMORY.search(stderr):
        needed = max((int(found.replace(",", "")) * 2**20 for found in _NEEDS_MIB.findall(stderr)), default=0)
        # xz with several threads reports 1 MiB before it knows the need.
        raise too_little_memory(name, needed if needed > memory else None, memory)
    if _TRAILING_DATA.search(stderr) or (compression == "lz4" and returncode and not stderr.strip()):
        notes.append(_trailing_data_note(name))
    elif returncode:
        raise WrongImage(f"{name} is damaged or incomplete: {_last_line(stderr) or f'exit {returncode}'}")


def _list_xz(path: str) -> tuple[int, int]:
    """Return the decoded size of an .xz file, and the memory that it takes to decode it. Raises BrambleError."""
    result = run_program(["xz", "--robot", "--list", "-vv", "--", path], env=os.environ | _ENGLISH, exit_codes=None)
    lines = [line.split("\t") for line in result.stdout.decode(errors="replace").splitlines()]
    found = {words[0]: words for words in lines if words[0] in ("totals", "summary")}
    if result.returncode or len(found) < 2:
        raise WrongImage(f"{path} is damaged or incomplete: {_last_line(result.stderr.decode(errors='replace'))}")
    return int(found["totals"][4]), int(found["summary"][1])


def _xz_end(path: str) -> int:
    """Return where the last xz stream of a file ends, with its padding; the size of the file if no end is found in its last MiB.

    Source: the .xz file format, sections 2.1.2 (stream footer) and 2.2 (stream padding).
    """
    size = os.path.getsize(path)
    start = max(size - _XZ_TAIL, 0) // 4 * 4
    with open(path, "rb") as file:
        file.seek(start)
        tail = file.read()
    at = len(tail)
    while (at := tail.rfind(b"YZ", 10, at)) >= 0:
        crc, content, end = tail[at - 10 : at - 6], tail[at - 6 : at], at + 2
        if end % 4 == 0 and zlib.crc32(content) == int.from_bytes(crc, "little"):
            is_padding = (size - start - end) % 4 == 0 and not tail[end:].strip(b"\0")
            return size if is_padding else start + end
    return size


def decompressor_command(compression: str, memory: int) -> list[str]:
    """Return the command of a decompressor that may use some bytes of memory. Raises BrambleError when it is not installed."""
    commands = COMMANDS[compression]
    command = next((command for command in commands if shutil.which(command[0])), None)
    if not command:
        raise BrambleError(not_installed(commands[-1][0]))
    mib = memory // 2**20
    return [word.format(memory=min(mib, _MAX_ZSTD_MIB) if compression == "zst" else mib) for word in command]


def _last_line(text: str) -> str:
    """Return the last line of the output of a program; "" if there is none."""
    return (text.strip().splitlines() or [""])[-1]
