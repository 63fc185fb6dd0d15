#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: have a card image in the cache, downloaded or from a file, verified, and decoded once."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_fetch
short_description: Have a card image in the cache, verified and decoded once
description:
  - Downloads an image, going on from where an earlier run broke off, and compares the download with its pinned sha256 before
    anything looks into it. Or takes a file of the user's, which may be compressed, and needs no network.
  - Decodes it (xz, zst, gz, bz2, zip, told by what the file begins with) into a sparse file, never more than the size that is
    pinned, and compares that with the pinned sha256 too. The image gets its name only when it is complete and right; the
    download is removed then.
  - An image that is there, and was not touched since it was verified, is not read again.
  - Refuses before the first byte when there is no space for download and image.
  - With the action plugin of the same name, progress is shown while it runs.
author: The Bramble team (!UNKNOWN)
options:
  cache:
    description: The folder of images. It is made when missing.
    type: path
    required: true
  name:
    description: What the image is called.
    type: str
    required: true
  architecture:
    description: What it runs on, in Debian's words.
    type: str
    required: true
  init_format:
    description: How a card of it is told who it is; handed on to the manifest.
    type: str
    required: true
  release_date:
    description: When it was published; handed on to the manifest.
    type: str
    default: ""
  url:
    description: Where the download is. Not read when a file of that name is in I(cache).
    type: str
  download:
    description: What the download must be. Required with I(url).
    type: dict
    default: {}
    suboptions:
      sha256: {description: Its sha256., type: str}
      bytes: {description: Its size., type: int}
  src:
    description: A card image of the user's, raw or compressed. A raw one is used where it is.
    type: path
  sha256:
    description: With I(src), the sha256 of that file, or of the image in it.
    type: str
  extracted:
    description: What the image must be, as far as that is known; what is not is recorded in the manifest when it was decoded.
    type: dict
    default: {}
    suboptions:
      sha256: {description: Its sha256., type: str}
      bytes: {description: Its size., type: int}
  verified:
    description: >-
      C(second-hand) when the sums are not from the publisher itself: the module warns then.
    type: str
    choices: [publisher, second-hand]
    default: publisher
  allow_http:
    description: Whether the download may be read without TLS. Its sha256 is compared all the same.
    type: bool
    default: false
  ca_path:
    description: A file of certificates to trust instead of the system's.
    type: path
  timeout:
    description: Seconds without a byte after which the server is taken for dead. It is tried again a few times.
    type: float
    default: 30
  progress_file:
    description: Where to append events, as lines of JSON with image, phase, done and total (in bytes, 0 for unknown), and time.
    type: path
attributes:
  check_mode: {support: full, description: "Tells whether there is something to do; reads no network, writes nothing."}
  diff_mode: {support: none, description: An image is too large to be compared line by line.}
"""

EXAMPLES = r"""
- name: Fetch Raspberry Pi OS
  image_fetch:
    cache: .cache/images
    name: raspios-trixie-lite
    architecture: arm64
    init_format: cloudinit-rpi
    url: https://downloads.raspberrypi.com/raspios_lite_arm64/images/raspios_lite_arm64-2026-10-06/2026-10-06-raspios-trixie-arm64-lite.img.xz
    download:
      bytes: 550466056
      sha256: 483db18a48da399b5b7022ffae9a07bc6d99daab30e593aedac09b69ff422843

- name: Use a file
  image_fetch:
    cache: .cache/images
    name: mine
    architecture: arm64
    init_format: cloudinit
    src: /home/me/mine.img.zst
    sha256: "{{ sum }}"
"""

RETURN = r"""
path:
  description: The raw image.
  returned: when it is there
  type: str
sha256:
  description: Its sha256.
  returned: when it is there
  type: str
bytes:
  description: Its size; the file is sparse.
  returned: when it is there
  type: int
manifest:
  description: >-
    Its description in JSON: name, architecture, file, sha256, bytes, init_format, recipe, built, source, source_sha256,
    release_date, inode, mtime_ns.
  returned: when it is there
  type: str
