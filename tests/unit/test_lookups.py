"""The lookups and the templates of reports, called by Ansible. The tests of their functions are in other files."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT
from tests.support.local_play import run_locally

from .test_isolated_lab import phase, tried

WORDS = ["amber", "birch", "cedar", "daisy", "elder", "fern"]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the files that tests/unit/lookups/evaluate.yml has written, in one run for all tests."""
    folder = tmp_path_factory.mktemp("lookups")
    (folder / "known_hosts").write_text("pi-01 ssh-ed25519 AAAA\n")
    with tarfile.open(folder / "images.tar", "w") as tar:
        data = json.dumps([{"RepoTags": ["a:1"]}]).encode()
        info = tarfile.TarInfo("manifest.json")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    given = {
        "folder": str(folder),
        "words": WORDS,
        "phases": [phase("before", tried(reached=True), 9), phase("isolated", tried())],
        "found": [{"name": "", "address": "10.0.0.7", "verdict": "unknown", "note": "<b>"}],
    }
    done = run_locally(ROOT / "tests/unit/lookups/evaluate.yml", given)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def results(evaluated: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((evaluated / "results.json").read_text())
    return found


def test_missing_certificate_is_not_valid(results: dict[str, Any]) -> None:
    assert results["certificate"] is False


def test_login_problems_name_key_and_nodes(results: dict[str, Any]) -> None:
    key, host = results["login"]
    assert "cards.yml generates it" in key and "--limit pi-02" in host


def test_secrets_are_weak_or_strong_passwords(results: dict[str, Any]) -> None:
    assert results["weak"]["ssh"]["password"] in WORDS
    assert len(results["good"]["ssh"]["password"]) == 20 and "unsalted.txt" not in results["good"]["desk"]["files"]


def test_empty_folder_has_no_snaps(results: dict[str, Any]) -> None:
    assert results["snaps"]["files"] == [] and len(results["snaps"]["problems"]) == 2


def test_images_have_full_names(results: dict[str, Any]) -> None:
    assert results["images"] == ["docker.io/library/a:1"]


def test_reports_escape_their_content(evaluated: Path) -> None:
    page, picture = ((evaluated / name).read_text() for name in ("report.html", "discover.svg"))
    assert page.count("<tr>") == len(tried()) + 1 and "as &lt;seen&gt;" in page and "<svg xmlns=" in page
    assert "&lt;b&gt;" in picture and "<b>" not in picture
