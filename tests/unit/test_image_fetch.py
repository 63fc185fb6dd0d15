"""The module image_fetch: provide an image in the cache from a server or a file, verified and complete."""

from __future__ import annotations

import base64
import gzip
import hashlib
import itertools
import json
import lzma
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bramble.cluster.plugins.action import image_fetch as image_fetch_action
from ansible_collections.bramble.cluster.plugins.module_utils.image import cache as image_cache
from ansible_collections.bramble.cluster.plugins.module_utils.image import decode as image_decode
from ansible_collections.bramble.cluster.plugins.module_utils.image import space as image_space
from ansible_collections.bramble.cluster.plugins.module_utils.image.cache import ImageCache
from ansible_collections.bramble.cluster.plugins.module_utils.image.http import HttpClient
from ansible_collections.bramble.cluster.plugins.module_utils.image.pin import PinnedImage
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.support.load_plugin import load_plugin
from tests.support.web import Site

from .conftest import Run

pytestmark = pytest.mark.usefixtures("no_retry_delay")
MIB = 2**20


def mbr(*partitions: tuple[int, int, int]) -> bytes:
    """Return a partition table, from the type, the first sector and the number of sectors of each partition."""
    entries = b"".join(struct.pack("<4xB3xII", *partition) for partition in partitions)
    return bytes(446) + entries.ljust(64, b"\0") + b"\x55\xaa"


MBR = mbr((0x0C, 8, 8), (0x83, 16, 8))
SMALL = MBR + bytes(16 * 1024 - 512)
IMAGE = MBR + bytes(4 * MIB - 512) + os.urandom(2 * MIB) + bytes(2 * MIB)
XZ = lzma.compress(IMAGE, preset=0)
OTHER = lzma.compress(MBR + os.urandom(MIB), preset=0)
DOWNLOAD = "/images/pi%20os.img.xz"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def wanted(site: Site, cache: Path) -> dict[str, Any]:
    """Options of the module for an image on the site."""
    return {
        "cache": str(cache),
        "name": "pi-os",
        "architecture": "arm64",
        "init_format": "cloudinit-rpi",
        "release_date": "2026-10-06",
        "url": site.add(DOWNLOAD, XZ, etag='"1"'),
        "download": {"bytes": len(XZ), "sha256": sha256(XZ)},
        "extracted": {"bytes": len(IMAGE), "sha256": sha256(IMAGE)},
        "allow_http": True,
        "timeout": 20,
    }


def free_space(size: int) -> Any:
    """Return the result of shutil.disk_usage for a disk with some free bytes."""
    usage = namedtuple("usage", "free")
    return usage(size)


def user_options(cache: Path, path: str, wanted: str) -> dict[str, Any]:
    """Return the options of the module for a file of the user."""
    options = {"cache": str(cache), "name": "mine", "architecture": "arm64", "init_format": "cloudinit"}
    return options | {"src": path, "sha256": wanted}


def names(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.name != ".lock") if cache.exists() else []


STEM = f"pi-os-arm64-{sha256(XZ)[:12]}"
KEPT = [f"{STEM}.download", f"{STEM}.download.validator"]
COMPLETE = [f"{STEM}.img", f"{STEM}.json", "pi-os-arm64.json"]


