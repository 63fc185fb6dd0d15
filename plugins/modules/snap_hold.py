#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: snaps that do not refresh by themselves."""

from __future__ import annotations

DOCUMENTATION = r"""
module: snap_hold
short_description: Hold a snap's refreshes, or release them
description:
  - snapd refreshes snaps when it likes; a cluster then loses nodes one after the other, drained by nobody.
author: The Bramble team (!UNKNOWN)
options:
  name:
    description: The name of the snap. One that is not installed is not held.
    type: str
    required: true
  held:
    description: Whether it is held, without end.
    type: bool
    default: true
attributes:
  check_mode: {support: full, description: Says whether it would change.}
  diff_mode: {support: full, description: Shows it.}
"""

EXAMPLES = r"""
- name: Let nobody but us refresh MicroK8s
  snap_hold:
    name: microk8s
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.command import run
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.kubernetes import snapd


def main() -> None:
    """Hold or release."""
    module = AnsibleModule(
        argument_spec={"name": {"type": "str", "required": True}, "held": {"type": "bool", "default": True}},
        supports_check_mode=True,
    )
    name, held = module.params["name"], module.params["held"]
    try:
        snap = snapd.installed().get(name)
    except BrambleError as error:
        module.fail_json(msg=str(error))
    # Before it is installed, a dry run only knows that it would be.
    before = bool(snap and snap["held"])
    changed = before != held and (snap is not None or module.check_mode)
    if changed and not module.check_mode:
        command = ["snap", "refresh", *(["--hold=forever"] if held else ["--unhold"]), name]
        run(module, *command)
    diff = {"before": f"held: {before}\n", "after": f"held: {held}\n"} if changed else {}
    module.exit_json(changed=changed, diff=diff)


if __name__ == "__main__":
    main()
