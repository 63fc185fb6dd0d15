"""A power cut in the first boot of a card without cloud-init. The scenario molecule/cards shows how cards boot otherwise."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT
from tests.support.card_content import CardContent, passwords
from tests.support.rehearsal import INVENTORY, play

OVERLAY = Path(__file__).parent / "identity"
STATE = ROOT / ".state/h-identity"
# Of the password "identity-test".
HASH = "$6$bramble$sW/cWbQ7B/zOhdDGTvZUtMduKB7k4AxX3V.A/zvXXXr2ZEJZamSQYG4KIw3uHMccJEm9WLy2pBOJKgJw3nGPo1"

playbook = partial(play, inventory=[*INVENTORY, OVERLAY])


@pytest.fixture(scope="module")
def card(bookworm: dict[str, Any]) -> Iterator[CardContent]:
    """pi-01's card, without cloud-init, not yet booted; removed however the tests end."""
    try:
        playbook("cards", variables={**bookworm, "identity_console_password_hash": HASH}, arguments="--limit pi-01")
        yield CardContent(STATE / "cards/pi-01.img")
    finally:
        shutil.rmtree(STATE, ignore_errors=True)


@pytest.mark.parametrize("user", ["pi", "octa"])
def test_a_power_cut_in_the_first_boot_does_no_harm(card: CardContent, tmp_path: Path, user: str) -> None:
    """What the unit runs, killed a few times at any moment; for a user who is there, and one who is not."""
    chance = random.Random(user)
    cuts = [f"{chance.uniform(0, 0.3):.3f}" for _ in range(12)]
    command: list[str | Path] = [
        "unshare",
        "--mount",
        "sh",
        OVERLAY / "power_cuts",
        card.path,
        str(card.root),
        tmp_path,
        user,
        *cuts,
    ]
    *lines, home, key = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found = passwords("\n".join(lines))
    assert found.pop(user) == HASH
    assert all(password[:1] in ("!", "*") for password in found.values()), found
    assert home.split() == [user, user, "700", f"/home/{user}/.ssh"]
    assert key.split() == [user, user, "600", f"/home/{user}/.ssh/authorized_keys"]
