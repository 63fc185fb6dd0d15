"""Reading from the web, against real servers that misbehave."""

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


class TestWhatMayBeRead:
    def test_only_https(self, site: Site) -> None:
        with pytest.raises(BrambleError, match="not https"):
            HttpClient().read(site.add("/x", b"x"), 9)
        assert site.requests == []

    def test_https_with_a_ca_of_ones_own(self, secure: Site, certificates: tuple[Path, Path]) -> None:
        url = secure.add("/x", b"x")
        assert HttpClient(ca_path=str(certificates[0])).read(url, 9) == b"x"

    def test_no_ca(self, secure: Site, tmp_path: Path) -> None:
        with pytest.raises(BrambleError, match="not a file of certificates"):
            HttpClient(ca_path=str(tmp_path / "none")).read(secure.add("/x", b"x"), 9)

    def test_a_certificate_of_nobody(self, secure: Site) -> None:
        with pytest.raises(BrambleError, match="certificate is not to be trusted") as caught:
            HttpClient().read(secure.add("/x", b"x"), 9)
        assert not isinstance(caught.value, Unreachable)

    def test_no_redirect_from_https_to_http(self, secure: Site, site: Site, certificates: tuple[Path, Path]) -> None:
        url = secure.add("/x", location=site.add("/y", b"y"))
        with pytest.raises(BrambleError, match="not https"):
            HttpClient(ca_path=str(certificates[0])).read(url, 9)
        assert site.requests == []

    @pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://[::1", "http:///x", "http://a b/"])
    def test_no_redirect_to_what_is_no_web_address(self, site: Site, target: str) -> None:
        with pytest.raises(BrambleError):
            HTTP.read(site.add("/x", location=target), 9)

    def test_redirects_are_followed_and_bounded(self, site: Site) -> None:
        site.add("/z", b"z")
        site.add("/y", location="z")
        assert HTTP.read(site.add("/x", location=f"{site.url}/y"), 9) == b"z"
        with pytest.raises(BrambleError, match="redirects"):
            HTTP.read(site.add("/loop", location="/loop"), 9)
        assert len(site.requests_for("/loop")) == image_http.MAX_REDIRECTS + 1


class TestDocuments:
    def test_a_large_one_is_refused(self, site: Site) -> None:
        assert HTTP.read(site.add("/x", b"x" * 9), 9) == b"x" * 9
        for length in (None, ""):
            with pytest.raises(BrambleError, match="larger than 9 bytes"):
                HTTP.read(site.add("/x", b"x" * 10, length=length), 9)

    def test_half_of_one_is_not_used(self, site: Site) -> None:
        assert HTTP.read(site.add("/x", b"x" * 9, cuts=[5]), 9) == b"x" * 9
        with pytest.raises(Unreachable, match="broke off after 5 bytes"):
            HTTP.read(site.add("/x", b"x" * 9, cuts=[5] * 9), 9)

    def test_a_server_that_is_not_there(self, site: Site) -> None:
        url = site.add("/x")
        site.close()
        with pytest.raises(Unreachable, match="refused"):
            HTTP.read(url, 9)

    def test_a_server_that_does_not_answer(self, site: Site) -> None:
        with pytest.raises(Unreachable, match="timed out"):
            HttpClient(allow_http=True, timeout=0.1).read(site.add("/x", hangs=True), 9)
        assert len(site.requests_for("/x")) == HTTP.attempts

    @pytest.mark.parametrize(("status", "attempts"), [(404, 1), (403, 1), (500, 4), (503, 4), (429, 4)])
    def test_what_may_get_better_is_tried_again(self, site: Site, status: int, attempts: int) -> None:
        with pytest.raises(BadStatus if attempts == 1 else Unreachable, match=str(status)):
            HTTP.read(site.add("/x", status=status), 9)
        assert len(site.requests_for("/x")) == attempts


