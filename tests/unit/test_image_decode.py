"""Decode images of all formats into a sparse file, and refuse invalid ones."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import re
import resource
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.image import decode as image_decode
from ansible_collections.bramble.cluster.plugins.module_utils.image import memory as image_memory
from ansible_collections.bramble.cluster.plugins.module_utils.image.error import NotCardImage, WrongImage
from ansible_collections.bramble.cluster.plugins.module_utils.image.space import SizeLimit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MIB = 2**20
MBR = bytes(510) + b"\x55\xaa"
# 24 MiB, of which 1 MiB in the middle and 300 bytes at the end are not zero.
IMAGE = MBR + bytes(12 * MIB - 512) + os.urandom(MIB) + bytes(11 * MIB - 300) + os.urandom(300)
SHA256 = hashlib.sha256(IMAGE).hexdigest()
FORMATS = ["xz", "zst", "gz", "bz2", "lz4", "lzma", "zip", "raw"]
COMPRESSED = FORMATS[:-1]
STREAMS = ["xz", "zst", "gz", "bz2", "lz4"]  # their files can be put together
LIMIT = SizeLimit(10**9, "which is too much")


def compress(compression: str, data: bytes, path: Path) -> Path:
    """Write data with a compression to a file, and return its path."""
    if compression == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("README", "hello")
            archive.writestr("pi.img", data)
    else:
        path.write_bytes(compressed(compression, data))
    return path


def compressed(compression: str, data: bytes) -> bytes:
    """Return data with a compression of one stream."""

    def run(*command: str) -> Callable[[bytes], bytes]:
        return lambda data: subprocess.run(command, input=data, capture_output=True, check=True).stdout

    compressors: dict[str, Callable[[bytes], bytes]] = {
        "xz": lzma.compress,
        "lzma": partial(lzma.compress, format=lzma.FORMAT_ALONE),
        "gz": gzip.compress,
        "bz2": bz2.compress,
        "zst": run("zstd", "-cq"),
        "lz4": run("lz4", "-cq"),
        "raw": bytes,
    }
    return compressors[compression](data)


def decode(path: Path, expected: int | None = None, notes: list[str] | None = None) -> tuple[Path, int, str]:
    """Decode a file, and return the path, the size and the SHA-256 of the image. The notes are added to `notes`."""
    target = path.with_name("decoded")
    with target.open("wb") as file:
        decoded = image_decode.decode(str(path), file, expected, LIMIT, lambda *_: None)
    if notes is None:
        assert decoded.notes == []
    else:
        notes += decoded.notes
    return target, decoded.size, decoded.sha256


@pytest.mark.parametrize("compression", FORMATS)
def test_round_trip(compression: str, tmp_path: Path) -> None:
    path = compress(compression, IMAGE, tmp_path / "misleading.name")
    assert image_decode.detect_compression(str(path)) == compression
    for expected in (None, len(IMAGE)):
        target, size, sha256 = decode(path, expected)
        assert (size, sha256) == (len(IMAGE), SHA256)
        assert target.read_bytes() == IMAGE
        # Only the first block, those in the middle, and the last one are allocated.
        assert 1 * MIB < target.stat().st_blocks * 512 < 2 * MIB


@pytest.mark.parametrize("compression", FORMATS)
def test_decoded_size(compression: str, tmp_path: Path) -> None:
    size = image_decode.decoded_size(str(compress(compression, IMAGE, tmp_path / "x")))
    assert size == (len(IMAGE) if compression in ("xz", "zip", "raw") else None)


@pytest.mark.parametrize("compression", FORMATS)
def test_decoding_stops_at_the_size_limit(compression: str, tmp_path: Path) -> None:
    path = compress(compression, IMAGE, tmp_path / "x")
    reported: list[int] = []
    for expected, limit, words in (
        (20 * MIB, LIMIT, "more than the expected 20,971,520 bytes"),
        (None, SizeLimit(20 * MIB, "which is too much"), "more than 20,971,520 bytes, which is too much"),
    ):
        with (tmp_path / "decoded").open("wb") as file, pytest.raises(BrambleError, match=words):
            image_decode.decode(str(path), file, expected, limit, lambda _phase, done, _total: reported.append(done))
    assert max(reported) <= 20 * MIB and (tmp_path / "decoded").stat().st_size <= 20 * MIB


@pytest.mark.parametrize("compression", FORMATS)
def test_image_one_byte_too_short(compression: str, tmp_path: Path) -> None:
    with pytest.raises(WrongImage, match=r"decodes to 25,165,824 bytes, but 25,165,825 were expected"):
        decode(compress(compression, IMAGE, tmp_path / "x"), len(IMAGE) + 1)


@pytest.mark.parametrize("compression", COMPRESSED)
@pytest.mark.parametrize("part", [0.3, 0.999])
def test_a_truncated_file(compression: str, part: float, tmp_path: Path) -> None:
    path = compress(compression, IMAGE, tmp_path / "x")
    os.truncate(path, int(path.stat().st_size * part))
    with pytest.raises(WrongImage, match="damaged or incomplete"):
        decode(path)


@pytest.mark.parametrize("compression", COMPRESSED)
def test_a_damaged_file(compression: str, tmp_path: Path) -> None:
    path = compress(compression, IMAGE, tmp_path / "x")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(WrongImage, match="damaged"):
        decode(path)


@pytest.mark.parametrize("compression", FORMATS)
@pytest.mark.parametrize("data", [b"", b"x", b"hello " * MIB, bytes(MIB)], ids=["empty", "short", "text", "zeros"])
def test_file_that_is_not_a_card_image(compression: str, data: bytes, tmp_path: Path) -> None:
    with pytest.raises(NotCardImage, match="is not a card image"):
        decode(compress(compression, data, tmp_path / "x"))
    with pytest.raises(NotCardImage, match="is not a card image"):
        image_decode.check_content(str(tmp_path / "x"))


def test_several_xz_blocks(tmp_path: Path) -> None:
    """Publishers compress images in this way, with xz -T0."""
    command = ["xz", "-T2", "--block-size=1MiB", "-c"]
    (tmp_path / "x").write_bytes(subprocess.run(command, input=IMAGE, capture_output=True, check=True).stdout)
    assert decode(tmp_path / "x")[1:] == (len(IMAGE), SHA256)


@pytest.mark.parametrize("compression", STREAMS)
def test_concatenated_streams(compression: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(compressed(compression, IMAGE[:MIB]) + compressed(compression, IMAGE[MIB:]))
    assert decode(tmp_path / "x")[1:] == (len(IMAGE), SHA256)


@pytest.mark.parametrize(
    "tail", [b"x", b"-----BEGIN SIGNATURE-----\n" * 9, bytes(13) + b"x" * MIB], ids=["byte", "text", "large"]
)
@pytest.mark.parametrize("compression", STREAMS)
def test_data_after_the_end_of_the_stream(compression: str, tail: bytes, tmp_path: Path) -> None:
    """The image before it is complete; the caller decides by the SHA-256."""
    path, notes = compress(compression, IMAGE, tmp_path / "x"), list[str]()
    if compression == "gz" and len(tail) == 1:
        tail = b"xy"  # gzip takes one byte for the beginning of a second stream: test_image_that_is_verified_in_spite_of_an_error
    with path.open("ab") as file:
        file.write(tail if compression != "xz" else tail[:1000])
    assert image_decode.decoded_size(str(path)) is None
    assert decode(path, notes=notes)[1:] == (len(IMAGE), SHA256)
    assert len(notes) == 1 and "after the end of the compressed image" in notes[0]


@pytest.mark.parametrize("compression", COMPRESSED)
def test_image_that_is_verified_in_spite_of_an_error(compression: str, tmp_path: Path) -> None:
    """What follows the image looks like the beginning of another stream, or the decompressor cannot tell what it is."""
    if compression == "zip":
        pytest.skip("the directory is at the end of a zip archive")
    path = compress(compression, IMAGE, tmp_path / "x")
    with path.open("ab") as file:
        file.write(path.read_bytes()[:1])
    with (tmp_path / "decoded").open("wb") as target:
        decoded = image_decode.decode(str(path), target, None, LIMIT, lambda *_: None, SHA256)
    assert (decoded.size, decoded.sha256, len(decoded.notes)) == (len(IMAGE), SHA256, 1)
    assert (tmp_path / "decoded").read_bytes() == IMAGE


def test_padding_of_xz_is_not_other_data(tmp_path: Path) -> None:
    """The .xz file format, section 2.2."""
    path = compress("xz", IMAGE, tmp_path / "x")
    with path.open("ab") as file:
        file.write(bytes(512))
    assert image_decode.decoded_size(str(path)) == len(IMAGE)
    assert decode(path)[1:] == (len(IMAGE), SHA256)


@pytest.mark.parametrize("compression", ["zst", "lz4"])
@pytest.mark.parametrize("number", [0x50, 0x5F])
def test_skippable_frames_first(compression: str, number: int, tmp_path: Path) -> None:
    """RFC 8878, section 3.1.2."""
    frame = bytes([number]) + b"\x2a\x4d\x18" + (70_000).to_bytes(4, "little") + bytes(70_000)
    (tmp_path / "x").write_bytes(frame * 2 + compressed(compression, IMAGE))
    assert image_decode.detect_compression(str(tmp_path / "x")) == compression
    assert decode(tmp_path / "x")[1:] == (len(IMAGE), SHA256)


def test_pzstd(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(IMAGE)
    subprocess.run(["pzstd", "-q", tmp_path / "image", "-o", tmp_path / "x"], check=True)
    assert (tmp_path / "x").read_bytes()[:4] == b"\x50\x2a\x4d\x18"
    assert decode(tmp_path / "x")[1:] == (len(IMAGE), SHA256)


def test_only_skippable_frames(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x50\x2a\x4d\x18\x01\0\0\0x" * 9)
    with pytest.raises(BrambleError, match="contains nothing"):
        decode(tmp_path / "x")


def test_old_lz4(tmp_path: Path) -> None:
    done = subprocess.run(["lz4", "-lcq"], input=IMAGE, capture_output=True, check=True)
    (tmp_path / "x").write_bytes(done.stdout)
    assert decode(tmp_path / "x")[1:] == (len(IMAGE), SHA256)


class TestZip:
    def make(self, path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
        """Write a zip archive."""
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        return path

    @pytest.mark.parametrize(
        ("members", "method", "message"),
        [
            ([], zipfile.ZIP_DEFLATED, "contains no image. Unpack it"),
            (["README.txt", "x.bmap"], zipfile.ZIP_DEFLATED, "contains no image: 'README.txt', 'x.bmap'"),
            (
                ["a.img", "b.img"],
                zipfile.ZIP_DEFLATED,
                "contains 2 files, of which one must be chosen: 'a.img', 'b.img'. Unpack it",
            ),
            (["a.img", "a.img.xz"], zipfile.ZIP_DEFLATED, "'a.img', 'a.img.xz'"),
            (["a", "b"], zipfile.ZIP_DEFLATED, "contains 2 files"),
            ([f"{number}.img" for number in range(40)], zipfile.ZIP_DEFLATED, "'9.img', 30 more. Unpack"),
            (["a.img"], zipfile.ZIP_LZMA, r"'a.img' in .* has a compression method that is not supported \(14\)"),
        ],
    )
    def test_zip_without_a_single_image(self, members: list[str], method: int, message: str, tmp_path: Path) -> None:
        path = self.make(tmp_path / "x", dict.fromkeys(members, IMAGE if len(members) < 9 else b""), method)
        with pytest.raises(BrambleError, match=message):
            decode(path)

    @pytest.mark.parametrize(
        "name", ["pi.img", "PI.IMG", "folder/pi.raw", "../../etc/pi.img", "/pi.img", "C:\\pi.img", "pi", "2026 ü.img"]
    )
    def test_image_among_other_files(self, name: str, tmp_path: Path) -> None:
        """The name is not used to unpack it, so it can be any."""
        others = [
            "__MACOSX/._pi.img",
            "__MACOSX/x/._pi.img",
            ".DS_Store",
            "._pi.img",
            "folder/.DS_Store",
            "Thumbs.db",
            "pi.img.bmap",
        ]
        others += [
            "README",
            "readme.first",
            "LICENSE",
            "LICENCE.md",
            "SHA256SUMS",
            "pi.img.sha256",
            "pi.img.md5",
            "pi.img.asc",
            "x.html",
        ]
        path = self.make(tmp_path / "x", {name: IMAGE} | dict.fromkeys(others, b"x") | {"empty/": b""})
        assert decode(path)[1:] == (len(IMAGE), SHA256)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["decoded", "x"]

    @pytest.mark.parametrize("inner", [*STREAMS, "lzma"])
    @pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    def test_compressed_image(self, inner: str, method: int, tmp_path: Path) -> None:
        path = self.make(tmp_path / "x", {f"pi.img.{inner}": compressed(inner, IMAGE), "README": b"x"}, method)
        assert image_decode.decoded_size(str(path)) is None
        assert decode(path)[1:] == (len(IMAGE), SHA256)

    def test_damaged_compressed_image(self, tmp_path: Path) -> None:
        data = bytearray(compressed("gz", IMAGE))
        data[len(data) // 2] ^= 1
        with pytest.raises(WrongImage, match=r"'pi.img.gz' in .* is damaged or incomplete"):
            decode(self.make(tmp_path / "x", {"pi.img.gz": bytes(data)}))
        path = self.make(tmp_path / "y", {"pi.img.gz": compressed("gz", IMAGE)}, zipfile.ZIP_STORED)
        archive = bytearray(path.read_bytes())
        archive[len(archive) // 2] ^= 1
        path.write_bytes(archive)
        with pytest.raises(WrongImage, match="damaged"):
            decode(path)

    def test_zip_in_a_zip(self, tmp_path: Path) -> None:
        inner = self.make(tmp_path / "inner", {"pi.img": IMAGE}).read_bytes()
        with pytest.raises(BrambleError, match=r"'pi.zip' in .* is a zip archive, too. Unpack"):
            decode(self.make(tmp_path / "x", {"pi.zip": inner}))

    def test_encrypted_image(self, tmp_path: Path) -> None:
        """Bit 0 of the flags, in the local header and in the central directory (APPNOTE.TXT, sections 4.3.7 and 4.3.12)."""
        path = self.make(tmp_path / "x", {"pi.img": IMAGE})
        data = bytearray(path.read_bytes())
        data[6] |= 1
        data[data.rindex(b"PK\x01\x02") + 8] |= 1
        path.write_bytes(data)
        with pytest.raises(BrambleError, match=r"'pi.img' in .* is encrypted. Unpack it"):
            decode(path)

    def test_zip64(self, tmp_path: Path) -> None:
        with (
            zipfile.ZipFile(tmp_path / "x", "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("pi.img", "w", force_zip64=True) as file,
        ):
            file.write(IMAGE)
        assert image_decode.decoded_size(str(tmp_path / "x")) == len(IMAGE)
        assert decode(tmp_path / "x")[1:] == (len(IMAGE), SHA256)


class TestMemory:
    @pytest.fixture
    def available(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int], None]:
        """Sets the available memory of this machine, in MiB, of which a decompressor gets three quarters."""

        def set_available(mib: int) -> None:
            (tmp_path / "meminfo").write_text(f"MemTotal:  9999999 kB\nMemAvailable:    {mib * 1024} kB\n")
            monkeypatch.setattr(image_memory, "MEMINFO", str(tmp_path / "meminfo"))

        return set_available

    def xz_with_large_dictionary(self) -> bytes:
        """The .xz file format, section 3.1, with a dictionary of 1.5 GiB (5.3.1), which xz allocates only if it may."""
        data = bytearray(lzma.compress(IMAGE, preset=0))
        header = slice(12, 12 + 4 * data[12])
        assert data[14:16] == b"\x21\x01"  # LZMA2, one byte of properties
        data[16] = 37
        data[header.stop : header.stop + 4] = zlib.crc32(data[header]).to_bytes(4, "little")
        return bytes(data)

    def zst_with_large_window(self) -> bytes:
        done = subprocess.run(["zstd", "-cq", "-1", "--long=31"], input=IMAGE, capture_output=True, check=True)
        return done.stdout

    def test_large_window_of_zstd(self, available: Callable[[int], None], tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(self.zst_with_large_window())
        available(4096)
        assert decode(tmp_path / "x")[1:] == (len(IMAGE), SHA256)
        available(1000)
        with pytest.raises(BrambleError, match=r"needs 2,048 MiB of memory, and 750 MiB are available") as caught:
            decode(tmp_path / "x")
        assert not isinstance(caught.value, WrongImage) and "damaged" not in str(caught.value)

    def test_large_dictionary_of_xz(self, available: Callable[[int], None], tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(self.xz_with_large_dictionary())
        available(4096)
        assert decode(tmp_path / "x")[1:] == (len(IMAGE), SHA256)
        available(1000)
        with pytest.raises(BrambleError, match=r"needs 1,537 MiB of memory, and 750 MiB are available") as caught:
            decode(tmp_path / "x")
        assert not isinstance(caught.value, WrongImage)

    def test_large_dictionary_in_a_zip(self, available: Callable[[int], None], tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "x", "w") as archive:
            archive.writestr("pi.img.xz", self.xz_with_large_dictionary())
        available(1000)
        with pytest.raises(BrambleError, match=r"needs (1,537 MiB of|more) memory.* 750 MiB are available") as caught:
            decode(tmp_path / "x")
        assert not isinstance(caught.value, WrongImage)

    @pytest.mark.parametrize("compression", ["xz", "zst"])
    def test_limit_of_the_address_space(self, compression: str, available: Callable[[int], None], tmp_path: Path) -> None:
        """ulimit -v 1000000, in a process of its own."""
        large = self.xz_with_large_dictionary() if compression == "xz" else self.zst_with_large_window()
        (tmp_path / "x").write_bytes(large)
        (tmp_path / "y").write_bytes(compressed(compression, IMAGE))
        code = (
            "import sys, tempfile\n"
            "from ansible_collections.bramble.cluster.plugins.module_utils.image import decode, space\n"
            "for path in sys.argv[1:]:\n"
            "    with tempfile.TemporaryFile() as file:\n"
            "        try: print(decode.decode(path, file, None, space.SizeLimit(10**9, ''), lambda *_: None).sha256)\n"
            "        except decode.BrambleError as error: print(error)\n"
        )
        command: list[str | Path] = [
            "sh",
            "-c",
            'ulimit -v 1000000; exec "$@"',
            "sh",
            sys.executable,
            "-c",
            code,
            tmp_path / "y",
            tmp_path / "x",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        good, bad = done.stdout.splitlines()
        assert good == SHA256 and re.search(r"needs (1,537|2,048) MiB of memory, and 912 MiB are available", bad)

    def test_a_killed_program(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(image_decode.COMMANDS, "gz", (("sh", "-c", "kill -9 $$"),))
        with pytest.raises(BrambleError, match="was killed, which happens when the memory") as caught:
            decode(compress("gz", IMAGE, tmp_path / "x"))
        assert not isinstance(caught.value, WrongImage)

    def test_available_memory(self, available: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
        available(1000)
        assert image_memory.available_memory() == 750 * MIB
        monkeypatch.setattr(resource, "getrlimit", lambda _: (600 * MIB, -1))
        assert image_memory.available_memory() == 600 * MIB - image_memory.PROGRAM_BYTES
        monkeypatch.setattr(image_memory, "MEMINFO", "/nowhere")
        assert image_memory.available_memory() == 600 * MIB - image_memory.PROGRAM_BYTES


OTHER_FILES = {
    "a 7z archive. Unpack it, and set image_file to the image in it: 7z x": b"7z\xbc\xaf\x27\x1c\0\4",
    "a RAR archive": b"Rar!\x1a\x07\x01\0",
    "a tar archive. Unpack it, and set image_file to the image in it: tar xf": bytes(257) + b"ustar\x0000",
    "a qcow2 disk of a virtual machine. Convert it, and set image_file to the result: qemu-img": b"QFI\xfb\0\0\0\3",
    "a VMDK disk": b"KDMV\1\0\0\0",
    "a VDI disk": b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0") + b"\x7f\x10\xda\xbe",
    "a VHDX disk": b"vhdxfile",
    "an ISO 9660 image": MBR + bytes(32769 - 512) + b"CD001",
    "a web page": b"\n<!DOCTYPE html>\n<html>",
    "a text file": b"483db18a48da399b5b7022ffae9a07bc  2026-10-06-raspios.img.xz\n",
    "a single ext file system": bytes(1080) + b"\x53\xef",
    "is empty": b"",
    "does not begin with a partition table": bytes(4096),
}


@pytest.mark.parametrize("words", OTHER_FILES)
@pytest.mark.parametrize("compression", ["raw", "gz", "zip"])
def test_other_formats_are_named(words: str, compression: str, tmp_path: Path) -> None:
    data = OTHER_FILES[words]
    path = compress(compression, data + bytes(MIB if data[-1:] == b"\0" else 0), tmp_path / "it's")
    for run in (image_decode.check_content, lambda path: decode(Path(path))):
        with pytest.raises(NotCardImage) as caught:
            run(str(path))
        message = str(caught.value)
        assert str(path) in message and "is not a card image" in message
        decoded_words = {"is empty": "contains nothing", "does not begin with a partition table": "its content does not begin"}
        assert (words if compression == "raw" else decoded_words.get(words, words.split(".", maxsplit=1)[0])) in message
        if "7z x" in words or "tar xf" in words:
            assert message.endswith(f"""'{tmp_path}/it'"'"'s'""" if compression == "raw" else "FILE")


def test_compressed_twice(tmp_path: Path) -> None:
    with pytest.raises(NotCardImage, match=r"contains a compressed file \(xz\)"):
        decode(compress("gz", compressed("xz", IMAGE), tmp_path / "x"))


def test_content_is_checked_by_its_beginning(tmp_path: Path) -> None:
    """check_content ends the decompressor, so a bomb of 10 GiB takes no time."""
    command = "{ head -c 510 /dev/zero; printf '\\125\\252'; head -c 3G /dev/zero; } | gzip -1"
    path = tmp_path / "x"
    with path.open("wb") as file:
        subprocess.run(["sh", "-c", command], stdout=file, check=True)
    began = time.monotonic()
    image_decode.check_content(str(path))
    assert time.monotonic() - began < 5


def test_missing_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = compress("zst", IMAGE, tmp_path / "x")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BrambleError, match="apt-get install zstd"):
        decode(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    head=st.sampled_from(
        [
            b"\xfd7zXZ\0",
            b"\x28\xb5\x2f\xfd",
            b"\x1f\x8b\x08",
            b"BZh91AY&SY",
            b"PK\x03\x04",
            b"\x04\x22\x4d\x18",
            b"\x5d\0\0\x80\0",
            b"",
        ]
    ),
    tail=st.binary(max_size=600),
)
def test_any_data_raises_only_bramble_error(head: bytes, tail: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(head + tail)
    try:
        image_decode.decoded_size(str(tmp_path / "x"))
        size = decode(tmp_path / "x")[1]
    except BrambleError:
        return
    assert (head + tail)[510:512] == b"\x55\xaa" and size == len(head + tail)
