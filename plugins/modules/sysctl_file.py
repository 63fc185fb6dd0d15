#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: settings of the kernel, in force and in a file of their own."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sysctl_file
short_description: Settings of the kernel, in force and in a file of their own
description:
  - Writes a file of sysctl.d(5) and sets the kernel. The file records the value before, which O(state=absent) restores.
    Needs no program on the node. Without IPv6 in the kernel its settings are skipped.
author: The Bramble team (!UNKNOWN)
options:
  path: {description: The file., type: path, required: true}
  settings: {description: "Name -> value.", type: dict, required: true}
  state:
    description: V(present) sets them, V(absent) restores the values before.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode: {support: full, description: "Shows what it would change, and changes nothing."}
  diff_mode: {support: full, description: Shows the file and the settings that differ.}
"""

EXAMPLES = r"""
- name: Forward nothing
  sysctl_file:
    path: /etc/sysctl.d/90-no-forwarding.conf
    settings: {net.ipv4.ip_forward: 0}
"""

RETURN = r"""
settings:
  description: The settings that were, or would be, changed in the kernel.
  returned: always
  type: list
  elements: str
"""

import re
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.text_file import read_text, write_text

PROC = Path("/proc/sys")
WAS = re.compile(r"^# (\S+) was (.*)$", re.MULTILINE)


def kernel(name: str) -> Path:
    """Return the file of a setting in /proc; a slash stands for a dot in a port's name."""
    return PROC / name.translate(str.maketrans("./", "/."))


def run(module: AnsibleModule) -> dict[str, Any]:
    """Compare and set; return the result of the module. Raises OSError."""
    path, absent = Path(module.params["path"]), module.params["state"] == "absent"
    ipv6 = kernel("net.ipv6").exists()
    wanted = {name: str(value) for name, value in module.params["settings"].items() if ipv6 or not name.startswith("net.ipv6.")}
    if missing := [name for name in wanted if not absent and not kernel(name).exists()]:
        raise OSError(f"The kernel has no setting {', '.join(missing)}. Nothing was changed.")
    live = {name: read_text(kernel(name)).strip() for name in wanted}
    text = read_text(path)
    was: dict[str, str] = dict(WAS.findall(text))
    if absent:
        wanted, after = {name: value for name, value in was.items() if kernel(name).exists()}, ""
        live = {name: read_text(kernel(name)).strip() for name in wanted}
    else:
        lines = [line for name in wanted for line in (f"# {name} was {was.get(name, live[name])}", f"{name} = {wanted[name]}")]
        after = "\n".join([*lines, ""])
    differ = [name for name in wanted if live[name] != wanted[name]]
    if not module.check_mode:
        # The file first: it records the values before they are lost.
        if after != text and not absent:
            write_text(path, after)
        for name in differ:
            kernel(name).write_text(wanted[name], encoding="ascii")
        if absent:
            path.unlink(missing_ok=True)
    shown = {side: "".join(f"{name} = {values[name]}\n" for name in differ) for side, values in (("b", live), ("a", wanted))}
    diff = {"before": text + shown["b"], "after": after + shown["a"]}
    return {"changed": after != text or bool(differ), "settings": differ, "diff": diff}


def main() -> None:
    """Run, and turn what is wrong into a message."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "settings": {"type": "dict", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except OSError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
