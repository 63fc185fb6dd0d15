#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: set kernel parameters, now and at boot, and restore the previous values."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sysctl_file
short_description: Set kernel parameters, now and at boot, and restore the previous values
description:
  - Writes a file for sysctl.d(5), and sets the kernel parameters. The file records the previous values, which O(state=absent)
    restores. Needs no program on the node. Without IPv6 in the kernel, its parameters are skipped.
author: The Bramble team (!UNKNOWN)
options:
  path: {description: The file., type: path, required: true}
  settings: {description: "The kernel parameters, name -> value.", type: dict, required: true}
  state:
    description: V(present) sets the values. V(absent) restores the previous values and removes the file.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode: {support: full, description: "Reports what it would change, and changes nothing."}
  diff_mode: {support: full, description: Shows the file and the settings that differ.}
"""

EXAMPLES = r"""
- name: Disable forwarding
  bramble.cluster.sysctl_file:
    path: /etc/sysctl.d/90-no-forwarding.conf
    settings: {net.ipv4.ip_forward: 0}
"""

RETURN = r"""
settings:
  description: The kernel parameters that were changed, or in a dry run would be.
  returned: always
  type: list
  elements: str
"""

import re
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module
from ansible_collections.bramble.cluster.plugins.module_utils.core.text_file import read_text, write_text

PROC = Path("/proc/sys")
PREVIOUS_VALUE = re.compile(r"^# (\S+) was (.*)$", re.MULTILINE)


SPEC: dict[str, Any] = {
    "path": {"type": "path", "required": True},
    "settings": {"type": "dict", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}


def kernel_file(name: str) -> Path:
    """Return the file of a kernel parameter in /proc/sys; a slash in the name stands for a dot, as in eth0/5."""
    return PROC / name.translate(str.maketrans("./", "/."))


def run(module: AnsibleModule) -> dict[str, Any]:
    """Set or restore the kernel parameters; return the result of the module. Raises OSError."""
    path, absent = Path(module.params["path"]), module.params["state"] == "absent"
    ipv6 = kernel_file("net.ipv6").exists()
    wanted = {name: str(value) for name, value in module.params["settings"].items() if ipv6 or not name.startswith("net.ipv6.")}
    if missing := [name for name in wanted if not absent and not kernel_file(name).exists()]:
        raise OSError(
            f"The kernel has no parameter {', '.join(missing)}. Nothing was changed. Remove it from the settings, or load the "
            "kernel module that has it."
        )
    kernel_values = {name: read_text(kernel_file(name)).strip() for name in wanted}
    text = read_text(path)
    previous: dict[str, str] = dict(PREVIOUS_VALUE.findall(text))
    if absent:
        wanted, after = {name: value for name, value in previous.items() if kernel_file(name).exists()}, ""
        kernel_values = {name: read_text(kernel_file(name)).strip() for name in wanted}
    else:
        lines = [
            line
            for name in wanted
            for line in (f"# {name} was {previous.get(name, kernel_values[name])}", f"{name} = {wanted[name]}")
        ]
        after = "\n".join([*lines, ""])
    differ = [name for name in wanted if kernel_values[name] != wanted[name]]
    if not module.check_mode:
        # The file comes first, because it records the previous values.
        if after != text and not absent:
            write_text(path, after)
        for name in differ:
            kernel_file(name).write_text(wanted[name], encoding="ascii")
        if absent:
            path.unlink(missing_ok=True)
    shown = {
        side: "".join(f"{name} = {values[name]}\n" for name in differ) for side, values in (("b", kernel_values), ("a", wanted))
    }
    diff = {"before": text + shown["b"], "after": after + shown["a"]}
    return {"changed": after != text or bool(differ), "settings": differ, "diff": diff}


def main() -> None:
    """Run the module."""
    run_module(SPEC, run)


if __name__ == "__main__":
    main()