class TestDownload:
    def test_all_of_it(self, site: Site, path: Path) -> None:
        told = []
        url = site.add("/x", DATA)
        assert not HTTP.download(url, str(path), len(DATA), LIMIT, lambda *event: told.append(event))
        assert path.read_bytes() == DATA
        assert told[-1] == ("download", len(DATA), len(DATA))
        assert [done for _, done, _ in told] == sorted({done for _, done, _ in told})

    @pytest.mark.parametrize("how", [{"etag": '"1"'}, {"modified": "Sat, 01 Nov 2025 00:00:00 GMT"}, {}], ids=str)
    def test_it_goes_on_where_it_broke_off(self, site: Site, path: Path, how: dict) -> None:
        url = site.add("/x", DATA, cuts=[1_000_000, 1, 500_000], **how)
        assert fetch(url, path)
        assert path.read_bytes() == DATA
        asked = site.requests_for("/x")
        assert [headers.get("Range") for headers in asked] == [None, "bytes=1000000-", "bytes=1000001-", "bytes=1500001-"]
        validator = how.get("etag") or how.get("modified")
        assert [headers.get("If-Range") for headers in asked] == [None] + [validator] * 3

    def test_a_weak_etag_proves_nothing(self, site: Site, path: Path) -> None:
        assert fetch(site.add("/x", DATA, etag='W/"1"', cuts=[9]), path)
        assert "If-Range" not in site.requests_for("/x")[1]

    def test_another_run_goes_on(self, site: Site, path: Path) -> None:
        url = site.add("/x", DATA, etag='"1"', cuts=[1_000] * HTTP.attempts)
        with pytest.raises(Unreachable, match="broke off after 4,000 of 3,000,000 bytes"):
            fetch(url, path)
        assert path.read_bytes() == DATA[:4000]
        assert fetch(url, path)
        assert path.read_bytes() == DATA
        assert site.requests_for("/x")[-1]["Range"] == "bytes=4000-"

    def test_progress_renews_patience(self, site: Site, path: Path) -> None:
        url = site.add("/x", DATA * 4, etag='"1"', cuts=[1_100_000] * 9)
        fetch(url, path, len(DATA) * 4)
        assert path.read_bytes() == DATA * 4

    def test_a_server_that_knows_no_ranges(self, site: Site, path: Path) -> None:
        assert not fetch(site.add("/x", DATA, ranges=False, cuts=[1_000_000]), path)
        assert path.read_bytes() == DATA

    def test_a_file_that_changes_meanwhile_begins_anew(self, site: Site, path: Path) -> None:
        url = site.add("/x", OTHER, etag='"1"', cuts=[1_000_000], after_cut=lambda: site.add("/x", DATA, etag='"2"'))
        assert not fetch(url, path)
        assert path.read_bytes() == DATA
        assert site.requests_for("/x")[1]["If-Range"] == '"1"'

    def test_one_that_lies_there_too_long_begins_anew(self, site: Site, path: Path) -> None:
        path.write_bytes(b"x" * 4_000_000)
        assert not fetch(site.add("/x", DATA), path)
        assert path.read_bytes() == DATA

    def test_nothing_is_asked_when_it_is_all_there(self, site: Site, path: Path) -> None:
        path.write_bytes(DATA)
        assert fetch(f"{site.url}/x", path)
        assert site.requests == []

    @pytest.mark.parametrize("length", ["2999999", "3000001", "99999999999"])
    def test_another_length_than_pinned_is_refused_before_the_first_byte(self, site: Site, path: Path, length: str) -> None:
        with pytest.raises(WrongImage, match=rf"has {int(length):,} bytes there, and 3,000,000 were expected"):
            fetch(site.add("/x", DATA, length=length), path)
        assert not path.exists()

    def test_more_than_the_length_says_is_not_taken(self, site: Site, path: Path) -> None:
        fetch(site.add("/x", DATA + b"more", length=str(len(DATA))), path)
        assert path.read_bytes() == DATA

    def test_less_than_the_length_says_is_not_all(self, site: Site, path: Path) -> None:
        with pytest.raises(Unreachable, match="broke off after 2,999,999 of 3,000,000"):
            fetch(site.add("/x", DATA[:-1], length=str(len(DATA)), ranges=False), path)

    def test_without_a_length_it_is_bounded_all_the_same(self, site: Site, path: Path) -> None:
        fetch(site.add("/x", DATA, length=""), path)
        assert path.read_bytes() == DATA
        path.unlink()
        with pytest.raises(WrongImage, match="more than the 3,000,000 bytes"):
            fetch(site.add("/x", DATA + b"x", length=""), path)
        with pytest.raises(WrongImage, match="more than the 1,000 bytes"):
            HTTP.download(site.add("/x", DATA, length=""), str(path), None, 1000, lambda *_: None)
        assert path.stat().st_size <= len(DATA)

    def test_of_unknown_size(self, site: Site, path: Path) -> None:
        fetch(site.add("/x", DATA, cuts=[5]), path, None)
        assert path.read_bytes() == DATA

    def test_through_a_redirect(self, site: Site, path: Path) -> None:
        site.add("/x", DATA, etag='"1"', cuts=[1_000_000])
        assert fetch(site.add("/latest", location="/x"), path)
        assert path.read_bytes() == DATA

    def test_a_part_that_was_not_asked_for_begins_anew(self, site: Site, path: Path) -> None:
        url = site.add("/x", DATA, cuts=[1_000_000], range_shift=7)
        assert not fetch(url, path)
        assert path.read_bytes() == DATA
        assert [headers.get("Range") for headers in site.requests_for("/x")] == [None, "bytes=1000000-", None]
