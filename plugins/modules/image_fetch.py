#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: provide a card image in the cache, from a download or a file, verified and decoded."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_fetch
short_description: Provide a card image in the cache, verified and decoded
description:
  - Downloads an image, resuming an interrupted download, and compares it with its pinned SHA-256 before it is decoded. Or uses a
    file of the user, which can be compressed; no network is needed then.
  - Decodes it (xz, zst, gz, bz2, lz4, lzma or zip, recognised by the first bytes of the file) into a sparse file of at most the
    pinned size, and compares this with the pinned SHA-256, too. The image gets its name only when it is complete and verified,
    and the download is removed then.
  - Refuses what M(bramble.cluster.card_write) would refuse, at once, such as an archive of another kind, the disk of a virtual
    machine, or an image without a boot and a root partition.
  - Does not read an image again that was not changed since it was verified.
  - Fails before the first byte if there is too little space for the download and the image.
  - The action plugin of the same name shows the progress while the module runs.
author: The Bramble team (!UNKNOWN)
options:
  cache:
    description: The folder of images. It is created if it is missing.
    type: path
    required: true
  name:
    description: The name of the image.
    type: str
    required: true
  architecture:
    description: The Debian architecture of the image.
    type: str
    required: true
  init_format:
    description: How a card of this image gets its identity, for the manifest.
    type: str
    required: true
  release_date:
    description: The release date of the image, for the manifest.
    type: str
    default: ""
  url:
    description: The URL of the download. It is not requested if a file of this name is in I(cache).
    type: str
  download:
    description: The pinned values of the download. The SHA-256 is required with I(url).
    type: dict
    default: {}
    suboptions:
      sha256: {description: The SHA-256 of the download., type: str}
      bytes: {description: The size of the download., type: int}
  src:
    description: >-
      A card image of the user, raw or compressed. A raw image is used in place, by a link in I(cache). The path is taken
      literally, so C(~) and C($NAME) are not expanded. A relative path begins in the folder where ansible-playbook was started.
    type: str
  src_base64:
    description: >-
      The bytes of I(src) in base64. The action plugin sets this instead of I(src) for a name that is not UTF-8, as Ansible sends
      only UTF-8 to a module.
    type: str
  sha256:
    description: With I(src), the SHA-256 of that file, or of the image in it.
    type: str
  extracted:
    description: The pinned values of the image. Unknown ones are recorded in the manifest when the image is decoded.
    type: dict
    default: {}
    suboptions:
      sha256: {description: The SHA-256 of the image., type: str}
      bytes: {description: The size of the image., type: int}
  verified:
    description: >-
      Set this to C(second-hand) if the pinned values do not come from the publisher itself. The module then shows a warning.
    type: str
    choices: [publisher, second-hand]
    default: publisher
  allow_http:
    description: Whether to allow http for the download. Its SHA-256 is compared in any case.
    type: bool
    default: false
  ca_path: {description: A file of certificates to trust instead of the system's., type: path}
  timeout:
    description: Seconds without a byte after which an attempt fails. A few attempts are made.
    type: float
    default: 30
  progress_file:
    description: >-
      A file to which events are appended, as lines of JSON with image, phase, done and total (in bytes; 0 if unknown), time, and
      seconds (since the module began, by a clock that is never set).
    type: path
attributes:
  check_mode: {support: full, description: "Returns whether something would change, without using the network. Writes nothing."}
  diff_mode: {support: none, description: An image is too large for a comparison by line.}
"""

EXAMPLES = r"""
- name: Fetch Raspberry Pi OS
  bramble.cluster.image_fetch:
    cache: .cache/images
    name: raspios-trixie-lite
    architecture: arm64
    init_format: cloudinit-rpi
    url: https://downloads.raspberrypi.com/raspios_lite_arm64/images/raspios_lite_arm64-2026-10-06/2026-10-06-raspios-trixie-arm64-lite.img.xz
    download:
      bytes: 550466056
      sha256: 483db18a48da399b5b7022ffae9a07bc6d99daab30e593aedac09b69ff422843

- name: Provide the image in a file
  bramble.cluster.image_fetch:
    cache: .cache/images
    name: mine
    architecture: arm64
    init_format: cloudinit
    src: /home/me/mine.img.zst
    sha256: "{{ image_sha256 }}"
"""

RETURN = r"""
image:
  description: The path of the raw image. In check mode, it is I(src) itself for a raw image, unless its name is not UTF-8.
  returned: when the image exists
  type: str
sha256:
  description: The SHA-256 of the image.
  returned: when the image exists
  type: str
bytes:
  description: The size of the image, which is a sparse file.
  returned: when the image exists
  type: int
manifest:
  description: >-
    The path of the description of the image in JSON, with name, architecture, file, sha256, bytes, init_format, recipe, built,
    source, source_sha256, release_date, device, inode, mtime_ns and ctime_ns.
  returned: when the image exists
  type: str
"""

import base64
import json
import os
import re
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module
from ansible_collections.bramble.cluster.plugins.module_utils.core.text import replace_invalid
from ansible_collections.bramble.cluster.plugins.module_utils.image.cache import ImageCache
from ansible_collections.bramble.cluster.plugins.module_utils.image.http import HttpClient
from ansible_collections.bramble.cluster.plugins.module_utils.image.pin import PinnedImage

EVENT_INTERVAL = 0.5  # seconds between two events of one phase
PINNED_VALUES = {"type": "dict", "default": {}, "options": {"sha256": {"type": "str"}, "bytes": {"type": "int"}}}
SPEC = {
    "cache": {"type": "path", "required": True},
    "name": {"type": "str", "required": True},
    "architecture": {"type": "str", "required": True},
    "init_format": {"type": "str", "required": True},
    "release_date": {"type": "str", "default": ""},
    "url": {"type": "str"},
    "download": PINNED_VALUES,
    "src": {"type": "str"},
    "src_base64": {"type": "str"},
    "sha256": {"type": "str"},
    "extracted": PINNED_VALUES,
    "verified": {"type": "str", "choices": ["publisher", "second-hand"], "default": "publisher"},
    "allow_http": {"type": "bool", "default": False},
    "ca_path": {"type": "path"},
    "timeout": {"type": "float", "default": 30.0},
    "progress_file": {"type": "path"},
}


class Progress:
    """Appends events to a file; does nothing without one."""

    def __init__(self, image: str, path: str | None) -> None:
        self._image, self._path = image, path
        self._phase, self._reported_at, self._began_at = "", 0.0, time.monotonic()

    def report(self, phase: str, done: int, total: int) -> None:
        """Append an event when a phase begins, when it is done, and every EVENT_INTERVAL in between."""
        now = time.monotonic()
        if self._path and (phase != self._phase or now >= self._reported_at + EVENT_INTERVAL or done == total):
            self._phase, self._reported_at = phase, now
            event = {"image": self._image, "phase": phase, "done": done, "total": total, "time": time.time()}
            event["seconds"] = now - self._began_at
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")


def read_sha256(options: dict, name: str) -> str:
    """Return the sha256 of some options in lower case; "" if it is not set. Raises BrambleError for an invalid one.

    :param name: the name of the option in the message
    """
    text = (options.get("sha256") or "").strip().lower()
    if text and not re.fullmatch("[0-9a-f]{64}", text):
        raise BrambleError(f"{name} is not a SHA-256 (64 hexadecimal digits): {text!r}. Nothing was changed.")
    return text


def run(module: AnsibleModule) -> dict[str, Any]:
    """Provide the image. Raises BrambleError."""
    options = module.params
    download, extracted = options["download"], options["extracted"]
    pin = PinnedImage(
        name=options["name"],
        architecture=options["architecture"],
        init_format=options["init_format"],
        url=options["url"] or "",
        download_sha256=read_sha256(download, f"download.sha256 of {options['name']}"),
        download_bytes=download.get("bytes"),
        sha256=read_sha256(extracted, f"extracted.sha256 of {options['name']}"),
        bytes=extracted.get("bytes"),
        release_date=options["release_date"],
    )
    # The cache names the image of a file by its SHA-256, and the name of a user's file is not restricted.
    source = os.fsdecode(base64.b64decode(options["src_base64"])) if options["src_base64"] else options["src"]
    for part in () if source else (pin.name, pin.architecture):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", part):
            raise BrambleError(f"{part!r} cannot be part of a file name, which may have letters, digits and . _ - only")
    cache = ImageCache(options["cache"], Progress(pin.name, options["progress_file"]).report, module.check_mode)
    if source:
        wanted = read_sha256(options, "image_sha256")
        if not wanted:
            raise BrambleError(
                f"{source} needs an image_sha256. Nothing was changed. Set image_sha256 to the SHA-256 that its "
                "publisher gives for the file or the image in it."
            )
        image = cache.import_file(pin, source, wanted)
    else:
        if not pin.download_sha256:
            raise BrambleError(f"{pin.name} has no download.sha256, and an image that cannot be verified is not downloaded")
        if options["verified"] == "second-hand":
            module.warn(
                f"The pinned hashes of {pin.name} are second-hand, not from its publisher. To update them from there: "
                "ansible-playbook playbooks/image.yml -e image_update=true"
            )
        image = cache.fetch(pin, HttpClient(options["allow_http"], options["ca_path"], options["timeout"]))
    for note in cache.notes:
        module.warn(replace_invalid(note))
    if image:
        outcome = {"sha256": image.sha256, "bytes": image.bytes, "manifest": image.manifest}
        if image.path == replace_invalid(image.path):
            outcome["image"] = image.path
        return {"changed": image.changed, **outcome}
    return {"changed": True}


def main() -> None:
    """Run the module."""
    run_module(
        SPEC,
        run,
        explain=lambda error: replace_invalid(str(error)),
        required_one_of=[("url", "src", "src_base64")],
        mutually_exclusive=[("url", "src", "src_base64")],
        required_by={"src": ("sha256",), "src_base64": ("sha256",)},
    )


if __name__ == "__main__":
    main()
