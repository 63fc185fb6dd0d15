#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: change a node of a MicroK8s cluster, or wait for it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: microk8s_node
short_description: Wait for a node, drain it, make it schedulable, or remove it
description:
  - Runs on a node with the control plane. The exact name in the cluster identifies a node.
author: The Bramble team (!UNKNOWN)
options:
  name:
    description: The name of the node.
    type: str
    required: true
  state:
    description:
      - V(ready) waits until the node is in the cluster and ready.
      - V(drained) evicts the node's pods, and lets the cluster place no new ones there. V(schedulable) lets it place new ones.
      - V(absent) removes the node from the cluster, also when it is dead and could not leave.
    type: str
    choices: [ready, drained, schedulable, absent]
    required: true
  timeout:
    description: The longest time to wait, in seconds.
    type: int
    default: 300
attributes:
  check_mode: {support: full, description: "Shows what it would change, and waits for nothing."}
  diff_mode: {support: full, description: Shows the node before and after.}
"""

EXAMPLES = r"""
- name: Drain the node
  bramble.cluster.microk8s_node:
    name: pi-05
    state: drained
"""

RETURN = r"""
node:
  description: The node before the change, as M(bramble.cluster.microk8s_facts) returns it; empty if it was not in the cluster.
  returned: always
  type: dict
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module
from ansible_collections.bramble.cluster.plugins.module_utils.kubernetes import microk8s


def read_node(module: AnsibleModule) -> dict[str, Any]:
    """Return the node; empty when it is not in the cluster. Raises BrambleError."""
    answer = microk8s.query_cluster(module.run_command)
    if answer["role"] == "worker":
        raise BrambleError("This node is a worker. Run the module on a node of the group microk8s_control_plane.")
    node: dict[str, Any] = answer["nodes"].get(module.params["name"], {})
    return node


def wait_until_ready(module: AnsibleModule) -> dict[str, Any]:
    """Wait until the node is ready, and return it. Raises BrambleError."""
    deadline = time.monotonic() + module.params["timeout"]
    while True:
        try:
            node, problem = read_node(module), ""
        except BrambleError as error:
            # An API server that has just started refuses requests for a while.
            node, problem = {}, f" ({error})"
        if node.get("ready"):
            return node
        if time.monotonic() > deadline:
            state = "is not ready" if node else "is not in the cluster"
            raise BrambleError(
                f"{module.params['name']} {state} after {module.params['timeout']} s{problem}. On that node: microk8s inspect"
            )
        time.sleep(1)


def change_node(module: AnsibleModule, node: dict[str, Any]) -> dict[str, Any]:
    """Change a node to the requested state; return the node afterwards. Raises BrambleError."""
    name, state, timeout = (module.params[option] for option in ("name", "state", "timeout"))
    if state == "absent":
        command, after = ["remove-node", name, "--force"], {}
    elif state == "drained":
        # The flags also evict pods with data in an emptyDir, and leave those of DaemonSets, which belong to the node.
        flags = ["--ignore-daemonsets", "--delete-emptydir-data", "--force", f"--timeout={timeout}s"]
        command, after = ["kubectl", "drain", name, *flags], {"schedulable": False}
    else:
        command, after = ["kubectl", "uncordon", name], {"schedulable": True}
    if not module.check_mode:
        microk8s.run_microk8s(module.run_command, *command)
    return after and {**node, **after}


SPEC: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "required": True, "choices": ["ready", "drained", "schedulable", "absent"]},
    "timeout": {"type": "int", "default": 300},
}


def run(module: AnsibleModule) -> dict[str, Any]:
    """Wait for the node, or change it; return the result of the module. Raises BrambleError."""
    state = module.params["state"]
    if state == "ready":
        return {"node": {} if module.check_mode else wait_until_ready(module)}
    node = read_node(module)
    if not node and state != "absent":
        raise BrambleError(f"The cluster has no node {module.params['name']}. List its nodes: microk8s kubectl get nodes")
    needed = {"absent": bool(node), "drained": node.get("schedulable"), "schedulable": not node.get("schedulable")}[state]
    after = change_node(module, node) if needed else node
    return {"changed": bool(needed), "node": node, "diff": {"before": node, "after": after} if needed else {}}


def main() -> None:
    """Run the module."""
    run_module(SPEC, run)


if __name__ == "__main__":
    main()
