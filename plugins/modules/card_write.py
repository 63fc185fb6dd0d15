#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: write an image and the identity of each node to a batch of cards, and verify them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: card_write
short_description: Write a batch of cards at the same time, each with its node's identity, and verify every byte
description:
  - Before the first byte is written to any card, measures all cards, checks the SHA-256 of the image, and computes which bytes
    the identity of each node changes.
  - Each card has a writer of its own. A slow, full or broken card neither delays nor fails another card.
  - Reads every card back, past all caches, and compares it with the image and the files of the node. Zeros of the image are zeros
    on the card.
  - Does not write a card that already has this content. The partition table is cleared first and written last, so that an
    interrupted card never looks complete.
  - The action plugin of the same name shows the progress while the module runs on the control machine.
author: The Bramble team (!UNKNOWN)
options:
  image:
    description: >-
      The raw image, with an MBR or a GPT, a FAT partition 1 and an ext4 partition 2. It can be a sparse file. This path and all
      others are taken literally, without expansion of C(~) and C($).
    type: str
    required: true
  image_sha256:
    description: The SHA-256 of the image, as hexadecimal digits.
    type: str
    required: true
  cards:
    description: The batch.
    type: list
    elements: dict
    required: true
    suboptions:
      node: {description: The node that the card is for., type: str, required: true}
      slot:
        description: The slot of the card, as for M(bramble.cluster.card_facts). The path must be absolute.
        type: str
        required: true
      virtual_bytes:
        description: >-
          If the slot is a file that does not exist, create it as a blank card of this many bytes, after all cards are checked.
        type: int
        default: 0
      boot_files:
        description: >-
          Text files for the top folder of the FAT partition, content by name. Anyone can read them, so they must not contain
          secrets.
        type: dict
        default: {}
      root_files:
        description: Files for the root file system, owned by root. Missing folders are created with mode 0755.
        type: list
        elements: dict
        default: []
        suboptions:
          path:
            description: The absolute path of the file on the node.
            type: str
            required: true
          content:
            description: The text of the file.
            type: str
            required: true
          mode:
            description: The permissions of the file, as an octal string or as a number.
            type: raw
            default: "0644"
      arguments:
        description: >-
          New values for arguments of the kernel's command line (cmdline.txt), by name. Arguments that the image does not have are
          not added.
        type: dict
        default: {}
  only_good:
    description: >-
      Write the usable cards of a batch even if others are not. The module still fails at the end, and names the other cards.
      Without this option, nothing is written in this case.
    type: bool
    default: false
  confirm:
    description: Confirm that the content of the cards is lost. Without this option, only new virtual cards are written.
    type: bool
    default: false
  full_test:
    description: >-
      Test each card that is written with f3probe, which takes minutes. Without this option, the module writes a few hundred marks
      all over the card and reads them back, which takes seconds and finds cards that hold less than they report.
    type: bool
    default: false
  max_bytes:
    description: The size of the largest card, in bytes, as for M(bramble.cluster.card_facts).
    type: int
    default: 260000000000
  ledger:
    description: The file of the ledger, which records the result of every card as a JSON object by node.
    type: str
  map_file:
    description: A file for the SHA-256 and the block map of the image, so that an unchanged image need not be read again.
    type: str
  progress_file:
    description: A file to which events are appended, as lines of JSON with node, phase, done and total (in bytes), and time.
    type: str
attributes:
  check_mode: {support: full, description: "Measures, verifies and compares, but writes no card."}
  diff_mode: {support: full, description: "Names the files that are written to the card, and never shows their content."}
"""

EXAMPLES = r"""
- name: Write the cards
  bramble.cluster.card_write:
    image: .cache/images/debian-trixie.img
    image_sha256: "{{ image_sha256 }}"
    cards:
      - node: pi-01
        slot: /dev/disk/by-path/pci-0000:00:14.0-usb-0:1.2:1.0-scsi-0:0:0:0
        boot_files:
          user-data: "{{ lookup('ansible.builtin.template', 'user-data.j2') }}"
        root_files:
          - path: /etc/ssh/ssh_host_ed25519_key
            content: "{{ lookup('ansible.builtin.file', 'pi-01/ssh_host_ed25519_key') }}\n"
            mode: "0600"
