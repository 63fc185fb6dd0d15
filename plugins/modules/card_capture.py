#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: read a golden card back into an image that fits other cards."""

from __future__ import annotations

DOCUMENTATION = r"""
module: card_capture
short_description: Make an image of a golden card
description:
  - Reads the bytes that the file systems of a card use, and nothing else. The card is opened for reading only.
  - Refuses a card with a damaged file system, saying what to run, before anything is kept.
  - Removes what tells one node from another (host keys, machine-id, first-boot state, leases, logs, histories), and what was
    deleted; makes the root file system as small as it goes; and has it grow again at the first boot.
  - Leaves a raw image (sparse), the same compressed, and a manifest.
  - With the action plugin of the same name, progress is shown while it runs on the control machine.
author: The Bramble team (!UNKNOWN)
options:
  slot:
    description: The card, as for M(bramble.cluster.card_facts).
    type: path
    required: true
  node:
    description: What the card is called in messages.
    type: str
    default: card
  folder:
    description: Where the files go. Three times the used bytes of the card are needed there meanwhile.
    type: path
    required: true
  name:
    description: The name of the image, without C(.img). By default the node and the time.
    type: str
    default: ""
  compression:
    description: How the image is compressed, with all cores. C(xz) is smaller and takes many times as long.
    type: str
    choices: [zst, xz]
    default: zst
  card_bytes:
    description: The smallest card that the image must fit, in bytes. By default 95 % of what a 32 GB card's label says.
    type: int
    default: 30400000000
  architecture:
    description: What the card is made for, in Debian's words. It goes into the manifest.
    type: str
    default: ""
  init_format:
    description: How a card is told who it is. It goes into the manifest; by default it is found out.
    type: str
    default: ""
  boot_files:
    description: Neutral first-boot files, content by name, that replace those of the same name on the boot partition.
    type: dict
    default: {}
  progress_file:
    description: Where to append events, as lines of JSON with node, phase, done and total (in bytes), and time.
    type: path
attributes:
  check_mode: {support: full, description: "Looks at the card's file systems and says what would be read; writes nothing."}
  diff_mode: {support: none, description: There is nothing to compare with.}
"""

EXAMPLES = r"""
- name: Capture a golden card
  card_capture:
    slot: /dev/disk/by-path/pci-0000:00:14.0-usb-0:1.2:1.0-scsi-0:0:0:0
    folder: .cache/images
    name: golden
"""

RETURN = r"""
used_bytes:
  description: How many bytes of the card are read.
  returned: success
  type: int
card_size:
  description: How many bytes the card has.
  returned: success
  type: int
image:
  description: The raw image, sparse. It is to be (in check mode) or was written.
  returned: success
  type: str
archive:
  description: The compressed image.
  returned: success
  type: str
sha256:
  description: The sha256 of the raw image.
  returned: when captured
  type: str
bytes:
  description: The size of the raw image; the smallest card that it fits.
  returned: when captured
  type: int
init_format:
  description: How a card is told who it is.
  returned: when captured
  type: str
grow:
  description: What makes the root file system grow at the first boot, C(initramfs), C(cloud-init) or C(unit) (one of Bramble's).
  returned: when captured
  type: str
cleaned:
  description: What was removed or changed on the boot and root file system.
  returned: when captured
  type: list
  elements: str
"""

import os
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.capture.capture import Order, capture, check_tools, inspect, opened
from ansible_collections.bramble.cluster.plugins.module_utils.card.writer import Progress
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module

SPEC = {
    "slot": {"type": "path", "required": True},
    "node": {"type": "str", "default": "card"},
    "folder": {"type": "path", "required": True},
    "name": {"type": "str", "default": ""},
    "compression": {"type": "str", "choices": ["zst", "xz"], "default": "zst"},
    "card_bytes": {"type": "int", "default": 30_400_000_000},
    "architecture": {"type": "str", "default": ""},
    "init_format": {"type": "str", "default": ""},
    "boot_files": {"type": "dict", "default": {}},
    "progress_file": {"type": "path"},
}


def run(module: AnsibleModule) -> dict[str, Any]:
    """Look at the card, then capture it. Raises BrambleError when nothing was captured."""
    options = module.params
    order = Order(
        folder=Path(os.path.abspath(options["folder"])),
        name=options["name"] or f"{options['node']}-{time.strftime('%Y%m%d-%H%M%S')}",
        compression=options["compression"],
        most=options["card_bytes"],
        architecture=options["architecture"],
        init_format=options["init_format"],
        seeds={name: str(text) for name, text in options["boot_files"].items()},
    )
    check_tools()
    with opened(options["node"], options["slot"]) as card:
        golden = inspect(card, order.most)
        order.check(golden)
        outcome = {
            "changed": True,
            "used_bytes": golden.bytes,
            "card_size": card.facts.bytes,
            "image": str(order.image),
            "archive": str(order.archive),
        }
        if not module.check_mode:
            made = capture(card, golden, order, Progress(options["progress_file"]))
            outcome |= {name: made[name] for name in ("sha256", "bytes", "init_format", "grow", "cleaned")}
    return outcome


def main() -> None:
    """Run the module."""
    run_module(SPEC, run)


if __name__ == "__main__":
    main()
