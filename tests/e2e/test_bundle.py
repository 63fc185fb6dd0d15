"""Packages for nodes with no way out, when something is wrong with them.

The client has debian-trixie, pi-01 another release: like-rpi-bookworm, with its own Python and its own packages.
"""

from __future__ import annotations

import platform
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, rehearsal
from tests.support.rehearsal import INVENTORY, Play, play

OVERLAY = Path(__file__).parent / "bundle"
STATE = ROOT / ".state/h-bundle"
IMAGES, BUNDLES = ROOT / ".cache/images", ROOT / ".cache/bundles"
SERVED = "/var/lib/bramble-bundle"

playbook = partial(play, inventory=[*INVENTORY, OVERLAY])


def told(node: str, command: str, status: int = 0) -> str:
    """What a command on a node says, as root."""
    done = rehearsal.ssh(STATE, node, f"sudo sh -c {shlex.quote(command)}")
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout.strip()


def write(node: str, path: str, text: str) -> None:
    """Write a file on a node."""
    told(node, f"mkdir -p $(dirname {path}) && printf %s {shlex.quote(text)} >{path}")


@pytest.fixture(scope="module", autouse=True)
def powered_off() -> Iterator[None]:
    """Power off and remove the cards, however the tests ended."""
    yield
    playbook("rehearse", variables={"cluster_state": "absent"})
    shutil.rmtree(STATE, ignore_errors=True)


@pytest.fixture(scope="module")
def images(bookworm: dict[str, Any]) -> dict[str, Any]:
    """Cards of two images; what the playbooks must know of that."""
    playbook("cards", arguments="--limit pi-client")
    playbook("cards", variables=bookworm, arguments="--limit pi-01")
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    return {
        "package_bundle_images": [str(IMAGES / f"{name}-{architecture}.json") for name in ("debian-trixie", "like-rpi-bookworm")],
    }


@pytest.fixture(scope="module")
def site(images: dict[str, Any]) -> Any:
    """Runs site.yml on both nodes: by default, what this is about."""

    def run(arguments: str = "--tags package_bundle", check: bool = True, **variables: Any) -> Play:
        return playbook("site", variables={**images, **variables}, arguments=f"--limit pi-client,pi-01 {arguments}", check=check)

    return run


@pytest.fixture(scope="module")
def before(site: Any) -> dict[str, str]:
    """Both nodes booted; what apt knew then."""
    playbook("rehearse", arguments="--limit pi-client,pi-01")
    return {
        node: told(node, "cd / && find etc/apt var/lib/apt/lists -type f | sort | xargs sha256sum")
        for node in ("pi-client", "pi-01")
    }


@pytest.fixture(scope="module")
def installed(before: dict[str, str], site: Any) -> Play:
    """The packages are on both nodes."""
    return site()


def bundle_of(node: str) -> str:
    (mark,) = told(node, "ls /opt/bramble/*/installed").split()
    return mark.split("/")[3]


def test_each_release_gets_its_own(installed: Play, before: dict[str, str]) -> None:
    assert bundle_of("pi-client") != bundle_of("pi-01")
    assert "+deb13" in told("pi-client", "dpkg-query --show chrony")
    assert "+deb12" in told("pi-01", "dpkg-query --show chrony")
    assert (
        told("pi-01", "/opt/bramble/*/bin/python -c 'import sys, numpy, distributed; print(sys.version_info[:2])'") == "(3, 11)"
    )
    for node, was in before.items():
        assert told(node, "ip route show default") == ""
        assert told(node, "dpkg --audit") == ""
        assert told(node, "cd / && find etc/apt var/lib/apt/lists -type f | sort | xargs sha256sum") == was


def test_a_second_run_changes_nothing(installed: Play, site: Any) -> None:
    assert site().changes() == []


@pytest.fixture(scope="module")
def bundle(installed: Play) -> str:
    """The id of pi-01's bundle."""
    return bundle_of("pi-01")


@pytest.fixture
def lacking(bundle: str) -> Iterator[str]:
    """pi-01 lacks its environment and a package, and does so in the end. Its bundle's id."""
    told("pi-01", "rm -rf /opt/bramble && dpkg --purge libfaketime")
    yield bundle
    assert "libfaketime" not in told("pi-01", "dpkg-query --show")
    assert told("pi-01", "ls /opt/bramble /var/lib/bramble/fetched-* 2>/dev/null || true").strip() in ("", "/opt/bramble:")


def refused(run: Play) -> str:
    """Why pi-01 did not install."""
    assert set(run.failed) == {"pi-01"}, run.failed
    return run.failed["pi-01"]


def test_what_is_altered_or_missing_is_named_and_nothing_is_installed(lacking: str, site: Any) -> None:
    folder = f"{SERVED}/{lacking}"
    wheel = told("pi-client", f"cd {folder} && ls wheels/dask-*.whl")
    deb = told("pi-client", f"cd {folder} && ls debs/chrony_*.deb")
    gone = told("pi-client", f"cd {folder} && ls wheels/numpy-*.whl")
    # As long as they were.
    told(
        "pi-client", f"cd {folder} && for f in {wheel} {deb}; do printf X | dd of=$f bs=1 seek=99 conv=notrunc status=none; done"
    )
    told("pi-client", f"rm {folder}/{gone}")
    message = refused(site(check=False))
    for words in (f"{wheel} is altered", f"{deb} is altered", f"{gone} is missing", "package_bundle_send=true"):
        assert words in message


def test_a_bundle_that_is_not_signed_here_is_refused(lacking: str, site: Any, tmp_path: Path) -> None:
    folder = f"{SERVED}/{lacking}"
    manifest = (BUNDLES / lacking / "manifest.json").read_bytes()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    command: list[str | Path] = ["ssh-keygen", "-q", "-Y", "sign", "-n", "bramble-bundle", "-f", tmp_path / "other"]
    signature = subprocess.run(command, input=manifest, capture_output=True, check=True).stdout.decode()
    write("pi-client", f"{folder}/manifest.json.sig", signature)
    assert "signed neither by the control machine" in refused(site(check=False))
    told("pi-client", f"rm {folder}/manifest.json.sig")
    assert "manifest.json.sig is missing" in refused(site(check=False))


def test_what_is_altered_here_is_not_sent(lacking: str, site: Any) -> None:
    path = next((BUNDLES / lacking / "debs").glob("chrony_*.deb"))
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        run = site(check=False, package_bundle_send=True)
        assert any(f"debs/{path.name} is altered" in message for message in run.failed.values()), run.failed
    finally:
        path.write_bytes(whole)


def test_a_node_of_an_older_release_computes_beside_the_client(site: Any) -> None:
    site("", package_bundle_send=True)
    assert told("pi-client", "bramble prove pi-01").startswith("pi-01 computes")
