"""A table of nftables, in a network namespace of its own; systemd is not in it, so a note is taken of what it is told."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.bramble.cluster.plugins.modules import nft_table

from .conftest import Run

RULES = "chain input {\n type filter hook input priority filter; policy drop; tcp dport 22 counter accept\n}"
OTHER = RULES.replace("22", "23")


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """nft works on an empty namespace, and systemd-run and systemctl write down what they were told. Gives the folder."""
    if os.geteuid():
        pytest.skip("network namespaces need root")
    name = f"nt-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    scripts = {
        "nft": f'exec ip netns exec {name} /usr/sbin/nft "$@"',
        "unshare": 'shift; exec /usr/bin/unshare --net env PATH=/usr/sbin:/usr/bin "$@"',
        "systemd-run": f'echo "$@" >>{tmp_path}/told; [ ! -e {tmp_path}/broken ]',
        "systemctl": f'echo "$@" >>{tmp_path}/told',
    }
    (tmp_path / "bin").mkdir()
    for script, text in scripts.items():
        (tmp_path / "bin" / script).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / script).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    yield tmp_path
    subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.fixture
def table(node: Path, run_module: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the module with its undo in the test's folder."""
    monkeypatch.setattr(nft_table, "UNDO", f"{node}/{{name}}.undo")

    def run(check: bool = False, **options: object) -> dict:
        return run_module("nft_table", {"name": "lab", **options}, check=check, diff=True)

    return run


def live(node: Path) -> str:
    shown = subprocess.run([node / "bin/nft", "-s", "list", "ruleset"], capture_output=True, text=True, check=True)
    return shown.stdout


def test_it_is_loaded_once_and_waits_until_it_is_confirmed(node: Path, table: Run) -> None:
    dry = table(check=True, rules=RULES)
    assert dry["changed"] and live(node) == "" and not (node / "told").exists()
    done = table(rules=RULES, timeout=45)
    assert done["changed"] and done["waits"] and done["diff"]["after"] == live(node) == dry["diff"]["after"]
    told = (node / "told").read_text()
    assert "--on-active=45" in told and f"nft --file {node}/lab.undo" in told
    waiting = table(rules=RULES)
    assert not waiting["changed"] and waiting["waits"]
    assert table(state="confirmed")["changed"]
    assert "stop bramble-nft-lab-undo.timer" in (node / "told").read_text()
    again = table(rules=RULES)
    assert not again["changed"] and not again["waits"]
    late = table(state="confirmed")
    assert late["failed"] and "rolled back already" in late["msg"]


def test_what_undoes_it_brings_back_what_there_was(node: Path, table: Run) -> None:
    """Of nothing nothing, of a table the table."""
    table(rules=RULES)
    subprocess.run([node / "bin/nft", "--file", node / "lab.undo"], check=True)
    assert live(node) == ""
    (node / "lab.undo").unlink()
    table(rules=RULES)
    table(state="confirmed")
    before = live(node)
    # Counters that have counted make no difference.
    table(rules=OTHER)
    assert live(node) == before.replace("22", "23")
    subprocess.run([node / "bin/nft", "--file", node / "lab.undo"], check=True)
    assert live(node) == before


def test_another_table_and_a_rule_put_in_by_hand(node: Path, table: Run) -> None:
    subprocess.run([node / "bin/nft", "add", "table", "inet", "other"], check=True)
    table(rules=RULES)
    subprocess.run([node / "bin/nft", "add rule inet lab input accept"], check=True)
    found = table(check=True, rules=RULES)
    assert found["changed"] and found["diff"]["before"].count("accept") == 2
    table(rules=RULES)
    assert live(node).count("accept") == 1
    gone = table(state="absent")
    assert gone["changed"] and live(node) == "table inet other {\n}\n"
    assert not (node / "lab.undo").exists()
    assert not table(state="absent")["changed"]


def test_what_nft_refuses_and_what_nothing_could_undo_is_not_loaded(node: Path, table: Run) -> None:
    wrong = table(rules="chain input { hook }")
    assert wrong["failed"] and "nft refuses the table lab. Nothing was changed" in wrong["msg"] and "syntax error" in wrong["msg"]
    (node / "broken").touch()
    wrong = table(rules=RULES)
    assert wrong["failed"] and "the rollback timer did not start" in wrong["msg"]
    assert live(node) == "" and not (node / "lab.undo").exists()