class TestFetch:
    def test_fetched_image_and_manifest(self, wanted: dict, cache: Path, run_module: Run) -> None:
        result = run_module("image_fetch", wanted)
        assert result["changed"] and names(cache) == COMPLETE
        image = cache / f"{STEM}.img"
        assert (result["image"], result["sha256"], result["bytes"]) == (str(image), sha256(IMAGE), len(IMAGE))
        assert image.read_bytes() == IMAGE
        assert image.stat().st_blocks * 512 <= 3 * MIB
        assert image.stat().st_mode & 0o777 == 0o644
        facts = json.loads((cache / "pi-os-arm64.json").read_text())
        expected = {
            "name": "pi-os",
            "architecture": "arm64",
            "file": image.name,
            "sha256": sha256(IMAGE),
            "bytes": len(IMAGE),
            "init_format": "cloudinit-rpi",
            "recipe": "",
            "release_date": "2026-10-06",
            "source": wanted["url"],
            "source_sha256": sha256(XZ),
        }
        assert expected.items() <= facts.items() and facts["built"]

    def test_second_run_reads_nothing(self, wanted: dict, site: Site, run_module: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        first = run_module("image_fetch", wanted)
        count = len(site.requests)
        monkeypatch.setattr(image_decode, "hash_file", lambda *_: pytest.fail("the image was read"))
        for check in (False, True):
            again = run_module("image_fetch", wanted, check=check)
            assert not again["changed"] and again["sha256"] == first["sha256"] and again["image"] == first["image"]
        assert len(site.requests) == count

    def test_check_mode_writes_nothing(self, wanted: dict, site: Site, cache: Path, run_module: Run) -> None:
        result = run_module("image_fetch", wanted, check=True)
        assert result["changed"] and "image" not in result
        assert not cache.exists() and site.requests == []

    def test_unknown_values_are_recorded(self, wanted: dict, cache: Path, run_module: Run) -> None:
        wanted |= {"extracted": {"bytes": None, "sha256": None}, "download": {"bytes": None, "sha256": sha256(XZ)}}
        run_module("image_fetch", wanted)
        facts = json.loads((cache / "pi-os-arm64.json").read_text())
        assert (facts["sha256"], facts["bytes"]) == (sha256(IMAGE), len(IMAGE))
        assert not run_module("image_fetch", wanted)["changed"]

    def test_touched_image_is_verified_again(self, wanted: dict, site: Site, cache: Path, run_module: Run) -> None:
        run_module("image_fetch", wanted)
        count = len(site.requests)
        image = cache / f"{STEM}.img"
        os.utime(image)
        assert not run_module("image_fetch", wanted)["changed"]
        assert len(site.requests) == count
        with image.open("r+b") as file:
            file.seek(5 * MIB)
            file.write(b"a flipped bit")
        assert run_module("image_fetch", wanted, check=True)["changed"]
        assert run_module("image_fetch", wanted)["changed"]
        assert image.read_bytes() == IMAGE

    @pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"file": 7, "source_sha256": "x"}', "\0"])
    def test_invalid_manifest_is_replaced(self, wanted: dict, cache: Path, run_module: Run, manifest: str) -> None:
        run_module("image_fetch", wanted)
        (cache / f"{STEM}.json").write_text(manifest)
        assert run_module("image_fetch", wanted)["changed"]
        assert not run_module("image_fetch", wanted)["changed"]

    def test_catalog_values_can_change(self, wanted: dict, site: Site, cache: Path, run_module: Run) -> None:
        run_module("image_fetch", wanted)
        count = len(site.requests)
        wanted["init_format"] = "systemd"
        assert run_module("image_fetch", wanted, check=True)["changed"]
        assert run_module("image_fetch", wanted)["changed"]
        assert json.loads((cache / "pi-os-arm64.json").read_text())["init_format"] == "systemd"
        assert not run_module("image_fetch", wanted)["changed"] and len(site.requests) == count

    def test_newer_image_beside_the_old_one(self, wanted: dict, site: Site, cache: Path, run_module: Run) -> None:
        run_module("image_fetch", wanted)
        old = json.loads(json.dumps(wanted))
        wanted |= {"url": site.add("/new", OTHER), "download": {"sha256": sha256(OTHER)}, "extracted": {}}
        leftovers = [f"pi-os-arm64-{'0' * 12}.download", f"pi-os-arm64-{'0' * 12}.decoding"]
        for name in leftovers:
            (cache / name).write_bytes(b"interrupted")
        new = run_module("image_fetch", wanted)
        assert not set(leftovers) & set(names(cache))
        assert json.loads((cache / "pi-os-arm64.json").read_text())["sha256"] == new["sha256"]
        assert run_module("image_fetch", old)["changed"], "the link refers to the old image again"
        assert json.loads((cache / "pi-os-arm64.json").read_text())["sha256"] == sha256(IMAGE)


