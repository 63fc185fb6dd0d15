#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: enable or disable an add-on of MicroK8s."""

from __future__ import annotations

DOCUMENTATION = r"""
module: microk8s_addon
short_description: Enable or disable an add-on of MicroK8s
description:
  - Runs on a node with the control plane. An add-on belongs to the whole cluster, so one node is enough.
author: The Bramble team (!UNKNOWN)
options:
  name:
    description: "The add-on, as C(microk8s enable) takes it: V(dns), or with arguments V(metallb:192.168.1.200-192.168.1.220)."
    type: str
    required: true
  state:
    description: Whether the add-on is enabled. The arguments of an add-on that is already enabled are not compared.
    type: str
    choices: [enabled, disabled]
    default: enabled
attributes:
  check_mode: {support: full, description: Shows whether it would change.}
  diff_mode: {support: full, description: Shows the state before and after.}
"""

EXAMPLES = r"""
- name: Enable name resolution for services
  bramble.cluster.microk8s_addon:
    name: dns
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module
from ansible_collections.bramble.cluster.plugins.module_utils.kubernetes import microk8s


def parse_addons(answer: str) -> dict[str, bool]:
    """Return whether each add-on is enabled, by name, from the output of `microk8s status --format yaml`. Raises BrambleError."""
    # PyYAML comes with cloud-init and with netplan, of which every image has one.
    import yaml

    try:
        return {addon["name"]: addon["status"] == "enabled" for addon in yaml.safe_load(answer)["addons"]}
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise BrambleError(f"`microk8s status --format yaml` did not print add-ons but: {answer[:200]!r}") from error


SPEC: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["enabled", "disabled"], "default": "enabled"},
}


def run(module: AnsibleModule) -> dict[str, Any]:
    """Enable or disable the add-on; return the result of the module. Raises BrambleError."""
    words, state = module.params["name"], module.params["state"]
    name = words.split(":")[0].split("/")[-1]
    before = parse_addons(microk8s.run_microk8s(module.run_command, "status", "--format", "yaml"))
    if name not in before:
        raise BrambleError(f"This release of MicroK8s has no add-on {name}. Its add-ons are: {', '.join(sorted(before))}")
    changed = before[name] != (state == "enabled")
    if changed and not module.check_mode:
        microk8s.run_microk8s(module.run_command, *(["enable", words] if state == "enabled" else ["disable", name]))
    diff = {"before": f"{name}: {before[name]}\n", "after": f"{name}: {state == 'enabled'}\n"} if changed else {}
    return {"changed": changed, "diff": diff}


def main() -> None:
    """Run the module."""
    run_module(SPEC, run)


if __name__ == "__main__":
    main()
