#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: write an image and each node's identity to a batch of cards, and read it all back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: card_write
short_description: Write a batch of cards at once, each with its node's identity, and verify every byte
description:
  - Measures all cards, checks the image's sha256, and works out which bytes each node's own files change, before the first
    byte is written to any card.
  - Every card has its own writer. A slow, full or broken card neither delays nor fails another.
  - What is read back from the card itself is compared with all of the image and the node's files; zeros of the image are
    zeros on the card.
  - A card that holds exactly this already is left alone. The partition table is emptied first and written last, so
    a card that was interrupted never looks done.
  - With the action plugin of the same name, progress is shown while it runs on the control machine.
author: The Bramble team (!UNKNOWN)
options:
  image:
    description: The raw image, with an MBR, a FAT partition 1 and an ext4 partition 2. May be sparse.
    type: path
    required: true
  image_sha256:
    description: The sha256 of all of the image, as hexadecimal digits.
    type: str
    required: true
  cards:
    description: The batch.
    type: list
    elements: dict
    required: true
    suboptions:
      node:
        description: The node that the card is for.
        type: str
        required: true
      slot:
        description: Where the card is, as for M(bramble.cluster.card_facts).
        type: path
        required: true
      virtual_bytes:
        description: >-
          When the slot is a file that does not exist, make it, as a blank card of this many bytes, once all cards are checked.
        type: int
        default: 0
      boot_files:
        description: Text files for the top folder of the FAT partition, content by name. Anyone can read them; keep secrets out.
        type: dict
        default: {}
      root_files:
        description: Files for the root file system, owned by root. Missing folders are made (0755).
        type: list
        elements: dict
        default: []
        suboptions:
          path:
            description: The absolute path on the node.
            type: str
            required: true
          content:
            description: The text in it.
            type: str
            required: true
          mode:
            description: Its permissions, in octal as a string, or as a number.
            type: raw
            default: "0644"
      arguments:
        description: >-
          New values for arguments of the kernel's command line (cmdline.txt), by name.
          Those that the image does not have are left out.
        type: dict
        default: {}
  only_good:
    description: >-
      Write the good cards of a batch although others are not fit. The module still fails in the end, naming those.
      Without it nothing is written then.
    type: bool
    default: false
  confirm:
    description: That what is on the cards may be lost. Without it only virtual cards that do not exist yet are written.
    type: bool
    default: false
  full_test:
    description: >-
      Let f3probe test each card that is written (minutes). Without it a few hundred marks all over the card are written and read
      back, in seconds, which finds those that hold less than they say.
    type: bool
    default: false
  ledger:
    description: Where to keep what became of every card, as a JSON object by node.
    type: path
  map_file:
    description: Where to keep the image's sha256 and block map. An image that was not touched since is not read all over again.
    type: path
  progress_file:
    description: Where to append events, as lines of JSON with node, phase, done and total (in bytes), and time.
    type: path
attributes:
  check_mode: {support: full, description: "Measures, verifies and compares, but writes no card."}
  diff_mode: {support: full, description: Names the files that are laid on the image; never shows what is in them.}
"""

EXAMPLES = r"""
- name: Write the cards
  card_write:
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
  description: What became of each card, in the order given.
  returned: unless nothing could be tried
  type: list
  elements: dict
  contains:
    node: {description: As given., type: str}
    slot: {description: As given., type: str}
    result:
      description: >-
        C(written) (in check mode: would be), C(unchanged), C(failed), or C(skipped) (not fit, with I(only_good)).
      type: str
    bytes_written: {description: What was written., type: int}
    bytes_verified: {description: "What is known to be right; all of the image, or 0.", type: int}
    seconds_write: {description: Time taken to write., type: float}
    seconds_verify: {description: Time taken to read it back., type: float}
    fingerprint: {description: "sha256 over the image's sha256 and the node's own bytes: says what is on the card.", type: str}
    error: {description: "What went wrong, where on the card.", type: str}
cards:
  description: The facts of the cards before anything was written, as from M(bramble.cluster.card_facts).
  returned: when they were measured
  type: list
  elements: dict
table:
  description: The facts for people.
  returned: when they were measured
  type: str
ledger:
  description: What the ledger says of these cards, for people.
  returned: when there is a ledger
  type: str
entries:
  description: The same as it is in the file, by node.
  returned: when there is a ledger
  type: dict
