#!/usr/bin/python
"""Have a set of small text files on a node, in one round trip."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_files
short_description: Have a set of small text files on a node, in one round trip
description:
  - Like M(ansible.builtin.copy) with I(content), for all files of a role at once. A C(copy) reaches into a node twice for each, also
    when there is nothing to change.
  - Each file is complete or as it was, in case of a power cut too. Missing folders are made, for root, with mode 0755.
  - All paths are checked before the first file is changed.
options:
  files:
    description: The files, all of them text in UTF-8.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Where it is.
        type: path
        required: true
      content:
        description: What is in it. Needed unless it shall be absent.
        type: str
      mode:
        description: Its permissions, as for M(ansible.builtin.copy).
        type: raw
        default: "0644"
      owner:
        description: Whose it is.
        type: str
        default: root
      group:
        description: Its group.
        type: str
        default: root
      state:
        description: Whether it shall be there.
        type: str
        choices: [present, absent]
        default: present
author: [Bramble]
"""

EXAMPLES = r"""
- name: Bound the journal, and take an old setting away
  node_files:
    files:
      - path: /etc/systemd/journald.conf.d/bramble.conf
        content: "{{ lookup('ansible.builtin.template', 'journald.conf.j2') }}"
      - path: /etc/systemd/journald.conf.d/old.conf
        state: absent
  register: __base_files
  notify: Restart the journal
"""

RETURN = r"""
changed_files:
  description: The paths of the files that were changed, or would be.
  returned: always
  type: list
  elements: str
"""

import contextlib
import os
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule


def read(path: str) -> str | None:
    """What is in a file; None when there is none. Raises OSError for what is not a file."""
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8", errors="replace", newline="") as file:
        return file.read()
    return None


def sync(folder: str) -> None:
    """The names in a folder are on the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace(module: AnsibleModule, path: str, content: str) -> None:
    """Put content in the place of a file, all of it or nothing, and on the disk."""
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    fd, new = tempfile.mkstemp(prefix=".bramble-", dir=folder)
    with os.fdopen(fd, "w", encoding="utf-8", newline="") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    module.atomic_move(new, path)
    sync(folder)


def bring(module: AnsibleModule, wanted: dict[str, Any], diffs: list[dict[str, str]]) -> bool:
    """Bring one file to what it shall be; whether that is a change. Raises OSError."""
    path, before = wanted["path"], read(wanted["path"])
    after = wanted["content"] if wanted["state"] == "present" else None
    changed = before != after
    if changed:
        names = {"before_header": path, "after_header": path} if before is not None and after is not None else {}
        names = names or {
            "before_header": path if after is None else "/dev/null",
            "after_header": "/dev/null" if after is None else path,
        }
        diffs.append({"before": before or "", "after": after or "", **names})
        if not module.check_mode:
            if after is None:
                os.unlink(path)
                sync(os.path.dirname(path))
            else:
                replace(module, path, after)
    if after is None or (module.check_mode and before is None):
        return changed
    rights = module.load_file_common_arguments({**module.params, **wanted})
    return module.set_fs_attributes_if_different(rights, changed)


def main() -> None:
    file = {
        "path": {"type": "path", "required": True},
        "content": {"type": "str"},
        "mode": {"type": "raw", "default": "0644"},
        "owner": {"type": "str", "default": "root"},
        "group": {"type": "str", "default": "root"},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    }
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": file,
                "required_if": [("state", "present", ("content",))],
            }
        },
        supports_check_mode=True,
    )
    files: list[dict[str, Any]] = module.params["files"]
    paths = [wanted["path"] for wanted in files]
    wrong = [path for path in paths if not os.path.isabs(path) or os.path.isdir(path) or paths.count(path) > 1]
    if wrong:
        module.fail_json(msg=f"Not a place for one file each: {', '.join(sorted(set(wrong)))}. Nothing was changed.")
    diffs: list[dict[str, str]] = []
    changed: list[str] = []
    for wanted in files:
        try:
            if bring(module, wanted, diffs):
                changed.append(wanted["path"])
        except OSError as error:
            done = f" Changed before that: {', '.join(changed)}." if changed else " Nothing was changed."
            module.fail_json(
                msg=f"{wanted['path']}: {error.strerror or error}.{done}", changed_files=changed, changed=bool(changed)
            )
    module.exit_json(changed=bool(changed), changed_files=changed, diff=diffs)


if __name__ == "__main__":
    main()
