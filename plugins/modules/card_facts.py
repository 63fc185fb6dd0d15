#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: measure the cards of a batch, and decide which may be overwritten."""

from __future__ import annotations

DOCUMENTATION = r"""
module: card_facts
short_description: Measure the cards of a batch before anything is written
description:
  - Returns for each slot what is in it, its exact size, and whether it may be overwritten with an image.
  - Never changes anything, and fails only for wrong options. A card whose state cannot be established is refused.
author: The Bramble team (!UNKNOWN)
options:
  cards:
    description: The batch.
    type: list
    elements: dict
    required: true
    suboptions:
      node: {description: The node that the card is for., type: str, required: true}
      slot:
        description: >-
          The card, as a whole disk, a file (a virtual card), or a loop device. For a disk, use its name in C(/dev/disk/by-path),
          which belongs to the slot and not to the card; a disk that is named in C(/dev/disk/by-id) may also be a fixed disk, and
          larger than I(max_bytes). The path must be absolute, and is taken literally, without expansion of C(~) and C($).
        type: str
        required: true
      virtual_bytes:
        description: >-
          The size of the virtual card that would be created, if the slot is a file that does not exist. With 0, the card is
          absent.
        type: int
        default: 0
  image:
    description: >-
      The raw image for the cards. They need at least its size; without an image, any size is accepted. The path is
      taken literally, without expansion of C(~) and C($).
    type: str
  needed_bytes:
    description: The size that the cards need, in bytes, for when the image is not on the machine that has the cards.
    type: int
    default: 0
  max_bytes:
    description: >-
      The size of the largest card, in bytes. A larger disk is more likely someone's backup. This does not apply to virtual cards,
      and not to a disk that the slot names by model and serial number, below C(/dev/disk/by-id).
    type: int
    default: 260000000000
attributes:
  check_mode: {support: full, description: The module never changes anything.}
  diff_mode: {support: none, description: The module never changes anything.}
"""

EXAMPLES = r"""
- name: Measure the cards
  bramble.cluster.card_facts:
    image: .cache/images/debian-trixie.img
    cards:
      - {node: pi-client, slot: /dev/disk/by-path/pci-0000:00:14.0-usb-0:1.1:1.0-scsi-0:0:0:0}
      - {node: pi-01, slot: /dev/disk/by-path/pci-0000:00:14.0-usb-0:1.2:1.0-scsi-0:0:0:0}
  register: card_batch

- name: Fail unless all cards are usable
  ansible.builtin.assert:
    that: card_batch.ok
    fail_msg: "{{ card_batch.table }}"
"""

RETURN = r"""
cards:
  description: The batch, in the order given.
  returned: always
  type: list
  elements: dict
  contains:
    node: {description: As given., type: str}
    slot: {description: As given., type: str}
    device: {description: "The device or file of the slot, after symbolic links.", type: str, sample: /dev/sda}
    kind: {description: "C(block), C(file), or empty if the slot is empty.", type: str}
    bus: {description: "C(usb), C(mmc), C(loop), C(file), or the kernel's name of another bus.", type: str}
    model: {description: The vendor and model that the reader or the card reports., type: str}
    serial: {description: "The reader's serial number; may be empty.", type: str}
    controller: {description: "The USB controller of the reader, for example C(usb1).", type: str}
    controller_speed: {description: "The speed of this controller for all its readers together, in Mbit/s.", type: int}
    bytes: {description: The exact size of the card., type: int, sample: 31914983424}
    gb: {description: The size in GB (10^9 bytes)., type: float, sample: 31.91}
    gib: {description: The size in GiB (2^30 bytes)., type: float, sample: 29.72}
    needed_bytes: {description: The size that the card needs., type: int}
    verdict:
      description: >-
        C(OK), C(TOO SMALL), C(IN USE), C(SYSTEM DISK), C(NOT REMOVABLE), C(NOT A CARD), C(READ ONLY),
        C(SAME CARD TWICE) or C(ABSENT).
      type: str
    reason: {description: "The reason of the verdict, and what to do; empty if it is C(OK).", type: str, sample: "by 1,234 bytes"}
ok:
  description: Whether every verdict is C(OK).
  returned: always
  type: bool
table:
  description: The batch as a table for the user, one line per slot.
  returned: always
  type: str
"""

import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.card.facts import OK, controller_warnings, table
from ansible_collections.bramble.cluster.plugins.module_utils.card.guard import LARGEST_CARD, Guard
from ansible_collections.bramble.cluster.plugins.module_utils.card.paths import check_paths, check_slots
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module


def run(module: AnsibleModule) -> dict[str, Any]:
    """Return the facts of each slot. Raises BrambleError."""
    check_slots(module.params["cards"])
    check_paths(module.params, "image")
    image = module.params["image"]
    if image and not os.path.isfile(image):
        raise BrambleError(f"The image {image or 'for the cards'} does not exist. Next: ansible-playbook playbooks/image.yml")
    needed = os.path.getsize(image) if image else module.params["needed_bytes"]
    batch = Guard(image, max_bytes=module.params["max_bytes"]).facts(module.params["cards"], needed)
    for warning in controller_warnings(batch):
        module.warn(warning)
    return {
        "cards": [facts.report() for facts in batch],
        "ok": all(facts.verdict == OK for facts in batch),
        "table": table(batch),
    }


def main() -> None:
    """Run the module."""
    card = {
        "node": {"type": "str", "required": True},
        "slot": {"type": "str", "required": True},
        "virtual_bytes": {"type": "int", "default": 0},
    }
    spec = {
        "cards": {"type": "list", "elements": "dict", "required": True, "options": card},
        "image": {"type": "str"},
        "needed_bytes": {"type": "int", "default": 0},
        "max_bytes": {"type": "int", "default": LARGEST_CARD},
    }
    run_module(spec, run)


if __name__ == "__main__":
    main()