"""

import os
import shutil
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.card import ledger as card_ledger
from ansible_collections.bramble.cluster.plugins.module_utils.card.content import Content
from ansible_collections.bramble.cluster.plugins.module_utils.card.guard import OK, TOO_SMALL, Facts, Guard, table, warnings
from ansible_collections.bramble.cluster.plugins.module_utils.card.image import Image
from ansible_collections.bramble.cluster.plugins.module_utils.card.workbench import RootFile, Workbench
from ansible_collections.bramble.cluster.plugins.module_utils.card.writer import (
    FAILED,
    SKIPPED,
    WRITTEN,
    Progress,
    Result,
    make_blanks,
    space_needed,
    write_batch,
)
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module

SLOW_MB_S = 10  # what speed class 10 promises: SD specification, part 1
MEASURABLE = 64 * 2**20  # bytes; less says little about a card's speed
AGAIN = "ansible-playbook playbooks/cards.yml --limit {}"
SPEC = {
    "image": {"type": "path", "required": True},
    "image_sha256": {"type": "str", "required": True},
    "cards": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "node": {"type": "str", "required": True},
            "slot": {"type": "path", "required": True},
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
    "ledger": {"type": "path"},
    "map_file": {"type": "path"},
    "progress_file": {"type": "path"},
}


def root_files(card: dict) -> list[RootFile]:
    """A card's root_files option, with the modes as numbers. Raises BrambleError."""
    files = []
    for file in card["root_files"]:
        mode = file["mode"]
        try:
            files.append(RootFile(file["path"], file["content"], mode if isinstance(mode, int) else int(mode, 8)))
        except (TypeError, ValueError):
            raise BrambleError(f"{card['node']}: mode {file['mode']!r} of {file['path']} is not an octal number") from None
    return files


def contents(image: Image, cards: list[dict], folder: str, progress: Progress) -> dict[str, Content]:
    """What each node's card must hold. Raises BrambleError."""
    if not any(card["boot_files"] or card["root_files"] or card["arguments"] for card in cards):
        return {card["node"]: Content(image, {}) for card in cards}
    expected = {}
    with Workbench(image, folder) as bench:
        for card in cards:
            progress.tell(card["node"], "prepare")
            boot_files = {name: str(text) for name, text in card["boot_files"].items()}
            overlay = bench.overlay(boot_files, root_files(card), card["arguments"])
            expected[card["node"]] = Content(image, overlay)
    return expected


def explain(results: list[Result], bad: list[Facts]) -> str:
    """What went wrong, card by card, and what to do next."""
    lines = [f"{result.node}, {result.slot}: {result.error}" for result in results if result.result == FAILED]
    lines += [f"{facts.node}, {facts.slot}: {facts.verdict} {facts.reason}" for facts in bad]
    nodes = [result.node for result in results if result.result in (FAILED, SKIPPED)]
    good = len(results) - len(nodes)
    head = f"{len(nodes)} of {len(results)} cards failed; {good} {'is' if good == 1 else 'are'} right."
    return "\n".join([head, *lines, f"When that is mended: {AGAIN.format(','.join(nodes))}"])


def difference(card: dict, sha256: str) -> dict[str, str]:
    """What --diff shows of a card: the names of its files, never what is in them."""
    header = f"{card['slot']} ({card['node']})"
    after = [f"image {sha256}", *(f"boot file {name}" for name in card["boot_files"])]
    after += [f"root file {file['path']}" for file in card["root_files"]]
    return {"before_header": header, "after_header": header, "before": "something else\n", "after": "\n".join([*after, ""])}


def check_options(options: dict, good: list[Facts], text: str, check: bool) -> None:
    """Raises BrambleError when the user has still to say something, or a tool is missing."""
    if options["full_test"]:
        if not shutil.which("f3probe"):
            raise BrambleError("The full test needs f3probe: apt install f3. Nothing was written.")
        if files := [facts.node for facts in good if facts.kind == "file"]:
            raise BrambleError(f"The full test is for disks; the cards of {', '.join(files)} are files. Nothing was written.")
    existing = [facts.node for facts in good if not facts.blank]
    if existing and not options["confirm"] and not check:
        raise BrambleError(
            f"Nothing was written: all that is on {len(existing)} card{'s'[: len(existing) > 1]} would be lost.\n{text}\n"
            "If these are the right ones, run the same command again with: -e card_confirm=true"
        )


