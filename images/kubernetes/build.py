#!/usr/bin/env python3
"""Build the container image of the workloads from a few Debian packages and the wheels of a bundle, without a registry.

    images/kubernetes/build.py --bundle .cache/bundles/ID --cache .cache/kubernetes

The packages are unpacked but not installed, so none of their programs has to run, and a PC builds the image for a Raspberry Pi
without emulation. Python's byte code is the same on all architectures, so the Python of this machine's architecture compiles it;
the containers cannot, as their root file system is read-only. In the archive (OCI image layout 1.0, and the format of
`docker load`), all files have the time 1970 and the owner root. Its name contains the hash of its sources. `ctr image import`,
`microk8s images import` and `docker load` can import it.

The last line of standard output is a JSON object for Ansible. Each step is reported on standard error.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.bramble.cluster.images.host import ARCHITECTURES, fingerprint, native_architecture, report_step, run
from ansible_collections.bramble.cluster.plugins.module_utils.core.digest import file_sha256
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# libprimesieve-dev has the same name in every release, unlike the library itself. dash is for debugging in a container.
PACKAGES = ("base-files", "dash", "libprimesieve-dev", "python3")
# Paths of these packages that no container needs.
EXCLUDED_PATHS = (
    *(f"usr/share/{name}" for name in ("doc", "info", "locale", "man")),
    "usr/include",
    "dev",
    "proc",
    "run",
    "sys",
    "tmp",
)
# Mount points of volumes, and other folders that must exist.
FOLDERS = ("dev", "proc", "sys", "run", "tmp", "report", "shares", "etc/bramble/cluster", "etc/bramble/tls", "usr/local/bin")
USER = 65532
HOME = "opt/bramble"
NAME = "localhost/bramble"
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "PYTHONPATH": f"/{HOME}",
    "PYTHONUNBUFFERED": "1",
    "HOME": "/tmp",
    "MPLCONFIGDIR": "/tmp",
}


def image_config(architecture: str, layers: list[str]) -> dict[str, Any]:
    """Return the configuration of an image (OCI image specification 1.0, config.md).

    :param layers: the SHA-256 of each layer before compression
    """
    return {
        "architecture": architecture,
        "os": "linux",
        "config": {
            "User": f"{USER}:{USER}",
            "Env": [f"{key}={value}" for key, value in ENVIRONMENT.items()],
            "Cmd": ["bramble", "--help"],
            "WorkingDir": "/tmp",
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in layers]},
    }


def read_bundle_kind(bundle: Path) -> dict[str, str]:
    """Return the release, python and architecture (the kernel's name) of a bundle. Raises BrambleError."""
    try:
        manifest = json.loads((bundle / "manifest.json").read_text())
        return {name: str(manifest[name]) for name in ("release", "python", "architecture")}
    except (OSError, ValueError, LookupError) as error:
        raise BrambleError(f"{bundle} is not a bundle: {error}. Next: ansible-playbook playbooks/kubernetes_image.yml") from error


def unpack_packages(release: str, architecture: str, tree: Path) -> None:
    """Unpack the Debian packages, and create the files that their installation would create."""
    options = ["--variant=extract", "--format=directory", f"--architectures={architecture}", f"--keyring={KEYRING}"]
    run("mmdebstrap", *options, "--skip=check/qemu", f"--include={','.join(PACKAGES)}", release, tree)
    for name in EXCLUDED_PATHS:
        shutil.rmtree(tree / name, ignore_errors=True)
    for name in FOLDERS:
        (tree / name).mkdir(parents=True, exist_ok=True)
    (tree / "tmp").chmod(0o1777)
    (tree / "etc/passwd").write_text(f"root:x:0:0:root:/:/bin/false\nbramble:x:{USER}:{USER}:bramble:/tmp:/bin/false\n")
    (tree / "etc/group").write_text(f"root:x:0:\nbramble:x:{USER}:\n")
    command = tree / "usr/local/bin/bramble"
    command.write_text("#!/usr/bin/python3\nfrom bramble.cli import main\n\nmain()\n")
    command.chmod(0o755)


def install_wheels(bundle: Path, python: str, home: Path) -> None:
    """Unpack the wheels of a bundle, verified by their hashes, for the architecture of the bundle."""
    wheels = bundle / "wheels"
    platforms = sorted({name for wheel in wheels.glob("*.whl") for name in wheel.stem.rpartition("-")[2].split(".")} - {"any"})
    run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"),
        *("--no-compile", "--require-hashes", "--only-binary=:all:", "--implementation=cp", f"--python-version={python}"),
        *(f"--platform={platform}" for platform in platforms),
        *(f"--find-links={wheels}", f"--requirement={wheels}/requirements.txt", f"--target={home}"),
    )
    # These commands are for the Python of this machine.
    shutil.rmtree(home / "bin", ignore_errors=True)


