"""Bundles are complete and signed. The tests make them with the real apt, pip and ssh-keygen from a small distribution."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bramble.cluster.plugins.module_utils.bundle import debs as bundle_debs
from ansible_collections.bramble.cluster.plugins.module_utils.bundle.bundle import (
    MANIFEST,
    SIGNATURE,
    Kind,
    Manifest,
    check_signature,
    generate_key,
    manifest_entries,
    read_bundle,
    sign_manifest,
)
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.modules import package_bundle

KIND = Kind("trixie", "3.13", "aarch64")
Run = Callable[..., dict[str, Any]]


def output(*command: str | Path, **options: Any) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "bramble").mkdir(parents=True)
    (folder / "pyproject.toml").write_text("[project]\n")
    (folder / "bramble/__init__.py").write_text("")
    (tmp_path / "requirements.txt").write_text("dask==1\n")
    return folder


def identity(source: Path, kind: Kind = KIND, debs: tuple[str, ...] = ("chrony", "nmap"), image: str = "here/a.json") -> str:
    return package_bundle.bundle_id(kind, source.parent / "requirements.txt", source, debs, [Path(image)])


def test_id_depends_on_everything_in_the_bundle(source: Path) -> None:
    first = identity(source)
    (source / "build").mkdir()
    (source / "build/stale.py").write_text("left by setuptools")
    assert identity(source) == first == identity(source, debs=("nmap", "chrony"))
    others = [Kind("trixie", "3.12", "aarch64"), Kind("trixie", "3.13", "x86_64"), Kind("bookworm", "3.13", "aarch64")]
    assert len({first, identity(source, debs=("chrony",)), *(identity(source, kind) for kind in others)}) == 5
    (source / "bramble/__init__.py").write_text("x = 1\n")
    assert identity(source) != first


def test_id_depends_on_the_name_of_the_image(source: Path) -> None:
    """Its folder does not count, and without Debian packages no image counts."""
    first = identity(source)
    assert identity(source, image="there/a.json") == first != identity(source, image="here/b.json")
    assert identity(source, debs=(), image="here/b.json") == identity(source, debs=())


def test_pip_downloads_for_the_node_and_not_for_the_control_machine(tmp_path: Path) -> None:
    command = package_bundle.download_command(tmp_path / "r.txt", tmp_path, KIND)
    assert {"--no-deps", "--require-hashes", "--only-binary=:all:", "--python-version=3.13"} <= set(command)
    assert "--platform=manylinux_2_28_aarch64" in command


def test_own_wheel_of_the_project_is_pinned(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("dask==1 --hash=sha256:00\n")
    for name in ("bramble-0.1.0-py3-none-any.whl", "pip-26.3-py3-none-any.whl"):
        (tmp_path / name).write_text(name)
    package_bundle.add_installer(tmp_path)
    lines = (tmp_path / "requirements.txt").read_text().splitlines()
    digest = hashlib.sha256(b"bramble-0.1.0-py3-none-any.whl").hexdigest()
    assert lines == ["dask==1 --hash=sha256:00", f"bramble==0.1.0 --hash=sha256:{digest}"]
    assert (tmp_path / "installer.zip").read_text() == "pip-26.3-py3-none-any.whl"


LOCK = """# made by uv
--no-index
numpy==2.4.6 ; python_full_version < '3.12' \\
    --hash=sha256:aa \\
    --hash=sha256:bb
    # via distributed
numpy==2.5.5 ; python_full_version >= '3.12' \\
    --hash=sha256:cc
