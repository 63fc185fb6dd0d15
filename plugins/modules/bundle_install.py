#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: install a bundle of packages on a node that has no internet."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle_install
short_description: Install a bundle of packages on a node
description:
  - Fetches a bundle from the bundle server of the cluster, and checks its signature and every file. Then installs its Debian
    packages, and its wheels into a virtual environment, C(prefix/id). When a file is missing or altered, the module names it and
    installs nothing.
  - A bundle may have Debian packages only. Then C(prefix/id) only records that it is installed, and is not an environment.
  - The node's own package sources are neither used nor changed.
  - Another bundle is installed beside the previous one, so that an interrupted run leaves a node that works. Environments older
    than the previous one are removed.
options:
  id:
    description: The bundle's id.
    type: str
    required: true
  manifest:
    description: The SHA-256 of the bundle's manifest. Without it (in a dry run, before the bundle exists) it is not compared.
    type: str
    default: ""
  url:
    description: The URL of the bundle's folder, without a slash at the end.
    type: str
    required: true
  keys:
    description: The public keys (OpenSSH) whose signatures are accepted.
    type: list
    elements: str
    required: true
  debs:
    description: The names of the Debian packages to install on this node.
    type: list
    elements: str
    required: true
  prefix:
    description: The folder of the environments.
    type: path
    required: true
  state_dir:
    description: The folder for files while they are installed, and for the record of the Debian packages that were installed.
    type: path
    default: /var/lib/bramble
