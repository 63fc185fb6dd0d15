#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: make the bundles of packages that nodes install, so that nodes need no internet."""

from __future__ import annotations

DOCUMENTATION = r"""
module: package_bundle
short_description: Make the bundles of packages that nodes install
description:
  - For each kind of node (release, architecture, Python), downloads the pinned and hashed requirements as wheels, builds the
    project's own package, and downloads the Debian packages that the nodes' image lacks, with their dependencies. All go into a
    folder whose name is a hash of the options, with a manifest of every file's size and SHA-256, and the manifest's signature.
  - Runs on the control machine. A bundle that exists is not made again; this needs neither the internet nor an image.
options:
  images:
    description: The manifests (.json) of the card images that the nodes boot.
    type: list
    elements: path
    required: true
  kinds:
    description: The kinds of nodes to make bundles for. By default those of the images.
    type: list
    elements: dict
    suboptions:
      release:
        description: The code name of the release, VERSION_CODENAME in os-release.
        type: str
        required: true
      python:
        description: The version of Python, as MAJOR.MINOR.
        type: str
        required: true
      architecture:
        description: The architecture, as C(uname -m) prints it.
        type: str
        choices: [x86_64, aarch64]
        required: true
  requirements:
    description: A requirements file in which every package is pinned and hashed, dependencies included. Without this option and
      O(source) the bundle has Debian packages only.
    type: path
  source:
    description: The folder of the project's own package (pyproject.toml).
    type: path
  debs:
    description: The names of the Debian packages.
    type: list
    elements: str
    required: true
  dest:
    description: The folder for bundles.
    type: path
    required: true
  key:
    description: The private key (OpenSSH) that signs the bundles. It is generated if it does not exist.
    type: path
    required: true
  signers:
    description: Further public keys whose signatures are accepted.
    type: list
    elements: str
    default: []
  keep:
    description: How many bundles to keep. The least recently used ones are removed.
    type: int
    default: 4
  refresh:
    description: Make the bundles again, with the newest Debian packages.
    type: bool
    default: false
  verify:
    description: Compare the SHA-256 of every file of an existing bundle with the manifest. By default only sizes are compared.
    type: bool
    default: false
author: The Bramble team (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Make the bundle for Raspberry Pis with Debian trixie
  bramble.cluster.package_bundle:
    images: [.cache/images/debian-trixie-arm64.json]
    requirements: workloads/requirements.txt
    source: workloads
    debs: [chrony]
    dest: .cache/bundles
    key: .state/bundles/key
  delegate_to: localhost
"""

RETURN = r"""
bundles:
  description: The bundles. Those that a dry run would make have only C(kind), C(id) and C(path).
  returned: always
  type: list
  elements: dict
  contains:
    kind:
      description: The kind of node it is for, as in O(kinds).
      type: dict
    id:
      description: A hash of the options that the bundle depends on.
      type: str
    path:
      description: The folder.
      type: str
    manifest:
      description: The SHA-256 of the manifest.
      type: str
    bytes:
      description: The size of all files.
      type: int
keys:
  description: The public keys whose signatures are accepted.
  returned: always
  type: list
  elements: str
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.bundle import debs as bundle_debs
from ansible_collections.bramble.cluster.plugins.module_utils.bundle.bundle import (
    FORMAT,
    MANIFEST,
    SIGNATURE,
    Kind,
    Manifest,
    generate_key,
    manifest_entries,
    read_bundle,
    run_command,
    sign_manifest,
)
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import as_sentence, run_module
from packaging.requirements import InvalidRequirement, Requirement

# PEP 600, newest first: trixie has glibc 2.41, bookworm 2.36.
PLATFORMS = ("manylinux_2_35", "manylinux_2_34", "manylinux_2_31", "manylinux_2_28", "manylinux_2_17", "manylinux2014")


def source_files(source: Path) -> list[Path]:
    """Return the source files of the project's own package, in a stable order."""
    parts = [path for path in source.rglob("*") if path.suffix in {".html", ".json", ".md", ".py", ".qs", ".toml"}]
    return sorted(path for path in parts if not {"build", "tests", "__pycache__"} & set(path.relative_to(source).parts))