def write(module: AnsibleModule, good: list[Facts], ledger: card_ledger.Ledger) -> list[Result]:
    """Write the cards that are fit, or in check mode say what would be. Raises BrambleError when nothing was written."""
    options, path = module.params, module.params["image"]
    progress = Progress(options["progress_file"])
    with Image(path, options["map_file"], keep=not module.check_mode) as image:
        if image.sha256 != options["image_sha256"].strip().lower():
            raise BrambleError(
                f"The image {path} is not the one that was pinned. Nothing was written.\n  sha256 found   {image.sha256}\n"
                f"  sha256 wanted  {options['image_sha256']}\nMake it again: ansible-playbook playbooks/image.yml"
            )
        image.partitions()
        chosen = [card for card in options["cards"] if card["node"] in {facts.node for facts in good}]
        folder = os.path.dirname(os.path.realpath(path))
        folder = folder if os.access(folder, os.W_OK) else module.tmpdir
        extra = max(
            sum(len(str(text)) for text in card["boot_files"].values()) + sum(len(file["content"]) for file in card["root_files"])
            for card in chosen
        )
        space_needed(image, good, extra + 2**20, folder)
        blank = [facts for facts in good if facts.blank]
        made: list[Result] = []
        if module.check_mode:
            # What does not exist yet cannot be compared: it would be made, and written.
            made = [Result(facts.node, facts.slot, WRITTEN) for facts in blank]
            good = [facts for facts in good if not facts.blank]
        else:
            make_blanks(blank)
        expected = contents(image, chosen, folder, progress)
        done = write_batch(good, expected, progress, module.check_mode, options["only_good"], options["full_test"], ledger)
        try:
            image.check_untouched()
        except BrambleError as error:
            for result in done:
                result.result, result.error = FAILED, str(error)
                ledger.note(result.node, {"verdict": card_ledger.FAILED, "reason": str(error)})
    return done + made


def run(module: AnsibleModule) -> dict[str, Any]:
    """Check everything, then write, then say what happened. Raises BrambleError when nothing was written."""
    options = module.params
    cards, path = options["cards"], options["image"]
    nodes = [card["node"] for card in cards]
    if len(set(nodes)) < len(nodes):
        raise BrambleError("a node is named twice in this batch. Nothing was written.")
    if not os.path.isfile(path):
        raise BrambleError(f"There is no image {path}. Nothing was written. Make it with: ansible-playbook playbooks/image.yml")

    batch = Guard(path).facts(cards, os.path.getsize(path))
    seen: dict[str, Any] = {"cards": [facts.report() for facts in batch], "table": table(batch)}
    bad = [facts for facts in batch if facts.verdict != OK]
    good = [facts for facts in batch if facts.verdict == OK]
    if bad and not (options["only_good"] and good):
        names = ",".join(facts.node for facts in bad)
        hint = "" if options["only_good"] else f", or leave them out with --limit 'all:!{names.replace(',', ':!')}'"
        if any(facts.verdict == TOO_SMALL for facts in bad):
            hint += (
                ". Is the image a copy of a whole card? Make one that fits from that card: ansible-playbook playbooks/capture.yml"
            )
        raise BrambleError(
            f"Nothing was written: {len(bad)} of {len(batch)} cards are not fit.\n{seen['table']}\nReplace them{hint}.",
            **seen,
        )

    check_options(options, good, seen["table"], module.check_mode)
    for warning in warnings(good):
        module.warn(warning)

    ledger = card_ledger.Ledger(options["ledger"])
    done = write(module, good, ledger)
    by_node = {result.node: result for result in done}
    by_node |= {facts.node: Result(facts.node, facts.slot, SKIPPED, error=f"{facts.verdict} {facts.reason}") for facts in bad}
    results = [by_node[node] for node in nodes]
    written = [result.node for result in results if result.result == WRITTEN]
    for result in results:
        if result.bytes_written >= MEASURABLE and result.write_mb_s < SLOW_MB_S:
            module.warn(f"{result.node}: its card was written at {result.write_mb_s} MB/s. A class-10 card does {SLOW_MB_S}.")
    if options["ledger"]:
        entries = ledger.read()
        seen["entries"] = {node: entries[node] for node in nodes if node in entries}
        seen["ledger"] = card_ledger.table(seen["entries"])
    touched = any(result.result == WRITTEN or result.bytes_written for result in results)
    outcome: dict[str, Any] = {"changed": touched, "results": [result.report() for result in results], **seen}
    if module._diff:
        outcome["diff"] = [difference(card, options["image_sha256"]) for card in cards if card["node"] in written]
    if any(result.result in (FAILED, SKIPPED) for result in results):
        raise BrambleError(explain(results, bad), **outcome)
    return outcome


def main() -> None:
    """Run the module."""
    run_module(SPEC, run)


if __name__ == "__main__":
    main()
