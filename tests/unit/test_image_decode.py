"""Decode images of all formats into a sparse file, and refuse invalid ones."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import subprocess
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.image import decode as image_decode
from ansible_collections.bramble.cluster.plugins.module_utils.image.error import WrongImage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MIB = 2**20
MBR = bytes(510) + b"\x55\xaa"
# 24 MiB, of which 1 MiB in the middle and 300 bytes at the end are not zero.
IMAGE = MBR + bytes(12 * MIB - 512) + os.urandom(MIB) + bytes(11 * MIB - 300) + os.urandom(300)
SHA256 = hashlib.sha256(IMAGE).hexdigest()
FORMATS = ["xz", "zst", "gz", "bz2", "zip", "raw"]
LIMIT = 10**9


def compress(compression: str, data: bytes, path: Path) -> Path:
    """Write data with a compression to a file, and return its path."""
    if compression == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("README", "hello")
            archive.writestr("pi.img", data)
    elif compression == "zst":
        path.write_bytes(subprocess.run(["zstd", "-cq"], input=data, capture_output=True, check=True).stdout)
    else:
        compressors: dict[str, Callable[[bytes], bytes]] = {
            "xz": lzma.compress,
            "gz": gzip.compress,
            "bz2": bz2.compress,
            "raw": bytes,
        }
        path.write_bytes(compressors[compression](data))
    return path


def decode(path: Path, expected: int | None = None, limit: int = LIMIT) -> tuple[Path, int, str]:
    target = path.with_name("decoded")
    with target.open("wb") as file:
        size, sha256 = image_decode.decode(str(path), file, expected, limit, lambda *_: None)
    return target, size, sha256


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
    for expected, limit in ((20 * MIB, LIMIT), (None, 20 * MIB)):
        with (
            (tmp_path / "decoded").open("wb") as file,
            pytest.raises(WrongImage, match=r"more than the expected 20,971,520 bytes"),
        ):
            image_decode.decode(str(path), file, expected, limit, lambda _phase, done, _total: reported.append(done))
    assert max(reported) <= 20 * MIB and (tmp_path / "decoded").stat().st_size <= 20 * MIB


@pytest.mark.parametrize("compression", FORMATS)
def test_image_one_byte_too_short(compression: str, tmp_path: Path) -> None:
    with pytest.raises(WrongImage, match=r"decodes to 25,165,824 bytes, but 25,165,825 were expected"):
        decode(compress(compression, IMAGE, tmp_path / "x"), len(IMAGE) + 1)


@pytest.mark.parametrize("compression", FORMATS[:-1])
@pytest.mark.parametrize("part", [0.3, 0.999])
def test_a_truncated_file(compression: str, part: float, tmp_path: Path) -> None:
    path = compress(compression, IMAGE, tmp_path / "x")
    os.truncate(path, int(path.stat().st_size * part))
    with pytest.raises(WrongImage, match="damaged or incomplete"):
        decode(path)


@pytest.mark.parametrize("compression", FORMATS[:-1])
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
    with pytest.raises(WrongImage):
        decode(compress(compression, data, tmp_path / "x"))


def test_several_xz_blocks(tmp_path: Path) -> None:
    """Publishers compress images in this way, with xz -T0."""
    command = ["xz", "-T2", "--block-size=1MiB", "-c"]
    (tmp_path / "x").write_bytes(subprocess.run(command, input=IMAGE, capture_output=True, check=True).stdout)
    assert decode(tmp_path / "x")[1:] == (len(IMAGE), SHA256)


def test_several_gzip_members(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(gzip.compress(IMAGE[:MIB]) + gzip.compress(IMAGE[MIB:]))
    assert decode(tmp_path / "x")[1:] == (len(IMAGE), SHA256)


@pytest.mark.parametrize(
    ("members", "method", "message"),
    [
        ([], zipfile.ZIP_DEFLATED, "contains 0 files"),
        (["a.img", "b.img"], zipfile.ZIP_DEFLATED, "contains 2 files"),
        (["a.txt", "b.txt"], zipfile.ZIP_DEFLATED, "contains 2 files"),
        (["a.img"], zipfile.ZIP_LZMA, "not supported"),
    ],
)
def test_zip_without_a_single_image(members: list[str], method: int, message: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x", "w", method) as archive:
        for name in members:
            archive.writestr(name, IMAGE)
    data = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(data if members else b"PK\x03\x04" + data)
    with pytest.raises(BrambleError, match=message):
        decode(tmp_path / "x")


def test_xz_dictionary_above_the_memory_limit(tmp_path: Path) -> None:
    """The .xz file format, section 3.1, with a dictionary of 1.5 GiB (5.3.1)."""
    data = bytearray(lzma.compress(IMAGE, preset=0))
    header = slice(12, 12 + 4 * data[12])
    assert data[14:16] == b"\x21\x01"  # LZMA2, one byte of properties
    data[16] = 37
    data[header.stop : header.stop + 4] = zlib.crc32(data[header]).to_bytes(4, "little")
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(WrongImage, match=r"[Mm]emory"):
        decode(tmp_path / "x")


def test_missing_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = compress("zst", IMAGE, tmp_path / "x")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BrambleError, match="apt-get install zstd"):
        decode(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    head=st.sampled_from([b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x1f\x8b\x08", b"BZh91AY&SY", b"PK\x03\x04", b""]),
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
