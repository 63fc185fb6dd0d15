"""Ansible lookup: the names of the container images in tar files on the control machine."""

from __future__ import annotations

DOCUMENTATION = r"""
name: microk8s_image_names
short_description: The names of the container images in tar files
description:
  - Reads tar files of C(docker save), and of C(microk8s images export-local) (an OCI layout).
author: Bramble
options:
  _terms:
    description: The files.
    required: true
"""

EXAMPLES = r"""
- name: Show the images in a file
  ansible.builtin.debug:
    msg: "{{ query('bramble.cluster.microk8s_image_names', 'images.tar') }}"
"""

RETURN = r"""
_raw:
  description: The full names, as containerd has them, such as V(docker.io/library/busybox:1).
  type: list
  elements: str
"""

import json
import tarfile
from collections.abc import Sequence
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase


def image_names(path: str) -> list[str]:
    """Return the full names of the images in a tar file. Raises ValueError when it has none, OSError."""
    with tarfile.open(path) as tar:
        members = {member.name.removeprefix("./"): member for member in tar if member.isfile() and member.name.count("/") < 2}

        def load(name: str) -> Any:
            file = tar.extractfile(members[name])
            assert file
            return json.load(file)

        if "manifest.json" in members:
            names = [tag for entry in load("manifest.json") for tag in entry.get("RepoTags") or []]
        elif "index.json" in members:
            annotations = [entry.get("annotations", {}) for entry in load("index.json")["manifests"]]
            names = [entry["io.containerd.image.name"] for entry in annotations if "io.containerd.image.name" in entry]
        else:
            names = []
    if not names:
        raise ValueError(
            f"{path} has no images with names. Write it with `docker save NAME:TAG` or `microk8s images export-local`."
        )
    return [_full_name(name) for name in names]


def _full_name(name: str) -> str:
    """Return docker.io/library/x:1 for x:1."""
    first, slash, _ = name.partition("/")
    if not slash:
        return f"docker.io/library/{name}"
    return name if "." in first or ":" in first or first == "localhost" else f"docker.io/{name}"


class LookupModule(LookupBase):
    """The lookup microk8s_image_names."""

    def run(self, terms: Sequence[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[str]:
        """Return the names of the images in all files."""
        self.set_options(var_options=variables, direct=kwargs)
        try:
            return [name for term in terms for name in image_names(term)]
        except (ValueError, OSError, tarfile.TarError) as error:
            raise AnsibleError(str(error)) from error