author: The Bramble team (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Install the packages
  bramble.cluster.bundle_install:
    id: 0cbca4d17510
    manifest: 8d3c6f…
    url: http://192.168.1.100:8785/0cbca4d17510
    keys: ["{{ lookup('ansible.builtin.file', '.state/bundles/key.pub') }}"]
    debs: [chrony]
    prefix: /opt/bramble
"""

RETURN = r"""
needed:
  description: Whether something had to be installed, or in a dry run has to be.
  returned: always
  type: bool
id:
  description: The bundle's id.
  returned: always
  type: str
debs:
  description: The Debian packages that were new on the node.
  returned: when a bundle was installed
  type: list
  elements: str
"""

import contextlib
import hashlib
import http.client
import os
import platform
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.bundle.bundle import (
    MANIFEST,
    SIGNATURE,
    Manifest,
    check_signature,
    find_problems,
    run_command,
)
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import as_sentence, run_module
from ansible_collections.bramble.cluster.plugins.module_utils.core.text_file import write_text

TIMEOUT = 30.0  # seconds without a byte
# Attempts to fetch a file, and the seconds between them: a switch or a client that has just started may need a moment.
ATTEMPTS, PAUSE = 3, 1.0
# The size of the unpacked wheels, as a multiple of the size of the bundle.
UNPACKED_FACTOR = 5
ENVIRONMENT = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


def fetch_file(url: str, target: Path | None = None) -> bytes:
    """Fetch a file into `target`, or without one return its content.

    Raises BrambleError when the server does not answer, and FileNotFoundError when it does not have the file.
    """
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE)
        try:
            # The server is in the cluster's own network, so a proxy of the node is never used.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(url, timeout=TIMEOUT) as answer:
                if not target:
                    return bytes(answer.read())
                with target.open("wb") as file:
                    shutil.copyfileobj(answer, file, 1 << 20)
                return b""
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.NOT_FOUND:
                raise FileNotFoundError(url) from None
            problem: Exception = error
        except (OSError, http.client.HTTPException) as error:
            problem = error
    raise BrambleError(
        f"{url} cannot be read: {problem}. Is the client powered on? Its bundle server: systemctl status bramble-bundle"
    )


def fetch_files(url: str, manifest: Manifest, folder: Path) -> None:
    """Fetch all files of a bundle and check them. Raises BrambleError, which names all files that are missing or altered."""
    for name in manifest.files:
        target = folder / name
        target.parent.mkdir(exist_ok=True, mode=0o755)
        with contextlib.suppress(FileNotFoundError):  # find_problems names what is missing
            fetch_file(f"{url}/{urllib.parse.quote(name)}", target)
    problems = list(find_problems(folder, manifest))
    if problems:
        raise BrambleError(
            f"the bundle at {url} is damaged: {'; '.join(problems)}. Nothing was installed. To send the files to the client "
            "again: ansible-playbook playbooks/site.yml -e package_bundle_send=true"
        )


def installed_debs() -> set[str]:
    """Return the names of the Debian packages that are installed on this node."""
    lines = run_command("dpkg-query", "--show", "--showformat=${db:Status-Abbrev}${Package}\n").splitlines()
    return {line[3:] for line in lines if line.startswith(("ii", "hi"))}


def install_debs(packages: Sequence[str], folder: Path, scratch: Path) -> None:
    """Install packages with apt, only from a folder of .deb files with an index. Raises BrambleError.

    :param scratch: a folder for apt's own files
    """
    sources, lists = scratch / "bundle.list", scratch / "lists"
    (lists / "partial").mkdir(parents=True)
    # The source may be trusted: every file, the index included, has just been compared with the signed manifest.
    sources.write_text(f"deb [trusted=yes] file:{folder} ./\n", encoding="utf-8")
    settings = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": lists,
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",
        "DPkg::Lock::Timeout": 120,
        "Dpkg::Options::": "--force-confold",
    }
    apt = ["apt-get", "-q", "--yes", *(f"-o{name}={value}" for name, value in settings.items())]
    # After a power cut during an installation, apt refuses all work until dpkg has completed it.
    run_command("dpkg", "--force-confold", "--configure", "--pending", env=ENVIRONMENT)
    run_command(*apt, "update", env=ENVIRONMENT)
    run_command(*apt, "--no-install-recommends", "install", *packages, env=ENVIRONMENT)


def install_wheels(wheels: Path, venv: Path) -> None:
    """Create a virtual environment and install the wheels, verified by hash. Raises BrambleError."""
    python = venv / "bin/python"
    # Without pip, because many images lack ensurepip. The bundle has pip as a zip file, which runs without being installed.
    run_command(sys.executable, "-m", "venv", "--clear", "--without-pip", venv)
    run_command(
        *(python, wheels / "installer.zip/pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"),
        *(f"--find-links={wheels}", "--no-deps", "--no-compile", "--require-hashes", f"--requirement={wheels}/requirements.txt"),
        env={**ENVIRONMENT, "PIP_CONFIG_FILE": "/dev/null"},
    )
    # Compile what the programs use, which also proves that it works. Compiling everything takes a small core a minute more, and
    # so does numba's machine code, of which each program keeps its own cache.
    run_command(python, "-m", "bramble.precompile", env={**ENVIRONMENT, "NUMBA_DISABLE_JIT": "1"})


class NodeFolders(NamedTuple):
    """The folders of bundles on this node: `prefix` of the environments, `state` of records and temporary files."""

    prefix: Path
    state: Path

    def marker(self, name: str) -> Path:
        """Return the path of the file that exists when a bundle is installed; it holds the SHA-256 of the manifest."""
        return self.prefix / name / "installed"

    @property
    def debs_record(self) -> Path:
        """The path of the record of the Debian packages that this module has installed, one name per line."""
        return self.state / "debs"

    def record_debs(self, packages: set[str]) -> None:
        """Add packages to the record."""
        before = set(self.debs_record.read_text().split()) if self.debs_record.exists() else set()
        write_text(self.debs_record, "".join(f"{name}\n" for name in sorted(before | packages)))

    def check_free_space(self, needed: int) -> None:
        """Check that both folders have `needed` bytes free. Raises BrambleError."""
        for folder in {self.prefix, self.state}:
            existing = next(path for path in (folder, *folder.parents) if path.exists())
            if (free := shutil.disk_usage(existing).free) < needed:
                raise BrambleError(
                    f"{folder} has {free:,} bytes free, and up to {needed:,} are needed. Nothing was installed. Free some space, "
                    "or flash a larger card"
                )

    def remove_old_environments(self, name: str) -> None:
        """Remove the environments of earlier bundles except the previous one, which a running service may use."""
        others = [path for path in self.prefix.iterdir() if path.is_dir() and path.name != name]
        for path in sorted(others, key=lambda path: path.stat().st_mtime)[:-1]:
            shutil.rmtree(path)


def install_bundle(node: NodeFolders, module: AnsibleModule) -> list[str]:
    """Fetch, check and install a bundle. Return the Debian packages that are new. Raises BrambleError."""
    parameters = module.params
    name, url = parameters["id"], parameters["url"]
    try:
        data, signature = (fetch_file(f"{url}/{file}") for file in (MANIFEST, SIGNATURE))
    except FileNotFoundError as error:
        raise BrambleError(
            f"{error} is missing. Nothing was installed. To send the bundle to the client again: "
            "ansible-playbook playbooks/site.yml -e package_bundle_send=true"
        ) from None
    try:
        check_signature(data, signature, parameters["keys"])
        manifest = Manifest.from_json(data)
        if hashlib.sha256(data).hexdigest() != parameters["manifest"]:
            raise BrambleError("it is signed, but it is not the bundle that the control machine has")
    except BrambleError as error:
        raise BrambleError(f"the bundle at {url} is refused: {error}. Nothing was installed") from None
    python = ".".join(platform.python_version_tuple()[:2])
    if (manifest.kind.python, manifest.kind.architecture) != (python, platform.machine()):
        raise BrambleError(f"the bundle is for {manifest.kind}, and this node has Python {python} on {platform.machine()}")
    has_wheels = node.marker(name).exists()
    node.check_free_space(manifest.total_bytes * (1 if has_wheels else UNPACKED_FACTOR))
    for path in (node.prefix, node.state):
        path.mkdir(parents=True, exist_ok=True, mode=0o755)
    for leftover in node.state.glob("fetched-*"):  # of an interrupted run
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix="fetched-", dir=node.state) as scratch:
        folder = Path(scratch)
        folder.chmod(0o755)
        fetch_files(url, manifest, folder)
        before = installed_debs()
        try:
            install_debs(parameters["debs"], folder / "debs", folder)
        finally:
            node.record_debs(new_debs := installed_debs() - before)
        if not has_wheels:
            if any(file.startswith("wheels/") for file in manifest.files):
                install_wheels(folder / "wheels", node.prefix / name)
            (node.prefix / name).mkdir(exist_ok=True)
    write_text(node.marker(name), f"{parameters['manifest']}\n")
    node.remove_old_environments(name)
    return sorted(new_debs)


def run(module: AnsibleModule) -> dict[str, Any]:
    """Install what is missing; return the result of the module. Raises BrambleError, OSError."""
    parameters = module.params
    node = NodeFolders(Path(parameters["prefix"]), Path(parameters["state_dir"]))
    marker = node.marker(parameters["id"])
    missing = sorted(set(parameters["debs"]) - installed_debs())
    before = marker.read_text().strip() if marker.exists() else ""
    needed = not before or bool(missing) or parameters["manifest"] not in ("", before)
    result: dict[str, Any] = {"id": parameters["id"], "changed": needed, "needed": needed}
    if needed and module._diff:
        result["diff"] = {
            "before": f"bundle: {parameters['id'] if before else 'none'}\nmissing: {' '.join(missing)}\n",
            "after": f"bundle: {parameters['id']}\nmissing:\n",
        }
    if needed and not module.check_mode:
        result["debs"] = install_bundle(node, module)
    return result


def main() -> None:
    """Run the module."""
    strings = {"type": "list", "elements": "str", "required": True}
    spec = {
        "id": {"type": "str", "required": True},
        "manifest": {"type": "str", "default": ""},
        "url": {"type": "str", "required": True},
        "keys": {**strings, "no_log": False},
        "debs": strings,
        "prefix": {"type": "path", "required": True},
        "state_dir": {"type": "path", "default": "/var/lib/bramble"},
    }
    run_module(spec, run, as_sentence)


if __name__ == "__main__":
    main()
