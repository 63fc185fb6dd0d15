"""playbooks/cards.yml as users run it: new keys for nodes whose keys strangers may have."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.rehearsal import HARDWARE, Play, play
from tests.support.tiny_image import SIZE

NODES = ("pi-01", "pi-02")
PlayCards = Callable[..., Play]


@pytest.fixture
def cards(image: Path, sha256: str, tmp_path: Path) -> PlayCards:
    """Run cards.yml for two nodes with virtual cards: cards(card_confirm=True)."""

    def run(**variables: object) -> Play:
        settings = {
            "cluster_name": "cards-test",
            "cluster_state_dir": str(tmp_path / "state"),
            "cluster_cache_dir": str(tmp_path / "cache"),
            "card_slot": f"{tmp_path}/{{{{ inventory_hostname }}}}.img",
            "card_virtual_bytes": SIZE,
            "image_file": str(image),
            "image_sha256": sha256,
            "image_init_format": "systemd",
        }
        limit = f"--limit {','.join(NODES)}"
        return play("cards", inventory=HARDWARE, variables=settings | variables, arguments=limit, check=False)

    return run


def keys(tmp_path: Path) -> dict[str, bytes]:
    """Return the content of all host keys, by file name, and of the authority's key."""
    state = tmp_path / "state"
    files = [*(state / "host_keys").iterdir(), *state.glob("pki/ca.key")]
    return {file.name: file.read_bytes() for file in files}


def test_new_keys_replace_the_old_ones_only_when_all_cards_can_be_written(cards: PlayCards, tmp_path: Path) -> None:
    assert not cards().failed
    (tmp_path / "state/pki").mkdir()
    (tmp_path / "state/pki/ca.key").write_text("of the authority")
    before = keys(tmp_path)
    assert len(before) == 2 * len(NODES) + 1

    for options in ({}, {"card_confirm": True, "card_only_good": True}):
        refused = cards(identity_new_keys=True, **options)
        assert "Nothing was changed. Next: ansible-playbook playbooks/cards.yml" in "".join(refused.failed.values())
    os.truncate(tmp_path / "pi-02.img", SIZE - 1)
    refused = cards(identity_new_keys=True, card_confirm=True)
    assert "TOO SMALL by 1 byte" in "".join(refused.failed.values())
    assert keys(tmp_path) == before

    (tmp_path / "pi-02.img").unlink()
    assert not cards(identity_new_keys=True, card_confirm=True).failed
    after = keys(tmp_path)
    assert after.keys() == before.keys() - {"ca.key"}
    assert not set(after.values()) & set(before.values())
    known = (tmp_path / "state/ssh/known_hosts").read_text()
    for node in NODES:
        assert after[f"{node}.pub"].split()[1].decode() in known
        assert after[node] in (tmp_path / f"{node}.img").read_bytes()
