"""The bundle's name and its bytes depend on what goes in, and on nothing else."""

from __future__ import annotations

import hashlib
import sys
import tarfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "plugins/modules"))
import wheel_bundle


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "bramble").mkdir(parents=True)
    (folder / "pyproject.toml").write_text("[project]\n")
    (folder / "bramble/__init__.py").write_text("")
    (tmp_path / "requirements.txt").write_text("dask==1\n")
    return folder


def identity(source: Path, python: str = "3.13", architecture: str = "aarch64") -> str:
    return wheel_bundle.bundle_id(source.parent / "requirements.txt", source, python, architecture)


def test_the_id_follows_the_content(source: Path) -> None:
    first = identity(source)
    (source / "build").mkdir()
    (source / "build/stale.py").write_text("left by setuptools")
    assert identity(source) == first
    assert len({first, identity(source, "3.12"), identity(source, architecture="x86_64")}) == 3
    (source / "bramble/__init__.py").write_text("x = 1\n")
    assert identity(source) != first


def test_the_same_files_make_the_same_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in ("b.whl", "a.whl"):
        (folder / name).write_text(name)
    wheel_bundle.pack(folder, "id", tmp_path / "one.tar")
    (folder / "a.whl").touch()
    wheel_bundle.pack(folder, "id", tmp_path / "two.tar")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as archive:
        assert archive.getnames() == ["id", "id/a.whl", "id/b.whl"]
    assert not list(tmp_path.glob("*.partial"))


def test_pip_never_judges_markers_by_this_machine(tmp_path: Path) -> None:
    command = wheel_bundle.download_command(tmp_path / "r.txt", tmp_path, "3.13", "aarch64")
    assert {"--no-deps", "--require-hashes", "--only-binary=:all:", "--python-version=3.13"} <= set(command)
    assert "--platform=manylinux_2_28_aarch64" in command


def test_the_projects_own_wheel_is_pinned_too(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("dask==1 --hash=sha256:00\n")
    for name in ("bramble-0.1.0-py3-none-any.whl", "pip-26.3-py3-none-any.whl"):
        (tmp_path / name).write_text(name)
    wheel_bundle.finish(tmp_path, tmp_path / "requirements.txt")
    lines = (tmp_path / "requirements.txt").read_text().splitlines()
    digest = hashlib.sha256(b"bramble-0.1.0-py3-none-any.whl").hexdigest()
    assert lines == ["dask==1 --hash=sha256:00", f"bramble==0.1.0 --hash=sha256:{digest}"]
    assert (tmp_path / "installer.zip").read_text() == "pip-26.3-py3-none-any.whl"
