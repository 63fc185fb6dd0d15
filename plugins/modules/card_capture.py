#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: create an image of a card that fits other cards."""

from __future__ import annotations

DOCUMENTATION = r"""
module: card_capture
short_description: Create an image of a card that fits other cards
description:
  - Reads only the bytes that the file systems of a card use. The card is opened for reading only.
  - Refuses a card with a damaged file system before any file is written, and names the command that repairs it.
  - Copies what is before and between the partitions, such as boot loaders, as it is.
  - Removes the identity of the node from the image (host keys, machine-id, first-boot state, leases, logs, histories), and
    deleted data. Shrinks the root file system as far as possible; it grows again at the first boot.
  - Writes a sparse raw image, a compressed image, and a manifest.
  - The action plugin of the same name shows the progress while the module runs on the control machine.
author: The Bramble team (!UNKNOWN)
options:
  slot:
    description: >-
      The slot of the card, as for M(bramble.cluster.card_facts). This path must be absolute. It and all others are taken
      literally, without expansion of C(~) and C($).
    type: str
    required: true
  node:
    description: The name of the card in messages.
    type: str
    default: card
  folder:
    description: The folder of the image. During the capture, it needs free space of three times the used bytes of the card.
    type: str
    required: true
  name:
    description: >-
      The name of the image, without C(.img), of letters, digits and C(. _ -) (not first). The default is the node and the time.
    type: str
    default: ""
  compression:
    description: The compression of the image, which uses all cores. C(xz) is smaller, and takes many times as long.
    type: str
    choices: [zst, xz]
    default: zst
  card_bytes:
    description: The size of the smallest card that the image must fit, in bytes. The default is 95 % of 32 GB.
    type: int
    default: 30400000000
  architecture:
    description: The Debian architecture of the card's system, for the manifest.
    type: str
    default: ""
  init_format:
    description: How a card gets its identity, for the manifest. By default, it is detected.
    type: str
    default: ""
  boot_files:
    description: Neutral first-boot files, content by name, which replace files of the same name on the boot partition.
    type: dict
    default: {}
  progress_file:
    description: A file to which events are appended, as lines of JSON with node, phase, done and total (in bytes), and time.
    type: str
attributes:
  check_mode: {support: full, description: "Returns how many bytes of the card would be read, and writes nothing."}
  diff_mode: {support: none, description: An image has no earlier state to compare with.}
"""

EXAMPLES = r"""
- name: Capture a card
  bramble.cluster.card_capture:
    slot: /dev/disk/by-path/pci-0000:00:14.0-usb-0:1.2:1.0-scsi-0:0:0:0
    folder: .cache/images
    name: octapi
"""

RETURN = r"""
used_bytes:
  description: The number of bytes of the card that are read.
  returned: success
  type: int
card_size:
  description: The size of the card, in bytes.
  returned: success
  type: int
image:
  description: The path of the raw image, which is a sparse file. In check mode, it does not exist yet.
  returned: success
  type: str
archive:
  description: The path of the compressed image.
  returned: success
  type: str
sha256:
  description: The SHA-256 of the raw image.
  returned: when captured
  type: str
bytes:
  description: The size of the raw image in bytes, which is that of the smallest card that it fits.
  returned: when captured
  type: int
init_format:
  description: How a card of this image gets its identity.
  returned: when captured
  type: str
grow:
  description: What grows the root file system at the first boot, C(initramfs), C(cloud-init) or C(unit) (which Bramble adds).
  returned: when captured
  type: str
cleaned:
  description: The paths that were removed or changed on the boot and root file systems.
  returned: when captured
  type: list
  elements: str
"""

import os
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.capture.capture import capture
from ansible_collections.bramble.cluster.plugins.module_utils.capture.request import CaptureRequest
from ansible_collections.bramble.cluster.plugins.module_utils.capture.source_card import inspect_card, open_card
from ansible_collections.bramble.cluster.plugins.module_utils.capture.tools import check_tools
from ansible_collections.bramble.cluster.plugins.module_utils.card.paths import check_paths, check_slots
from ansible_collections.bramble.cluster.plugins.module_utils.card.progress import Progress
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module

SPEC = {
    "slot": {"type": "str", "required": True},
    "node": {"type": "str", "default": "card"},
    "folder": {"type": "str", "required": True},
    "name": {"type": "str", "default": ""},
    "compression": {"type": "str", "choices": ["zst", "xz"], "default": "zst"},
    "card_bytes": {"type": "int", "default": 30_400_000_000},
    "architecture": {"type": "str", "default": ""},
    "init_format": {"type": "str", "default": ""},
    "boot_files": {"type": "dict", "default": {}},
    "progress_file": {"type": "str"},
}


def run(module: AnsibleModule) -> dict[str, Any]:
    """Check the card, then capture it. Raises BrambleError when nothing was captured."""
    options = module.params
    check_slots([options])
    check_paths(options, "folder", "progress_file")
    request = CaptureRequest(
        folder=Path(os.getcwd(), options["folder"]),
        name=options["name"] or f"{options['node']}-{time.strftime('%Y%m%d-%H%M%S')}",
        compression=options["compression"],
        max_bytes=options["card_bytes"],
        architecture=options["architecture"],
        init_format=options["init_format"],
        seeds={name: str(text) for name, text in options["boot_files"].items()},
    )
    request.check_name()
    check_tools()
    with open_card(options["node"], options["slot"]) as card:
        source = inspect_card(card, request.max_bytes)
        request.check(source)
        outcome = {
            "changed": True,
            "used_bytes": source.used_bytes,
            "card_size": card.facts.bytes,
            "image": str(request.image),
            "archive": str(request.archive),
        }
        if not module.check_mode:
            captured = capture(card, source, request, Progress(options["progress_file"]))
            outcome |= {name: captured[name] for name in ("sha256", "bytes", "init_format", "grow", "cleaned")}
    return outcome


def main() -> None:
    """Run the module."""
    run_module(SPEC, run)


if __name__ == "__main__":
    main()
