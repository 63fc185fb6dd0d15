#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Make the bundles of packages that nodes install, so that nodes need no internet."""

from __future__ import annotations

DOCUMENTATION = r"""
module: package_bundle
short_description: Make the bundles of packages that nodes install
description:
  - For each kind of node (release, architecture, Python), downloads the pinned and hashed requirements as wheels, builds the
    project's own package, and downloads the Debian packages that the nodes' image lacks, with all they depend on. They go into a
    folder named by a hash of what was asked for, with a manifest of every file's size and SHA-256, and a signature over that.
  - Runs on the control machine. A bundle that exists is not made again. No internet is needed then, and no image.
options:
  images:
    description: The manifests (.json) of the card images that the nodes have.
    type: list
    elements: path
    required: true
  kinds:
    description: The kinds of nodes to have bundles for. Without it, those of the images.
    type: list
    elements: dict
    suboptions:
      release:
        description: The release's code name, as VERSION_CODENAME in os-release says it.
        type: str
        required: true
      python:
        description: The Python, as MAJOR.MINOR.
        type: str
        required: true
      architecture:
        description: The architecture, as C(uname -m) says it.
        type: str
        choices: [x86_64, aarch64]
        required: true
  requirements:
    description: A requirements file in which every package is pinned and hashed, dependencies included. Without it and O(source)
      the bundle has Debian packages only.
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
    description: The private key (OpenSSH) that signs, made unless it is there.
    type: path
    required: true
  signers:
    description: Public keys whose bundles are taken, too.
    type: list
    elements: str
    default: []
  keep:
    description: How many bundles to keep. Those that were used last stay.
    type: int
    default: 4
  refresh:
    description: Make them again, with the newest Debian packages.
    type: bool
    default: false
  verify:
    description: Read every file of a bundle that exists, and compare it with the manifest. Else only sizes are compared.
    type: bool
    default: false
author: The Bramble team (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Have the packages for Raspberry Pis with Debian trixie
  package_bundle:
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
  description: The bundles. Those that a dry run would make have C(id) and C(path) only.
  returned: always
  type: list
  elements: dict
  contains:
    kind:
      description: The kind of node it is for, as in O(kinds).
      type: dict
    id:
      description: A hash of what was asked for.
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
  description: The public keys whose signatures are good.
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
    describe,
    make_key,
    read,
    run_command,
    sign,
)
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import as_sentence, run_module
from packaging.requirements import InvalidRequirement, Requirement

# PEP 600, newest first: trixie has glibc 2.41, bookworm 2.36.
PLATFORMS = ("manylinux_2_35", "manylinux_2_34", "manylinux_2_31", "manylinux_2_28", "manylinux_2_17", "manylinux2014")


def sources(source: Path) -> list[Path]:
    """The files that make the package, in a stable order."""
    parts = [path for path in source.rglob("*") if path.suffix in {".html", ".json", ".md", ".py", ".qs", ".toml"}]
    return sorted(path for path in parts if not {"build", "tests", "__pycache__"} & set(path.relative_to(source).parts))


def bundle_id(kind: Kind, requirements: Path | None, source: Path | None, debs: Sequence[str], images: Sequence[Path]) -> str:
    """A hash (12 hexadecimal digits) of everything that shapes a bundle; without Python packages, of the Debian ones.

    Those are what the images lack, which need not be here: they count by their names.
    """
    lacking = [*sorted(debs), *sorted({image.name for image in images})] if debs else []
    digest = hashlib.sha256(f"{FORMAT} {kind} {' '.join(lacking)}\n".encode())
    for path in [requirements, *sources(source)] if requirements and source else []:
        content = path.read_bytes()
        name = path.relative_to(source) if source and path.is_relative_to(source) else path.name
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def wanted(requirements: str, kind: Kind) -> str:
    """The lines of a requirements file that are for this kind of node, without the markers that say so.

    pip itself would judge the markers (PEP 508) by this machine's Python. Raises BrambleError.
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
            raise BrambleError(f"the requirement {text.strip()!r} can not be read: {error}") from None
        if requirement.marker is None or requirement.marker.evaluate(environment):
            requirement.marker = None
            lines.append(" ".join([str(requirement), *(f"--hash={value.strip()}" for value in hashes)]))
    return "\n".join(lines) + "\n"


def download_command(requirements: Path, dest: Path, kind: Kind) -> list[str]:
    """pip's command line. --no-deps: all of them are in the file."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--implementation=cp", f"--python-version={kind.python}"]
    command += [f"--platform={platform}_{kind.architecture}" for platform in PLATFORMS]
    return [*command, "--requirement", str(requirements), "--dest", str(dest)]


def build_command(source: Path, dest: Path) -> list[str]:
    """pip's command line for the project's own wheel."""
    return [
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"),
        *("--wheel-dir", str(dest), str(source)),
    ]


def finish(wheels: Path) -> None:
    """Add what installs the wheels: pip itself, and to the requirements the hash of the project's own wheel."""
    (own,) = wheels.glob("bramble-*.whl")
    (pip,) = wheels.glob("pip-*.whl")
    name, version = own.name.split("-")[:2]
    digest = hashlib.sha256(own.read_bytes()).hexdigest()
    with (wheels / "requirements.txt").open("a", encoding="utf-8") as file:
        file.write(f"{name}=={version} --hash=sha256:{digest}\n")
    # Under a name that does not change: a wheel is a zip, and Python runs a package in one.
    shutil.copy(pip, wheels / "installer.zip")


