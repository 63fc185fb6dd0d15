"""The builder of the container image: what it writes, and what it refuses. That it runs, `make test-kubernetes` shows."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bramble.cluster.images.kubernetes import build
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with a program, a link and a folder that is anybody's."""
    tree = tmp_path / "tree"
    (tree / "usr/bin").mkdir(parents=True)
    (tree / "usr/bin/program").write_text("#!/bin/sh\n")
    (tree / "usr/bin/program").chmod(0o755)
    (tree / "bin").symlink_to("usr/bin")
    (tree / "tmp").mkdir()
    (tree / "tmp").chmod(0o1777)
    return tree


def image(folder: Path, tree: Path) -> Path:
    """An archive of a tree."""
    folder.mkdir()
    config = build.image_config("arm64", [build.write_layer(tree, ["usr", "bin", "tmp"], folder / "layer")])
    build.write_archive(folder, folder / "image.tar", "localhost/bramble:1", config, [folder / "layer"])
    return folder / "image.tar"


def test_everything_in_an_archive_is_where_its_hash_says(tree: Path, tmp_path: Path) -> None:
    with tarfile.open(image(tmp_path / "one", tree)) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]

    def blob(entry: dict[str, Any]) -> bytes:
        data = files[f"blobs/sha256/{entry['digest'].removeprefix('sha256:')}"]
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == entry["digest"] and len(data) == entry["size"]
        return data

    (entry,) = json.loads(files["index.json"])["manifests"]
    assert entry["annotations"]["io.containerd.image.name"] == "localhost/bramble:1"
    manifest = json.loads(blob(entry))
    config = json.loads(blob(manifest["config"]))
    assert config["architecture"] == "arm64" and config["config"]["User"] == f"{build.USER}:{build.USER}"
    (layer,) = (blob(layer) for layer in manifest["layers"])
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(gzip.decompress(layer)).hexdigest()}"]
    # What an older Docker reads says the same.
    (old,) = json.loads(files["manifest.json"])
    assert files[old["Config"]] == blob(manifest["config"]) and [files[name] for name in old["Layers"]] == [layer]
    assert old["RepoTags"] == ["localhost/bramble:1"]


def test_a_layer_has_no_owners_and_no_times_and_is_the_same_again(tree: Path, tmp_path: Path) -> None:
    first = image(tmp_path / "one", tree).read_bytes()
    (tree / "usr/bin/program").touch()
    assert image(tmp_path / "two", tree).with_name("image.tar").stat().st_size == len(first)
    build.write_layer(tree, ["usr", "bin", "tmp"], tmp_path / "layer")
    with tarfile.open(tmp_path / "layer") as tar:
        found = {member.name: member for member in tar}
    assert {(member.uid, member.gid, member.mtime, member.uname) for member in found.values()} == {(0, 0, 0, "")}
    assert found["usr/bin/program"].mode == 0o755 and found["tmp"].mode == 0o1777 and found["bin"].linkname == "usr/bin"
    layers = [sorted((tmp_path / name / "blobs/sha256").iterdir()) for name in ("one", "two")]
    assert [path.name for path in layers[0]] == [path.name for path in layers[1]]


def test_only_what_was_compiled_from_the_same_source_is_taken(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    for folder, differs in ((own, "1"), (other, "2")):
        folder.mkdir()
        (folder / "same.py").write_text("x = 1\n")
        (folder / "differs.py").write_text(f"x = {differs}\n")
    (own / "alone.py").write_text("x = 1\n")
    subprocess.run([sys.executable, "-m", "compileall", "-q", own], check=True)
    build.copy_compiled(own, other)
    assert [path.name.partition(".")[0] for path in other.rglob("*.pyc")] == ["same"]


def test_what_is_no_bundle_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BrambleError, match="is no bundle"):
        build.read_bundle_kind(tmp_path)
    assert build.main([f"--bundle={tmp_path}", f"--cache={tmp_path}"]) == 1
    assert "playbooks/kubernetes_image.yml makes one" in capfd.readouterr().err


def test_a_dry_run_makes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "manifest.json").write_text('{"release": "trixie", "python": "3.13", "architecture": "aarch64"}')
    arguments = [f"--bundle={tmp_path}", f"--cache={tmp_path}/cache", "--check"]
    assert build.main(arguments) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["changed"] and not (tmp_path / "cache").exists() and "/bramble-aarch64-" in told["archive"]
    # Another bundle is another image.
    (tmp_path / "manifest.json").write_text('{"release": "trixie", "python": "3.13", "architecture": "aarch64", "more": 1}')
    assert build.main(arguments) == 0 and json.loads(capfd.readouterr().out)["image"] != told["image"]
