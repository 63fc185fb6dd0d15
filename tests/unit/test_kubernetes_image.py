"""The builder of the container image: what it writes, and what it refuses. `make test-kubernetes` runs the image."""

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
    """A tree with a program, a link and a folder that everyone can write to."""
    tree = tmp_path / "tree"
    (tree / "usr/bin").mkdir(parents=True)
    (tree / "usr/bin/program").write_text("#!/bin/sh\n")
    (tree / "usr/bin/program").chmod(0o755)
    (tree / "bin").symlink_to("usr/bin")
    (tree / "tmp").mkdir()
    (tree / "tmp").chmod(0o1777)
    return tree


def image(folder: Path, tree: Path) -> Path:
    """Write an archive of a tree, and return its path."""
    folder.mkdir()
    config = build.image_config("arm64", [build.write_layer(tree, ["usr", "bin", "tmp"], folder / "layer")])
    build.write_archive(folder, folder / "image.tar", "localhost/bramble:1", config, [folder / "layer"])
    return folder / "image.tar"


def test_blobs_of_an_archive_have_their_hashes(tree: Path, tmp_path: Path) -> None:
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
    # The file that older versions of Docker read has the same content.
    (old,) = json.loads(files["manifest.json"])
    assert files[old["Config"]] == blob(manifest["config"]) and [files[name] for name in old["Layers"]] == [layer]
    assert old["RepoTags"] == ["localhost/bramble:1"]


def test_layer_has_no_owners_and_times_and_is_reproducible(tree: Path, tmp_path: Path) -> None:
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


def test_only_byte_code_of_equal_sources_is_copied(tmp_path: Path) -> None:
    native, other = tmp_path / "native", tmp_path / "other"
    for folder, differs in ((native, "1"), (other, "2")):
        folder.mkdir()
        (folder / "same.py").write_text("x = 1\n")
        (folder / "differs.py").write_text(f"x = {differs}\n")
    (native / "alone.py").write_text("x = 1\n")
    subprocess.run([sys.executable, "-m", "compileall", "-q", native], check=True)
    build.copy_compiled(native, other)
    assert [path.name.partition(".")[0] for path in other.rglob("*.pyc")] == ["same"]


def test_invalid_bundle_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BrambleError, match="is not a bundle"):
        build.read_bundle_kind(tmp_path)
    assert build.main([f"--bundle={tmp_path}", f"--cache={tmp_path}"]) == 1
    assert "ansible-playbook playbooks/kubernetes_image.yml" in capfd.readouterr().err


def test_check_writes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "manifest.json").write_text('{"release": "trixie", "python": "3.13", "architecture": "aarch64"}')
    arguments = [f"--bundle={tmp_path}", f"--cache={tmp_path}/cache", "--check"]
    assert build.main(arguments) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["changed"] and not (tmp_path / "cache").exists() and "/bramble-aarch64-" in result["archive"]
    # Another bundle gives another image.
    (tmp_path / "manifest.json").write_text('{"release": "trixie", "python": "3.13", "architecture": "aarch64", "more": 1}')
    assert build.main(arguments) == 0 and json.loads(capfd.readouterr().out)["image"] != result["image"]