"""

import json
import re
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module
from ansible_collections.bramble.cluster.plugins.module_utils.image.http import Web
from ansible_collections.bramble.cluster.plugins.module_utils.image.store import Pin, Store

EVERY = 0.5  # seconds between two events of one phase
SUMS = {"type": "dict", "default": {}, "options": {"sha256": {"type": "str"}, "bytes": {"type": "int"}}}
SPEC = {
    "cache": {"type": "path", "required": True},
    "name": {"type": "str", "required": True},
    "architecture": {"type": "str", "required": True},
    "init_format": {"type": "str", "required": True},
    "release_date": {"type": "str", "default": ""},
    "url": {"type": "str"},
    "download": SUMS,
    "src": {"type": "path"},
    "sha256": {"type": "str"},
    "extracted": SUMS,
    "verified": {"type": "str", "choices": ["publisher", "second-hand"], "default": "publisher"},
    "allow_http": {"type": "bool", "default": False},
    "ca_path": {"type": "path"},
    "timeout": {"type": "float", "default": 30.0},
    "progress_file": {"type": "path"},
}


class Progress:
    """Appends events to a file, so that someone can watch; does nothing without one."""

    def __init__(self, image: str, path: str | None) -> None:
        self._image, self._path = image, path
        self._phase, self._told_at = "", 0.0

    def tell(self, phase: str, done: int, total: int) -> None:
        """Say how far a phase is: now and then, when it begins, and when it is done."""
        now = time.time()
        if self._path and (phase != self._phase or now >= self._told_at + EVERY or done == total):
            self._phase, self._told_at = phase, now
            event = {"image": self._image, "phase": phase, "done": done, "total": total, "time": now}
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")


def sum_of(options: dict, name: str) -> str:
    """A sha256 among options, in lower case; "" when it is not given. Raises BrambleError."""
    text = (options.get("sha256") or "").strip().lower()
    if text and not re.fullmatch("[0-9a-f]{64}", text):
        raise BrambleError(f"{name} is not a sha256 (64 hexadecimal digits): {text!r}. Nothing was changed.")
    return text


def run(module: AnsibleModule) -> dict[str, Any]:
    """Have the image. Raises BrambleError."""
    options = module.params
    download, extracted = options["download"], options["extracted"]
    pin = Pin(
        name=options["name"],
        architecture=options["architecture"],
        init_format=options["init_format"],
        url=options["url"] or "",
        download_sha256=sum_of(download, f"download.sha256 of {options['name']}"),
        download_bytes=download.get("bytes"),
        sha256=sum_of(extracted, f"extracted.sha256 of {options['name']}"),
        bytes=extracted.get("bytes"),
        release_date=options["release_date"],
    )
    for word in (pin.name, pin.architecture):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", word):
            raise BrambleError(f"{word!r} cannot be part of a file name: letters, digits and . _ - only")
    store = Store(options["cache"], Progress(pin.name, options["progress_file"]).tell, module.check_mode)
    if options["src"]:
        wanted = sum_of(options, "image_sha256")
        if not wanted:
            raise BrambleError(
                f"{options['src']} is used only with its SHA-256. Nothing was changed. Set image_sha256 to what its maker "
                "published, for the file or for the image in it."
            )
        found = store.own(pin, options["src"], wanted)
    else:
        if not pin.download_sha256:
            raise BrambleError(f"{pin.name} has no download.sha256: what cannot be verified is not downloaded")
        if options["verified"] == "second-hand":
            module.warn(
                f"The sums of {pin.name} are second-hand: nobody took them from its publisher yet. To do that: "
                "ansible-playbook playbooks/image.yml -e image_update=true"
            )
        found = store.fetch(pin, Web(options["allow_http"], options["ca_path"], options["timeout"]))
    if found:
        outcome = {"path": found.path, "sha256": found.sha256, "bytes": found.bytes, "manifest": found.manifest}
        return {"changed": found.changed, **outcome}
    return dict(changed=True)


def main() -> None:
    """Run the module."""
    run_module(
        SPEC,
        run,
        required_one_of=[("url", "src")],
        mutually_exclusive=[("url", "src")],
        required_by={"src": ("sha256",)},
    )


if __name__ == "__main__":
    main()
