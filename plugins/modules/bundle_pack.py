#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: pack a bundle of packages into one file, to send it to the client."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle_pack
short_description: Pack a bundle of packages into one file
description:
  - Checks the signature and every file of a bundle, then packs it into a tar file. The signature and the manifest are its last
    members, so that an unpacked manifest proves that everything was unpacked. All members are in a folder named after the bundle.
options:
  src:
    description: The bundle's folder.
    type: path
    required: true
  dest:
    description: The tar file.
    type: path
    required: true
  keys:
    description: The public keys (OpenSSH) whose signatures are accepted.
    type: list
    elements: str
    required: true
author: The Bramble team (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Pack the bundle
  bramble.cluster.bundle_pack:
    src: .cache/bundles/0cbca4d17510
    dest: /tmp/0cbca4d17510.tar
    keys: ["{{ lookup('ansible.builtin.file', '.state/bundles/key.pub') }}"]
  delegate_to: localhost
"""

RETURN = r"""
bytes:
  description: The size of the tar file.
  returned: when it was packed
  type: int
"""

import tarfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.bundle.bundle import MANIFEST, SIGNATURE, read_bundle
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module


def normalise_member(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return a member of the archive that belongs to root and that everybody can read."""
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mode = 0o644
    return member


def run(module: AnsibleModule) -> dict[str, Any]:
    """Check and pack the bundle; return the result of the module. Raises BrambleError, OSError."""
    src, dest = Path(module.params["src"]), Path(module.params["dest"])
    try:
        manifest, _ = read_bundle(src, module.params["keys"])
    except BrambleError as error:
        raise BrambleError(
            f"The bundle {src} cannot be used: {error}. Nothing was sent. Delete the folder and run the same command again: that "
            "makes the bundle again."
        ) from None
    if module.check_mode:
        return {"changed": True}
    with tarfile.open(dest, "w") as archive:
        for name in [*manifest.files, SIGNATURE, MANIFEST]:
            archive.add(src / name, f"{src.name}/{name}", filter=normalise_member)
    return {"changed": True, "bytes": dest.stat().st_size}


def main() -> None:
    """Run the module."""
    spec = {
        "src": {"type": "path", "required": True},
        "dest": {"type": "path", "required": True},
        "keys": {"type": "list", "elements": "str", "required": True, "no_log": False},
    }
    run_module(spec, run)


if __name__ == "__main__":
    main()