def bundle_id(kind: Kind, requirements: Path | None, source: Path | None, debs: Sequence[str], images: Sequence[Path]) -> str:
    """Return a hash (12 hexadecimal digits) of everything that a bundle depends on.

    The Debian packages depend on the images, which may have been deleted since: the names of both count, not their content.
    """
    packages_and_images = [*sorted(debs), *sorted({image.name for image in images})] if debs else []
    digest = hashlib.sha256(f"{FORMAT} {kind} {' '.join(packages_and_images)}\n".encode())
    for path in [requirements, *source_files(source)] if requirements and source else []:
        content = path.read_bytes()
        name = path.relative_to(source) if source and path.is_relative_to(source) else path.name
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def requirements_for(requirements: str, kind: Kind) -> str:
    """Return the lines of a requirements file that apply to this kind of node, without their markers.

    pip itself would evaluate the markers (PEP 508) for the Python of the control machine. Raises BrambleError.
    """
    environment = {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": kind.architecture,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{kind.python}.0",
        "python_version": kind.python,
        "sys_platform": "linux",
    }
    lines = []
    for line in requirements.replace("\\\n", " ").splitlines():
        text, *hashes = line.partition("#")[0].split(" --hash=")
        if not text.strip():
            continue
        if text.startswith("-"):
            lines.append(text)  # an option of pip
            continue
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise BrambleError(f"the requirement {text.strip()!r} cannot be read: {error}") from None
        if requirement.marker is None or requirement.marker.evaluate(environment):
            requirement.marker = None
            lines.append(" ".join([str(requirement), *(f"--hash={value.strip()}" for value in hashes)]))
    return "\n".join(lines) + "\n"


def download_command(requirements: Path, dest: Path, kind: Kind) -> list[str]:
    """Return pip's command line that downloads wheels. --no-deps, because the file lists the dependencies too."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--implementation=cp", f"--python-version={kind.python}"]
    command += [f"--platform={platform}_{kind.architecture}" for platform in PLATFORMS]
    return [*command, "--requirement", str(requirements), "--dest", str(dest)]


def build_command(source: Path, dest: Path) -> list[str]:
    """Return pip's command line that builds the project's own wheel."""
    return [
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"),
        *("--wheel-dir", str(dest), str(source)),
    ]


def add_installer(wheels: Path) -> None:
    """Complete the wheels: add the hash of the project's own wheel to the requirements, and pip as a zip file."""
    (own,) = wheels.glob("bramble-*.whl")
    (pip,) = wheels.glob("pip-*.whl")
    name, version = own.name.split("-")[:2]
    digest = hashlib.sha256(own.read_bytes()).hexdigest()
    with (wheels / "requirements.txt").open("a", encoding="utf-8") as file:
        file.write(f"{name}=={version} --hash=sha256:{digest}\n")
    # A wheel is a zip file, and Python runs a package in one; the name without a version is known to the module bundle_install.
    shutil.copy(pip, wheels / "installer.zip")


def collect_wheels(requirements: Path, source: Path, copy: Path, wheels: Path, kind: Kind) -> None:
    """Download and build all wheels into a folder. Raises BrambleError.

    :param copy: a folder to copy the source to, because setuptools leaves build/ beside the source
    """
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    lines = wheels / "requirements.txt"
    lines.write_text(requirements_for(requirements.read_text(encoding="utf-8"), kind), encoding="utf-8")
    try:
        run_command(*download_command(lines, wheels, kind))
        run_command(*build_command(copy, wheels))
    except BrambleError as error:
        raise BrambleError(
            f"the packages for CPython {kind.python} on {kind.architecture} could not be collected: {error}. The control "
            "machine needs the internet for this; connect it, then run the same command again"
        ) from None
    add_installer(wheels)


class BundleMaker(NamedTuple):
    """The sources of the bundles, their folder `dest`, and the key that signs them."""

    images: Sequence[Path]
    requirements: Path | None
    source: Path | None
    debs: Sequence[str]
    dest: Path
    key: Path

    def images_by_kind(self, scratch: Path) -> dict[Kind, list[bundle_debs.CardImage]]:
        """Return the images by kind of node. They are read into folders in `scratch`. Raises BrambleError."""
        found: dict[Kind, list[bundle_debs.CardImage]] = {}
        for number, manifest in enumerate(self.images):
            image = bundle_debs.CardImage(manifest, scratch / f"image{number}")
            found.setdefault(image.kind, []).append(image)
        return found

    def make_bundle(self, name: str, kind: Kind, images: Sequence[bundle_debs.CardImage]) -> None:
        """Make a bundle; its folder gets its name when it is complete. Raises BrambleError."""
        with tempfile.TemporaryDirectory(prefix=".making-", dir=self.dest) as scratch:
            folder, copy = Path(scratch, "bundle"), Path(scratch, "source")
            wheels, debs = folder / "wheels", folder / "debs"
            for path in (folder, wheels, debs):
                path.mkdir(mode=0o755)
            for image in images:
                image.download_packages(self.debs, self.dest / f".lists-{kind.release}-{kind.architecture}", debs)
            for path in debs.glob("*%3a*"):
                path.rename(debs / path.name.replace("%3a", "_"))
            (debs / "Packages").write_text(bundle_debs.package_index(debs), encoding="utf-8")
            if self.requirements and self.source:
                collect_wheels(self.requirements, self.source, copy, wheels, kind)
            manifest = Manifest(name, kind, tuple(self.debs), manifest_entries(folder)).to_json()
            (folder / MANIFEST).write_bytes(manifest)
            (folder / SIGNATURE).write_bytes(sign_manifest(manifest, self.key))
            if (self.dest / name).exists():
                (self.dest / name).rename(Path(scratch, "old"))
            folder.rename(self.dest / name)


