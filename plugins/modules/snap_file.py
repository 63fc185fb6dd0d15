#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: install a snap from a file, without a snap store."""

from __future__ import annotations

DOCUMENTATION = r"""
module: snap_file
short_description: Install a snap from a file, or remove it
description:
  - Installs a snap from a file, or refreshes it to the one in the file, unless exactly this file is installed. In contrast,
    M(community.general.snap) only checks whether some snap of this name is installed.
  - With an assertion, snapd installs a snap only if its publisher has signed it.
author: The Bramble team (!UNKNOWN)
options:
  name:
    description: The name of the snap.
    type: str
    required: true
  state:
    description: V(present) installs the snap, V(absent) removes it with all its data (C(snap remove --purge)).
    type: str
    choices: [present, absent]
    default: present
  sha256:
    description: The SHA-256 of the file.
    type: str
  src:
    description: The file, on the node. It may be missing in a dry run, and when the snap is installed already.
    type: path
  assertion:
    description: The file with its assertion. Without one, O(dangerous) is required.
    type: path
  dangerous:
    description: Install a snap that is not signed.
    type: bool
    default: false
  classic:
    description: Install the snap with classic confinement, which does not confine it.
    type: bool
    default: false
attributes:
  check_mode: {support: full, description: Shows whether it would change.}
  diff_mode: {support: full, description: Shows revision and hash.}
"""

EXAMPLES = r"""
- name: Install MicroK8s
  bramble.cluster.snap_file:
    name: microk8s
    src: /var/tmp/microk8s_7731.snap
    assertion: /var/tmp/microk8s_7731.assert
    sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    classic: true
"""

RETURN = r"""
needed:
  description: Whether the snap had to be installed or removed, or in a dry run has to be.
  returned: always
  type: bool
"""

import hashlib
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module
from ansible_collections.bramble.cluster.plugins.module_utils.kubernetes import snapd


def change_snap(module: AnsibleModule) -> None:
    """Install or remove the snap. Ends the module when snapd refuses. Raises OSError."""
    wanted = module.params
    if wanted["state"] == "absent":
        commands = [["snap", "remove", "--purge", wanted["name"]]]
    else:
        with Path(wanted["src"]).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != wanted["sha256"]:
                module.fail_json(
                    msg=f"The SHA-256 of {wanted['src']} is not {wanted['sha256']}. Nothing was changed. Copy it again."
                )
        flags = [f"--{flag}" for flag in ("dangerous", "classic") if wanted[flag]]
        commands = [["snap", "ack", wanted["assertion"]]] if wanted["assertion"] else []
        commands.append(["snap", "install", *flags, wanted["src"]])
    for command in commands:
        module.run_command(command, check_rc=True)


SPEC: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "sha256": {"type": "str"},
    "src": {"type": "path"},
    "assertion": {"type": "path"},
    "dangerous": {"type": "bool", "default": False},
    "classic": {"type": "bool", "default": False},
}


def run(module: AnsibleModule) -> dict[str, Any]:
    """Install or remove the snap; return the result of the module. Raises BrambleError, OSError."""
    name, sha256 = module.params["name"], module.params["sha256"]
    if sha256 and not (module.params["assertion"] or module.params["dangerous"]):
        raise BrambleError(
            f"The snap {name} has no assertion, so its origin cannot be checked. Nothing was changed. "
            "Put its .assert file beside the snap, or set microk8s_snap_dangerous=true."
        )
    snap = snapd.installed_snaps().get(name)
    if module.params["state"] == "absent":
        needed = snap is not None
    else:
        needed = snap is None or snapd.snap_sha256(name, snap["revision"]) != sha256
    if needed and not module.check_mode:
        change_snap(module)
    before = f"{snap['version']} ({snap['revision']})\n" if snap else ""
    after = f"sha256 {sha256}\n" if sha256 else ""
    return {"changed": needed, "needed": needed, "diff": {"before": before, "after": after} if needed else {}}


def main() -> None:
    """Run the module."""
    run_module(SPEC, run, required_if=[["state", "present", ["sha256", "src"]]])


if __name__ == "__main__":
    main()
