#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: container images from a file, where there is no registry."""

from __future__ import annotations

DOCUMENTATION = r"""
module: microk8s_images
short_description: Import container images into a node's MicroK8s
description:
  - Imports a tar file of images (C(docker save), C(microk8s images export-local)) unless the node has all that are in it.
author: The Bramble team (!UNKNOWN)
options:
  names:
    description: The images in the file, in full, for example V(docker.io/calico/node:v3.29.3).
    type: list
    elements: str
    required: true
  src:
    description: The file, on the node. It need not be there in a dry run, or when the node has the images already.
    type: path
    required: true
attributes:
  check_mode: {support: full, description: Says whether it would import.}
"""

EXAMPLES = r"""
- name: Have the images
  microk8s_images:
    src: /var/cache/images.tar
    names: [localhost/bramble:1.0]
"""

RETURN = r"""
missing:
  description: The images that were not there before.
  returned: always
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.kubernetes import microk8s


def main() -> None:
    """Look, then import."""
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "required": True},
            "src": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        there = set(microk8s.call(module.run_command, "ctr", "images", "list", "--quiet").split())
        missing = [name for name in module.params["names"] if name not in there]
        if missing and not module.check_mode:
            microk8s.call(module.run_command, "ctr", "images", "import", module.params["src"])
    except BrambleError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=bool(missing), missing=missing)


if __name__ == "__main__":
    main()