"""

RETURN = r"""
results:
  description: The result of each card, in the order of I(cards).
  returned: when the cards were checked successfully
  type: list
  elements: dict
  contains:
    node: {description: As given., type: str}
    slot: {description: As given., type: str}
    result:
      description: >-
        C(written) (in check mode, it would be), C(unchanged), C(failed), or C(skipped) (not usable, with I(only_good)).
      type: str
    bytes_written: {description: The number of bytes that were written., type: int}
    bytes_verified: {description: "The number of bytes that were verified; those of the whole image, or 0.", type: int}
    seconds_write: {description: The time of writing., type: float}
    seconds_verify: {description: The time of reading back., type: float}
    fingerprint: {description: "Identifies the content: the SHA-256 of the image's SHA-256 and the node's own bytes.", type: str}
    error: {description: "What failed, and at which byte of the card.", type: str}
cards:
  description: The facts of the cards before anything was written, as returned by M(bramble.cluster.card_facts).
  returned: when they were measured
  type: list
  elements: dict
table:
  description: The facts as a table for the user.
  returned: when they were measured
  type: str
ledger:
  description: The entries of these cards in the ledger, as a table for the user.
  returned: when there is a ledger
  type: str
entries:
  description: The entries of these cards in the ledger, by node.
  returned: when there is a ledger
  type: dict
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.card import ledger as card_ledger
from ansible_collections.bramble.cluster.plugins.module_utils.card.batch import write_batch
from ansible_collections.bramble.cluster.plugins.module_utils.card.content import Content
from ansible_collections.bramble.cluster.plugins.module_utils.card.facts import (
    IN_USE,
    OK,
    TOO_SMALL,
    Facts,
    controller_warnings,
    table,
)
from ansible_collections.bramble.cluster.plugins.module_utils.card.guard import LARGEST_CARD, Guard
from ansible_collections.bramble.cluster.plugins.module_utils.card.image import Image
from ansible_collections.bramble.cluster.plugins.module_utils.card.overlay import build_overlay
from ansible_collections.bramble.cluster.plugins.module_utils.card.paths import check_paths, check_slots
from ansible_collections.bramble.cluster.plugins.module_utils.card.preflight import check_space, create_virtual_cards
from ansible_collections.bramble.cluster.plugins.module_utils.card.progress import Progress
from ansible_collections.bramble.cluster.plugins.module_utils.card.result import FAILED, SKIPPED, WRITTEN, Result
from ansible_collections.bramble.cluster.plugins.module_utils.card.root_files import RootFile
from ansible_collections.bramble.cluster.plugins.module_utils.card.workbench import Workbench
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module

SLOW_MB_S = 10  # the minimum of speed class 10: SD specification, part 1
MIN_MEASURED_BYTES = 64 * 2**20  # with less, the measured speed of a card is not meaningful
RETRY_COMMAND = "ansible-playbook playbooks/cards.yml --limit {}"
SPEC = {
    "image": {"type": "str", "required": True},
    "image_sha256": {"type": "str", "required": True},
    "cards": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "node": {"type": "str", "required": True},
            "slot": {"type": "str", "required": True},
            "virtual_bytes": {"type": "int", "default": 0},
            "boot_files": {"type": "dict", "default": {}, "no_log": True},
            "root_files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "str", "required": True},
                    "content": {"type": "str", "required": True, "no_log": True},
                    "mode": {"type": "raw", "default": "0644"},
                },
            },
            "arguments": {"type": "dict", "default": {}},
        },
    },
    "only_good": {"type": "bool", "default": False},
    "confirm": {"type": "bool", "default": False},
    "full_test": {"type": "bool", "default": False},
    "max_bytes": {"type": "int", "default": LARGEST_CARD},
    "ledger": {"type": "str"},
    "map_file": {"type": "str"},
    "progress_file": {"type": "str"},
}


def root_files(card: dict) -> list[RootFile]:
    """Return the root_files option of a card, with the modes as numbers. Raises BrambleError."""
    files = []
    for file in card["root_files"]:
        mode = file["mode"]
        try:
            files.append(RootFile(file["path"], file["content"], mode if isinstance(mode, int) else int(mode, 8)))
        except (TypeError, ValueError):
            raise BrambleError(f"{card['node']}: the mode {file['mode']!r} of {file['path']} is not an octal number") from None
    return files