class TestRefusals:
    def fails(self, run_module: Run, wanted: dict, *words: str) -> str:
        result = run_module("image_fetch", wanted)
        assert result.get("failed"), result
        for word in words:
            assert word in result["msg"]
        return str(result["msg"])

    def test_wrong_download(self, wanted: dict, site: Site, cache: Path, run_module: Run) -> None:
        site.add(DOWNLOAD, XZ[:-1] + b"x")
        self.fails(
            run_module, wanted, sha256(XZ), sha256(XZ[:-1] + b"x"), "does not have the pinned SHA-256", "image_update=true"
        )
        assert names(cache) == []
        assert len(site.requests_for(DOWNLOAD)) == 1

    def test_wrong_partial_download_is_repeated(self, wanted: dict, site: Site, cache: Path, run_module: Run) -> None:
        cache.mkdir()
        (cache / f"{STEM}.download").write_bytes(b"x" * 1000)
        site.pages[DOWNLOAD].etag = ""
        assert run_module("image_fetch", wanted)["sha256"] == sha256(IMAGE)
        assert [headers.get("Range") for headers in site.requests_for(DOWNLOAD)] == ["bytes=1000-", None]

    def test_download_of_another_size(self, wanted: dict, site: Site, cache: Path, run_module: Run) -> None:
        site.add(DOWNLOAD, XZ + b"x")
        self.fails(run_module, wanted, f"{len(XZ) + 1:,} bytes on the server, but {len(XZ):,} were expected", "image_update=true")
        assert names(cache) == []

    @pytest.mark.parametrize("extracted", [{"bytes": len(IMAGE) - 1}, {"bytes": len(IMAGE) + 1}, {"sha256": "0" * 64}], ids=str)
    def test_wrong_image_in_the_right_download(self, wanted: dict, cache: Path, run_module: Run, extracted: dict) -> None:
        wanted["extracted"] |= extracted
        self.fails(
            run_module,
            wanted,
            "the catalogue has wrong values for the image in it",
            sha256(IMAGE) if "sha256" in extracted else f"{extracted['bytes']:,}",
        )
        assert names(cache) == KEPT, "the verified download is kept"

    def test_image_larger_than_pinned(self, wanted: dict, site: Site, cache: Path, run_module: Run) -> None:
        """gzip does not state the decoded size, which is known only after decoding."""
        archive = gzip.compress(MBR + bytes(64 * MIB))
        wanted |= {"url": site.add("/b", archive), "download": {"sha256": sha256(archive)}, "extracted": {"bytes": 20 * MIB}}
        self.fails(run_module, wanted, "more than the expected 20,971,520 bytes")
        assert [name for name in names(cache) if "download" not in name] == []

    def test_image_larger_than_a_card(
        self, wanted: dict, site: Site, cache: Path, run_module: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(image_space, "MAX_CARD_BYTES", 20 * MIB)
        for archive in (gzip.compress(MBR + bytes(64 * MIB)), lzma.compress(bytes(64 * MIB))):
            wanted |= {"url": site.add("/b", archive), "download": {"sha256": sha256(archive)}, "extracted": {}}
            reason = "more than 20,971,520 bytes, which is more than any card has"
            self.fails(run_module, wanted, reason if archive[0] == 0x1F else "but a card has at most 20,971,520 bytes")
            assert [name for name in names(cache) if name.endswith((".img", ".decoding"))] == []

    def test_image_larger_than_the_free_space(
        self, wanted: dict, site: Site, cache: Path, run_module: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file of unknown size that decodes to zeros takes no space, but would take for ever."""
        archive = gzip.compress(MBR + bytes(64 * MIB))
        monkeypatch.setattr(shutil, "disk_usage", lambda _: free_space(20 * MIB + image_space.RESERVED_BYTES))
        wanted |= {"url": site.add("/b", archive), "download": {"sha256": sha256(archive)}, "extracted": {}}
        self.fails(run_module, wanted, f"decodes to more than 20,971,520 bytes, which are free in {cache}. Free space there")
        assert [name for name in names(cache) if name.endswith((".img", ".decoding"))] == []

    def test_image_of_more_than_64_gb(self, wanted: dict, cache: Path, run_module: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """A sparse file, which only its size makes large: the free space decides."""
        monkeypatch.setattr(shutil, "disk_usage", lambda _: free_space(200 * 10**9))
        assert image_space.size_limit(str(cache)).bytes > 199 * 10**9
        monkeypatch.setattr(shutil, "disk_usage", lambda _: free_space(10**13))
        assert image_space.size_limit(str(cache)).bytes == 2**41

    def test_no_space(self, wanted: dict, site: Site, cache: Path, run_module: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = namedtuple("usage", "free")
        needed = len(XZ) + len(IMAGE) + image_space.RESERVED_BYTES
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(needed - 1))
        for check in (False, True):
            result = run_module("image_fetch", wanted, check=check)
            assert result["failed"] and "no space" in result["msg"]
            assert f"{needed:,} bytes" in result["msg"] and f"{needed - 1:,} bytes" in result["msg"]
        assert site.requests == []
        # An existing part of the download needs no further space.
        (cache / f"{STEM}.download").write_bytes(XZ[:1])
        assert "failed" not in run_module("image_fetch", wanted)

    def test_no_space_for_an_image_of_unknown_size(
        self, wanted: dict, site: Site, run_module: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = namedtuple("usage", "free")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(image_space.RESERVED_BYTES + 5 * len(XZ)))
        wanted |= {"download": {"sha256": sha256(XZ)}, "extracted": {}}
        self.fails(run_module, wanted, "no space")
        assert site.requests_for(DOWNLOAD) == []

    def test_full_disk(self, wanted: dict, machine: Any, run_module: Run, tmp_path: Path) -> None:
        """The message says what to do, and no incomplete image is left."""
        small = machine.mount("-t", "tmpfs", "-o", f"size={3 * MIB}", "none")
        wanted["cache"] = str(small)
        usage = namedtuple("usage", "free")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _: usage(10**12))
            message = self.fails(run_module, wanted, "full")
        assert str(small) in message and names(small) == KEPT

    def test_file_missing_on_the_server(self, wanted: dict, site: Site, run_module: Run) -> None:
        del site.pages[DOWNLOAD]
        self.fails(run_module, wanted, "404", "image_update=true")

    def test_no_network(self, wanted: dict, site: Site, cache: Path, run_module: Run) -> None:
        site.close()
        self.fails(run_module, wanted, "cannot be reached", wanted["url"], str(cache), "under the name pi os.img.xz")

    def test_http_is_refused(self, wanted: dict, site: Site, run_module: Run) -> None:
        self.fails(run_module, wanted | {"allow_http": False}, "not an https URL", "image_allow_http=true")
        assert site.requests == []

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"download": {"bytes": 5}}, "no download.sha256"),
            ({"download": {"sha256": "abc"}}, "64 hexadecimal digits"),
            ({"extracted": {"sha256": "x" * 64}}, "64 hexadecimal digits"),
            ({"name": "../x"}, "file name"),
            ({"architecture": "a/b"}, "file name"),
            ({"download": {"sha256": "0" * 64, "size": 5}}, "size"),
            ({"url": None}, "not a valid http or https URL"),
            ({"src": "/x", "sha256": "0" * 64}, "mutually exclusive"),
        ],
    )
    def test_invalid_options(self, wanted: dict, site: Site, run_module: Run, change: dict, words: str) -> None:
        self.fails(run_module, wanted | change, words)
        assert site.requests == []


class TestProvidedDownload:
    """A download that the user has put into the cache."""

    def test_provided_download_is_used_and_kept(self, wanted: dict, site: Site, cache: Path, run_module: Run) -> None:
        site.close()
        cache.mkdir()
        (cache / "pi os.img.xz").write_bytes(XZ)
        assert run_module("image_fetch", wanted, check=True)["changed"] and names(cache) == ["pi os.img.xz"]
        assert run_module("image_fetch", wanted)["sha256"] == sha256(IMAGE)
        assert names(cache) == sorted([*COMPLETE, "pi os.img.xz"])
        (cache / "pi os.img.xz").unlink()
        assert not run_module("image_fetch", wanted)["changed"]

    def test_wrong_provided_download_is_refused(self, wanted: dict, site: Site, cache: Path, run_module: Run) -> None:
        cache.mkdir()
        (cache / "pi os.img.xz").write_bytes(OTHER)
        for check in (True, False):
            result = run_module("image_fetch", wanted, check=check)
            assert result["failed"] and sha256(OTHER) in result["msg"] and "pi os.img.xz" in result["msg"]
        assert site.requests == [] and names(cache) == ["pi os.img.xz"]


class TestInterrupted:
    def test_interrupted_download_is_resumed(self, wanted: dict, site: Site, cache: Path, run_module: Run) -> None:
        site.pages[DOWNLOAD].cuts = [1_000_000] + [0] * 4
        result = run_module("image_fetch", wanted)
        assert result["failed"] and "1,000,000 bytes of it are kept, and the same command resumes" in result["msg"]
        assert names(cache) == KEPT
        assert run_module("image_fetch", wanted)["sha256"] == sha256(IMAGE)
        assert site.requests_for(DOWNLOAD)[-1]["Range"] == "bytes=1000000-"
        assert names(cache) == COMPLETE

    @pytest.mark.parametrize("moment", range(6))
    def test_killed_at_any_moment(
        self, wanted: dict, site: Site, cache: Path, run_module: Run, moment: int, tmp_path: Path
    ) -> None:
        """An image under its name is always complete, and the next run completes the work."""
        script = tmp_path / "run.py"
        script.write_text(
            "import sys, os, signal, json\n"
            "from ansible_collections.bramble.cluster.plugins.module_utils.image.cache import *\n"
            "moment, seen = int(sys.argv[1]), [0]\n"
            "def die(*_):\n"
            "    seen[0] += 1\n"
            "    if seen[0] > moment: os.kill(os.getpid(), signal.SIGKILL)\n"
            "names = ['fsync', 'replace', 'unlink']\n"
            "for name in names:\n"
            "    setattr(os, name, (lambda real: lambda *a, **k: (die(), real(*a, **k))[1])(getattr(os, name)))\n"
            "pin = PinnedImage(**json.loads(sys.argv[2]))\n"
            "ImageCache(sys.argv[3], lambda *_: None).fetch(pin, HttpClient(True))\n"
        )
        pin = {
            "name": "pi-os",
            "architecture": "arm64",
            "init_format": "cloudinit-rpi",
            "url": wanted["url"],
            "download_sha256": sha256(XZ),
            "sha256": sha256(IMAGE),
            "release_date": "2026-10-06",
        }
        done = subprocess.run([sys.executable, script, str(moment), json.dumps(pin), cache], capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        for image in cache.glob("*.img"):
            assert image.read_bytes() == IMAGE
        for manifest in cache.glob("*.json"):
            assert json.loads(manifest.read_text())["sha256"] == sha256(IMAGE)
        assert run_module("image_fetch", wanted)["sha256"] == sha256(IMAGE)
        assert [name for name in names(cache) if name not in COMPLETE] == []

    def test_second_run_waits_for_the_first(self, wanted: dict, site: Site, cache: Path) -> None:
        phases: list[str] = []
        pin = PinnedImage("pi-os", "arm64", "cloudinit-rpi", wanted["url"], sha256(XZ))
        with ImageCache(str(cache), lambda *_: None)._locked():
            store = ImageCache(str(cache), lambda phase, *_: phases.append(phase))
            thread = threading.Thread(target=store.fetch, args=(pin, HttpClient(True)))
            thread.start()
            while not phases:
                time.sleep(0.01)
            assert phases == ["wait for another run"] and site.requests == []
        thread.join()
        assert names(cache) == COMPLETE


class TestUserFile:
    @pytest.fixture
    def user_file(self, cache: Path, tmp_path: Path) -> dict[str, Any]:
        (tmp_path / "mine.img").write_bytes(IMAGE)
        (tmp_path / "mine.bin").write_bytes(XZ)
        return {
            "cache": str(cache),
            "name": "mine",
            "architecture": "arm64",
            "init_format": "cloudinit",
            "src": str(tmp_path / "mine.bin"),
            "sha256": sha256(XZ),
        }

    @pytest.mark.parametrize("given", [sha256(XZ), sha256(IMAGE), sha256(XZ).upper()], ids=["file", "image", "upper"])
    def test_compressed_file(
        self, user_file: dict, cache: Path, run_module: Run, given: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        user_file["sha256"] = given
        assert run_module("image_fetch", user_file, check=True)["changed"] and not cache.exists()
        result = run_module("image_fetch", user_file)
        stem = f"file-{given[:12].lower()}"
        assert names(cache) == [f"{stem}.img", f"{stem}.json"]
        assert (result["sha256"], result["image"]) == (sha256(IMAGE), str(cache / f"{stem}.img"))
        assert Path(result["image"]).read_bytes() == IMAGE
        monkeypatch.setattr(image_decode, "hash_file", lambda *_: pytest.fail("the image was read"))
        assert not run_module("image_fetch", user_file)["changed"]

    def test_raw_file_is_used_in_place(
        self, user_file: dict, cache: Path, run_module: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        user_file |= {"src": user_file["src"].replace(".bin", ".img"), "sha256": sha256(IMAGE)}
        dry = run_module("image_fetch", user_file, check=True)
        assert dry["changed"] and dry["image"] == user_file["src"] and not cache.exists()
        result = run_module("image_fetch", user_file)
        assert os.readlink(result["image"]) == user_file["src"]
        assert names(cache) == [f"file-{sha256(IMAGE)[:12]}.img", f"file-{sha256(IMAGE)[:12]}.json"]
        with monkeypatch.context() as patch:
            patch.setattr(image_decode, "hash_file", lambda *_: pytest.fail("the image was read"))
            assert not run_module("image_fetch", user_file)["changed"]
        with open(user_file["src"], "r+b") as file:
            file.write(b"changed")
        assert "does not have the SHA-256 that image_sha256 gives" in run_module("image_fetch", user_file)["msg"]

    @pytest.mark.parametrize("suffix", ["bin", "img"])
    def test_file_with_another_hash(self, user_file: dict, cache: Path, run_module: Run, suffix: str) -> None:
        user_file |= {"src": user_file["src"].replace("bin", suffix), "sha256": "0" * 64}
        result = run_module("image_fetch", user_file)
        assert result["failed"] and "0" * 64 in result["msg"] and "sha256" in result["msg"]
        assert sha256(IMAGE) in result["msg"] and (suffix == "img" or sha256(XZ) in result["msg"])
        assert names(cache) == []

    def test_truncated_file(self, user_file: dict, cache: Path, run_module: Run) -> None:
        user_file["sha256"] = sha256(XZ[:-9])
        Path(user_file["src"]).write_bytes(XZ[:-9])
        for check in (False, True):
            assert "damaged or incomplete" in run_module("image_fetch", user_file, check=check)["msg"]
        assert names(cache) == []

    def test_missing_file_or_hash(self, user_file: dict, run_module: Run) -> None:
        assert "is not a file" in run_module("image_fetch", user_file | {"src": "/nowhere"})["msg"]
        assert "needs an image_sha256" in run_module("image_fetch", user_file | {"sha256": ""})["msg"]


class TestFileNames:
    """Any name that the file system allows is fine for a file of the user."""

    NAMES = (
        "pi os (2026) [x].img",
        "Grüße+ÄÖÜ.img",
        'it\'s "quoted".img',
        "-rf.img",
        "$HOME.img",
        "${HOME}.img",
        "~",
        "~root",
        "`id`;&|<>*?.img",
        "line\nbreak\t\x1b[31m.img",
        "{{ 1 }}{% x %}{# y #}",
        ".img",
        "%2e%s",
        "n" * 255,
    )

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("kind", ["raw", "xz"])
    def test_any_name(self, name: str, kind: str, cache: Path, tmp_path: Path, run_module: Run) -> None:
        content = IMAGE if kind == "raw" else XZ
        (tmp_path / name).write_bytes(content)
        options = user_options(cache, str(tmp_path / name), sha256(content))
        options["name"] = name
        assert run_module("image_fetch", options, check=True)["changed"]
        result = run_module("image_fetch", options)
        assert result["image"] == str(cache / f"file-{sha256(content)[:12]}.img"), result
        assert Path(result["image"]).read_bytes() == IMAGE
        facts = json.loads(Path(result["manifest"]).read_text())
        assert facts["source"] == str(tmp_path / name) and facts["name"] == name
        assert not run_module("image_fetch", options)["changed"]
        assert not run_module("image_fetch", options, check=True)["changed"]

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(name=st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=255))
    def test_every_name_of_the_file_system(self, name: str, tmp_path: Path, run_module: Run) -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            try:
                Path(folder, name).write_bytes(SMALL)
            except (OSError, ValueError):
                assume(False)
            options = user_options(Path(folder, "cache of test"), f"{folder}/{name}", sha256(SMALL))
            result = run_module("image_fetch", options)
            assert Path(result["image"]).read_bytes() == SMALL, result
            assert os.path.samefile(result["image"], f"{folder}/{name}")

    def test_bytes_that_are_not_utf_8(self, cache: Path, tmp_path: Path, run_module: Run) -> None:
        """The action plugin sends them in base64, as Ansible sends only UTF-8."""
        for content in (IMAGE, XZ):
            path = os.fsencode(tmp_path) + b"/\xff\xfe \xfc.img"
            Path(os.fsdecode(path)).write_bytes(content)
            options = user_options(cache, "", sha256(content)) | {"src_base64": base64.b64encode(path).decode()}
            del options["src"]
            dry = run_module("image_fetch", options, check=True)
            assert dry.get("changed") and "image" not in dry, dry
            result = run_module("image_fetch", options)
            assert Path(result["image"]).read_bytes() == IMAGE
            assert json.loads(Path(result["manifest"]).read_text())["source"] == f"{tmp_path}/\\udcff\\udcfe \\udcfc.img"
            assert not run_module("image_fetch", options)["changed"]
        assert "/\\udcff\\udcfe \\udcfc.img does not have" in run_module("image_fetch", options | {"sha256": "0" * 64})["msg"]

    def test_relative_name(self, cache: Path, tmp_path: Path, run_module: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "-x.img").write_bytes(IMAGE)
        monkeypatch.chdir(tmp_path)
        result = run_module("image_fetch", user_options(cache, "-x.img", sha256(IMAGE)))
        assert os.readlink(result["image"]) == str(tmp_path / "-x.img")

    def test_null_character(self, cache: Path, run_module: Run) -> None:
        assert "is not a file" in run_module("image_fetch", user_options(cache, "x\0y", sha256(IMAGE)))["msg"]


class TestNotCardImages:
    """The module refuses what card_write refuses, and says why."""

    def refuse(self, run_module: Run, cache: Path, path: Path, wanted: str) -> str:
        """Return the message of both modes, which is the same; nothing is left in the cache."""
        options = user_options(cache, str(path), wanted)
        messages = {str(run_module("image_fetch", options, check=check)["msg"]) for check in (True, False)}
        assert len(messages) == 1 and names(cache) == [], messages
        return messages.pop()

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", "is empty"),
            (b"7z\xbc\xaf\x27\x1c" + bytes(MIB), "a 7z archive. Unpack it, and set image_file to the image in it: 7z x"),
            (b"QFI\xfb" + bytes(MIB), "qemu-img convert -O raw"),
            (b"sha256  pi.img\n", "a text file"),
            (bytes(MIB), "does not begin with a partition table (MBR)"),
            (gzip.compress(bytes(257) + b"ustar\x0000" + bytes(MIB)), "it contains a tar archive"),
        ],
    )
    @pytest.mark.parametrize("is_pinned", [True, False])
    def test_other_formats(
        self, content: bytes, words: str, is_pinned: bool, cache: Path, tmp_path: Path, run_module: Run
    ) -> None:
        (tmp_path / "x").write_bytes(content)
        wanted = sha256(content) if is_pinned else "0" * 64
        message = self.refuse(run_module, cache, tmp_path / "x", wanted)
        assert words in message and "does not have the SHA-256" not in message

    def test_what_is_not_a_file(self, cache: Path, tmp_path: Path, run_module: Run) -> None:
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "loop").symlink_to("loop")
        for name, words in {
            "": "is a folder, not",
            "fifo": "is a named pipe, not",
            "none": "No such file",
            "loop": "symbolic link",
        }.items():
            assert words in self.refuse(run_module, cache, tmp_path / name, "0" * 64)
        assert "is a device, not" in self.refuse(run_module, cache, Path("/dev/null"), "0" * 64)

    def test_a_disk(self, machine: Any, cache: Path, tmp_path: Path, run_module: Run) -> None:
        (tmp_path / "disk").write_bytes(IMAGE)
        device = machine.loop(tmp_path / "disk")
        assert f"playbooks/capture.yml -e capture_slot={device}" in self.refuse(run_module, cache, device, sha256(IMAGE))

    LAYOUTS = {  # noqa: RUF012
        "good": (SMALL, ""),
        "half a sector": (SMALL + bytes(100), "which is not a whole number of 512-byte sectors"),
        "no partition": (bytes(510) + b"\x55\xaa" + bytes(MIB), "partition 1, the FAT boot partition, is missing"),
        "no root": (mbr((0x0C, 8, 8)) + bytes(MIB), "partition 2, the Linux root partition, is missing"),
        "another type": (mbr((0x83, 8, 8), (0x83, 16, 8)) + bytes(MIB), "partition 1 has type 0x83"),
        "too short": (mbr((0x0C, 8, 8), (0x83, 16, 9000)) + bytes(MIB), "beyond the end at"),
        "overlap": (mbr((0x0C, 8, 9), (0x83, 16, 8)) + bytes(MIB), "overlap"),
        "not a table": (bytes([7]) * 510 + b"\x55\xaa" + bytes(MIB), "this is not a partition table"),
    }

    @pytest.mark.parametrize("name", LAYOUTS)
    @pytest.mark.parametrize("compression", ["raw", "gz"])
    def test_both_modules_say_the_same(self, name: str, compression: str, cache: Path, tmp_path: Path, run_module: Run) -> None:
        image, words = self.LAYOUTS[name]
        content = image if compression == "raw" else gzip.compress(image)
        (tmp_path / "x").write_bytes(content)
        (tmp_path / "image").write_bytes(image)
        result = run_module("image_fetch", user_options(cache, str(tmp_path / "x"), sha256(content)))
        card = {"node": "pi-01", "slot": str(tmp_path / "card"), "virtual_bytes": 32 * MIB}
        other = run_module("card_write", {"image": str(tmp_path / "image"), "image_sha256": sha256(image), "cards": [card]})
        assert ("failed" in result, "failed" in other) == (bool(words), bool(words)), (result, other)
        assert words in result.get("msg", "") and words in other.get("msg", "")
        if words:
            assert [name for name in names(cache) if not name.startswith(".")] == []

    def test_not_a_card_image_in_a_download(self, wanted: dict, site: Site, cache: Path, run_module: Run) -> None:
        data = gzip.compress(mbr((0x0C, 8, 8)) + bytes(MIB))
        wanted |= {"url": site.add("/b", data), "download": {"sha256": sha256(data)}, "extracted": {}}
        assert "partition 2, the Linux root partition, is missing" in run_module("image_fetch", wanted)["msg"]
        assert [name for name in names(cache) if name.endswith((".img", ".json", ".decoding"))] == []


class TestDataAfterTheEnd:
    @pytest.mark.parametrize("given", ["file", "image"])
    @pytest.mark.parametrize("compression", ["gz", "xz"])
    def test_pinned_image(self, given: str, compression: str, cache: Path, tmp_path: Path, run_module: Run) -> None:
        content = (gzip.compress(IMAGE) if compression == "gz" else XZ) + b"-----BEGIN SIGNATURE-----"
        (tmp_path / "x").write_bytes(content)
        options = user_options(cache, str(tmp_path / "x"), sha256(content if given == "file" else IMAGE))
        result = run_module("image_fetch", options)
        assert result["sha256"] == sha256(IMAGE), result
        assert f"after the end of the compressed image in {tmp_path}/x cannot be decoded" in str(result["warnings"])
        assert not run_module("image_fetch", options)["changed"]

    def test_other_image(self, cache: Path, tmp_path: Path, run_module: Run) -> None:
        (tmp_path / "x").write_bytes(gzip.compress(IMAGE) + b"-----BEGIN SIGNATURE-----")
        message = run_module("image_fetch", user_options(cache, str(tmp_path / "x"), "0" * 64))["msg"]
        assert (
            "does not have the SHA-256 that image_sha256 gives" in message and "after the end of the compressed image" in message
        )
        assert names(cache) == []

    def test_download(self, wanted: dict, site: Site, cache: Path, run_module: Run) -> None:
        data = gzip.compress(IMAGE) + b"-----BEGIN SIGNATURE-----"
        wanted |= {"url": site.add("/b", data), "download": {"sha256": sha256(data)}, "extracted": {}}
        result = run_module("image_fetch", wanted)
        assert result["sha256"] == sha256(IMAGE) and f"compressed image in {cache}" in str(result["warnings"])


class TestChangedFiles:
    """A change is noticed also if the size, the inode and the mtime are as before, as after rsync --inplace --times."""

    @staticmethod
    def change_in_place(path: Path) -> None:
        """Change a byte of a file, and put its times back."""
        before = path.stat()
        with path.open("r+b") as file:
            file.seek(5 * MIB)
            file.write(bytes([before.st_ino % 255 + 1]) * 9)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (path.stat().st_mtime_ns, path.stat().st_size) == (before.st_mtime_ns, before.st_size)

    def test_raw_file(self, cache: Path, tmp_path: Path, run_module: Run) -> None:
        (tmp_path / "x").write_bytes(IMAGE)
        options = user_options(cache, str(tmp_path / "x"), sha256(IMAGE))
        assert run_module("image_fetch", options)["changed"]
        self.change_in_place(tmp_path / "x")
        assert "does not have the SHA-256 that image_sha256 gives" in run_module("image_fetch", options)["msg"]

    def test_decoded_image(self, wanted: dict, cache: Path, run_module: Run) -> None:
        run_module("image_fetch", wanted)
        self.change_in_place(cache / f"{STEM}.img")
        assert run_module("image_fetch", wanted)["changed"]
        assert (cache / f"{STEM}.img").read_bytes() == IMAGE

    @pytest.mark.parametrize("missing", [["ctime_ns", "device"], ["inode"]])
    def test_manifest_of_an_earlier_version(
        self, wanted: dict, site: Site, cache: Path, run_module: Run, missing: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The image is verified once, and is then known."""
        run_module("image_fetch", wanted)
        manifest, count = cache / f"{STEM}.json", len(site.requests)
        facts = json.loads(manifest.read_text())
        assert facts["device"] == (cache / f"{STEM}.img").stat().st_dev
        manifest.write_text(json.dumps({name: value for name, value in facts.items() if name not in missing}))
        assert not run_module("image_fetch", wanted)["changed"] and len(site.requests) == count
        assert json.loads(manifest.read_text()) == facts
        monkeypatch.setattr(image_decode, "hash_file", lambda *_: pytest.fail("the image was read"))
        assert not run_module("image_fetch", wanted)["changed"]

    def test_raw_file_of_an_earlier_version(self, cache: Path, tmp_path: Path, run_module: Run) -> None:
        """Its manifest had the path of the file instead of a link."""
        (tmp_path / "x").write_bytes(IMAGE)
        options = user_options(cache, str(tmp_path / "x"), sha256(IMAGE))
        manifest = Path(run_module("image_fetch", options)["manifest"])
        manifest.with_suffix(".img").unlink()
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"file": str(tmp_path / "x")}))
        result = run_module("image_fetch", options)
        assert os.readlink(result["image"]) == str(tmp_path / "x")

    def test_another_file_with_the_same_image(self, cache: Path, tmp_path: Path, run_module: Run) -> None:
        """A raw file and a compressed one, with the SHA-256 of the image, in turn."""
        (tmp_path / "x").write_bytes(IMAGE)
        (tmp_path / "y").write_bytes(XZ)
        for name in "xyxy":
            result = run_module("image_fetch", user_options(cache, str(tmp_path / name), sha256(IMAGE)))
            assert result["changed"] and Path(result["image"]).is_symlink() == (name == "x")
            assert Path(result["image"]).read_bytes() == (tmp_path / "x").read_bytes() == IMAGE

    @pytest.mark.parametrize("phase", ["verify", "decode"])
    @pytest.mark.parametrize("content", [IMAGE, XZ], ids=["raw", "xz"])
    def test_change_while_it_is_read(
        self, phase: str, content: bytes, cache: Path, tmp_path: Path, run_module: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if (phase, content) == ("decode", IMAGE):
            pytest.skip("a raw image is not decoded")
        path = tmp_path / "x"
        path.write_bytes(content)

        def report(self: Any, reported: str, *_: int) -> None:
            if reported == phase:
                os.utime(path, ns=(0, path.stat().st_mtime_ns))

        monkeypatch.setattr(load_plugin("modules", "image_fetch").Progress, "report", report)
        time.sleep(0.02)  # the resolution of the times of a file
        assert (
            "was changed while it was read" in run_module("image_fetch", user_options(cache, str(path), sha256(content)))["msg"]
        )
        assert names(cache) == []


class TestClock:
    def test_clock_that_is_set_back(self, wanted: dict, run_module: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Events go on, and have the time of the clock for the user, and seconds that never go back."""
        clock = iter(range(10**6, 0, -1000))
        monkeypatch.setattr(time, "time", lambda: float(next(clock)))
        module = load_plugin("modules", "image_fetch")
        progress, moments = module.Progress("x", str(tmp_path / "events")), iter(range(100))
        monkeypatch.setattr(module.time, "monotonic", lambda: float(next(moments)))
        for done in range(5):
            progress.report("decode", done, 9)
        events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
        assert [event["done"] for event in events] == list(range(5))
        assert [event["time"] for event in events] == [10**6 - 1000 * number for number in range(5)]
        assert [later["seconds"] - event["seconds"] for event, later in itertools.pairwise(events)] == [1] * 4
        assert "1.0 MB/s" in image_fetch_action.progress_line(
            events[0] | {"done": 0}, events[4] | {"done": 4 * 10**6, "total": 10**7}
        )

    def test_no_code_measures_by_the_wall_clock(self) -> None:
        sources = [*Path(image_cache.__file__).parent.glob("*.py"), Path(image_fetch_action.__file__)]
        assert [path.name for path in sources if "time.time(" in path.read_text()] == []


class TestProgress:
    action = image_fetch_action

    def test_progress_line(self) -> None:
        first = {"image": "pi-os", "phase": "download", "done": 100_000_000, "total": 500_000_000, "seconds": 10.0}
        assert self.action.progress_line(first, first) == "image  pi-os  download  20 % of 500 MB"
        last = first | {"done": 200_000_000, "seconds": 20.0}
        assert self.action.progress_line(first, last) == "image  pi-os  download  40 % of 500 MB  10.0 MB/s  eta 30 s"
        unknown = {"phase": "decode", "done": 0, "total": 0}
        assert self.action.progress_line(first | unknown, first | unknown) == "image  pi-os  decode"
        assert (
            self.action.progress_line(first | unknown, last | unknown | {"done": 5_000_000})
            == "image  pi-os  decode  5 MB  0.5 MB/s"
        )

    def test_events(self, wanted: dict, run_module: Run, tmp_path: Path) -> None:
        path = tmp_path / "events"
        run_module("image_fetch", wanted | {"progress_file": str(path)})
        events = [json.loads(line) for line in path.read_text().splitlines()]
        assert [event["phase"] for event in events if event["done"] == event["total"]] == ["download", "verify", "decode"]
        assert {event["image"] for event in events} == {"pi-os"}

    def test_shown_lines(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(self.action, "POLL_INTERVAL", 0.01)
        path, stop, shown = tmp_path / "events", threading.Event(), list[str]()
        event = {"image": "pi-os", "phase": "download", "done": 1_000_000, "total": 9_000_000, "seconds": 1.0}
        path.write_text(json.dumps(event) + "\n" + json.dumps(event | {"done": 2_000_000, "seconds": 2.0})[:20])
        display = type("Display", (), {"display": staticmethod(shown.append)})
        thread = threading.Thread(target=self.action.show_progress, args=(str(path), display, stop))
        thread.start()
        while not shown:
            stop.wait(0.01)
        path.write_text(
            "".join(json.dumps(event | {"done": done, "seconds": done / 1e6}) + "\n" for done in (1_000_000, 9_000_000))
        )
        stop.set()
        thread.join()
        assert shown == ["image  pi-os  download  11 % of 9 MB", "image  pi-os  download  100 % of 9 MB  1.0 MB/s"]

    @pytest.mark.parametrize("wrong", ["not json\n", "[]\n", "{}\n"])
    def test_invalid_events_are_ignored(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
        monkeypatch.setattr(self.action, "POLL_INTERVAL", 0.01)
        (tmp_path / "events").write_text(wrong)
        display: Any = None
        self.action.show_progress(str(tmp_path / "events"), display, threading.Event())