def remove_old_bundles(dest: Path, keep: int, used: Sequence[str]) -> None:
    """Remove all bundles except those in use and the `keep` most recently used ones."""
    for name in used:
        os.utime(dest / name)
    bundles = sorted((path.parent for path in dest.glob(f"*/{MANIFEST}")), key=lambda path: path.stat().st_mtime)
    for path in bundles[:-keep]:
        if path.name not in used:
            shutil.rmtree(path)


@contextlib.contextmanager
def lock_folder(dest: Path) -> Iterator[None]:
    """Hold the lock of a folder of bundles, which one run has at a time. What a killed run has left is removed first."""
    dest.mkdir(parents=True, exist_ok=True)
    with (dest / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in dest.glob(".making-*"):
            shutil.rmtree(leftover)
        yield


def make_missing_bundles(maker: BundleMaker, module: AnsibleModule) -> dict[str, Any]:
    """Make the bundles that are missing; return the result of the module. Raises BrambleError."""
    parameters = module.params
    kinds = [Kind(**kind) for kind in parameters["kinds"] or []]
    changed, bundles = False, []
    with tempfile.TemporaryDirectory(prefix="bundle-") as scratch:
        images: dict[Kind, list[bundle_debs.CardImage]] = {}
        if not kinds:
            images = maker.images_by_kind(Path(scratch))
        if not module.check_mode:
            generate_key(maker.key)
        public = maker.key.with_name(f"{maker.key.name}.pub")
        keys = [*([public.read_text().strip()] if public.exists() else []), *parameters["signers"]]
        for kind in kinds or images:
            name = bundle_id(kind, maker.requirements, maker.source, maker.debs, maker.images)
            path = maker.dest / name
            bundle: dict[str, Any] = {"kind": asdict(kind), "id": name, "path": str(path)}
            bundles.append(bundle)
            if parameters["refresh"] or not (path / MANIFEST).exists():
                changed = True
                if module.check_mode:
                    continue
                # Only Debian packages depend on the images, so without them no image is read.
                images = images or (maker.images_by_kind(Path(scratch)) if maker.debs else {kind: []})
                if maker.debs and kind not in images:
                    raise BrambleError(
                        f"some nodes are of the kind {kind}, and the images are of {', '.join(map(str, images))}. "
                        "Name the image of these nodes in package_bundle_images"
                    )
                maker.make_bundle(name, kind, images.get(kind, []))
            try:
                manifest, bundle["manifest"] = read_bundle(path, keys, compare_hashes=parameters["verify"])
            except BrambleError as error:
                raise BrambleError(
                    f"the bundle {path} cannot be used: {error}. Delete the folder, then run the same command again"
                ) from None
            bundle["bytes"] = manifest.total_bytes
    if not module.check_mode:
        remove_old_bundles(maker.dest, parameters["keep"], [bundle["id"] for bundle in bundles])
    return {"changed": changed, "bundles": bundles, "keys": keys}


def run(module: AnsibleModule) -> dict[str, Any]:
    """Make the bundles that are missing; return the result of the module. Raises BrambleError."""
    parameters = module.params
    # A template without a value makes an empty string.
    requirements, source = (Path(parameters[name]) if parameters[name] else None for name in ("requirements", "source"))
    dest, key = (Path(parameters[name]) for name in ("dest", "key"))
    for path in (requirements, source / "pyproject.toml") if requirements and source else ():
        if not path.is_file():
            raise BrambleError(
                f"{path} is missing. Nothing was collected. Clone the project again, or check package_bundle_requirements"
            )
    maker = BundleMaker([Path(path) for path in parameters["images"]], requirements, source, parameters["debs"], dest, key)
    with contextlib.nullcontext() if module.check_mode else lock_folder(dest):
        return make_missing_bundles(maker, module)


def main() -> None:
    """Run the module."""
    required = {"type": "str", "required": True}
    kind = {"release": required, "python": required, "architecture": {**required, "choices": ["x86_64", "aarch64"]}}
    spec = {
        "images": {"type": "list", "elements": "path", "required": True},
        "kinds": {"type": "list", "elements": "dict", "options": kind},
        **{name: {"type": "path"} for name in ("requirements", "source")},
        **{name: {"type": "path", "required": True} for name in ("dest", "key")},
        "debs": {"type": "list", "elements": "str", "required": True},
        "signers": {"type": "list", "elements": "str", "default": [], "no_log": False},
        "keep": {"type": "int", "default": 4},
        "refresh": {"type": "bool", "default": False},
        "verify": {"type": "bool", "default": False},
    }
    run_module(spec, run, as_sentence, errors=(BrambleError,), required_together=[("requirements", "source")])


if __name__ == "__main__":
    main()
