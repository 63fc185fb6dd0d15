#!/usr/bin/python
"""Collect the Python packages that nodes of one kind install, so that nodes need no internet."""

from __future__ import annotations

DOCUMENTATION = r"""
module: wheel_bundle
short_description: Collect the wheels that nodes of one kind install
description:
  - Downloads the pinned and hashed requirements as wheels for the nodes' architecture and Python, builds the
    project's own package, and packs them into one tar file, named by a hash of what went into it.
  - Runs on the control machine. A bundle that exists is not made again.
options:
  requirements:
    description: A requirements file in which every package is pinned and hashed, dependencies included.
    type: path
    required: true
  source:
    description: The folder of the project's own package (pyproject.toml).
    type: path
    required: true
  dest:
    description: The folder for bundles.
    type: path
    required: true
  python_version:
    description: The nodes' Python, as MAJOR.MINOR.
    type: str
    required: true
  architecture:
    description: The nodes' architecture, as C(uname -m) says it.
    type: str
    choices: [x86_64, aarch64]
    required: true
author: [Bramble]
"""

EXAMPLES = r"""
- name: Collect the wheels for Raspberry Pis with Debian trixie
  wheel_bundle:
    requirements: workloads/requirements.txt
    source: workloads
    dest: .cache/bundles
    python_version: "3.13"
    architecture: aarch64
  delegate_to: localhost
"""

RETURN = r"""
id:
  description: A hash of what went into the bundle.
  returned: always
  type: str
path:
  description: The tar file. Its members are in a folder named like the id.
  returned: always
  type: str
bytes:
  description: The size of the tar file.
  returned: when it exists
  type: int
"""

import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

# PEP 600, newest first: trixie has glibc 2.41, bookworm 2.36.
PLATFORMS = ("manylinux_2_35", "manylinux_2_34", "manylinux_2_31", "manylinux_2_28", "manylinux_2_17", "manylinux2014")


def sources(source: Path) -> list[Path]:
    """The files that make the package, in a stable order."""
    wanted = [path for path in source.rglob("*") if path.suffix in {".py", ".toml", ".md"}]
    return sorted(path for path in wanted if not {"build", "__pycache__"} & set(path.relative_to(source).parts))


def bundle_id(requirements: Path, source: Path, python_version: str, architecture: str) -> str:
    """A hash (12 hexadecimal digits) of everything that shapes a bundle."""
    digest = hashlib.sha256(f"{python_version} {architecture}\n".encode())
    for path in [requirements, *sources(source)]:
        content = path.read_bytes()
        name = path.relative_to(source) if path.is_relative_to(source) else path.name
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def download_command(requirements: Path, dest: Path, python_version: str, architecture: str) -> list[str]:
    """pip's command line. --no-deps, because pip would judge the markers of dependencies by this machine's Python."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--implementation=cp", f"--python-version={python_version}"]
    command += [f"--platform={platform}_{architecture}" for platform in PLATFORMS]
    return [*command, "--requirement", str(requirements), "--dest", str(dest)]


def build_command(source: Path, dest: Path) -> list[str]:
    """pip's command line for the project's own wheel."""
    return [
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"),
        *("--wheel-dir", str(dest), str(source)),
    ]


def finish(wheels: Path, requirements: Path) -> None:
    """Add what installs the wheels: pip itself, and the requirements with the hash of the project's own wheel."""
    (own,) = wheels.glob("bramble-*.whl")
    (pip,) = wheels.glob("pip-*.whl")
    name, version = own.name.split("-")[:2]
    digest = hashlib.sha256(own.read_bytes()).hexdigest()
    text = requirements.read_text(encoding="utf-8")
    (wheels / "requirements.txt").write_text(f"{text}{name}=={version} --hash=sha256:{digest}\n", encoding="utf-8")
    # Under a name that does not change: a wheel is a zip, and Python runs a package in one.
    shutil.copy(pip, wheels / "installer.zip")


def pack(folder: Path, name: str, dest: Path) -> None:
    """Pack a folder's files under NAME/, the same bytes for the same files; complete or not there at all."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = "root"
        member.mode = 0o755 if member.isdir() else 0o644
        return member

    partial = dest.with_suffix(".partial")
    with tarfile.open(partial, "w") as archive:
        archive.add(folder, name, recursive=False, filter=plain)
        for path in sorted(folder.iterdir()):
            archive.add(path, f"{name}/{path.name}", filter=plain)
    os.replace(partial, dest)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "requirements": {"type": "path", "required": True},
            "source": {"type": "path", "required": True},
            "dest": {"type": "path", "required": True},
            "python_version": {"type": "str", "required": True},
            "architecture": {"type": "str", "required": True, "choices": ["x86_64", "aarch64"]},
        },
        supports_check_mode=True,
    )
    requirements, source, dest = (Path(module.params[name]) for name in ("requirements", "source", "dest"))
    python_version, architecture = module.params["python_version"], module.params["architecture"]
    for path in (requirements, source / "pyproject.toml"):
        if not path.is_file():
            module.fail_json(msg=f"{path} is missing: nothing was collected. Is this a whole clone of the project?")
    name = bundle_id(requirements, source, python_version, architecture)
    path = dest / f"{name}.tar"
    if path.exists() or module.check_mode:
        size = {"bytes": path.stat().st_size} if path.exists() else {}
        module.exit_json(changed=not path.exists(), id=name, path=str(path), **size)

    dest.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bundle-", dir=dest) as scratch:
        wheels, copy = Path(scratch, "wheels"), Path(scratch, "source")
        wheels.mkdir()
        # setuptools leaves build/ beside the source: let it do so in a copy.
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
        for command in (
            download_command(requirements, wheels, python_version, architecture),
            build_command(copy, wheels),
        ):
            code, out, err = module.run_command(command)
            if code:
                module.fail_json(
                    msg=f"The packages for CPython {python_version} on {architecture} could not be collected "
                    f"(pip's exit {code}). Collecting needs the internet, on this machine only; then run the same command again.",
                    stdout=out,
                    stderr=err,
                )
        finish(wheels, requirements)
        pack(wheels, name, path)
    module.exit_json(changed=True, id=name, path=str(path), bytes=path.stat().st_size)


if __name__ == "__main__":
    main()