def build_contents(
    image: Image, cards: list[dict], sizes: Mapping[str, int], folder: str, progress: Progress
) -> dict[str, Content]:
    """Return the content of each card, by node.

    :param sizes: the sizes of the cards by node, in bytes
    :param folder: where the working copy of the image is made
    :raises BrambleError: when a file cannot be written
    """
    if not any(card["boot_files"] or card["root_files"] or card["arguments"] for card in cards):
        return {card["node"]: Content(image, {}, sizes[card["node"]]) for card in cards}
    contents = {}
    with Workbench(image, folder) as bench:
        for card in cards:
            progress.report(card["node"], "prepare")
            boot_files = {name: str(text) for name, text in card["boot_files"].items()}
            arguments = {name: str(value) for name, value in card["arguments"].items()}
            overlay = build_overlay(bench, boot_files, root_files(card), arguments)
            contents[card["node"]] = Content(image, overlay, sizes[card["node"]])
    return contents


def explain_failure(results: list[Result], bad: list[Facts]) -> str:
    """Return the message for a batch with failed cards: what failed on each card, and the next command."""
    lines = [f"{result.node}, {result.slot}: {result.error}" for result in results if result.result == FAILED]
    lines += [f"{facts.node}, {facts.slot}: {facts.verdict} {facts.reason}" for facts in bad]
    nodes = [result.node for result in results if result.result in (FAILED, SKIPPED)]
    good = len(results) - len(nodes)
    head = f"{len(nodes)} of {len(results)} cards failed; {good} {'was' if good == 1 else 'were'} successful."
    return "\n".join([head, *lines, f"Correct this, then run: {RETRY_COMMAND.format(','.join(nodes))}"])


def card_diff(card: dict, sha256: str) -> dict[str, str]:
    """Return what --diff shows for a card: the names of its files, never their content."""
    header = f"{card['slot']} ({card['node']})"
    after = [f"image {sha256}", *(f"boot file {name}" for name in card["boot_files"])]
    after += [f"root file {file['path']}" for file in card["root_files"]]
    return {"before_header": header, "after_header": header, "before": "other content\n", "after": "\n".join([*after, ""])}


def check_options(options: dict, good: list[Facts], text: str, check_mode: bool) -> None:
    """Check that a full test is possible, and that overwriting cards is confirmed. Raises BrambleError.

    :param text: the table of the cards, for the message
    """
    if options["full_test"]:
        if not shutil.which("f3probe"):
            raise BrambleError("The full test needs f3probe. Nothing was written. Next: apt install f3")
        if files := [facts.node for facts in good if facts.kind == "file"]:
            raise BrambleError(
                f"The full test works only on disks, but the cards of {', '.join(files)} are files. Nothing was written."
            )
    existing = [facts.node for facts in good if not facts.is_new]
    if existing and not options["confirm"] and not check_mode:
        raise BrambleError(
            f"Nothing was written: the content of {len(existing)} card{'s'[: len(existing) > 1]} would be lost.\n{text}\n"
            "If these are the right cards, run the same command again with: -e card_confirm=true"
        )


def mark_cards_being_written(batch: Sequence[Facts], ledger: card_ledger.Ledger) -> None:
    """Mark the cards of nodes that an earlier run is still writing as in use, whatever their slot. Raises BrambleError."""
    entries = ledger.read()
    for facts in batch:
        if pid := card_ledger.running_writer(entries.get(facts.node, {})):
            facts.verdict = IN_USE
            since = entries[facts.node].get("time", "an unknown time")
            facts.reason = f"process {pid} has been writing it since {since}: wait for it, or end it with kill {pid}"


