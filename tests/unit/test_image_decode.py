"""Compressed images of every format, decoded into a sparse file; and what is refused on the way."""

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
# 24 MiB, of which one in the middle and half a one at the end are not zeros.
IMAGE = MBR + bytes(12 * MIB - 512) + os.urandom(MIB) + bytes(11 * MIB - 300) + os.urandom(300)
SHA256 = hashlib.sha256(IMAGE).hexdigest()
FORMATS = ["xz", "zst", "gz", "bz2", "zip", "raw"]
LIMIT = 10**9


def compress(form: str, data: bytes, path: Path) -> Path:
    """Write data in a format."""
    if form == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("README", "hello")
            archive.writestr("pi.img", data)
    elif form == "zst":
        path.write_bytes(subprocess.run(["zstd", "-cq"], input=data, capture_output=True, check=True).stdout)
    else:
        compressors: dict[str, Callable[[bytes], bytes]] = {
            "xz": lzma.compress,
            "gz": gzip.compress,
            "bz2": bz2.compress,
            "raw": bytes,
        }
        path.write_bytes(compressors[form](data))
    return path


def decode(path: Path, expected: int | None = None, limit: int = LIMIT) -> tuple[Path, int, str]:
    target = path.with_name("decoded")
    with target.open("wb") as file:
        size, sha256 = image_decode.decode(str(path), file, expected, limit, lambda *_: None)
    return target, size, sha256


@pytest.mark.parametrize("form", FORMATS)
def test_round_trip(form: str, tmp_path: Path) -> None:
    path = compress(form, IMAGE, tmp_path / "misleading.name")
    assert image_decode.detect_compression(str(path)) == form
    for expected in (None, len(IMAGE)):
        target, size, sha256 = decode(path, expected)
        assert (size, sha256) == (len(IMAGE), SHA256)
        assert target.read_bytes() == IMAGE
        # The first block, the one in the middle (perhaps shared with its neighbours), the end: no more.
        assert 1 * MIB < target.stat().st_blocks * 512 < 2 * MIB


@pytest.mark.parametrize("form", FORMATS)
def test_what_it_says_about_its_size(form: str, tmp_path: Path) -> None:
    size = image_decode.decoded_size(str(compress(form, IMAGE, tmp_path / "x")))
    assert size == (len(IMAGE) if form in ("xz", "zip", "raw") else None)


@pytest.mark.parametrize("form", FORMATS)
def test_a_bomb_is_stopped_at_the_first_byte_too_many(form: str, tmp_path: Path) -> None:
    path = compress(form, IMAGE, tmp_path / "x")
    told: list[int] = []
    for expected, limit in ((20 * MIB, LIMIT), (None, 20 * MIB)):
        with (tmp_path / "decoded").open("wb") as file, pytest.raises(WrongImage, match=r"more than the 20,971,520 bytes"):
            image_decode.decode(str(path), file, expected, limit, lambda _phase, done, _total: told.append(done))
    assert max(told) <= 20 * MIB and (tmp_path / "decoded").stat().st_size <= 20 * MIB


@pytest.mark.parametrize("form", FORMATS)
def test_one_byte_too_few(form: str, tmp_path: Path) -> None:
    with pytest.raises(WrongImage, match=r"decodes to 25,165,824 bytes, and 25,165,825 were expected"):
        decode(compress(form, IMAGE, tmp_path / "x"), len(IMAGE) + 1)


@pytest.mark.parametrize("form", FORMATS[:-1])
@pytest.mark.parametrize("part", [0.3, 0.999])
def test_a_truncated_file(form: str, part: float, tmp_path: Path) -> None:
    path = compress(form, IMAGE, tmp_path / "x")
    os.truncate(path, int(path.stat().st_size * part))
    with pytest.raises(WrongImage, match="damaged, or not all of it is there"):
        decode(path)


@pytest.mark.parametrize("form", FORMATS[:-1])
def test_a_damaged_file(form: str, tmp_path: Path) -> None:
    path = compress(form, IMAGE, tmp_path / "x")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(WrongImage, match="damaged"):
        decode(path)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("data", [b"", b"x", b"hello " * MIB, bytes(MIB)], ids=["empty", "short", "text", "zeros"])
def test_what_is_no_card_image(form: str, data: bytes, tmp_path: Path) -> None:
    with pytest.raises(WrongImage):
        decode(compress(form, data, tmp_path / "x"))


def test_many_blocks(tmp_path: Path) -> None:
    """As publishers compress them: xz -T0."""
    command = ["xz", "-T2", "--block-size=1MiB", "-c"]
    (tmp_path / "x").write_bytes(subprocess.run(command, input=IMAGE, capture_output=True, check=True).stdout)
    assert decode(tmp_path / "x")[1:] == (len(IMAGE), SHA256)


def test_members_one_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(gzip.compress(IMAGE[:MIB]) + gzip.compress(IMAGE[MIB:]))
    assert decode(tmp_path / "x")[1:] == (len(IMAGE), SHA256)


@pytest.mark.parametrize(
    ("members", "method", "message"),
    [
        ([], zipfile.ZIP_DEFLATED, "holds 0 files"),
        (["a.img", "b.img"], zipfile.ZIP_DEFLATED, "holds 2 files"),
        (["a.txt", "b.txt"], zipfile.ZIP_DEFLATED, "holds 2 files"),
        (["a.img"], zipfile.ZIP_LZMA, "rare"),
    ],
)
def test_a_zip_of_something_else(members: list[str], method: int, message: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x", "w", method) as archive:
        for name in members:
            archive.writestr(name, IMAGE)
    data = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(data if members else b"PK\x03\x04" + data)
    with pytest.raises(BrambleError, match=message):
        decode(tmp_path / "x")


def test_a_dictionary_larger_than_this_machine(tmp_path: Path) -> None:
    """The .xz file format, section 3.1, with a dictionary of 1.5 GiB (5.3.1)."""
    data = bytearray(lzma.compress(IMAGE, preset=0))
    header = slice(12, 12 + 4 * data[12])
    assert data[14:16] == b"\x21\x01"  # LZMA2, one byte of properties
    data[16] = 37
    data[header.stop : header.stop + 4] = zlib.crc32(data[header]).to_bytes(4, "little")
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(WrongImage, match=r"[Mm]emory"):
        decode(tmp_path / "x")


def test_a_missing_tool_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = compress("zst", IMAGE, tmp_path / "x")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BrambleError, match="apt install zstd"):
        decode(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    head=st.sampled_from([b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x1f\x8b\x08", b"BZh91AY&SY", b"PK\x03\x04", b""]),
    tail=st.binary(max_size=600),
)
def test_any_bytes_are_refused_in_words(head: bytes, tail: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(head + tail)
    try:
        image_decode.decoded_size(str(tmp_path / "x"))
        size = decode(tmp_path / "x")[1]
    except BrambleError:
        return
    assert (head + tail)[510:512] == b"\x55\xaa" and size == len(head + tail)
