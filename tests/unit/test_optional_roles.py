"""The optional roles, applied to the control machine in temporary folders: what they refuse, install, keep and remove."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.web import Site

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def play(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Return a function that runs a playbook with the control machine as pi-client.

    The function returns the playbook's exit code, and its output in one line.
    """
    overlay = tmp_path / "overlay.yml"
    overlay.write_text(
        "client:\n  vars: {ansible_connection: local, ansible_become: false, validate_keys: false}\n"
        "dotnet: {hosts: {pi-client: }}\nliquid: {hosts: {pi-client: }}\n"
    )

    def run(name: str, *options: str, **variables: object) -> tuple[int, str]:
        command: list[str | Path] = [
            Path(sys.executable).with_name("ansible-playbook"),
            "-i",
            "inventory/hosts.yml",
            "-i",
            overlay,
        ]
        command += ["-i", "inventory/active.yml"]
        command += [f"playbooks/{name}.yml", *options, "-e", json.dumps(variables)]
        environment = {**os.environ, "ANSIBLE_STRATEGY": "mitogen_linear", "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        return result.returncode, " ".join((result.stdout + result.stderr).split())

    return run


def file_contents(*folders: Path) -> dict[str, str]:
    """Return the content of each file in the folders, and the target of each link, by path."""
    return {
        str(path): os.readlink(path) if path.is_symlink() else path.read_bytes().hex() if path.is_file() else ""
        for folder in folders
        for path in sorted(folder.rglob("*"))
    }


def tarball(path: Path, program: str) -> str:
    """Write a tarball with a program `dotnet`, and return its hash."""
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo("./dotnet")
        entry.mode, entry.size = 0o755, len(program)
        tar.addfile(entry, io.BytesIO(program.encode()))
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


def test_dotnet_is_installed_kept_and_removed(play, site: Site, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    node = tmp_path / "node"
    node.mkdir()
    paths = {
        "dotnet_prefix": str(node / "dotnet"),
        "dotnet_command": str(node / "command"),
        "dotnet_profile": str(node / "profile.sh"),
        "dotnet_cache": str(tmp_path / "cache"),
    }
    archive = tmp_path / "sdk.tar.gz"
    checksum = tarball(archive, '#!/bin/sh\n[ "$DOTNET_CLI_TELEMETRY_OPTOUT" ] && echo "8.0.100 [/x]"\n')
    pinned = paths | {"dotnet_sdk": site.add("/sdk.tar.gz", archive.read_bytes()), "dotnet_checksum": checksum}

    code, output = play("dotnet", **paths)
    assert code and "Set dotnet_sdk" in output
    code, output = play("dotnet", **pinned | {"dotnet_checksum": "sha256:" + "0" * 64})
    assert code and "The checksum for" in output and not file_contents(node)

    code, output = play("dotnet", "--check", **pinned)
    assert code == 0 and "changed=3" in output and not file_contents(node)
    code, output = play("dotnet", **pinned)
    assert code == 0
    listed = subprocess.run([node / "command"], env={"DOTNET_CLI_TELEMETRY_OPTOUT": "1"}, capture_output=True, check=True)
    assert b"8.0.100" in listed.stdout
    before = file_contents(node)
    site.pages.clear()  # The tarball is in the cache.
    code, output = play("dotnet", **pinned)
    assert code == 0 and "changed=0" in output and file_contents(node) == before

    # Another SDK, from a file, does not run, so the first one stays in use.
    broken_checksum = tarball(tmp_path / "other.tar.gz", "#!/bin/sh\nexit 1\n")
    code, output = play("dotnet", **paths | {"dotnet_sdk": str(tmp_path / "other.tar.gz"), "dotnet_checksum": broken_checksum})
    assert code and "Check that the SDK runs on the node" in output
    assert os.readlink(node / "command") == before[str(node / "command")]

    code, _ = play("dotnet", cluster_state="absent", **paths)
    assert code == 0 and not file_contents(node)


def test_liquid_is_installed_kept_and_removed(play, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    clone, node = tmp_path / "Liquid", tmp_path / "node"
    (clone / "linux").mkdir(parents=True)
    node.mkdir()
    for name in ("LICENSE.md", "linux/Liquid.exe", "linux/FSharp.Core.dll"):
        (clone / name).write_text(name)
    paths = {"liquid_prefix": str(node / "liquid"), "liquid_command": str(node / "command")}

    code, output = play("liquid", liquid_source=str(clone), **paths)
    assert code and "Read LICENSE.md" in output and not file_contents(node)
    accepted = paths | {"liquid_accept_license": True}
    code, output = play("liquid", **accepted, liquid_source=str(tmp_path))
    assert code and "linux/Liquid.exe does not exist" in output
    (tmp_path / "bin").mkdir()
    mono = tmp_path / "bin/mono"
    mono.write_text("#!/bin/sh\nexit 1\n")
    mono.chmod(0o755)
    code, output = play("liquid", **accepted, liquid_source=str(clone))
    assert code and "does not have Mono. Add mono-complete" in output and not file_contents(node)

    mono.write_text('#!/bin/sh\necho "$@"\n')
    code, output = play("liquid", "--check", **accepted, liquid_source=str(clone))
    assert code == 0 and not file_contents(node)
    assert play("liquid", **accepted, liquid_source=str(clone))[0] == 0
    before = file_contents(node)
    assert (node / "liquid/linux").exists() is False and (node / "liquid/LICENSE.md").exists()
    started = subprocess.run(
        [node / "command", "/x y"], env={"PATH": f"{mono.parent}:/bin"}, capture_output=True, text=True, check=True
    )
    assert started.stdout == f"{node}/liquid/Liquid.exe /x y\n"
    code, output = play("liquid", **accepted, liquid_source=str(clone))
    assert code == 0 and "changed=0" in output and file_contents(node) == before
    assert play("liquid", cluster_state="absent", **paths)[0] == 0 and not file_contents(node)
