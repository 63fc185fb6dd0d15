#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: edit what a Raspberry Pi reads when it starts."""

from __future__ import annotations

DOCUMENTATION = r"""
module: boot_config
short_description: Edit cmdline.txt and config.txt
description:
  - Sets and removes kernel parameters in C(cmdline.txt), which stays one line, and settings in C(config.txt), by their exact
    names. All else is kept as it is, with its order, comments and line ends.
  - The files are looked for in C(/boot/firmware) or, where there is no such folder, in C(/boot); C(cmdline=) and C(os_prefix=) in
    C(config.txt) are followed.
  - Where Debian's raspi-firmware writes these files anew at each update, what it makes them from is edited, too
    (C(/etc/default/raspi-extra-cmdline), C(/etc/default/raspi-firmware-custom)). What it writes by itself, such as
    C(net.ifnames=0), can be added to but comes back when it is removed.
  - Each file is kept as it was before the first change, as NAME.before-bramble, and replaced in one step.
  - A change asks for a reboot in the way of Debian and Ubuntu, with the file C(/run/reboot-required).
author: The Bramble team (!UNKNOWN)
options:
  cmdline_present:
    description:
      - Kernel parameters, as they are written in the line, NAME or NAME=VALUE. One takes the place of the last of its name, or
        else the last place.
      - Of C(console), C(cgroup_enable) and others that are lists, each value stands for itself and replaces none.
    type: list
    elements: str
    default: []
  cmdline_absent:
    description: Kernel parameters to be removed. NAME with any value, NAME=VALUE just so.
    type: list
    elements: str
    default: []
  cmdline_restored:
    description:
      - Names of kernel parameters that become again what they were before the first change, there or not. Where nothing was ever
        changed, nothing is.
    type: list
    elements: str
    default: []
  config_present:
    description:
      - Lines of C(config.txt). One takes the place of the last of its key in its section, or else the section's last place;
        sections are made when needed. Of C(dtoverlay), C(dtparam) and others that are lists, each line stands for itself.
    type: list
    elements: dict
    default: []
    suboptions: &line
      setting: {description: "The line, KEY=VALUE.", type: str, required: true}
      section: {description: "The conditional section, such as V(pi4).", type: str, default: all}
  config_absent:
    description: Lines of C(config.txt) to be removed. KEY with any value, KEY=VALUE just so.
    type: list
    elements: dict
    default: []
    suboptions: *line
  config_restored:
    description:
      - Lines of C(config.txt), KEY=VALUE, that are removed unless they were there before the first change. When the file is then
        as it was, the copy of how it was goes, too.
    type: list
    elements: dict
    default: []
    suboptions: *line
  optional:
    description: Say so, instead of failing, where a file that is to be edited does not exist.
    type: bool
    default: false
attributes:
  check_mode: {support: full, description: "Says what it would change, and changes nothing."}
  diff_mode: {support: full, description: Shows the lines that change.}
"""

EXAMPLES = r"""
- name: Give containers their memory limits
  boot_config:
    cmdline_present: [cgroup_enable=memory, cgroup_memory=1]

- name: Switch the radios off
  boot_config:
    config_present:
      - setting: dtoverlay=disable-wifi
      - setting: dtoverlay=disable-bt
"""

RETURN = r"""
files:
  description: The files that were, or would be, changed.
  returned: always
  type: list
  elements: str
reboot_required:
  description: Whether this node waits for a reboot, because of this or of anything else.
  returned: always
  type: bool
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.boot import cmdline, config_txt, files
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module
from ansible_collections.bramble.cluster.plugins.module_utils.core.text_file import printable_text, read_text

LINE = {"setting": {"type": "str", "required": True}, "section": {"type": "str", "default": "all"}}


def edited_cmdline(path: Path, wanted: dict) -> str:
    """What a line of kernel parameters is to be. Raises BrambleError, OSError."""
    line = read_text(path)
    for name in wanted["cmdline_restored"]:
        if files.backup_path(path).exists():
            line = cmdline.restore_parameter(line, name, read_text(files.backup_path(path)))
    for parameter in wanted["cmdline_absent"]:
        line = cmdline.remove_parameter(line, parameter)
    for parameter in wanted["cmdline_present"]:
        line = cmdline.set_parameter(line, parameter)
    cmdline.parameters(line)
    return line


def edited_config(path: Path, wanted: dict) -> str:
    """What the firmware's settings are to be. Raises OSError."""
    text = read_text(path)
    for entry in wanted["config_absent"]:
        text = config_txt.remove_setting(text, **entry)
    for entry in wanted["config_restored"]:
        kept = files.backup_path(path)
        # Setting what is there already changes nothing.
        if kept.exists() and config_txt.set_setting(read_text(kept), **entry) != read_text(kept):
            text = config_txt.remove_setting(text, **entry)
    for entry in wanted["config_present"]:
        text = config_txt.set_setting(text, **entry)
    return text


def planned(module: AnsibleModule) -> dict[Path, str]:
    """What the files that change are to be. Raises BrambleError, OSError."""
    wanted = module.params
    for parameter in (*wanted["cmdline_present"], *wanted["cmdline_absent"], *wanted["cmdline_restored"]):
        cmdline.check_parameter(parameter)
    for entry in (*wanted["config_present"], *wanted["config_absent"], *wanted["config_restored"]):
        config_txt.check_setting(**entry)
    found = files.find_boot_files()
    plan: dict[Path, str] = {}
    for kind, path, inputs, edited in (
        ("cmdline", found.cmdline, found.cmdline_inputs, edited_cmdline),
        ("config", found.config, found.config_inputs, edited_config),
    ):
        if not any(wanted[option] for option in wanted if option.startswith(f"{kind}_")):
            continue
        if path is None:
            folder = files.ROOT / "boot"
            problem = f"There is no {kind}.txt in {folder / 'firmware'} or {folder}: is the boot partition mounted?"
            if not wanted["optional"]:
                raise BrambleError(f"{problem} Nothing was changed.")
            module.warn(problem)
            continue
        for file in (*inputs, path):
            try:
                text = edited(file, wanted)
            except BrambleError as error:
                raise BrambleError(f"{file}: {error}. Nothing was changed.") from error
            if text != read_text(file):
                plan[file] = text
    return plan


def run(module: AnsibleModule) -> dict[str, Any]:
    """Edit. Raises BrambleError, OSError."""
    plan = planned(module)
    diff = [
        {
            "before_header": str(path),
            "after_header": str(path),
            "before": printable_text(read_text(path)),
            "after": printable_text(text),
        }
        for path, text in plan.items()
    ]
    flag = files.ROOT / "run/reboot-required"
    if not module.check_mode:
        for path, text in plan.items():
            files.save_with_backup(path, text)
            if module.params["config_restored"] and text == read_text(files.backup_path(path)):
                files.backup_path(path).unlink()
        if plan:
            flag.write_text("*** System restart required ***\n", encoding="utf-8")
    return dict(changed=bool(plan), files=[str(path) for path in plan], reboot_required=bool(plan) or flag.exists(), diff=diff)


def main() -> None:
    """Run the module."""
    names = {"type": "list", "elements": "str", "default": []}
    lines = {"type": "list", "elements": "dict", "default": [], "options": LINE}
    run_module(
        {
            **dict.fromkeys(("cmdline_present", "cmdline_absent", "cmdline_restored"), names),
            **dict.fromkeys(("config_present", "config_absent", "config_restored"), lines),
            "optional": {"type": "bool", "default": False},
        },
        run,
    )


if __name__ == "__main__":
    main()
