"""Ansible lookup: the snaps in a folder on the control machine."""

from __future__ import annotations

DOCUMENTATION = r"""
name: microk8s_snap_files
short_description: The snaps in a folder, to install MicroK8s without internet
description:
  - Reads and hashes the files of a folder, which C(snap download) has named NAME_REVISION.snap and NAME_REVISION.assert.
  - Needs C(unsquashfs) on the control machine.
author: Bramble
options:
  _terms:
    description: The folders.
    required: true
  unsigned:
    description: Accept snaps without an assertion, which are not signed.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Show the problems of the snaps
  ansible.builtin.debug:
    msg: "{{ lookup('bramble.cluster.microk8s_snap_files', '.cache/snaps').problems }}"
"""

RETURN = r"""
_raw:
  description:
    - C(files), a list of name, src, assertion (a path, or empty), sha256 and version in the order of installation; and
      C(problems), in sentences.
  type: list
  elements: dict
"""

import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from ansible.plugins.lookup import LookupBase


def snap_files(folder: str, unsigned: bool) -> dict[str, Any]:
    """Return the snaps in a folder, and their problems: see RETURN."""
    files, problems = [], []
    needed = {path.name.split("_")[0] for path in Path(folder).glob("*_*.snap")} | {"snapd", "microk8s"}
    for name in sorted(needed, key=lambda name: (name == "microk8s", name != "snapd", name)):
        found = sorted(Path(folder).glob(f"{name}_*.snap"))
        if len(found) != 1:
            seen = "there is none" if not found else f"there are {len(found)}: {', '.join(path.name for path in found)}"
            problems.append(
                f"microk8s_snap_dir: {folder} must have one file {name}_*.snap; {seen}. "
                f"With internet: snap download {name} --target-directory={folder}"
            )
            continue
        try:
            meta = _snap_meta(found[0])
        except (OSError, ValueError) as error:
            problems.append(f"microk8s_snap_dir: {error}")
            continue
        assertion = found[0].with_suffix(".assert")
        if not assertion.is_file() and not unsigned:
            problems.append(
                f"microk8s_snap_dir: {assertion} is missing, so the origin of {found[0].name} cannot be checked. "
                "Download it again."
            )
        if name == "microk8s" and meta["base"] not in needed:
            problems.append(
                f"microk8s_snap_dir: {found[0].name} needs the snap {meta['base']}, which is not in {folder}. Download it."
            )
        with found[0].open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        signed = str(assertion) if assertion.is_file() else ""
        files.append({"name": name, "src": str(found[0]), "assertion": signed, "sha256": digest, "version": str(meta["version"])})
    return {"files": files, "problems": problems}


def _snap_meta(path: Path) -> dict[str, Any]:
    """Return the base and the version of a snap. Raises OSError, ValueError."""
    try:
        stdout = subprocess.run(["unsquashfs", "-cat", path, "meta/snap.yaml"], capture_output=True, check=True).stdout
        meta = yaml.safe_load(stdout)
        return {"base": meta.get("base", "core"), "version": meta["version"]}
    except FileNotFoundError as error:
        raise OSError(
            "the control machine has no unsquashfs to read snaps with. Install it: apt-get install squashfs-tools"
        ) from error
    except (subprocess.CalledProcessError, yaml.YAMLError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a snap ({error}). Download it again.") from error


class LookupModule(LookupBase):
    """The lookup microk8s_snap_files."""

    def run(self, terms: Sequence[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[dict[str, Any]]:
        """Return the snaps in each folder."""
        self.set_options(var_options=variables, direct=kwargs)
        return [snap_files(term, self.get_option("unsigned")) for term in terms]
