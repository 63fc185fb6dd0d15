"""Run playbooks/image.yml with all publishers on a server of this machine, and write cards from its images."""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.rehearsal import Play, play
from tests.support.web import Site

Run = Callable[..., Play]
DOWNLOAD_TASK = "localhost: Download the image unless it is in the cache"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def xz(image: Path) -> bytes:
    """The tiny card image, compressed."""
    return lzma.compress(image.read_bytes(), preset=0)


@pytest.fixture
def lock(site: Site, image: Path, xz: bytes, tmp_path: Path) -> Path:
    """A catalogue of one image on the site, whose OS list has a newer release."""
    entry = {
        "description": "tiny",
        "architectures": ["arm64"],
        "init_format": "cloudinit",
        "release_date": "2026-10-06",
        "url": site.add("/tiny-1.img.xz", xz),
        "download": {"bytes": len(xz), "sha256": sha256(xz)},
        "extracted": {"bytes": image.stat().st_size, "sha256": None},
        "verified": "second-hand",
        "source": {"publisher": "raspberrypi", "url": f"{site.url}/tiny-*.img.xz"},
    }
    path = tmp_path / "catalog.yml"
    path.write_text("# A comment.\n" + yaml.safe_dump({"images": {"tiny": entry}}, sort_keys=False))
    newer = {"url": site.add("/tiny-2.img.xz", xz), "image_download_sha256": sha256(xz), "release_date": "2026-11-10"}
    site.add("/v4.json", json.dumps({"os_list": [{"subitems": [newer]}]}).encode())
    return path


@pytest.fixture
def run(site: Site, lock: Path, tmp_path: Path) -> Run:
    """A function that runs a playbook with this catalogue and an empty cache."""
    variables = {
        "cluster_image": "tiny",
        "cluster_architecture": "arm64",
        "image_catalog_file": str(lock),
        "image_cache_dir": str(tmp_path / "cache"),
        "image_catalog_url": f"{site.url}/v4.json",
        "image_allow_http": True,
    }

    def run(playbook: str = "image", arguments: str = "", check: bool = False, **more: Any) -> Play:
        return play(playbook, variables=variables | more, arguments=arguments, check=check)

    return run


def output_of(run: Play) -> str:
    """Return the output of a run."""
    return "\n".join(event.get("stdout", "") for event in run.events)


def failure(run: Play) -> str:
    assert run.status == "failed", run.status
    return "\n".join(run.failed.values())


def test_fetch(run: Run, site: Site, image: Path, tmp_path: Path) -> None:
    dry = run(arguments="--check")
    assert dry.changes() == [DOWNLOAD_TASK]
    assert site.requests == [] and not (tmp_path / "cache").exists()
    first = run()
    assert first.changes() == [DOWNLOAD_TASK]
    assert "image  tiny  decode  100 % of" in output_of(first)
    assert "The pinned hashes of tiny are second-hand" in output_of(first)
    manifest = json.loads((tmp_path / "cache/tiny-arm64.json").read_text())
    assert (tmp_path / "cache" / manifest["file"]).read_bytes() == image.read_bytes()
    count = len(site.requests)
    assert run().changes() == [] and run(arguments="--check").changes() == [] and len(site.requests) == count


def test_update(run: Run, lock: Path, site: Site) -> None:
    before = lock.read_text()
    dry = run(arguments="--check --diff -e image_update=true")
    assert dry.changes() == ["localhost: Update the catalogue to the newest releases"]
    assert lock.read_text() == before
    done = run(arguments="--diff", image_update=True)
    assert "-    release_date: '2026-10-06'" in output_of(done) and '+    release_date: "2026-11-10"' in output_of(done)
    assert f"tiny: url: {site.url}/tiny-1.img.xz -> {site.url}/tiny-2.img.xz" in output_of(done)
    assert yaml.safe_load(lock.read_text())["images"]["tiny"]["url"] == f"{site.url}/tiny-2.img.xz"
    assert lock.read_text().startswith("# A comment.\n") and "second-hand" not in lock.read_text()
    again = run(image_update=True)
    assert again.changes() == [] and "The catalogue is up to date." in output_of(again)
    assert "second-hand" not in output_of(run())


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"cluster_image": "windows"}, "There is no image named windows"),
        ({"cluster_architecture": "amd64"}, "The image tiny exists for arm64"),
        ({"image_allow_http": False}, "is not an https URL"),
        ({"image_file": "/nowhere", "image_sha256": "0" * 64}, "/nowhere is not a file"),
        ({"image_update": True, "image_update_names": ["windows"]}, "has no image windows with a source"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(run: Run, site: Site, variables: dict, words: str) -> None:
    assert words in failure(run(**variables))
    assert site.requests == []


def test_without_internet(run: Run, site: Site, tmp_path: Path, xz: bytes) -> None:
    site.close()
    message = failure(run(image_timeout=5))
    folder = tmp_path / "cache"
    assert f"put it into {folder} under the name tiny-1.img.xz" in message
    (folder / "tiny-1.img.xz").write_bytes(xz)
    assert run().status == "successful"


@pytest.mark.parametrize("given", ["file", "image"])
def test_cards_from_a_compressed_file_of_the_user(run: Run, given: str, image: Path, xz: bytes, tmp_path: Path) -> None:
    (tmp_path / "mine.img.xz").write_bytes(xz)
    flash = partial(
        run,
        "cards",
        arguments="--limit pi-01",
        cluster_name="unit",
        cluster_state_dir=str(tmp_path / "state"),
        card_slot=f"{tmp_path}/{{{{ inventory_hostname }}}}.card",
        card_virtual_bytes=64 * 2**20,
        image_file=str(tmp_path / "mine.img.xz"),
        image_sha256=sha256(xz) if given == "file" else sha256(image.read_bytes()),
    )
    first = flash()
    assert first.status == "successful", first.failed
    card = (tmp_path / "pi-01.card").read_bytes()
    assert card[446:512] == image.read_bytes()[446:512], "the partition table"
    assert flash().changes() == []
