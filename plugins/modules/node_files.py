#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: keep a set of small configuration files, in one round trip."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_files
short_description: Keep a set of small configuration files
description:
  - Writes, or removes, several small files in one round trip; each in one step, safe against power cuts. Missing folders are
    made.
  - First all checks are run, also of files that do not change; when one fails, nothing is changed.
author: The Bramble team (!UNKNOWN)
options:
  files:
    description: The files, owned by root.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {description: "Where it is. A symbolic link is followed.", type: path, required: true}
      content: {description: What it holds., type: str}
      link: {description: "What it points to, for a symbolic link instead of a file.", type: str}
      mode: {description: "Its mode, as octal digits.", type: str, default: "0644"}
      group: {description: Its group. Left as it is (for a new file root) if not given., type: str}
      state: {description: Whether it is to be., type: str, choices: [present, absent], default: present}
      only_where: {description: "Pass this file over where this path does not exist.", type: path}
      unless_link: {description: "Pass this file over where it is a symbolic link to this: somebody else's.", type: str}
      check:
        description:
          - A command that ends with an error when the file is not good. C(%s) stands for the file's path while it is checked.
        type: list
        elements: str
attributes:
  check_mode: {support: full, description: "Checks the files, says what it would change, and changes nothing."}
  diff_mode: {support: full, description: Shows the lines that change.}
"""

EXAMPLES = r"""
- name: Bound the journal
  node_files:
    files:
      - path: /etc/systemd/journald.conf.d/bramble.conf
        content: |
          [Journal]
          SystemMaxUse=200M
"""

RETURN = r"""
files:
  description: The files that were, or would be, changed.
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

FILE = {
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


def held(path: Path, group: str | None) -> tuple[str, str]:
    """What is there: its content and its kind (with the group, where that matters); both empty for nothing."""
    if path.is_symlink():
        return f"-> {os.readlink(path)}\n", "link"
    if not path.exists():
        return "", ""
    return read_text(path), f"{path.stat().st_mode & 0o777:04o}{(group and ' ' + path.group()) or ''}"


def wanted(entry: dict) -> tuple[str, str]:
    """What is to be there, likewise."""
    if entry["state"] == "absent":
        return "", ""
    if entry["link"]:
        return f"-> {entry['link']}\n", "link"
    return entry["content"], " ".join(filter(None, [entry["mode"], entry["group"]]))


def applies(entry: dict) -> bool:
    """Whether a file is to be looked at, here."""
    if entry["only_where"] and not os.path.exists(entry["only_where"]):
        return False
    return not (entry["unless_link"] and os.path.islink(entry["path"]) and os.readlink(entry["path"]) == entry["unless_link"])


def check(module: AnsibleModule, entry: dict) -> None:
    """Raise BrambleError where a file is not good."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as candidate:
        candidate.write(entry["content"])
        candidate.flush()
        command = [candidate.name if word == "%s" else word for word in entry["check"]]
        code, out, err = module.run_command(command)
    if code:
        said = (err or out).strip()
        raise BrambleError(f"{entry['path']} is not good, so nothing was changed: {said}", rc=code)


def stage_all(changes: list[tuple[Path, dict]]) -> list[tuple[str | None, Path]]:
    """Write all that is to be beside what there is: a full disk shows before anything is changed. Raises OSError."""
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
    """Check all, then write what differs. Raises BrambleError, OSError, and KeyError of the group database."""
    entries = [entry for entry in module.params["files"] if applies(entry)]
    changes, diff = [], []
    for entry in entries:
        if entry["state"] == "present" and entry["check"]:
            check(module, entry)
        path = Path(entry["path"])
        path = path if entry["link"] or entry["state"] == "absent" else path.resolve()
        before, after = held(path, entry["group"]), wanted(entry)
        if before != after:
            changes.append((path, entry))
            headers = {"before_header": f"{path} {before[1]}".strip(), "after_header": f"{path} {after[1]}".strip()}
            diff.append({**headers, "before": printable_text(before[0]), "after": after[0]})
    if not module.check_mode:
        for temporary, path in stage_all(changes):
            if temporary:
                place_text(temporary, path)
            else:
                path.unlink()
    return {"changed": bool(changes), "files": [entry["path"] for _, entry in changes], "diff": diff}


def explain(error: Exception) -> str:
    """Return what happened, and what to do next."""
    if isinstance(error, KeyError):  # of the group database
        return f"{error.args[0]!s}. Nothing was changed."
    if isinstance(error, OSError):
        return f"{error}. Next: put that right (a full disk? df -h), then run the same again."
    return str(error)


def main() -> None:
    """Run the module."""
    entries = {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": FILE,
        "mutually_exclusive": [["content", "link"]],
        "required_if": [["state", "present", ["content", "link"], True]],
    }
    run_module({"files": entries}, run, explain, errors=(BrambleError, OSError, KeyError))


if __name__ == "__main__":
    main()
