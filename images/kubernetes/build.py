#!/usr/bin/env python3
"""Build the container image of the workloads: a few Debian packages, and the wheels of a bundle. No registry is asked.

    images/kubernetes/build.py --bundle .cache/bundles/ID --cache .cache/kubernetes

The packages are unpacked, not installed, so none of their programs has to run: the image for a Raspberry Pi is made on a PC
without emulation. What Python compiles is the same on all architectures, so this machine's compiles it: the containers can not,
as their root file system is read-only. The archive (OCI image layout 1.0, and what `docker load` wants) has only times of 1970
and no owners but root. It is kept under the hash of what shapes it. `ctr image import`, `microk8s images import` and
`docker load` take it.

The last line of standard output is a JSON object for Ansible; what goes on is told on standard error.
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

from images.debian.build import ARCHITECTURES, BuildError, fingerprint, native_architecture, run, say, sha256

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# libprimesieve-dev: under this name in every release. dash: for whoever looks into a container.
PACKAGES = ("base-files", "dash", "libprimesieve-dev", "python3")
# What is in these packages and no container needs.
WITHOUT = (*(f"usr/share/{name}" for name in ("doc", "info", "locale", "man")), "usr/include", "dev", "proc", "run", "sys", "tmp")
# Where volumes are mounted, and what else must be there.
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


def settings(architecture: str, layers: list[str]) -> dict[str, Any]:
    """The image's configuration (OCI image specification 1.0, config.md); `layers`: SHA-256 of what is not compressed."""
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


def kind_of(bundle: Path) -> dict[str, str]:
    """What a bundle is for: release, python, architecture (in the kernel's words). Raises BuildError."""
    try:
        manifest = json.loads((bundle / "manifest.json").read_text())
        return {name: str(manifest[name]) for name in ("release", "python", "architecture")}
    except (OSError, ValueError, LookupError) as error:
        raise BuildError(f"{bundle} is no bundle: {error}. playbooks/kubernetes_image.yml makes one") from error


def unpack(release: str, architecture: str, tree: Path) -> None:
    """Unpack the Debian packages, and lay what their installation would have made."""
    options = ["--variant=extract", "--format=directory", f"--architectures={architecture}", f"--keyring={KEYRING}"]
    run("mmdebstrap", *options, "--skip=check/qemu", f"--include={','.join(PACKAGES)}", release, tree)
    for name in WITHOUT:
        shutil.rmtree(tree / name, ignore_errors=True)
    for name in FOLDERS:
        (tree / name).mkdir(parents=True, exist_ok=True)
    (tree / "tmp").chmod(0o1777)
    (tree / "etc/passwd").write_text(f"root:x:0:0:root:/:/bin/false\nbramble:x:{USER}:{USER}:bramble:/tmp:/bin/false\n")
    (tree / "etc/group").write_text(f"root:x:0:\nbramble:x:{USER}:\n")
    command = tree / "usr/local/bin/bramble"
    command.write_text("#!/usr/bin/python3\nfrom bramble.cli import main\n\nmain()\n")
    command.chmod(0o755)


def install(bundle: Path, python: str, home: Path) -> None:
    """Unpack the wheels of a bundle, verified by hash, for the architecture that they are for."""
    wheels = bundle / "wheels"
    platforms = sorted({name for wheel in wheels.glob("*.whl") for name in wheel.stem.rpartition("-")[2].split(".")} - {"any"})
    run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"),
        *("--no-compile", "--require-hashes", "--only-binary=:all:", "--implementation=cp", f"--python-version={python}"),
        *(f"--platform={platform}" for platform in platforms),
        *(f"--find-links={wheels}", f"--requirement={wheels}/requirements.txt", f"--target={home}"),
    )
    # Commands for the Python of this machine.
    shutil.rmtree(home / "bin", ignore_errors=True)


