#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: write or remove several small configuration files, in one round trip."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_files
short_description: Write or remove several small configuration files
description:
  - Writes or removes several small files in one round trip. Each file is replaced in one step, so that a power cut leaves the old
    or the new file. Missing folders are created.
  - All checks run first, also those of files that do not change. When a check fails, nothing is changed.
author: The Bramble team (!UNKNOWN)
options:
  files:
    description: The files. Their owner is root.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {description: "The path of the file. A symbolic link is followed.", type: path, required: true}
      content: {description: The content of the file., type: str}
      link: {description: "The target of a symbolic link, to create instead of a file.", type: str}
      mode: {description: "The mode of the file, as octal digits.", type: str, default: "0644"}
      group: {description: The group of the file. By default it is not changed (root for a new file)., type: str}
      state: {description: Whether the file exists., type: str, choices: [present, absent], default: present}
      only_where: {description: "Skip this file if this path does not exist.", type: path}
      unless_link: {description: "Skip this file if it is a symbolic link to this target, which others have made.", type: str}
      check:
        description:
          - A command that fails when the content is not valid. C(%s) stands for the path of a temporary file with the content.
        type: list
        elements: str
attributes:
  check_mode: {support: full, description: "Checks the files, reports what it would change, and changes nothing."}
  diff_mode: {support: full, description: Shows the lines that change.}
"""

EXAMPLES = r"""
- name: Limit the size of the journal
  bramble.cluster.node_files:
    files:
      - path: /etc/systemd/journald.conf.d/bramble.conf
        content: |
          [Journal]
          SystemMaxUse=200M
"""

RETURN = r"""
files:
  description: The files that were changed, or in a dry run would be.
  returned: always
  type: list
  elements: str
"""

import grp
import os
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module
from ansible_collections.bramble.cluster.plugins.module_utils.core.text_file import (
    place_text,
    printable_text,
    read_text,
    stage_text,
)

FILE_OPTIONS = {
    "path": {"type": "path", "required": True},
    "content": {"type": "str"},
    "link": {"type": "str"},
    "mode": {"type": "str", "default": "0644"},
    "group": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "only_where": {"type": "path"},
    "unless_link": {"type": "str"},
    "check": {"type": "list", "elements": "str"},
}


def current_content(path: Path, group: str | None) -> tuple[str, str]:
    """Return the content of a file and its mode, with its group if one is given; both are empty without a file."""
    if path.is_symlink():
        return f"-> {os.readlink(path)}\n", "link"
    if not path.exists():
        return "", ""
    return read_text(path), f"{path.stat().st_mode & 0o777:04o}{(group and ' ' + path.group()) or ''}"


def wanted_content(entry: dict) -> tuple[str, str]:
    """Return the wanted content and mode of a file, in the form of `current_content`."""
    if entry["state"] == "absent":
        return "", ""
    if entry["link"]:
        return f"-> {entry['link']}\n", "link"
    return entry["content"], " ".join(filter(None, [entry["mode"], entry["group"]]))


def is_applicable(entry: dict) -> bool:
    """Return whether a file is to be written or removed on this node: see only_where and unless_link."""
    if entry["only_where"] and not os.path.exists(entry["only_where"]):
        return False
    return not (entry["unless_link"] and os.path.islink(entry["path"]) and os.readlink(entry["path"]) == entry["unless_link"])


def check_content(module: AnsibleModule, entry: dict) -> None:
    """Check the content of a file with its command. Raises BrambleError when the command fails."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as candidate:
        candidate.write(entry["content"])
        candidate.flush()
        command = [candidate.name if word == "%s" else word for word in entry["check"]]
        code, out, err = module.run_command(command)
    if code:
        message = (err or out).strip()
        raise BrambleError(f"The new content of {entry['path']} is not valid, so nothing was changed: {message}", rc=code)


def stage_files(changes: list[tuple[Path, dict]]) -> list[tuple[str | None, Path]]:
    """Write all new files beside the old ones, so that a full disk is found before anything is changed. Raises OSError.

    :returns: the path of each new file, None for a file to remove, and the path of the file that it replaces
    """
    staged: list[tuple[str | None, Path]] = []
    try:
        for path, entry in changes:
            if entry["state"] == "present":
                path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            if entry["state"] == "absent":
                staged.append((None, path))
            elif entry["link"]:
                temporary = f"{path}.bramble-new"
                Path(temporary).unlink(missing_ok=True)
                os.symlink(entry["link"], temporary)
                staged.append((temporary, path))
            else:
                gid = grp.getgrnam(entry["group"]).gr_gid if entry["group"] else None
                staged.append((stage_text(path, entry["content"], int(entry["mode"], 8), gid), path))
    except (OSError, KeyError):
        for name in filter(None, (name for name, _ in staged)):
            os.unlink(name)
        raise
    return staged


def run(module: AnsibleModule) -> dict[str, Any]:
    """Check all files, then write those that differ; return the result of the module.

    Raises BrambleError, OSError, and KeyError of the group database.
    """
    entries = [entry for entry in module.params["files"] if is_applicable(entry)]
    changes, diff = [], []
    for entry in entries:
        if entry["state"] == "present" and entry["check"]:
            check_content(module, entry)
        path = Path(entry["path"])
        path = path if entry["link"] or entry["state"] == "absent" else path.resolve()
        before, after = current_content(path, entry["group"]), wanted_content(entry)
        if before != after:
            changes.append((path, entry))
            headers = {"before_header": f"{path} {before[1]}".strip(), "after_header": f"{path} {after[1]}".strip()}
            diff.append({**headers, "before": printable_text(before[0]), "after": after[0]})
    if not module.check_mode:
        for temporary, path in stage_files(changes):
            if temporary:
                place_text(temporary, path)
            else:
                path.unlink()
    return {"changed": bool(changes), "files": [entry["path"] for _, entry in changes], "diff": diff}


def explain_error(error: Exception) -> str:
    """Return the message for an error: what happened, and what to do next."""
    if isinstance(error, KeyError):  # of the group database
        return f"{error.args[0]!s}. Nothing was changed."
    if isinstance(error, OSError):
        return f"{error}. Correct this (for a full disk: df -h), then run the same command again."
    return str(error)


def main() -> None:
    """Run the module."""
    entries = {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": FILE_OPTIONS,
        "mutually_exclusive": [["content", "link"]],
        "required_if": [["state", "present", ["content", "link"], True]],
    }
    run_module({"files": entries}, run, explain_error, errors=(BrambleError, OSError, KeyError))


if __name__ == "__main__":
    main()
