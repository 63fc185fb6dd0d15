"""The report of `bramble compare`: its content, and that a browser shows it without a network."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bramble import ResultError
from bramble.programs.compare import run
from bramble.programs.registry import comparisons

from .conftest import Bramble
from .test_cli import assert_error
from .test_cli import run as command

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def folder(cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:  # type: ignore[no-untyped-def]
    """A report of a small run in all three places."""
    folder = tmp_path_factory.mktemp("compare") / "report"
    done = subprocess.run(
        [sys.executable, "-m", "bramble", "compare", "pi", "bell", "--minutes", "0.1", "--report", str(folder)],
        env=cluster.environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done
    return folder


def test_the_record_lists_places_and_workloads(folder: Path) -> None:
    record = json.loads((folder / "compare.json").read_text())
    assert [place["on"] for place in record["places"]] == ["local", "workstation", "cluster"]
    assert [node["name"] for node in record["places"][2]["nodes"]] == ["pi-01", "pi-02", "pi-03"]
    assert [workload["name"] for workload in record["workloads"]] == ["pi", "bell"]
    for workload in record["workloads"]:
        assert [entry["on"] for entry in workload["record"]["runs"]] == ["local", "workstation", "cluster"]
        assert workload["error"] is None
    assert (folder / "pi/pi.json").exists() and (folder / "bell/quantum.png").exists()


def test_the_page_is_complete_and_loads_nothing_else(folder: Path) -> None:
    page = (folder / "compare.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page) and "http" not in page and "@import" not in page
    record = json.loads((folder / "compare.json").read_text())
    for workload in record["workloads"]:
        assert f'<section id="{workload["name"]}">' in page
        for entry in workload["record"]["runs"]:
            assert f"{entry['seconds']:.2f}" in page and f"{entry['speedup']:.2f}×" in page
    assert all(name in page for name in ("pi-01", "pi-02", "pi-03", *record["versions"].values()))


def test_a_browser_shows_it(folder: Path, tmp_path: Path) -> None:
    """All pictures load, nothing overflows the page at desktop and phone width, and the page is not blank."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("Chromium is not installed")
    probe = (
        "<script>addEventListener('load', () => { document.title = JSON.stringify({"
        "images: [...document.images].map(image => image.naturalWidth),"
        "bars: [...document.querySelectorAll('.bar i')].map(bar => bar.getBoundingClientRect().width),"
        "overflow: document.documentElement.scrollWidth - innerWidth}) })</script>"
    )
    probed = tmp_path / "probed.html"
    probed.write_text((folder / "compare.html").read_text() + probe)

    def browse(*options: str) -> str:
        common = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND"]
        done = subprocess.run(
            [chromium, *common, f"--user-data-dir={tmp_path / 'profile'}", *options, probed.as_uri()],
            capture_output=True, text=True, timeout=90, check=True,
        )  # fmt: skip
        return done.stdout

    for width in (1200, 600):
        title = re.search(r"<title>(.*?)</title>", browse(f"--window-size={width},1000", "--dump-dom"))
        assert title
        seen = json.loads(title[1])
        assert len(seen["images"]) == 2 and all(size > 100 for size in seen["images"])
        assert len(seen["bars"]) == 6 and all(bar > 1 for bar in seen["bars"])
        assert seen["overflow"] <= 0
    browse("--window-size=1200,1000", f"--screenshot={tmp_path / 'page.png'}")
    assert (tmp_path / "page.png").stat().st_size > 20_000  # a blank page has 5 kB


def test_a_workload_that_fails_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report names it."""
    from bramble.study import report, runs

    def broken(record: dict[str, Any]) -> None:
        raise ResultError("it is <wrong>")

    def pi(seconds: float) -> Any:
        """Pi, with a check that fails."""
        return replace(comparisons()["pi"](seconds), check=broken)

    monkeypatch.setattr(run, "comparisons", lambda: {"first": pi, "second": comparisons()["pi"]})
    request = runs.Request("local", True, report=tmp_path / "report")
    monkeypatch.setattr(runs, "PLACES", ("local",))
    record = run.run_all(0.05, [], request, report.Screen("-"))
    run.write_report(record, request)
    assert [workload["error"] for workload in record["workloads"]] == ["it is <wrong>", None]
    with pytest.raises(ResultError, match="1 of 2 workloads have no valid result: first"):
        run.check(record)
    assert "No valid result: it is &lt;wrong&gt;" in (tmp_path / "report/compare.html").read_text()


def test_unknown_workloads_and_configurations(bramble: Bramble) -> None:
    assert_error(command("compare", "nope", "--on", "local", config="/nowhere"), 2, "nope", "pi", "bell")
    assert_error(command("compare", "--report", "/proc/x", config="/nowhere/cluster.toml"), 2, "/nowhere/cluster.toml")


def test_every_comparison_has_a_description() -> None:
    for name, make in comparisons().items():
        assert len(make.__doc__ or "") > 40, name
        assert make(0.2).name
