"""Power cuts during the first boot of a card without cloud-init. The scenario molecule/cards tests undisturbed boots."""

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
# The hash of the password "identity-test".
HASH = "$6$bramble$sW/cWbQ7B/zOhdDGTvZUtMduKB7k4AxX3V.A/zvXXXr2ZEJZamSQYG4KIw3uHMccJEm9WLy2pBOJKgJw3nGPo1"

playbook = partial(play, inventory=[*INVENTORY, OVERLAY])


@pytest.fixture(scope="module")
def card(bookworm: dict[str, Any]) -> Iterator[CardContent]:
    """The card of pi-01 before its first boot, without cloud-init. It is removed at the end, also after a failure."""
    try:
        playbook("cards", variables={**bookworm, "identity_console_password_hash": HASH}, arguments="--limit pi-01")
        yield CardContent(STATE / "cards/pi-01.img")
    finally:
        shutil.rmtree(STATE, ignore_errors=True)


@pytest.mark.parametrize("user", ["pi", "octa"])
def test_first_boot_completes_after_power_cuts(card: CardContent, tmp_path: Path, user: str) -> None:
    """The script of the first boot is killed at random moments; for a user of the image, and for a new user."""
    generator = random.Random(user)
    cuts = [f"{generator.uniform(0, 0.3):.3f}" for _ in range(12)]
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
