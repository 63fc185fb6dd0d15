"""Update the catalogue of images: the lists, signatures and mistakes of publishers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.image import os_list
from ansible_collections.bramble.cluster.plugins.module_utils.image.http import HttpClient
from ansible_collections.bramble.cluster.plugins.module_utils.image.os_list import OsList, parse_os_list, parse_release
from ansible_collections.bramble.cluster.plugins.module_utils.image.release import Release
from ansible_collections.bramble.cluster.plugins.module_utils.image.signature import check_signature, dearmor
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import ROOT
from tests.support.web import Site, create_certificates

from .conftest import Run

pytestmark = pytest.mark.usefixtures("no_retry_delay")
HTTP = HttpClient(allow_http=True, timeout=20)
CATALOG = ROOT / "images/catalog.yml"
PI = "https://downloads.raspberrypi.com/raspios_lite_arm64/images/raspios_lite_arm64-{0}/{0}-raspios-trixie-arm64-lite.img.xz"
BOOKWORM = PI.replace("raspios_lite", "raspios_oldstable_lite").replace("trixie", "bookworm")
KALI = "https://kali.download/arm-images/kali-2026.3/kali-linux-2026.3-raspberry-pi-arm64.img.xz"
UBUNTU = "ubuntu-24.04.10-preinstalled-server-arm64+raspi.img.xz"


def entry(url: str, digit: str = "a", **fields: Any) -> dict[str, Any]:
    """Return an entry of an OS list for an image."""
    return {
        "name": "an image",
        "url": url,
        "icon": "x.png",
        "devices": ["pi4-64bit"],
        "image_download_size": 1000,
        "image_download_sha256": digit * 64,
        "extract_size": 4096,
        "extract_sha256": "e" * 64,
        "release_date": "2026-11-10",
        "init_format": "cloudinit-rpi",
        **fields,
    }


def publish(site: Site, path: str, *items: Any) -> str:
    """Publish an OS list at a path, and return its URL."""
    return site.add(path, json.dumps({"imager": {"latest_version": "2"}, "os_list": items}).encode())


class Signer:
    """A new OpenPGP key, which signs data."""

    def __init__(self, home: Path, name: str, expires: str = "never", *options: str) -> None:
        self.home, self._options = home / name, options
        self.home.mkdir(mode=0o700)
        self._gpg("--passphrase", "", "--quick-generate-key", f"{name} <{name}@example.org>", "ed25519", "sign", expires)
        listed = self._gpg("--with-colons", "--list-keys").decode()
        self.fingerprint = next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr"))
        self.key, self.armoured = self._gpg("--export"), self._gpg("--armor", "--export")

    def _gpg(self, *arguments: str, data: bytes = b"") -> bytes:
        command = [
            "gpg",
            "--homedir",
            str(self.home),
            "--batch",
            "--quiet",
            "--pinentry-mode",
            "loopback",
            *self._options,
            *arguments,
        ]
        return subprocess.run(command, input=data, capture_output=True, check=True).stdout

    def sign(self, data: bytes) -> bytes:
        return self._gpg("--detach-sign", data=data)


@pytest.fixture(scope="module")
def signers(gpg_home: Path) -> tuple[Signer, Signer]:
    return Signer(gpg_home, "publisher"), Signer(gpg_home, "stranger")


@pytest.fixture(scope="module")
def gpg_home() -> Iterator[Path]:
    # The agent of gpg listens on a socket in its home, whose path must be short.
    home = Path(subprocess.run(["mktemp", "-d", "/tmp/gpgXXXXXX"], capture_output=True, text=True, check=True).stdout.strip())
    yield home
    for each in home.iterdir():
        subprocess.run(["gpgconf", "--homedir", each, "--kill", "all"], check=True)
    shutil.rmtree(home)


class TestOsList:
    def test_nested_and_linked_lists(self, site: Site) -> None:
        publish(site, "/far/sub.json", entry("https://x/3"), {"name": "up", "subitems_url": "../top.json"})
        site.add("/moved.json", location="/far/sub.json")
        deep = {"name": "d", "subitems": [{"name": "e", "subitems": [entry("https://x/2")]}]}
        url = publish(site, "/top.json", entry("https://x/1"), deep, {"name": "f", "subitems_url": f"{site.url}/moved.json"})
        os_list = OsList(url, HTTP)
        assert sorted(item["url"] for item in os_list.images) == ["https://x/1", "https://x/2", "https://x/3"]
        assert os_list.unreadable == []

    def test_each_document_is_read_once(self, site: Site) -> None:
        publish(site, "/b", {"subitems_url": "/a"}, {"subitems_url": "/b"})
        url = publish(site, "/a", {"subitems_url": "/b"}, {"subitems_url": "/b"}, {"subitems_url": "/a"})
        OsList(url, HTTP)
        assert [path for _, path, _ in site.requests] == ["/a", "/b"]

    def test_number_of_documents_is_limited(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os_list, "MAX_DOCUMENTS", 5)
        for number in range(9):
            publish(site, f"/{number}", {"subitems_url": f"/{number + 1}"})
        assert OsList(f"{site.url}/0", HTTP).unreadable == ["1 more lists"]
        assert len(site.requests) == 5

    def test_unreadable_list_is_skipped(self, site: Site) -> None:
        site.add("/b", b"<html>")
        links = [{"subitems_url": link} for link in ("/gone", "/b", "http://[", "ftp://x/y", "/c", 5)]
        publish(site, "/c", entry("https://x/1"))
        os_list = OsList(publish(site, "/a", *links), HTTP)
        assert [item["url"] for item in os_list.images] == ["https://x/1"]
        assert [reason.split(":")[0] for reason in os_list.unreadable] == ["http", "http", "http", "ftp"]
        with pytest.raises(BrambleError, match=r"no image in .* has a URL that matches https://y(.|\n)*/gone"):
            os_list.newest("https://y")

    @pytest.mark.parametrize("data", [b"", b"<html>", b"[]", b'{"os_list": {}}', b"\xff\xfe\xff", b"[" * 100_000, b"1" * 10_000])
    def test_first_document_must_be_an_os_list(self, site: Site, data: bytes) -> None:
        with pytest.raises(BrambleError, match="cannot be used"):
            OsList(site.add("/a", data), HTTP)

    def test_depth_and_entries_are_limited(self, monkeypatch: pytest.MonkeyPatch) -> None:
        nested: list = []
        for _ in range(100):
            nested = [{"subitems": nested}]
        with pytest.raises(BrambleError, match="too large"):
            parse_os_list(json.dumps({"os_list": nested}).encode())
        with pytest.raises(BrambleError, match="too large"):
            parse_os_list(json.dumps({"os_list": [0] * 20_001}).encode())

    def test_newest_matching_image(self, site: Site) -> None:
        dates = ["2026-06-18", "2026-11-10", "2026-09-15"]
        other = "https://evil.example/raspios-trixie-arm64-lite.img.xz"
        items = [entry(PI.format(date), digit, release_date=date) for date, digit in zip(dates, "abc", strict=True)]
        os_list = OsList(publish(site, "/a", *items, entry(other, "f", release_date="2027-01-01")), HTTP)
        found = os_list.newest(yaml.safe_load(CATALOG.read_text())["images"]["raspios-trixie-lite"]["source"]["url"])
        assert (found.url, found.download_sha256, found.init_format) == (PI.format("2026-11-10"), "b" * 64, "cloudinit-rpi")

    @pytest.mark.parametrize(
        "fields",
        [
            {"image_download_sha256": None},
            {"image_download_sha256": "a" * 63},
            {"image_download_sha256": 5},
            {"image_download_size": -1},
            {"image_download_size": True},
            {"image_download_size": 10**15},
            {"image_download_size": "1000"},
            {"extract_size": 1.5},
            {"extract_sha256": ["a" * 64]},
            {"url": "https://x/\n  y: z"},
            {"url": "https://x/\ud800"},
        ],
        ids=str,
    )
    def test_invalid_entry(self, fields: dict) -> None:
        with pytest.raises(BrambleError, match=r"is invalid|without"):
            parse_release(entry("https://x/1") | fields)

    def test_missing_values(self) -> None:
        assert parse_release(
            {"url": "https://x/1", "image_download_sha256": "A" * 64, "release_date": "soon", "init_format": []}
        ) == Release("https://x/1", "a" * 64)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["os_list", "subitems", "subitems_url", "url", "x", *entry("")]), inner, max_size=4)
    ),
    max_leaves=30,
)


@settings(deadline=None)
@given(
    st.one_of(
        JSON.map(json.dumps).map(str.encode),
        st.lists(JSON).map(lambda items: json.dumps({"os_list": items}).encode()),
        st.binary(),
    )
)
def test_any_json_is_an_os_list_or_raises_bramble_error(data: bytes) -> None:
    try:
        images, further = parse_os_list(data)
    except BrambleError:
        return
    assert all(isinstance(url, str) for url in further)
    for item in images:
        with contextlib.suppress(BrambleError):
            assert re.fullmatch("[0-9a-f]{64}", parse_release(item).download_sha256)


class TestSignature:
    SUMS = b"a" * 64 + b" *" + UBUNTU.encode() + b"\n"

    def test_valid_signature(self, signers: tuple[Signer, Signer]) -> None:
        publisher, other = signers
        check_signature(self.SUMS, publisher.sign(self.SUMS), publisher.key, publisher.fingerprint)
        check_signature(self.SUMS, publisher.sign(self.SUMS), other.key + publisher.key, publisher.fingerprint.lower())
        # Other keys may sign as well, before or after.
        for signatures in (
            publisher.sign(self.SUMS) + other.sign(self.SUMS),
            other.sign(self.SUMS) + publisher.sign(self.SUMS),
        ):
            check_signature(self.SUMS, signatures, publisher.key, publisher.fingerprint)

    def test_changed_data(self, signers: tuple[Signer, Signer]) -> None:
        publisher, _ = signers
        with pytest.raises(BrambleError, match="BADSIG"):
            check_signature(self.SUMS + b"x", publisher.sign(self.SUMS), publisher.key, publisher.fingerprint)

    def test_signature_of_another_key(self, signers: tuple[Signer, Signer]) -> None:
        publisher, other = signers
        for key in (publisher.key, other.key, publisher.key + other.key):
            with pytest.raises(BrambleError, match=f"not signed by {publisher.fingerprint}"):
                check_signature(self.SUMS, other.sign(self.SUMS), key, publisher.fingerprint)

    def test_expired_key(self, gpg_home: Path) -> None:
        late = Signer(gpg_home, "late", "1m", "--faked-system-time", "20200101T000000!")
        with pytest.raises(BrambleError, match="EXPKEYSIG"):
            check_signature(self.SUMS, late.sign(self.SUMS), late.key, late.fingerprint)

    @pytest.mark.parametrize("signature", [b"", b"x", b"-----BEGIN PGP SIGNATURE-----\n\n"])
    def test_no_signature(self, signers: tuple[Signer, Signer], signature: bytes) -> None:
        with pytest.raises(BrambleError, match="no signature"):
            check_signature(self.SUMS, signature, signers[0].key, signers[0].fingerprint)

    def test_key_from_a_key_server(self, signers: tuple[Signer, Signer]) -> None:
        publisher, _ = signers
        assert dearmor(publisher.armoured) == publisher.key
        assert (
            dearmor(publisher.armoured.replace(b"\n", b"\r\n").replace(b"BLOCK-----\r\n", b"BLOCK-----\r\nVersion: 1\r\n", 1))
            == publisher.key
        )
        for wrong in (b"", b"<html>", publisher.armoured[:99], publisher.armoured.replace(b"A", b"?")):
            with pytest.raises(BrambleError):
                dearmor(wrong)


@pytest.fixture
def published(site: Site, signers: tuple[Signer, Signer], tmp_path: Path) -> dict[str, Any]:
    """Options of the module: all publishers on one site, and a copy of the catalogue."""
    publisher, _ = signers
    publish(site, "/kali.json", entry(KALI, "9", init_format="systemd", release_date="2026-09-01"))
    bookworm = entry(BOOKWORM.format("2026-11-10"), "8", init_format="systemd")
    ubuntu = entry(
        "https://elsewhere.example/u.img.xz", "7", extract_size=8192, extract_sha256="6" * 64, release_date="2026-10-30"
    )
    os_list = publish(
        site, "/v4.json", {"subitems": [entry(PI.format("2026-11-10")), bookworm]}, {"subitems_url": "/kali.json"}, ubuntu
    )
    lines = [f"{digit * 64} *{name}" for digit, name in (("5", UBUNTU.replace("10", "9")), ("7", UBUNTU), ("4", "other.iso"))]
    sums = "\n".join([*lines, ""]).encode()
    site.add("/u/24.04/release/SHA256SUMS", sums)
    site.add("/u/24.04/release/SHA256SUMS.gpg", publisher.sign(sums))
    site.add(f"/u/24.04/release/{UBUNTU}", b"x" * 1234, modified="Fri, 30 Oct 2026 12:00:00 GMT")
    site.add(f"/key?{publisher.fingerprint}", publisher.armoured)
    path = tmp_path / "catalog.yml"
    path.write_text(re.sub("signer: [0-9A-F]+", f"signer: {publisher.fingerprint}", CATALOG.read_text()))
    path.chmod(0o640)
    return {
        "path": str(path),
        "raspberrypi_url": os_list,
        "ubuntu_url": f"{site.url}/u",
        "keyring": str(tmp_path / "none"),
        "key_url": f"{site.url}/key?",
        "allow_http": True,
        "timeout": 20,
    }


def images(options: dict) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(Path(options["path"]).read_text())["images"]
    return loaded


class TestUpdate:
    def test_catalog_of_the_repository(self) -> None:
        found = yaml.safe_load(CATALOG.read_text())["images"]
        published = {"raspios-trixie-lite", "raspios-bookworm-lite", "ubuntu-24.04-server", "kali"}
        assert set(found) == {"debian-trixie", "debian-trixie-snapd"} | published
        for name, image in found.items():
            assert {"description", "architectures", "init_format"} <= set(image), name
            if "build" not in image:
                assert re.fullmatch("[0-9a-f]{64}", image["download"]["sha256"]), name
                assert image["url"].startswith("https://") and set(image["extracted"]) == {"bytes", "sha256"}, name
                assert image.get("verified") in (None, "second-hand"), name

    def test_all_images_are_updated(self, published: dict, run_module: Run) -> None:
        before = Path(published["path"]).read_text()
        result = run_module("image_catalog", published, diff=True)
        assert result["changed"], result
        found = images(published)
        assert not any("verified" in image for image in found.values())
        assert found["raspios-trixie-lite"] | {"source": 0, "description": 0} == {
            "description": 0,
            "architectures": ["arm64"],
            "init_format": "cloudinit-rpi",
            "release_date": "2026-11-10",
            "url": PI.format("2026-11-10"),
            "download": {"bytes": 1000, "sha256": "a" * 64},
            "extracted": {"bytes": 4096, "sha256": "e" * 64},
            "source": 0,
        }
        assert found["raspios-bookworm-lite"]["download"]["sha256"] == "8" * 64
        assert found["kali"]["url"] == KALI and found["kali"]["init_format"] == "systemd"
        ubuntu = found["ubuntu-24.04-server"]
        assert ubuntu["url"] == f"{published['ubuntu_url']}/24.04/release/{UBUNTU}"
        assert ubuntu["download"] == {"bytes": 1234, "sha256": "7" * 64}
        # The OS list of Raspberry Pi Imager has the values of the image in the same download.
        assert ubuntu["extracted"] == {"bytes": 8192, "sha256": "6" * 64} and ubuntu["release_date"] == "2026-10-30"
        assert "raspios-trixie-lite: download.bytes: 550,466,056 -> 1,000" in result["changes"]
        assert "kali: verified: second-hand -> by its publisher" in result["changes"]
        assert result["diff"]["before"] == before and result["diff"]["after"] == Path(published["path"]).read_text()

    def test_other_lines_are_kept(self, published: dict, run_module: Run) -> None:
        path = Path(published["path"])
        before = path.read_text()
        run_module("image_catalog", published)
        after = path.read_text()
        assert path.stat().st_mode & 0o777 == 0o640
        fields = ("release_date", "url", "bytes", "sha256", "verified")

        def other_lines(text: str) -> list[str]:
            return [line for line in text.splitlines() if not line.strip().startswith(fields) or "*" in line]

        assert other_lines(after) == other_lines(before) and len(other_lines(after)) > 40
        assert run_module("image_catalog", published)["changed"] is False
        assert path.read_text() == after

    def test_check_mode(self, published: dict, run_module: Run) -> None:
        before = Path(published["path"]).read_text()
        dry = run_module("image_catalog", published, check=True)
        assert Path(published["path"]).read_text() == before
        assert run_module("image_catalog", published)["changes"] == dry["changes"] != []

    def test_only_named_images_are_updated(self, published: dict, run_module: Run) -> None:
        changes = run_module("image_catalog", published | {"names": ["kali"]})["changes"]
        assert {change.split(":")[0] for change in changes} == {"kali"}
        assert "verified" in images(published)["raspios-trixie-lite"]
        for name in ("debian-trixie", "windows"):
            assert f"has no image {name} with a source" in run_module("image_catalog", published | {"names": [name]})["msg"]

    def test_values_that_are_no_longer_published_are_emptied(self, published: dict, site: Site, run_module: Run) -> None:
        bare = {"url": PI.format("2026-11-10"), "image_download_sha256": "a" * 64}
        published["raspberrypi_url"] = publish(site, "/v4.json", bare)
        run_module("image_catalog", published | {"names": ["raspios-trixie-lite"]})
        found = images(published)["raspios-trixie-lite"]
        assert found["extracted"] == {"bytes": None, "sha256": None} and found["download"]["bytes"] is None
        assert found["init_format"] == "cloudinit-rpi" and found["release_date"] == ""

    def test_keyring_of_this_machine(self, published: dict, site: Site, signers: tuple[Signer, Signer], run_module: Run) -> None:
        Path(published["keyring"]).write_bytes(signers[1].key + signers[0].key)
        assert run_module("image_catalog", published)["changed"]
        assert not [path for _, path, _ in site.requests if path.startswith("/key")]

    def test_with_tls(self, published: dict, site: Site, tmp_path: Path, run_module: Run) -> None:
        ca, server = create_certificates(tmp_path)
        secure = Site(server)
        try:
            secure.pages = site.pages
            over = {name: str(value).replace(site.url, secure.url) for name, value in published.items() if "url" in name}
            secured = published | over | {"allow_http": False}
            assert "certificate of the server is not trusted" in run_module("image_catalog", secured)["msg"]
            assert run_module("image_catalog", secured | {"ca_path": str(ca)})["changed"]
        finally:
            secure.close()


class TestRefusals:
    """If one image cannot be updated, none is."""

    def fails(self, run_module: Run, options: dict, *words: str) -> None:
        before = Path(options["path"]).read_text()
        result = run_module("image_catalog", options)
        assert result.get("failed"), result
        for word in words:
            assert word in result["msg"], result["msg"]
        assert Path(options["path"]).read_text() == before
        assert os.listdir(Path(options["path"]).parent) == [Path(options["path"]).name]

    def test_http(self, published: dict, run_module: Run, site: Site) -> None:
        self.fails(run_module, published | {"allow_http": False}, "not an https URL")
        assert site.requests == []

    def test_tampered_sums(self, published: dict, site: Site, run_module: Run) -> None:
        site.pages["/u/24.04/release/SHA256SUMS"].data += b"x"
        self.fails(run_module, published, "nothing was changed", "BADSIG", "ubuntu-24.04-server")

    def test_sums_signed_by_another_key(
        self, published: dict, site: Site, signers: tuple[Signer, Signer], run_module: Run
    ) -> None:
        sums = site.pages["/u/24.04/release/SHA256SUMS"].data
        site.add("/u/24.04/release/SHA256SUMS.gpg", signers[1].sign(sums))
        self.fails(run_module, published, "not signed by", "ERRSIG")
        # The key server sends another key for the fingerprint of the publisher.
        site.add(f"/key?{signers[0].fingerprint}", signers[1].armoured)
        self.fails(run_module, published, "not signed by", "GOODSIG")

    def test_no_key(self, published: dict, run_module: Run) -> None:
        self.fails(run_module, published | {"key_url": published["key_url"] + "x"}, "404", "image_ubuntu_keyring")

    def test_no_matching_file(self, published: dict, site: Site, signers: tuple[Signer, Signer], run_module: Run) -> None:
        sums = b"5" * 64 + b" *ubuntu-26.04-preinstalled-server-arm64+raspi.img.xz\n"
        site.add("/u/24.04/release/SHA256SUMS", sums)
        site.add("/u/24.04/release/SHA256SUMS.gpg", signers[0].sign(sums))
        self.fails(run_module, published, "matches ubuntu-24.04*")

    def test_image_that_is_no_longer_published(self, published: dict, site: Site, run_module: Run) -> None:
        publish(site, "/v4.json", entry(PI.format("2026-11-10")))
        self.fails(run_module, published, "kali: no image", "raspios-bookworm-lite: no image")

    @pytest.mark.parametrize("status", [404, 500])
    def test_os_list_that_cannot_be_read(self, published: dict, site: Site, run_module: Run, status: int) -> None:
        site.pages["/v4.json"].status = status
        self.fails(run_module, published, str(status), "/v4.json")

    @pytest.mark.parametrize(
        "text", ["", "images:", "images: [a]", "images: {a: b}", "- : {", "a: b", "images: {a: {source: {}}}"]
    )
    def test_invalid_lock_file(self, published: dict, run_module: Run, text: str) -> None:
        Path(published["path"]).write_text(text)
        self.fails(run_module, published)

    def test_invalid_source(self, published: dict, run_module: Run) -> None:
        path = Path(published["path"])
        text = path.read_text()
        for one, other in (
            ("publisher: ubuntu", "publisher: debian"),
            ("      signer:", "      signr:"),
            ("      file:", "      fil:"),
        ):
            path.write_text(text.replace(one, other))
            self.fails(run_module, published, "ubuntu-24.04-server:", "publisher" if "publisher" in one else "missing")
