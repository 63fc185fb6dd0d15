"""Read from web servers that misbehave."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.image import http as image_http
from ansible_collections.bramble.cluster.plugins.module_utils.image.error import BadStatus, Unreachable, WrongImage
from ansible_collections.bramble.cluster.plugins.module_utils.image.http import HttpClient

from tests.support.web import Site, create_certificates

pytestmark = pytest.mark.usefixtures("no_retry_delay")
DATA = os.urandom(3_000_000)
OTHER = os.urandom(3_000_000)
LIMIT = 10**9


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return create_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def secure(certificates: tuple[Path, Path]) -> Iterator[Site]:
    site = Site(certificates[1])
    yield site
    site.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "download"


HTTP = HttpClient(allow_http=True, timeout=20)


def fetch(url: str, path: Path, expected: int | None = len(DATA), http: HttpClient = HTTP) -> bool:
    return http.download(url, str(path), expected, LIMIT, lambda *_: None)


class TestAllowedUrls:
    def test_only_https(self, site: Site) -> None:
        with pytest.raises(BrambleError, match="not an https URL"):
            HttpClient().read(site.add("/x", b"x"), 9)
        assert site.requests == []

    def test_https_with_a_private_ca(self, secure: Site, certificates: tuple[Path, Path]) -> None:
        url = secure.add("/x", b"x")
        assert HttpClient(ca_path=str(certificates[0])).read(url, 9) == b"x"

    def test_missing_ca_file(self, secure: Site, tmp_path: Path) -> None:
        with pytest.raises(BrambleError, match="not a file of certificates"):
            HttpClient(ca_path=str(tmp_path / "none")).read(secure.add("/x", b"x"), 9)

    def test_untrusted_certificate(self, secure: Site) -> None:
        with pytest.raises(BrambleError, match="certificate of the server is not trusted") as caught:
            HttpClient().read(secure.add("/x", b"x"), 9)
        assert not isinstance(caught.value, Unreachable)

    def test_no_redirect_from_https_to_http(self, secure: Site, site: Site, certificates: tuple[Path, Path]) -> None:
        url = secure.add("/x", location=site.add("/y", b"y"))
        with pytest.raises(BrambleError, match="not an https URL"):
            HttpClient(ca_path=str(certificates[0])).read(url, 9)
        assert site.requests == []

    @pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://[::1", "http:///x", "http://a b/"])
    def test_no_redirect_to_an_invalid_url(self, site: Site, target: str) -> None:
        with pytest.raises(BrambleError):
            HTTP.read(site.add("/x", location=target), 9)

    def test_redirects_are_followed_and_limited(self, site: Site) -> None:
        site.add("/z", b"z")
        site.add("/y", location="z")
        assert HTTP.read(site.add("/x", location=f"{site.url}/y"), 9) == b"z"
        with pytest.raises(BrambleError, match="redirects"):
            HTTP.read(site.add("/loop", location="/loop"), 9)
        assert len(site.requests_for("/loop")) == image_http.MAX_REDIRECTS + 1


class TestDocuments:
    def test_large_document_is_refused(self, site: Site) -> None:
        assert HTTP.read(site.add("/x", b"x" * 9), 9) == b"x" * 9
        for length in (None, ""):
            with pytest.raises(BrambleError, match="larger than 9 bytes"):
                HTTP.read(site.add("/x", b"x" * 10, length=length), 9)

    def test_incomplete_document_is_not_used(self, site: Site) -> None:
        assert HTTP.read(site.add("/x", b"x" * 9, cuts=[5]), 9) == b"x" * 9
        with pytest.raises(Unreachable, match="connection was lost after 5 bytes"):
            HTTP.read(site.add("/x", b"x" * 9, cuts=[5] * 9), 9)

    def test_server_that_refuses_connections(self, site: Site) -> None:
        url = site.add("/x")
        site.close()
        with pytest.raises(Unreachable, match="refused"):
            HTTP.read(url, 9)

    def test_server_that_does_not_answer(self, site: Site) -> None:
        with pytest.raises(Unreachable, match="timed out"):
            HttpClient(allow_http=True, timeout=0.1).read(site.add("/x", hangs=True), 9)
        assert len(site.requests_for("/x")) == HTTP.attempts

    @pytest.mark.parametrize(("status", "attempts"), [(404, 1), (403, 1), (500, 4), (503, 4), (429, 4)])
    def test_temporary_errors_are_retried(self, site: Site, status: int, attempts: int) -> None:
        with pytest.raises(BadStatus if attempts == 1 else Unreachable, match=str(status)):
            HTTP.read(site.add("/x", status=status), 9)
        assert len(site.requests_for("/x")) == attempts


class TestDownload:
    def test_complete_download(self, site: Site, path: Path) -> None:
        reported = []
        url = site.add("/x", DATA)
        assert not HTTP.download(url, str(path), len(DATA), LIMIT, lambda *event: reported.append(event))
        assert path.read_bytes() == DATA
        assert reported[-1] == ("download", len(DATA), len(DATA))
        assert [done for _, done, _ in reported] == sorted({done for _, done, _ in reported})

    @pytest.mark.parametrize("options", [{"etag": '"1"'}, {"modified": "Sat, 01 Nov 2025 00:00:00 GMT"}, {}], ids=str)
    def test_interrupted_download_is_resumed(self, site: Site, path: Path, options: dict) -> None:
        url = site.add("/x", DATA, cuts=[1_000_000, 1, 500_000], **options)
        assert fetch(url, path)
        assert path.read_bytes() == DATA
        requests = site.requests_for("/x")
        assert [headers.get("Range") for headers in requests] == [None, "bytes=1000000-", "bytes=1000001-", "bytes=1500001-"]
        validator = options.get("etag") or options.get("modified")
        assert [headers.get("If-Range") for headers in requests] == [None] + [validator] * 3

    def test_weak_etag_is_not_used(self, site: Site, path: Path) -> None:
        assert fetch(site.add("/x", DATA, etag='W/"1"', cuts=[9]), path)
        assert "If-Range" not in site.requests_for("/x")[1]

    def test_next_run_resumes(self, site: Site, path: Path) -> None:
        url = site.add("/x", DATA, etag='"1"', cuts=[1_000] * HTTP.attempts)
        with pytest.raises(Unreachable, match="connection was lost after 4,000 of 3,000,000 bytes"):
            fetch(url, path)
        assert path.read_bytes() == DATA[:4000]
        assert fetch(url, path)
        assert path.read_bytes() == DATA
        assert site.requests_for("/x")[-1]["Range"] == "bytes=4000-"

    def test_progress_resets_the_attempts(self, site: Site, path: Path) -> None:
        url = site.add("/x", DATA * 4, etag='"1"', cuts=[1_100_000] * 9)
        fetch(url, path, len(DATA) * 4)
        assert path.read_bytes() == DATA * 4

    def test_server_without_ranges(self, site: Site, path: Path) -> None:
        assert not fetch(site.add("/x", DATA, ranges=False, cuts=[1_000_000]), path)
        assert path.read_bytes() == DATA

    def test_changed_file_is_downloaded_again(self, site: Site, path: Path) -> None:
        url = site.add("/x", OTHER, etag='"1"', cuts=[1_000_000], after_cut=lambda: site.add("/x", DATA, etag='"2"'))
        assert not fetch(url, path)
        assert path.read_bytes() == DATA
        assert site.requests_for("/x")[1]["If-Range"] == '"1"'

    def test_too_long_file_is_downloaded_again(self, site: Site, path: Path) -> None:
        path.write_bytes(b"x" * 4_000_000)
        assert not fetch(site.add("/x", DATA), path)
        assert path.read_bytes() == DATA

    def test_complete_file_is_not_requested(self, site: Site, path: Path) -> None:
        path.write_bytes(DATA)
        assert fetch(f"{site.url}/x", path)
        assert site.requests == []

    @pytest.mark.parametrize("length", ["2999999", "3000001", "99999999999"])
    def test_other_length_than_pinned_is_refused(self, site: Site, path: Path, length: str) -> None:
        with pytest.raises(WrongImage, match=rf"has {int(length):,} bytes on the server, but 3,000,000 were expected"):
            fetch(site.add("/x", DATA, length=length), path)
        assert not path.exists()

    def test_data_beyond_content_length_is_ignored(self, site: Site, path: Path) -> None:
        fetch(site.add("/x", DATA + b"more", length=str(len(DATA))), path)
        assert path.read_bytes() == DATA

    def test_less_data_than_content_length_is_an_error(self, site: Site, path: Path) -> None:
        with pytest.raises(Unreachable, match="connection was lost after 2,999,999 of 3,000,000"):
            fetch(site.add("/x", DATA[:-1], length=str(len(DATA)), ranges=False), path)

    def test_size_is_limited_without_content_length(self, site: Site, path: Path) -> None:
        fetch(site.add("/x", DATA, length=""), path)
        assert path.read_bytes() == DATA
        path.unlink()
        with pytest.raises(WrongImage, match="more than the expected 3,000,000 bytes"):
            fetch(site.add("/x", DATA + b"x", length=""), path)
        with pytest.raises(WrongImage, match="more than the expected 1,000 bytes"):
            HTTP.download(site.add("/x", DATA, length=""), str(path), None, 1000, lambda *_: None)
        assert path.stat().st_size <= len(DATA)

    def test_unknown_size(self, site: Site, path: Path) -> None:
        fetch(site.add("/x", DATA, cuts=[5]), path, None)
        assert path.read_bytes() == DATA

    def test_download_through_a_redirect(self, site: Site, path: Path) -> None:
        site.add("/x", DATA, etag='"1"', cuts=[1_000_000])
        assert fetch(site.add("/latest", location="/x"), path)
        assert path.read_bytes() == DATA

    def test_wrong_range_is_downloaded_again(self, site: Site, path: Path) -> None:
        url = site.add("/x", DATA, cuts=[1_000_000], range_shift=7)
        assert not fetch(url, path)
        assert path.read_bytes() == DATA
        assert [headers.get("Range") for headers in site.requests_for("/x")] == [None, "bytes=1000000-", None]