def write_cards(module: AnsibleModule, good: list[Facts], ledger: card_ledger.Ledger) -> list[Result]:
    """Write the usable cards, and return a result for each. In check mode, return what would be written.

    Raises BrambleError when nothing was written.
    """
    options, path = module.params, module.params["image"]
    progress = Progress(options["progress_file"])
    with Image(path, options["map_file"], save_map=not module.check_mode) as image:
        if image.sha256 != options["image_sha256"].strip().lower():
            raise BrambleError(
                f"The image {path} does not have the expected SHA-256. Nothing was written.\n  found     {image.sha256}\n"
                f"  expected  {options['image_sha256']}\nNext: ansible-playbook playbooks/image.yml"
            )
        image.partitions()
        chosen = [card for card in options["cards"] if card["node"] in {facts.node for facts in good}]
        folder = os.path.dirname(os.path.realpath(path))
        folder = folder if os.access(folder, os.W_OK) else module.tmpdir
        extra = max(
            sum(len(str(text)) for text in card["boot_files"].values()) + sum(len(file["content"]) for file in card["root_files"])
            for card in chosen
        )
        check_space(image, good, extra + 2**20, folder)
        sizes = {facts.node: facts.bytes for facts in good}
        new_cards = [facts for facts in good if facts.is_new]
        new: list[Result] = []
        if module.check_mode:
            # A card that does not exist yet cannot be compared. It would be created and written.
            new = [Result(facts.node, facts.slot, WRITTEN) for facts in new_cards]
            good = [facts for facts in good if not facts.is_new]
        contents = build_contents(image, chosen, sizes, folder, progress)
        if not module.check_mode:
            create_virtual_cards(new_cards)
        done = write_batch(good, contents, progress, module.check_mode, options["only_good"], options["full_test"], ledger)
    return done + new


def run(module: AnsibleModule) -> dict[str, Any]:
    """Check everything, write the cards, and return the results. Raises BrambleError when a card or the batch failed."""
    options = module.params
    cards, path = options["cards"], options["image"]
    check_slots(cards)
    check_paths(options, "image", "ledger", "map_file", "progress_file")
    nodes = [card["node"] for card in cards]
    if twice := sorted({node for node in nodes if nodes.count(node) > 1}):
        raise BrambleError(f"{', '.join(twice)} is named twice in this batch. Nothing was written. Name each node once.")
    if not os.path.isfile(path):
        raise BrambleError(
            f"The image {path or 'for the cards'} does not exist. Nothing was written. Next: ansible-playbook playbooks/image.yml"
        )

    ledger = card_ledger.Ledger(options["ledger"])
    batch = Guard(path, max_bytes=options["max_bytes"]).facts(cards, os.path.getsize(path))
    mark_cards_being_written(batch, ledger)
    measured: dict[str, Any] = {"cards": [facts.report() for facts in batch], "table": table(batch)}
    bad = [facts for facts in batch if facts.verdict != OK]
    good = [facts for facts in batch if facts.verdict == OK]
    if bad and not (options["only_good"] and good):
        names = ",".join(facts.node for facts in bad)
        hint = "" if options["only_good"] else f", or exclude them with --limit 'all:!{names.replace(',', ':!')}'"
        if any(facts.verdict == TOO_SMALL for facts in bad):
            hint += ". If the image is a copy of a whole card, create a smaller one: ansible-playbook playbooks/capture.yml"
        raise BrambleError(
            f"Nothing was written: {len(bad)} of {len(batch)} cards cannot be used.\n{measured['table']}\nReplace them{hint}.",
            **measured,
        )

    check_options(options, good, measured["table"], module.check_mode)
    for warning in controller_warnings(good):
        module.warn(warning)

    done = write_cards(module, good, ledger)
    by_node = {result.node: result for result in done}
    by_node |= {facts.node: Result(facts.node, facts.slot, SKIPPED, error=f"{facts.verdict} {facts.reason}") for facts in bad}
    results = [by_node[node] for node in nodes]
    written = [result.node for result in results if result.result == WRITTEN]
    for result in results:
        if result.bytes_written >= MIN_MEASURED_BYTES and result.write_mb_s < SLOW_MB_S:
            module.warn(
                f"{result.node}: its card was written at {result.write_mb_s} MB/s. Speed class 10 is at least {SLOW_MB_S} MB/s."
            )
    if options["ledger"]:
        entries = ledger.read()
        measured["entries"] = {node: entries[node] for node in nodes if node in entries}
        measured["ledger"] = card_ledger.table(measured["entries"])
    changed = any(result.result == WRITTEN or result.bytes_written for result in results)
    outcome: dict[str, Any] = {"changed": changed, "results": [result.report() for result in results], **measured}
    if module._diff:
        outcome["diff"] = [card_diff(card, options["image_sha256"]) for card in cards if card["node"] in written]
    if any(result.result in (FAILED, SKIPPED) for result in results):
        raise BrambleError(explain_failure(results, bad), **outcome)
    return outcome


def main() -> None:
    """Run the module."""
    run_module(SPEC, run)


if __name__ == "__main__":
    main()