colorama==0.4.6 ; sys_platform == 'win32' --hash=sha256:dd
fast==1 ; platform_machine == 'aarch64' --hash=sha256:ee
"""


def test_markers_select_the_requirements_of_each_kind_of_node() -> None:
    older = Kind("bookworm", "3.11", "x86_64")
    fast = "fast==1 --hash=sha256:ee"
    assert package_bundle.requirements_for(LOCK, KIND).splitlines() == ["--no-index", "numpy==2.5.5 --hash=sha256:cc", fast]
    assert package_bundle.requirements_for(LOCK, older).splitlines() == [
        "--no-index",
        "numpy==2.4.6 --hash=sha256:aa --hash=sha256:bb",
    ]
    with pytest.raises(BrambleError, match="'nonsense here' cannot be read"):
        package_bundle.requirements_for("nonsense here --hash=sha256:aa", KIND)


# The signature and the manifest


@pytest.fixture
def bundle(tmp_path: Path) -> tuple[Path, str]:
    """A small bundle, and the public key that it is signed with."""
    folder, key = tmp_path / "0123456789ab", tmp_path / "key"
    for name in ("debs/Packages", "debs/chrony_4.6~1+b2_arm64.deb", "wheels/dask-1-py3-none-any.whl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    generate_key(key)
    manifest = Manifest(folder.name, KIND, ("chrony",), manifest_entries(folder)).to_json()
    (folder / MANIFEST).write_bytes(manifest)
    (folder / SIGNATURE).write_bytes(sign_manifest(manifest, key))
    return folder, key.with_name("key.pub").read_text()


def test_complete_and_signed_bundle_is_read(bundle: tuple[Path, str]) -> None:
    folder, key = bundle
    manifest, digest = read_bundle(folder, [key])
    assert manifest.kind == KIND and manifest.debs == ("chrony",) and len(manifest.files) == 3
    assert digest == hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    assert manifest.total_bytes == sum(path.stat().st_size for path in folder.glob("*/*"))


def test_all_missing_and_altered_files_are_named(bundle: tuple[Path, str]) -> None:
    folder, key = bundle
    (folder / "debs/Packages").unlink()
    (folder / "wheels/dask-1-py3-none-any.whl").write_text("WHEELS/dask-1-py3-none-any.whl")  # as long as before
    with pytest.raises(BrambleError) as refused:
        read_bundle(folder, [key])
    assert "debs/Packages is missing" in str(refused.value) and "wheels/dask-1-py3-none-any.whl is altered" in str(refused.value)
    assert "chrony" not in str(refused.value)


def test_only_a_trusted_signature_over_the_same_bytes_is_accepted(bundle: tuple[Path, str], tmp_path: Path) -> None:
    folder, key = bundle
    generate_key(tmp_path / "other")
    other = (tmp_path / "other.pub").read_text()
    data, signature = (folder / MANIFEST).read_bytes(), (folder / SIGNATURE).read_bytes()
    check_signature(data, signature, [other, key])
    for given, mark, keys in (
        (data, signature, [other]),
        (data, signature, []),
        (data, sign_manifest(data, tmp_path / "other"), [key]),
        (data + b" ", signature, [key]),
        (data, b"", [key]),
    ):
        with pytest.raises(BrambleError, match="signed neither by"):
            check_signature(given, mark, keys)
    (folder / SIGNATURE).unlink()
    with pytest.raises(BrambleError, match=r"manifest.json.sig is missing"):
        read_bundle(folder, [key])


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "debs/../../x", "debs/a b", "other/x", "debs/.hidden"])
def test_manifest_cannot_name_files_outside_its_folder(name: str) -> None:
    content = {"format": 1, "id": "x", "release": "a", "python": "3", "architecture": "b", "debs": []}
    with pytest.raises(BrambleError, match="no bundle has"):
        Manifest.from_json(json.dumps({**content, "files": {name: {"sha256": "", "bytes": 0}}}).encode())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "files": 3}', '{"format": 2}'])
def test_other_json_is_refused_as_a_manifest(text: str) -> None:
    with pytest.raises(BrambleError, match=r"manifest.json is not the manifest|format 2"):
        Manifest.from_json(text.encode())


def test_packed_bundle_ends_with_the_manifest(bundle: tuple[Path, str], tmp_path: Path, run_module: Run) -> None:
    """So an interrupted unpacking leaves no manifest. A damaged bundle is not packed."""
    folder, key = bundle
    arguments = {"src": str(folder), "dest": str(tmp_path / "b.tar"), "keys": [key]}
    assert run_module("bundle_pack", arguments)["changed"]
    with tarfile.open(tmp_path / "b.tar") as archive:
        assert archive.getnames()[-2:] == [f"{folder.name}/{SIGNATURE}", f"{folder.name}/{MANIFEST}"]
        assert len(archive.getnames()) == 5 and {member.uid for member in archive} == {0}
    (folder / "debs/Packages").write_text("altered")
    refused = run_module("bundle_pack", arguments)
    assert refused["failed"] and "debs/Packages is altered" in refused["msg"]


# The Debian packages


def deb(folder: Path, name: str, version: str, depends: str = "") -> None:
    """Build a .deb file."""
    tree = folder / f"{name}.tree"
    (tree / "DEBIAN").mkdir(parents=True)
    control = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: nobody <no@body>\nDescription: for a test\n"
    (tree / "DEBIAN/control").write_text(control + (f"Depends: {depends}\n" if depends else ""))
    output("dpkg-deb", "--root-owner-group", "--build", tree, folder / f"{name}_{version.replace(':', '%3a')}_all.deb")


@pytest.fixture
def distribution(tmp_path: Path) -> Path:
    """A signed archive of three packages, and an image that trusts it and has one of them. Returns the image's manifest."""
    archive, home = tmp_path / "archive", tmp_path / "gnupg"
    archive.mkdir()
    home.mkdir(mode=0o700)
    deb(archive, "wanted", "1:2.0", "needed (>= 1), present")
    deb(archive, "needed", "1.5")
    deb(archive, "present", "3")
    (archive / "Packages").write_text(bundle_debs.package_index(archive))
    packages = (archive / "Packages").read_bytes()
    digest = hashlib.sha256(packages).hexdigest()
    (tmp_path / "Release").write_text(f"Date: Mon, 01 Jan 2024 00:00:00 UTC\nSHA256:\n {digest} {len(packages)} Packages\n")
    gpg: list[str | Path] = ["gpg", "--homedir", home, "--batch", "--quiet", "--pinentry-mode=loopback", "--passphrase="]
    output(*gpg, "--quick-generate-key", "test", "ed25519", "sign", "never")
    output(*gpg, "--clearsign", "--output", archive / "InRelease", tmp_path / "Release")
    output("gpgconf", "--homedir", home, "--kill", "gpg-agent")

    tree = tmp_path / "tree"
    for name in ("etc/apt/sources.list.d", "usr/share/keyrings", "usr/lib", "var/lib/dpkg", "var/lib/apt"):
        (tree / name).mkdir(parents=True)
    (tree / "usr/share/keyrings/test.gpg").write_bytes(subprocess.run([*gpg, "--export"], check=True, capture_output=True).stdout)
    (tree / "etc/apt/sources.list.d/test.sources").write_text(
        f"Types: deb\nURIs: copy:{archive}\nSuites: ./\nSigned-By: /usr/share/keyrings/test.gpg\n"
    )
    # A setting of the image that would run a program on this machine.
    (tree / "etc/apt/apt.conf.d").mkdir()
    (tree / "etc/apt/apt.conf.d/99evil").write_text(f'APT::Update::Pre-Invoke {{"touch {tmp_path}/evil"}};\n')
    (tree / "usr/lib/os-release").write_text("VERSION_CODENAME=trixie\n")
    (tree / "var/lib/apt/extended_states").write_text("")
    installed = [("dpkg", "1.22", "amd64"), ("python3", "3.13.5-1", "amd64"), ("present", "3", "all")]
    (tree / "var/lib/dpkg/status").write_text(
        "".join(
            f"Package: {name}\nEssential: no\nStatus: install ok installed\nMaintainer: nobody <no@body>\n"
            f"Architecture: {architecture}\nVersion: {version}\nDescription: for a test\n\n"
            for name, version, architecture in installed
        )
    )
    return card_image(tmp_path, tree)


