#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Install a bundle of packages on a node that has no internet."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle_install
short_description: Install a bundle of packages on a node
description:
  - Fetches a bundle from where the cluster serves it, checks the signature and every file, then installs its Debian packages, and
    its wheels into an environment of their own, C(prefix/id). A file that is missing or altered is named; then none is installed.
  - A bundle may have Debian packages only; then C(prefix/id) says that it is installed, and is no environment.
  - The node's own package sources are neither used nor changed.
  - Another bundle is installed beside the last one, so that an interrupted run leaves a node that works; the last but one goes.
options:
  id:
    description: The bundle's id.
    type: str
    required: true
  manifest:
    description: The SHA-256 of its manifest. Without it (in a dry run, before there is a bundle) it is not compared.
    type: str
    default: ""
  url:
    description: Where the bundle is, without a slash at the end.
    type: str
    required: true
  keys:
    description: The public keys (OpenSSH) whose signatures are good.
    type: list
    elements: str
    required: true
  debs:
    description: The names of the Debian packages that this node is to have.
    type: list
    elements: str
    required: true
  prefix:
    description: Where the environments are.
    type: path
    required: true
  state_dir:
    description: Where files are while they are installed, and where it is noted which Debian packages were.
    type: path
    default: /var/lib/bramble
author: The Bramble team (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Install the packages
  bundle_install:
    id: 0cbca4d17510
    manifest: 8d3c6f…
    url: http://192.168.1.100:8785/0cbca4d17510
    keys: ["{{ lookup('ansible.builtin.file', '.state/bundles/key.pub') }}"]
    debs: [chrony]
    prefix: /opt/bramble
"""

RETURN = r"""
needed:
  description: Whether something is, or was, to be installed.
  returned: always
  type: bool
id:
  description: The bundle's id.
  returned: always
  type: str
debs:
  description: The Debian packages that came with it.
  returned: when it was installed
  type: list
  elements: str
"""

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
    run_command,
    wrong,
)
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import as_sentence, run_module
from ansible_collections.bramble.cluster.plugins.module_utils.core.text_file import write_text

TIMEOUT = 30.0  # seconds without a byte
TRIES, PAUSE = 3, 1.0  # a switch or a client that just came up may need a moment
# What is unpacked from the wheels, as a multiple of what is fetched.
UNPACKED = 5
ENVIRONMENT = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


def fetch(url: str, target: Path | None = None) -> bytes:
    """Get a file: into `target`, or as bytes. Raises BrambleError when nobody answers, FileNotFoundError when it is not there."""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE)
        try:
            # From the cluster's own network: never by a proxy.
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
        f"{url} can not be read: {problem}. Is the client up? It serves the packages (systemctl status bramble-bundle)"
    )


def fetch_all(url: str, manifest: Manifest, folder: Path) -> None:
    """Get all files of a bundle and check them. Raises BrambleError that names all that are missing or altered."""
    missing = []
    for name in manifest.files:
        target = folder / name
        target.parent.mkdir(exist_ok=True, mode=0o755)
        try:
            fetch(f"{url}/{urllib.parse.quote(name)}", target)
        except FileNotFoundError:
            missing.append(name)
    problems = list(wrong(folder, manifest))
    if problems:
        raise BrambleError(
            f"the bundle at {url} is damaged: {'; '.join(problems)}. Nothing was installed. To send the files to the client "
            "again: ansible-playbook playbooks/site.yml -e package_bundle_send=true"
        )


def installed_debs() -> set[str]:
    """The Debian packages that are on this machine."""
    lines = run_command("dpkg-query", "--show", "--showformat=${db:Status-Abbrev}${Package}\n").splitlines()
    return {line[3:] for line in lines if line.startswith(("ii", "hi"))}


def install_debs(packages: Sequence[str], folder: Path, scratch: Path) -> None:
    """Install packages with apt, from a folder with an index and from nowhere else. Raises BrambleError."""
    sources, lists = scratch / "bundle.list", scratch / "lists"
    (lists / "partial").mkdir(parents=True)
    # Trusted: every file in it, the index too, has just been compared with the signed manifest.
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
    # After a power cut in the middle of an installation, nothing else works before this.
    run_command("dpkg", "--force-confold", "--configure", "--pending", env=ENVIRONMENT)
    run_command(*apt, "update", env=ENVIRONMENT)
    run_command(*apt, "--no-install-recommends", "install", *packages, env=ENVIRONMENT)


def install_wheels(wheels: Path, venv: Path) -> None:
    """Make an environment and install the wheels, verified by hash. Raises BrambleError."""
    python = venv / "bin/python"
    # Without pip: many images lack ensurepip. The bundle brings pip, which need not be installed to run.
    run_command(sys.executable, "-m", "venv", "--clear", "--without-pip", venv)
    run_command(
        *(python, wheels / "installer.zip/pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"),
        *(f"--find-links={wheels}", "--no-deps", "--no-compile", "--require-hashes", f"--requirement={wheels}/requirements.txt"),
        env={**ENVIRONMENT, "PIP_CONFIG_FILE": "/dev/null"},
    )
    # Compile what is used, and prove that it works. All of it would take a small core a minute more, and so would numba's machine
    # code: those who run it keep their own.
    run_command(python, "-m", "bramble.precompile", env={**ENVIRONMENT, "NUMBA_DISABLE_JIT": "1"})


class Node(NamedTuple):
    """Where things are on this node."""

    prefix: Path
    state: Path

    def mark(self, name: str) -> Path:
        """The file that says, when it is there, that a bundle is installed: the SHA-256 of its manifest."""
        return self.prefix / name / "installed"

    @property
    def noted(self) -> Path:
        """Where it is noted which Debian packages were installed here, by name."""
        return self.state / "debs"

    def note(self, packages: set[str]) -> None:
        """Add to the note."""
        before = set(self.noted.read_text().split()) if self.noted.exists() else set()
        write_text(self.noted, "".join(f"{name}\n" for name in sorted(before | packages)))

    def room(self, needed: int) -> None:
        """Raises BrambleError when there is not enough space for it."""
        for folder in {self.prefix, self.state}:
            there = next(path for path in (folder, *folder.parents) if path.exists())
            if (free := shutil.disk_usage(there).free) < needed:
                raise BrambleError(f"{folder} has {free:,} bytes free, and up to {needed:,} are needed. Nothing was installed")

    def prune(self, name: str) -> None:
        """Remove the environments of earlier bundles but the last, which a service may be running from."""
        others = [path for path in self.prefix.iterdir() if path.is_dir() and path.name != name]
        for path in sorted(others, key=lambda path: path.stat().st_mtime)[:-1]:
            shutil.rmtree(path)


def install(node: Node, module: AnsibleModule) -> list[str]:
    """Fetch, check, install. Gives the Debian packages that are new; raises BrambleError."""
    parameters = module.params
    name, url = parameters["id"], parameters["url"]
    try:
        data, signature = (fetch(f"{url}/{file}") for file in (MANIFEST, SIGNATURE))
    except FileNotFoundError as error:
        raise BrambleError(f"{error} is missing. Nothing was installed") from None
    try:
        check_signature(data, signature, parameters["keys"])
        manifest = Manifest.load(data)
        if hashlib.sha256(data).hexdigest() != parameters["manifest"]:
            raise BrambleError("it is signed, but not the one that the control machine has")
    except BrambleError as error:
        raise BrambleError(f"the bundle at {url} is refused: {error}. Nothing was installed") from None
    here = ".".join(platform.python_version_tuple()[:2])
    if (manifest.kind.python, manifest.kind.architecture) != (here, platform.machine()):
        raise BrambleError(f"the bundle is for {manifest.kind}, and this node has Python {here} on {platform.machine()}")
    has_wheels = node.mark(name).exists()
    node.room(manifest.bytes * (1 if has_wheels else UNPACKED))
    for path in (node.prefix, node.state):
        path.mkdir(parents=True, exist_ok=True, mode=0o755)
    for rest in node.state.glob("fetched-*"):  # of an interrupted run
        shutil.rmtree(rest)
    with tempfile.TemporaryDirectory(prefix="fetched-", dir=node.state) as scratch:
        folder = Path(scratch)
        folder.chmod(0o755)
        fetch_all(url, manifest, folder)
        before = installed_debs()
        try:
            install_debs(parameters["debs"], folder / "debs", folder)
        finally:
            node.note(new := installed_debs() - before)
        if not has_wheels:
            if any(file.startswith("wheels/") for file in manifest.files):
                install_wheels(folder / "wheels", node.prefix / name)
            (node.prefix / name).mkdir(exist_ok=True)
    write_text(node.mark(name), f"{parameters['manifest']}\n")
    node.prune(name)
    return sorted(new)


def run(module: AnsibleModule) -> dict[str, Any]:
    """Install what is missing. Raises BrambleError, OSError."""
    parameters = module.params
    node = Node(Path(parameters["prefix"]), Path(parameters["state_dir"]))
    mark = node.mark(parameters["id"])
    missing = sorted(set(parameters["debs"]) - installed_debs())
    before = mark.read_text().strip() if mark.exists() else ""
    needed = not before or bool(missing) or parameters["manifest"] not in ("", before)
    result: dict[str, Any] = {"id": parameters["id"], "changed": needed, "needed": needed}
    if needed and module._diff:
        result["diff"] = {
            "before": f"bundle: {parameters['id'] if before else 'none'}\nmissing: {' '.join(missing)}\n",
            "after": f"bundle: {parameters['id']}\nmissing:\n",
        }
    if needed and not module.check_mode:
        result["debs"] = install(node, module)
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
