#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: edit cmdline.txt and config.txt of a Raspberry Pi."""

from __future__ import annotations

DOCUMENTATION = r"""
module: boot_config
short_description: Edit cmdline.txt and config.txt
description:
  - Sets and removes kernel parameters in C(cmdline.txt), which stays one line, and settings in C(config.txt), by their exact
    names. Everything else stays the same, with its order, comments and line ends.
  - The files are in C(/boot/firmware) or, on images without that folder, in C(/boot). C(cmdline=) and C(os_prefix=) in
    C(config.txt) are followed.
  - Debian's raspi-firmware writes these files again at each update. On such images its inputs are edited, too
    (C(/etc/default/raspi-extra-cmdline), C(/etc/default/raspi-firmware-custom)). Parameters that it writes by itself, such as
    C(net.ifnames=0), come back after they are removed.
  - Before the first change of a file it is copied to NAME.before-bramble. Each file is replaced in one step.
  - After a change the file C(/run/reboot-required) exists, which asks for a reboot as on Debian and Ubuntu.
author: The Bramble team (!UNKNOWN)
options:
  cmdline_present:
    description:
      - Kernel parameters, NAME or NAME=VALUE. Each replaces the last parameter of its name, or else is appended.
      - Parameters that may be given several times, such as C(console) and C(cgroup_enable), are appended and replace none.
    type: list
    elements: str
    default: []
  cmdline_absent:
    description: Kernel parameters to remove. NAME removes it with any value, NAME=VALUE only with this value.
    type: list
    elements: str
    default: []
  cmdline_restored:
    description:
      - Names of kernel parameters to restore to what they were before the first change, present or absent. A file that was never
        changed stays the same.
    type: list
    elements: str
    default: []
  config_present:
    description:
      - Lines of C(config.txt). Each replaces the last line of its key in its section, or else is appended to the section, which
        is added if it is missing. Settings that may be given several times, such as C(dtoverlay) and C(dtparam), replace none.
    type: list
    elements: dict
    default: []
    suboptions: &line
      setting: {description: "The line, KEY=VALUE.", type: str, required: true}
      section: {description: "The conditional section, such as V(pi4).", type: str, default: all}
  config_absent:
    description: Lines of C(config.txt) to remove. KEY removes it with any value, KEY=VALUE only with this value.
    type: list
    elements: dict
    default: []
    suboptions: *line
  config_restored:
    description:
      - Lines of C(config.txt), KEY=VALUE, to remove unless they were there before the first change. When this restores the
        original file, its backup is removed.
    type: list
    elements: dict
    default: []
    suboptions: *line
  optional:
    description: Warn instead of failing when a file to edit does not exist.
    type: bool
    default: false
attributes:
  check_mode: {support: full, description: "Reports what it would change, and changes nothing."}
  diff_mode: {support: full, description: Shows the lines that change.}
"""

EXAMPLES = r"""
- name: Enable memory limits of containers
  bramble.cluster.boot_config:
    cmdline_present: [cgroup_enable=memory, cgroup_memory=1]

- name: Disable the radios
  bramble.cluster.boot_config:
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
  description: Whether this node needs a reboot, because of this change or of any other.
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

LINE_OPTIONS = {"setting": {"type": "str", "required": True}, "section": {"type": "str", "default": "all"}}


def edit_cmdline(path: Path, wanted: dict) -> str:
    """Return the edited text of a file with kernel parameters. Raises BrambleError, OSError."""
    line = read_text(path)
    for name in wanted["cmdline_restored"]:
        if files.backup_path(path).exists():
            line = cmdline.restore_parameter(line, name, read_text(files.backup_path(path)))
    for parameter in wanted["cmdline_absent"]:
        line = cmdline.remove_parameter(line, parameter)
    for parameter in wanted["cmdline_present"]:
        line = cmdline.set_parameter(line, parameter)
    cmdline.kernel_parameters(line)
    return line


def edit_config(path: Path, wanted: dict) -> str:
    """Return the edited text of a file with the firmware's settings. Raises OSError."""
    text = read_text(path)
    for entry in wanted["config_absent"]:
        text = config_txt.remove_setting(text, **entry)
    for entry in wanted["config_restored"]:
        backup = files.backup_path(path)
        # To set a line that the original has would not change the original.
        if backup.exists() and config_txt.set_setting(read_text(backup), **entry) != read_text(backup):
            text = config_txt.remove_setting(text, **entry)
    for entry in wanted["config_present"]:
        text = config_txt.set_setting(text, **entry)
    return text


def plan_edits(module: AnsibleModule) -> dict[Path, str]:
    """Return the new texts of the files to change. Raises BrambleError, OSError."""
    wanted = module.params
    for parameter in (*wanted["cmdline_present"], *wanted["cmdline_absent"], *wanted["cmdline_restored"]):
        cmdline.check_parameter(parameter)
    for entry in (*wanted["config_present"], *wanted["config_absent"], *wanted["config_restored"]):
        config_txt.check_setting(**entry)
    found = files.find_boot_files()
    plan: dict[Path, str] = {}
    for kind, path, inputs, edit in (
        ("cmdline", found.cmdline, found.cmdline_inputs, edit_cmdline),
        ("config", found.config, found.config_inputs, edit_config),
    ):
        if not any(wanted[option] for option in wanted if option.startswith(f"{kind}_")):
            continue
        if path is None:
            folder = files.ROOT / "boot"
            problem = (
                f"There is no {kind}.txt in {folder / 'firmware'} or {folder}. Check that the boot partition is mounted: findmnt"
            )
            if not wanted["optional"]:
                raise BrambleError(f"{problem} Nothing was changed.")
            module.warn(problem)
            continue
        for file in (*inputs, path):
            try:
                text = edit(file, wanted)
            except BrambleError as error:
                raise BrambleError(f"{file} cannot be edited: {error}. Nothing was changed.") from error
            if text != read_text(file):
                plan[file] = text
    return plan


def run(module: AnsibleModule) -> dict[str, Any]:
    """Edit the files; return the result of the module. Raises BrambleError, OSError."""
    plan = plan_edits(module)
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
    lines = {"type": "list", "elements": "dict", "default": [], "options": LINE_OPTIONS}
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