def card_image(folder: Path, tree: Path) -> Path:
    """Build an image whose root file system has the files of a folder; return its manifest."""
    size, start = 16 << 20, 4 << 20
    sector = bytearray(512)
    for number, (kind, at, length) in enumerate(((0x0C, 1 << 20, 1 << 20), (0x83, start, size - start))):
        struct.pack_into("<B3xB3xII", sector, 446 + 16 * number, 0, kind, at // 512, length // 512)
    sector[510:] = b"\x55\xaa"
    image = folder / "tiny.img"
    with image.open("wb") as file:
        file.write(sector)
        file.truncate(size)
    output("mke2fs", "-q", "-F", "-t", "ext4", "-E", f"offset={start}", "-d", tree, image, f"{(size - start) // 1024}k")
    (folder / "tiny.json").write_text(json.dumps({"name": "tiny", "file": image.name}))
    return folder / "tiny.json"


def test_packages_that_the_image_lacks_are_downloaded_from_its_own_sources(distribution: Path, tmp_path: Path) -> None:
    image = bundle_debs.CardImage(distribution, tmp_path / "root")
    assert image.kind == Kind("trixie", "3.13", "x86_64")
    image.download_packages(["wanted"], tmp_path / "lists", tmp_path / "debs")
    assert sorted(path.name for path in (tmp_path / "debs").iterdir()) == ["needed_1.5_all.deb", "wanted_1%3a2.0_all.deb"]
    assert not (tmp_path / "evil").exists()
    index = bundle_debs.package_index(tmp_path / "debs")
    assert index.count("Package: ") == 2 and "Depends: needed (>= 1), present" in index


def test_archive_that_the_image_does_not_trust_is_refused(distribution: Path, tmp_path: Path) -> None:
    release = tmp_path / "archive/InRelease"
    release.write_text(release.read_text().replace("2024", "2025"))
    image = bundle_debs.CardImage(distribution, tmp_path / "root")
    with pytest.raises(BrambleError, match="could not be collected"):
        image.download_packages(["wanted"], tmp_path / "lists", tmp_path / "debs")
    assert not list(tmp_path.glob("debs/*.deb"))


def test_altered_deb_of_the_archive_is_refused(distribution: Path, tmp_path: Path) -> None:
    path = tmp_path / "archive/needed_1.5_all.deb"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    image = bundle_debs.CardImage(distribution, tmp_path / "root")
    with pytest.raises(BrambleError, match="needed"):
        image.download_packages(["wanted"], tmp_path / "lists", tmp_path / "debs")


def test_unknown_package_is_named(distribution: Path, tmp_path: Path) -> None:
    image = bundle_debs.CardImage(distribution, tmp_path / "root")
    with pytest.raises(BrambleError, match="Unable to locate package missing"):
        image.download_packages(["missing"], tmp_path / "lists", tmp_path / "debs")


def test_missing_image_names_the_playbook_to_run(tmp_path: Path) -> None:
    with pytest.raises(BrambleError, match=r"Run playbooks/image.yml"):
        bundle_debs.CardImage(tmp_path / "none.json", tmp_path / "root")


# All of it


@pytest.fixture
def arguments(distribution: Path, tmp_path: Path) -> dict[str, Any]:
    """The options for a bundle of two .deb files, pip and the project's own package; the fixture makes the wheel of pip."""
    own = tmp_path / "own"
    (own / "bramble").mkdir(parents=True)
    (own / "bramble/__init__.py").write_text("")
    (own / "pyproject.toml").write_text('[project]\nname = "bramble"\nversion = "1"\n[tool.setuptools]\npackages = ["bramble"]\n')
    wheel = tmp_path / "index/pip-1-py3-none-any.whl"
    wheel.parent.mkdir()
    output("python3", "-c", "import sys, zipfile; z = zipfile.ZipFile(sys.argv[1], 'w'); "
           "z.writestr('pip-1.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: pip\\nVersion: 1\\n'); "
           "z.writestr('pip-1.dist-info/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n'); "
           "z.writestr('pip-1.dist-info/RECORD', '')", wheel)  # fmt: skip
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (tmp_path / "requirements.txt").write_text(f"--no-index\n--find-links={wheel.parent}\npip==1 --hash=sha256:{digest}\n")
    return {
        "images": [str(distribution)],
        "requirements": str(tmp_path / "requirements.txt"),
        "source": str(own),
        "debs": ["wanted"],
        "dest": str(tmp_path / "bundles"),
        "key": str(tmp_path / "keys/key"),
    }


def test_bundle_is_made_once(arguments: dict[str, Any], tmp_path: Path, run_module: Run) -> None:
    dry_run = run_module("package_bundle", arguments, check=True)
    assert dry_run["changed"] and not (tmp_path / "bundles").exists()
    made = run_module("package_bundle", arguments)
    (bundle,) = made["bundles"]
    assert made["changed"] and bundle["id"] == dry_run["bundles"][0]["id"]
    names = sorted(read_bundle(Path(bundle["path"]), made["keys"])[0].files)
    assert names == [
        *("debs/Packages", "debs/needed_1.5_all.deb", "debs/wanted_1_2.0_all.deb"),
        *(
            "wheels/bramble-1-py3-none-any.whl",
            "wheels/installer.zip",
            "wheels/pip-1-py3-none-any.whl",
            "wheels/requirements.txt",
        ),
    ]
    assert oct((tmp_path / "keys/key").stat().st_mode)[-3:] == "600"

    # The second time neither the image nor the archive is needed.
    os.rename(tmp_path / "archive", tmp_path / "away")
    os.rename(tmp_path / "tiny.img", tmp_path / "away.img")
    again = run_module("package_bundle", {**arguments, "kinds": [bundle["kind"]]})
    assert not again["changed"] and again["bundles"] == made["bundles"]


def test_bundle_of_debian_packages_only(arguments: dict[str, Any], run_module: Run) -> None:
    whole = run_module("package_bundle", arguments)["bundles"][0]
    arguments = {name: value for name, value in arguments.items() if name not in ("requirements", "source")}
    made = run_module("package_bundle", arguments)
    (bundle,) = made["bundles"]
    assert bundle["id"] != whole["id"]
    files = read_bundle(Path(bundle["path"]), made["keys"])[0].files
    assert sorted(files) == ["debs/Packages", "debs/needed_1.5_all.deb", "debs/wanted_1_2.0_all.deb"]
    assert "requirements, source" in run_module("package_bundle", {**arguments, "source": "/nonexistent"})["msg"]


def test_damaged_bundle_is_refused(arguments: dict[str, Any], run_module: Run) -> None:
    (bundle,) = run_module("package_bundle", arguments)["bundles"]
    path = Path(bundle["path"], "debs/needed_1.5_all.deb")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"x")
    refused = run_module("package_bundle", {**arguments, "verify": True})
    assert refused["failed"] and "debs/needed_1.5_all.deb is altered" in refused["msg"]
    path.unlink()
    refused = run_module("package_bundle", arguments)
    assert refused["failed"] and "debs/needed_1.5_all.deb is missing" in refused["msg"]
    again = run_module("package_bundle", {**arguments, "refresh": True})
    assert again["changed"] and path.read_bytes() == whole


