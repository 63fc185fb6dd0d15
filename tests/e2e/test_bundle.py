"""Bundles with faults, on nodes without internet.

The client has debian-trixie. pi-01 has another release, like-rpi-bookworm, with its own version of Python and its own packages.
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


def output(node: str, command: str, status: int = 0) -> str:
    """Return what a command on a node writes, as root; its exit code must be the status."""
    done = rehearsal.ssh(STATE, node, f"sudo sh -c {shlex.quote(command)}")
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module", autouse=True)
def powered_off() -> Iterator[None]:
    """Power off the nodes and remove their cards, even if tests have failed."""
    yield
    playbook("rehearse", variables={"cluster_state": "absent"})
    shutil.rmtree(STATE, ignore_errors=True)


@pytest.fixture(scope="module")
def images(bookworm: dict[str, Any]) -> dict[str, Any]:
    """Write cards of two images; return the variables with which the playbooks know both."""
    playbook("cards", arguments="--limit pi-client")
    playbook("cards", variables=bookworm, arguments="--limit pi-01")
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    return {
        "package_bundle_images": [str(IMAGES / f"{name}-{architecture}.json") for name in ("debian-trixie", "like-rpi-bookworm")],
    }


@pytest.fixture(scope="module")
def site(images: dict[str, Any]) -> Any:
    """Return a function that runs site.yml on both nodes, by default with the tag package_bundle only."""

    def run(arguments: str = "--tags package_bundle", check: bool = True, **variables: Any) -> Play:
        return playbook("site", variables={**images, **variables}, arguments=f"--limit pi-client,pi-01 {arguments}", check=check)

    return run


@pytest.fixture(scope="module")
def before(site: Any) -> dict[str, str]:
    """Boot both nodes; return the hashes of apt's files on each."""
    playbook("rehearse", arguments="--limit pi-client,pi-01")
    return {
        node: output(node, "cd / && find etc/apt var/lib/apt/lists -type f | sort | xargs sha256sum")
        for node in ("pi-client", "pi-01")
    }


@pytest.fixture(scope="module")
def installed(before: dict[str, str], site: Any) -> Play:
    """Install the packages on both nodes."""
    return site()


def bundle_of(node: str) -> str:
    """Return the id of the bundle that is installed on a node."""
    (mark,) = output(node, "ls /opt/bramble/*/installed").split()
    return mark.split("/")[3]


def test_each_release_has_its_own_bundle(installed: Play, before: dict[str, str]) -> None:
    assert bundle_of("pi-client") != bundle_of("pi-01")
    assert "+deb13" in output("pi-client", "dpkg-query --show chrony")
    assert "+deb12" in output("pi-01", "dpkg-query --show chrony")
    assert (
        output("pi-01", "/opt/bramble/*/bin/python -c 'import sys, numpy, distributed; print(sys.version_info[:2])'") == "(3, 11)"
    )
    for node, was in before.items():
        assert output(node, "ip route show default") == ""
        assert output(node, "dpkg --audit") == ""
        assert output(node, "cd / && find etc/apt var/lib/apt/lists -type f | sort | xargs sha256sum") == was


def test_a_second_run_changes_nothing(installed: Play, site: Any) -> None:
    assert site().changes() == []


@pytest.fixture(scope="module")
def bundle(installed: Play) -> str:
    """Return the id of pi-01's bundle."""
    return bundle_of("pi-01")


@pytest.fixture
def missing_bundle(bundle: str) -> Iterator[str]:
    """Remove the environment and a package from pi-01, yield the id of its bundle, and check that neither was installed."""
    output("pi-01", "rm -rf /opt/bramble && dpkg --purge libfaketime")
    yield bundle
    assert "libfaketime" not in output("pi-01", "dpkg-query --show")
    assert output("pi-01", "ls /opt/bramble /var/lib/bramble/fetched-* 2>/dev/null || true").strip() in ("", "/opt/bramble:")


def refusal(run: Play) -> str:
    """Return the message with which pi-01, and no other node, has failed."""
    assert set(run.failed) == {"pi-01"}, run.failed
    return run.failed["pi-01"]


def test_altered_and_missing_files_are_reported_and_nothing_is_installed(missing_bundle: str, site: Any) -> None:
    folder = f"{SERVED}/{missing_bundle}"
    wheel = output("pi-client", f"cd {folder} && ls wheels/dask-*.whl")
    deb = output("pi-client", f"cd {folder} && ls debs/chrony_*.deb")
    missing_wheel = output("pi-client", f"cd {folder} && ls wheels/numpy-*.whl")
    # The altered files keep their size.
    output(
        "pi-client", f"cd {folder} && for f in {wheel} {deb}; do printf X | dd of=$f bs=1 seek=99 conv=notrunc status=none; done"
    )
    output("pi-client", f"rm {folder}/{missing_wheel}")
    message = refusal(site(check=False))
    for words in (f"{wheel} is altered", f"{deb} is altered", f"{missing_wheel} is missing", "package_bundle_send=true"):
        assert words in message


def test_a_bundle_that_another_key_has_signed_is_refused(missing_bundle: str, site: Any, tmp_path: Path) -> None:
    folder = f"{SERVED}/{missing_bundle}"
    manifest = (BUNDLES / missing_bundle / "manifest.json").read_bytes()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    command: list[str | Path] = ["ssh-keygen", "-q", "-Y", "sign", "-n", "bramble-bundle", "-f", tmp_path / "other"]
    signature = subprocess.run(command, input=manifest, capture_output=True, check=True).stdout
    rehearsal.write_file(STATE, "pi-client", f"{folder}/manifest.json.sig", signature)
    assert "signed neither by the control machine" in refusal(site(check=False))
    output("pi-client", f"rm {folder}/manifest.json.sig")
    assert "manifest.json.sig is missing" in refusal(site(check=False))


def test_a_bundle_that_is_altered_on_the_control_machine_is_not_sent(missing_bundle: str, site: Any) -> None:
    path = next((BUNDLES / missing_bundle / "debs").glob("chrony_*.deb"))
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        run = site(check=False, package_bundle_send=True)
        assert any(f"debs/{path.name} is altered" in message for message in run.failed.values()), run.failed
    finally:
        path.write_bytes(whole)


def test_a_node_with_an_older_release_than_the_client_computes(site: Any) -> None:
    site("", package_bundle_send=True)
    assert output("pi-client", "bramble health-check pi-01").startswith("pi-01 computes")
