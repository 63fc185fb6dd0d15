"""A card that fails while a user writes it with the playbook."""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny_image
from tests.support.cards import Rig
from tests.support.flaw import Flaw
from tests.support.rehearsal import HARDWARE, play
from tests.support.tiny_image import MIB

CARD = 32 * MIB
OLD_CONTENT = random.Random(2).randbytes(CARD)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A rig of virtual cards."""
    with Rig(tmp_path) as rig:
        yield rig


def test_card_that_is_pulled(rig: Rig, tmp_path: Path) -> None:
    """The message names the card and the next command, which completes the batch with a new card."""
    image = tmp_path / "tiny.img"
    tiny_image.build(image)
    good, bad, new = (
        rig.card("good", CARD, fill=OLD_CONTENT),
        rig.card("bad", CARD, Flaw(pulled_after=3 * MIB)),
        rig.card("new", CARD),
    )
    slots = {"pi-01": str(good.device()), "pi-02": str(bad.device())}
    variables: dict[str, Any] = {
        "cluster_name": "faults",
        "cluster_state_dir": str(tmp_path / "state"),
        "cluster_cache_dir": str(tmp_path / "cache"),
        "image_file": str(image),
        "image_sha256": hashlib.sha256(image.read_bytes()).hexdigest(),
        "card_slot": "{{ slots[inventory_hostname] }}",
        "slots": slots,
        "card_confirm": True,
    }

    def write_cards(limit: str) -> str:
        run = play("cards", inventory=HARDWARE, variables=variables, arguments=f"--limit {limit}", check=False)
        return "\n".join(run.failed.values())

    failure = write_cards("pi-01,pi-02")
    assert f"1 of 2 cards failed; 1 was successful.\npi-02, {slots['pi-02']}: writing failed at byte " in failure
    before = good.backing.read_bytes()
    slots["pi-02"] = str(new.device())
    (limit,) = re.findall(r"ansible-playbook playbooks/cards.yml --limit (\S+)", failure)
    assert write_cards(limit) == ""
    assert good.backing.read_bytes() == before and not any(before[-MIB:])
    for node, card in (("pi-01", good), ("pi-02", new)):
        command = ["mtype", "-i", f"{card.backing}@@{tiny_image.BOOT_START}", "::user-data"]
        assert f"hostname: {node}\n" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
