"""Run playbooks/image.yml with all publishers on a server of this machine, and write cards from its images."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import ROOT
from tests.support.rehearsal import HARDWARE, Play, play
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


def ansible_playbook(folder: Path, home: Path, *arguments: str | bytes | Path) -> subprocess.CompletedProcess[str]:
    """Run playbooks/image.yml in a folder, as a user does."""
    command: list[str | bytes | Path] = [Path(sys.executable).with_name("ansible-playbook"), ROOT / "playbooks/image.yml"]
    for source in HARDWARE:
        command += ["-i", source]
    environment = os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "HOME": str(home)}
    environment |= {"ANSIBLE_HOME": str(ROOT / ".ansible"), "NAME": "replaced", "ANSIBLE_LOCAL_TEMP": str(home / ".tmp")}
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, errors="replace", check=False
    )


class TestFileNames:
    """The name of image_file, through ansible-playbook with a file of variables."""

    @pytest.fixture
    def provide(self, image: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
        """Writes the image to a file, runs the playbook with a value of image_file, and returns the manifest."""
        (tmp_path / "home").mkdir()

        def provide(path: Path, image_file: str, folder: Path = ROOT) -> dict[str, Any]:
            path.write_bytes(image.read_bytes())
            variables = {
                "image_file": image_file,
                "image_sha256": sha256(image.read_bytes()),
                "image_cache_dir": str(tmp_path / "cache"),
            }
            (tmp_path / "vars.json").write_text(json.dumps(variables))
            done = ansible_playbook(folder, tmp_path / "home", "-e", f"@{tmp_path}/vars.json")
            assert done.returncode == 0, done.stdout + done.stderr
            (manifest,) = (tmp_path / "cache").glob("file-*.json")
            facts: dict[str, Any] = json.loads(manifest.read_text())
            assert (tmp_path / "cache" / facts["file"]).read_bytes() == image.read_bytes()
            return facts

        return provide

    @pytest.mark.parametrize("name", ["a [1] (2) Grüße+.img", 'it\'s "x" $NAME ${NAME}.img', "~root", "-a\nb;`id`.img"])
    def test_any_name(self, name: str, provide: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
        assert provide(tmp_path / name, str(tmp_path / name))["source"] == str(tmp_path / name)

    @pytest.mark.parametrize("name", ["-x $NAME.img", "~"])
    def test_relative_name(self, name: str, provide: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
        """It begins in the folder where ansible-playbook was started."""
        (tmp_path / "start").mkdir()
        path = tmp_path / "start" / name
        assert provide(path, name, tmp_path / "start")["source"] == str(path)

    def test_home(self, provide: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
        path = tmp_path / "home/~ $NAME.img"
        assert provide(path, "~/~ $NAME.img")["source"] == str(path)

    @pytest.mark.parametrize("compression", ["raw", "xz"])
    def test_bytes_that_are_not_utf_8(self, compression: str, image: Path, xz: bytes, tmp_path: Path) -> None:
        """Ansible accepts them only on the command line."""
        content = xz if compression == "xz" else image.read_bytes()
        path = os.fsencode(tmp_path) + b"/x\xff.img"
        Path(os.fsdecode(path)).write_bytes(content)
        (tmp_path / "home").mkdir()
        more: list[str | bytes | Path] = ["-e", b"image_file=" + path, "-e", f"image_cache_dir={tmp_path}/cache"]
        for expected in ("changed=1", "changed=0"):
            done = ansible_playbook(tmp_path, tmp_path / "home", *more, "-e", f"image_sha256={sha256(content)}")
            assert done.returncode == 0 and expected in done.stdout, done.stdout + done.stderr
        done = ansible_playbook(tmp_path, tmp_path / "home", *more, "-e", "image_sha256=" + "0" * 64)
        assert done.returncode == 2 and "x\\udcff.img does not have the SHA-256" in done.stdout.replace("\n", " "), done.stdout


@pytest.mark.parametrize(
    ("playbook", "content", "words"),
    [
        ("image", b"7z\xbc\xaf\x27\x1c" + bytes(4096), "a 7z archive. Unpack it, and set image_file to the image in it: 7z x"),
        ("image", b"", "is empty"),
        ("image", bytes(510) + b"\x55\xaa" + bytes(4096), "partition 1, the FAT boot partition, is missing"),
        ("cards", b"QFI\xfb" + bytes(4096), "qemu-img convert -O raw"),
    ],
    ids=["7z", "empty", "no partition", "qcow2"],
)
def test_what_is_not_a_card_image(run: Run, playbook: str, content: bytes, words: str, tmp_path: Path) -> None:
    """Both playbooks refuse it, in check mode as well."""
    (tmp_path / "x").write_bytes(content)
    more: dict[str, Any] = {"image_file": str(tmp_path / "x"), "image_sha256": sha256(content)}
    if playbook == "cards":
        more |= {"cluster_name": "unit", "cluster_state_dir": str(tmp_path / "state"), "card_virtual_bytes": 2**26}
        more["card_slot"] = f"{tmp_path}/{{{{ inventory_hostname }}}}.card"
    for arguments in ("--check", ""):
        assert words in failure(run(playbook, arguments=f"{arguments} --limit pi-01,localhost", **more)), arguments
    assert not list(tmp_path.glob("*.card")) and not list((tmp_path / "cache").glob("*.img"))


@pytest.mark.parametrize("name", ["$HOME [1] ü.img", 'it\'s a "card".img'])
def test_cards_from_a_raw_file_with_any_name(run: Run, name: str, image: Path, tmp_path: Path) -> None:
    """The name gets as far as the cards, in check mode as well."""
    (tmp_path / name).write_bytes(image.read_bytes())
    variables: dict[str, Any] = {
        "cluster_name": "unit",
        "cluster_state_dir": str(tmp_path / "state"),
        "card_virtual_bytes": 2**26,
    }
    variables |= {"card_slot": f"{tmp_path}/{{{{ inventory_hostname }}}}.card"}
    variables |= {"image_file": str(tmp_path / name), "image_sha256": sha256(image.read_bytes())}
    for arguments in ("--check", ""):
        done = run("cards", arguments=f"{arguments} --limit pi-01", **variables)
        assert done.status == "successful", done.failed
    assert (tmp_path / "pi-01.card").read_bytes()[446:512] == image.read_bytes()[446:512]