def compile_python(tree: Path, python: str) -> None:
    """Compile the Python files in a tree of this machine's architecture with the tree's own Python. Raises BrambleError."""
    # One file at a time, as the tree has no /dev/shm for parallel processes.
    command = ["chroot", str(tree), "/usr/bin/python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    done = subprocess.run([*command, f"/usr/lib/python{python}", f"/{HOME}"], capture_output=True, text=True, check=False)
    # The exit code is ignored, as a few files that are never imported do not compile: they test errors or need other Pythons.
    if not any((tree / HOME / "bramble/__pycache__").glob("cli.*.pyc")):
        raise BrambleError(
            f"compileall ended with {done.returncode} and has compiled nothing in {tree / HOME}. "
            "Delete the cached bundle and run the same command again. Its output: "
            f"{done.stdout[-500:]}{done.stderr[-500:]}"
        )


def copy_compiled(source: Path, target: Path) -> None:
    """Copy the byte code of files that are the same in both trees."""
    for compiled in source.rglob("__pycache__/*.pyc"):
        name = compiled.parent.parent.relative_to(source) / f"{compiled.name.partition('.')[0]}.py"
        module = target / name
        if module.is_file() and module.read_bytes() == (source / name).read_bytes():
            folder = module.parent / "__pycache__"
            folder.mkdir(exist_ok=True)
            shutil.copy(compiled, folder)


def write_layer(tree: Path, names: Iterable[str], target: Path) -> str:
    """Write some folders of a tree as a layer, and return its SHA-256 before compression. The same tree gives the same bytes."""

    def normalise(member: tarfile.TarInfo) -> tarfile.TarInfo:
        """Return a member of the archive without owner and time."""
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        return member

    uncompressed = target.with_suffix(".tar")
    with tarfile.open(uncompressed, "w", format=tarfile.GNU_FORMAT) as tar:
        for name in sorted(names):
            tar.add(tree / name, name, filter=normalise)
    with uncompressed.open("rb") as file, target.open("wb") as packed, gzip.GzipFile("", "wb", 6, packed, mtime=0) as zipped:
        shutil.copyfileobj(file, zipped, 1 << 20)
    digest = file_sha256(uncompressed)
    uncompressed.unlink()
    return digest


def write_archive(work: Path, target: Path, name: str, config: dict[str, Any], layers: Sequence[Path]) -> None:
    """Write an image archive: the configuration and the layers, named by their SHA-256, and the indices that refer to them."""
    blobs = work / "blobs/sha256"
    blobs.mkdir(parents=True)

    def add_blob(file: Path, media: str) -> dict[str, Any]:
        """Move a file to the blobs, and return its descriptor."""
        digest = file_sha256(file)
        file.rename(blobs / digest)
        return {
            "mediaType": f"application/vnd.oci.image.{media}",
            "digest": f"sha256:{digest}",
            "size": (blobs / digest).stat().st_size,
        }

    def write_json(content: Any) -> Path:
        """Write a JSON file, and return its path."""
        (work / "json").write_text(json.dumps(content))
        return work / "json"

    config_entry = add_blob(write_json(config), "config.v1+json")
    layer_entries = [add_blob(path, "layer.v1.tar+gzip") for path in layers]
    media = "manifest.v1+json"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"application/vnd.oci.image.{media}",
        "config": config_entry,
        "layers": layer_entries,
    }
    entry = add_blob(write_json(manifest), media)
    # containerd reads the name of the image from the index.
    entry["annotations"] = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}
    write_json({"schemaVersion": 2, "manifests": [entry]}).rename(work / "index.json")
    write_json({"imageLayoutVersion": "1.0.0"}).rename(work / "oci-layout")
    # Docker before version 25 reads only manifest.json.
    paths = [f"blobs/sha256/{part['digest'].partition(':')[2]}" for part in (config_entry, *layer_entries)]
    write_json([{"Config": paths[0], "RepoTags": [name], "Layers": paths[1:]}]).rename(work / "manifest.json")
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as tar:
        for path in ("oci-layout", "index.json", "manifest.json", "blobs"):
            tar.add(work / path, path)


def build(bundle: Path, kind: dict[str, str], name: str, target: Path) -> None:
    """Build the archive of an image. Raises BrambleError."""
    architecture, native = ARCHITECTURES[kind["architecture"]], native_architecture()
    with tempfile.TemporaryDirectory(prefix=".making-", dir=target.parent) as scratch:
        work = Path(scratch)
        native_tree = work / native
        report_step(f"{name}: unpacking packages of Debian {kind['release']}")
        unpack_packages(kind["release"], native, native_tree)
        tree = native_tree
        if architecture != native:
            tree = work / architecture
            unpack_packages(kind["release"], architecture, tree)
        report_step(f"{name}: installing wheels")
        install_wheels(bundle, kind["python"], native_tree / HOME)
        compile_python(native_tree, kind["python"])
        if tree is not native_tree:
            copy_compiled(native_tree / f"usr/lib/python{kind['python']}", tree / f"usr/lib/python{kind['python']}")
        report_step(f"{name}: writing layers")
        base = [path.name for path in tree.iterdir() if path.name != "opt"]
        digests = [write_layer(tree, base, work / "base"), write_layer(native_tree, [HOME], work / "home")]
        write_archive(work, work / "image", name, image_config(architecture, digests), [work / "base", work / "home"])
        (work / "image").rename(target)


def main(arguments: list[str] | None = None) -> int:
    """Build one image, or find it in the cache, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--bundle", type=Path, required=True, help="folder of a bundle, which determines release, Python and architecture"
    )
    parser.add_argument("--cache", type=Path, required=True, help="folder of images")
    parser.add_argument("--check", action="store_true", help="only report whether the image would be built")
    args = parser.parse_args(arguments)
    try:
        kind = read_bundle_kind(args.bundle)
        tag = fingerprint([Path(__file__), args.bundle / "manifest.json"])[:12]
        target = args.cache.resolve() / f"bramble-{kind['architecture']}-{tag}.tar"
        changed = not target.exists()
        if changed and not args.check:
            args.cache.mkdir(parents=True, exist_ok=True)
            build(args.bundle, kind, f"{NAME}:{tag}", target)
    except BrambleError as error:
        report_step(f"build.py: {error}")
        return 1
    print(json.dumps({"changed": changed, "image": f"{NAME}:{tag}", "archive": str(target)}))
    return 0


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
