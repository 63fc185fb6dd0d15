#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: a node of a MicroK8s cluster, as its control plane sees it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: microk8s_node
short_description: Wait for a node, drain it, let it work again, or remove it
description:
  - Runs on a node with the control plane. Nodes are told apart by their exact names, as the cluster has them.
author: The Bramble team (!UNKNOWN)
options:
  name:
    description: The node.
    type: str
    required: true
  state:
    description:
      - V(ready) waits until it is in the cluster and ready.
      - V(drained) moves its pods elsewhere and lets no more come; V(schedulable) lets them come.
      - V(absent) takes it out of the cluster, also when it is dead and could not leave.
    type: str
    choices: [ready, drained, schedulable, absent]
    required: true
  timeout:
    description: How many seconds to wait.
    type: int
    default: 300
attributes:
  check_mode: {support: full, description: "Says what it would change; waits for nothing."}
  diff_mode: {support: full, description: Shows the node before and after.}
"""

EXAMPLES = r"""
- name: Drain
  microk8s_node:
    name: pi-05
    state: drained
"""

RETURN = r"""
node:
  description: The node before, as M(bramble.cluster.microk8s_facts) has it; empty when there was none.
  returned: always
  type: dict
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.kubernetes import microk8s


def look(module: AnsibleModule) -> dict[str, Any]:
    """The node; empty when the cluster has none of its name. Raises BrambleError."""
    told = microk8s.ask(module.run_command)
    if told["role"] == "worker":
        raise BrambleError("This is a worker. A node with the control plane has to be asked.")
    node: dict[str, Any] = told["nodes"].get(module.params["name"], {})
    return node


def wait(module: AnsibleModule) -> dict[str, Any]:
    """The node when it is ready. Raises BrambleError."""
    deadline = time.monotonic() + module.params["timeout"]
    while True:
        try:
            node, said = look(module), ""
        except BrambleError as error:
            # An API server that has just been started refuses for a while.
            node, said = {}, f" ({error})"
        if node.get("ready"):
            return node
        if time.monotonic() > deadline:
            what = "is not ready" if node else "is not in the cluster"
            raise BrambleError(
                f"{module.params['name']} {what} after {module.params['timeout']} s{said}. On it: microk8s inspect"
            )
        time.sleep(1)


def change(module: AnsibleModule, node: dict[str, Any]) -> dict[str, Any]:
    """Bring a node that is otherwise to its state; returns what changes of it. Raises BrambleError."""
    name, state, timeout = (module.params[option] for option in ("name", "state", "timeout"))
    if state == "absent":
        command, after = ["remove-node", name, "--force"], {}
    elif state == "drained":
        # Pods that lose something by it are of services of the node itself, or keep it in emptyDir.
        flags = ["--ignore-daemonsets", "--delete-emptydir-data", "--force", f"--timeout={timeout}s"]
        command, after = ["kubectl", "drain", name, *flags], {"schedulable": False}
    else:
        command, after = ["kubectl", "uncordon", name], {"schedulable": True}
    if not module.check_mode:
        microk8s.call(module.run_command, *command)
    return after and {**node, **after}


def main() -> None:
    """Look, then wait or change."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "required": True, "choices": ["ready", "drained", "schedulable", "absent"]},
            "timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    state = module.params["state"]
    try:
        if state == "ready":
            module.exit_json(changed=False, node={} if module.check_mode else wait(module))
        node = look(module)
        if not node and state != "absent":
            raise BrambleError(f"The cluster has no node {module.params['name']}.")
        needed = {"absent": bool(node), "drained": node.get("schedulable"), "schedulable": not node.get("schedulable")}[state]
        after = change(module, node) if needed else node
    except BrambleError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=bool(needed), node=node, diff={"before": node, "after": after} if needed else {})


if __name__ == "__main__":
    main()