def test_bundle_of_another_control_machine_needs_its_key(arguments: dict[str, Any], tmp_path: Path, run_module: Run) -> None:
    other = {**arguments, "key": str(tmp_path / "elsewhere/key")}
    run_module("package_bundle", other)
    refused = run_module("package_bundle", arguments)
    assert refused["failed"] and "signed neither by the control machine" in refused["msg"]
    signers = [(tmp_path / "elsewhere/key.pub").read_text()]
    assert not run_module("package_bundle", {**arguments, "signers": signers})["changed"]


def test_old_bundles_are_removed(tmp_path: Path) -> None:
    """Bundles in use stay, however old they are, and so do other folders."""
    for number, name in enumerate(["used", "old", "new", "newer", "notes"]):
        (tmp_path / name).mkdir()
        if name != "notes":
            (tmp_path / name / MANIFEST).touch()
        os.utime(tmp_path / name, (number, number))
    package_bundle.remove_old_bundles(tmp_path, 3, ["used"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "newer", "notes", "used"]


def test_second_run_waits_and_removes_what_a_killed_run_left(tmp_path: Path) -> None:
    def other() -> list[str]:
        with package_bundle.lock_folder(tmp_path):
            return [path.name for path in tmp_path.iterdir()]

    with ThreadPoolExecutor() as pool:
        with package_bundle.lock_folder(tmp_path):
            (tmp_path / ".making-this").mkdir()
            waiting = pool.submit(other)
            with pytest.raises(TimeoutError):
                waiting.result(0.2)
            assert (tmp_path / ".making-this").exists()
        assert waiting.result(10) == [".lock"]


def test_nodes_without_an_image_of_their_kind_are_refused(arguments: dict[str, Any], run_module: Run) -> None:
    kind = {"release": "bookworm", "python": "3.11", "architecture": "aarch64"}
    refused = run_module("package_bundle", {**arguments, "kinds": [kind]})
    assert refused["failed"] and "nodes are of the kind bookworm aarch64 python3.11" in refused["msg"]


def test_without_debian_packages_no_image_is_read(arguments: dict[str, Any], run_module: Run) -> None:
    kind = {"release": "trixie", "python": "3.13", "architecture": "aarch64"}
    made = run_module("package_bundle", {**arguments, "kinds": [kind], "debs": [], "images": ["/none.json"]})
    (bundle,) = made["bundles"]
    assert bundle["kind"] == kind
    names = sorted(read_bundle(Path(bundle["path"]), made["keys"])[0].files)
    assert names[0] == "debs/Packages" and all(name.startswith("wheels/") for name in names[1:]) and len(names) == 5