def collect(requirements: Path, source: Path, copy: Path, wheels: Path, kind: Kind) -> None:
    """Download and build all wheels into a folder; `copy` is where the source may be copied to. Raises BrambleError."""
    # setuptools leaves build/ beside the source: let it do so in a copy.
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    lines = wheels / "requirements.txt"
    lines.write_text(wanted(requirements.read_text(encoding="utf-8"), kind), encoding="utf-8")
    try:
        run_command(*download_command(lines, wheels, kind))
        run_command(*build_command(copy, wheels))
    except BrambleError as error:
        raise BrambleError(
            f"the packages for CPython {kind.python} on {kind.architecture} could not be collected: {error}. Collecting "
            "needs the internet, on this machine only; then run the same command again"
        ) from None
    finish(wheels)


class Maker(NamedTuple):
    """Where bundles come from and where they go."""

    images: Sequence[Path]
    requirements: Path | None
    source: Path | None
    debs: Sequence[str]
    dest: Path
    key: Path

    def images_by_kind(self, scratch: Path) -> dict[Kind, list[bundle_debs.Image]]:
        """The images, read into folders in `scratch`. Raises BrambleError."""
        found: dict[Kind, list[bundle_debs.Image]] = {}
        for number, manifest in enumerate(self.images):
            image = bundle_debs.Image(manifest, scratch / f"image{number}")
            found.setdefault(image.kind, []).append(image)
        return found

    def make(self, name: str, kind: Kind, images: Sequence[bundle_debs.Image]) -> None:
        """Make a bundle; it gets its name when it is complete. Raises BrambleError."""
        with tempfile.TemporaryDirectory(prefix=".making-", dir=self.dest) as scratch:
            folder, copy = Path(scratch, "bundle"), Path(scratch, "source")
            wheels, debs = folder / "wheels", folder / "debs"
            for path in (folder, wheels, debs):
                path.mkdir(mode=0o755)
            for image in images:
                image.download(self.debs, self.dest / f".lists-{kind.release}-{kind.architecture}", debs)
            for path in debs.glob("*%3a*"):
                path.rename(debs / path.name.replace("%3a", "_"))
            (debs / "Packages").write_text(bundle_debs.index(debs), encoding="utf-8")
            if self.requirements and self.source:
                collect(self.requirements, self.source, copy, wheels, kind)
            manifest = Manifest(name, kind, tuple(self.debs), describe(folder)).dump()
            (folder / MANIFEST).write_bytes(manifest)
            (folder / SIGNATURE).write_bytes(sign(manifest, self.key))
            if (self.dest / name).exists():
                (self.dest / name).rename(Path(scratch, "old"))
            folder.rename(self.dest / name)


def prune(dest: Path, keep: int, used: Sequence[str]) -> None:
    """Remove all bundles but those in use and the last `keep`."""
    for name in used:
        os.utime(dest / name)
    bundles = sorted((path.parent for path in dest.glob(f"*/{MANIFEST}")), key=lambda path: path.stat().st_mtime)
    for path in bundles[:-keep]:
        if path.name not in used:
            shutil.rmtree(path)


@contextlib.contextmanager
def alone(dest: Path) -> Iterator[None]:
    """One run at a time in a folder of bundles: what a killed one left is removed first."""
    dest.mkdir(parents=True, exist_ok=True)
    with (dest / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in dest.glob(".making-*"):
            shutil.rmtree(leftover)
        yield


def have(maker: Maker, module: AnsibleModule) -> dict[str, Any]:
    """Make what is missing. Gives what the module returns; raises BrambleError."""
    parameters = module.params
    kinds = [Kind(**kind) for kind in parameters["kinds"] or []]
    changed, bundles = False, []
    with tempfile.TemporaryDirectory(prefix="bundle-") as scratch:
        images: dict[Kind, list[bundle_debs.Image]] = {}
        if not kinds:
            images = maker.images_by_kind(Path(scratch))
        if not module.check_mode:
            make_key(maker.key)
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
                # Without Debian packages, no image has to be asked what it lacks.
                images = images or (maker.images_by_kind(Path(scratch)) if maker.debs else {kind: []})
                if maker.debs and kind not in images:
                    raise BrambleError(
                        f"there are nodes of {kind}, and the images are of {', '.join(map(str, images))}: "
                        "name the image they have in package_bundle_images"
                    )
                maker.make(name, kind, images.get(kind, []))
            try:
                manifest, bundle["manifest"] = read(path, keys, contents=parameters["verify"])
            except BrambleError as error:
                raise BrambleError(f"the bundle {path} can not be used: {error}. Delete it to have it made again") from None
            bundle["bytes"] = manifest.bytes
    if not module.check_mode:
        prune(maker.dest, parameters["keep"], [bundle["id"] for bundle in bundles])
    return {"changed": changed, "bundles": bundles, "keys": keys}


def run(module: AnsibleModule) -> dict[str, Any]:
    """Make the bundles that are missing. Raises BrambleError."""
    parameters = module.params
    # Ansible gives an empty string where a template gives none.
    requirements, source = (Path(parameters[name]) if parameters[name] else None for name in ("requirements", "source"))
    dest, key = (Path(parameters[name]) for name in ("dest", "key"))
    for path in (requirements, source / "pyproject.toml") if requirements and source else ():
        if not path.is_file():
            raise BrambleError(f"{path} is missing: nothing was collected. Is this a whole clone of the project?")
    maker = Maker([Path(path) for path in parameters["images"]], requirements, source, parameters["debs"], dest, key)
    with contextlib.nullcontext() if module.check_mode else alone(dest):
        return have(maker, module)


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