def compile_all(tree: Path, python: str) -> None:
    """Compile what is in a tree of this machine's architecture, with its own Python. Raises BuildError."""
    # One after the other: in there is no /dev/shm.
    command = ["chroot", str(tree), "/usr/bin/python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    done = subprocess.run([*command, f"/usr/lib/python{python}", f"/{HOME}"], capture_output=True, text=True, check=False)
    # A few files are for other Pythons or for tests of errors, and do not compile; nobody imports them.
    if not any((tree / HOME / "bramble/__pycache__").glob("cli.*.pyc")):
        raise BuildError(f"nothing was compiled: {done.stdout[-500:]}{done.stderr[-500:]}")


def take_compiled(source: Path, target: Path) -> None:
    """Copy what was compiled from files that are the same in both trees."""
    for compiled in source.rglob("__pycache__/*.pyc"):
        name = compiled.parent.parent.relative_to(source) / f"{compiled.name.partition('.')[0]}.py"
        there = target / name
        if there.is_file() and there.read_bytes() == (source / name).read_bytes():
            folder = there.parent / "__pycache__"
            folder.mkdir(exist_ok=True)
            shutil.copy(compiled, folder)


def layer(tree: Path, names: Iterable[str], target: Path) -> str:
    """Write a layer with some folders of a tree, the same bytes for the same tree. Gives the SHA-256 before compression."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        return member

    loose = target.with_suffix(".tar")
    with tarfile.open(loose, "w", format=tarfile.GNU_FORMAT) as tar:
        for name in sorted(names):
            tar.add(tree / name, name, filter=plain)
    with loose.open("rb") as file, target.open("wb") as packed, gzip.GzipFile("", "wb", 6, packed, mtime=0) as zipped:
        shutil.copyfileobj(file, zipped, 1 << 20)
    digest = sha256(loose)
    loose.unlink()
    return digest


def archive(work: Path, target: Path, name: str, config: dict[str, Any], layers: Sequence[Path]) -> None:
    """Write an image archive: its configuration and its layers, each under its SHA-256, and the lists that name them."""
    blobs = work / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(file: Path, media: str) -> dict[str, Any]:
        """Move a file there; its descriptor."""
        digest = sha256(file)
        file.rename(blobs / digest)
        return {
            "mediaType": f"application/vnd.oci.image.{media}",
            "digest": f"sha256:{digest}",
            "size": (blobs / digest).stat().st_size,
        }

    def written(content: Any) -> Path:
        """Write JSON."""
        (work / "json").write_text(json.dumps(content))
        return work / "json"

    described = blob(written(config), "config.v1+json")
    contents = [blob(path, "layer.v1.tar+gzip") for path in layers]
    media = "manifest.v1+json"
    manifest = {"schemaVersion": 2, "mediaType": f"application/vnd.oci.image.{media}", "config": described, "layers": contents}
    entry = blob(written(manifest), media)
    # containerd takes the name from here,
    entry["annotations"] = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}
    written({"schemaVersion": 2, "manifests": [entry]}).rename(work / "index.json")
    written({"imageLayoutVersion": "1.0.0"}).rename(work / "oci-layout")
    # and Docker before version 25 all of it from here.
    places = [f"blobs/sha256/{part['digest'].partition(':')[2]}" for part in (described, *contents)]
    written([{"Config": places[0], "RepoTags": [name], "Layers": places[1:]}]).rename(work / "manifest.json")
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as tar:
        for path in ("oci-layout", "index.json", "manifest.json", "blobs"):
            tar.add(work / path, path)


def build(bundle: Path, kind: dict[str, str], name: str, target: Path) -> None:
    """Make the archive."""
    architecture, native = ARCHITECTURES[kind["architecture"]], native_architecture()
    with tempfile.TemporaryDirectory(prefix=".making-", dir=target.parent) as scratch:
        work = Path(scratch)
        own = work / native
        say(f"{name}: packages of Debian {kind['release']}")
        unpack(kind["release"], native, own)
        tree = own
        if architecture != native:
            tree = work / architecture
            unpack(kind["release"], architecture, tree)
        say(f"{name}: wheels")
        install(bundle, kind["python"], own / HOME)
        compile_all(own, kind["python"])
        if tree is not own:
            take_compiled(own / f"usr/lib/python{kind['python']}", tree / f"usr/lib/python{kind['python']}")
        say(f"{name}: layers")
        base = [path.name for path in tree.iterdir() if path.name != "opt"]
        digests = [layer(tree, base, work / "base"), layer(own, [HOME], work / "home")]
        archive(work, work / "image", name, settings(architecture, digests), [work / "base", work / "home"])
        (work / "image").rename(target)


def main(arguments: list[str] | None = None) -> int:
    """Build, or find, one image."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True, help="the folder of a bundle: its kind is the image's")
    parser.add_argument("--cache", type=Path, required=True, help="where images are kept")
    parser.add_argument("--check", action="store_true", help="only tell whether there is something to do")
    args = parser.parse_args(arguments)
    os.umask(0o022)
    try:
        kind = kind_of(args.bundle)
        tag = fingerprint([Path(__file__), args.bundle / "manifest.json"])[:12]
        target = args.cache.resolve() / f"bramble-{kind['architecture']}-{tag}.tar"
        changed = not target.exists()
        if changed and not args.check:
            args.cache.mkdir(parents=True, exist_ok=True)
            build(args.bundle, kind, f"{NAME}:{tag}", target)
    except BuildError as error:
        say(f"build.py: {error}")
        return 1
    print(json.dumps({"changed": changed, "image": f"{NAME}:{tag}", "archive": str(target)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
