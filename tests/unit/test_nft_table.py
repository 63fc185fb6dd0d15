"""A table of nftables in a network namespace. Scripts in the place of systemd-run and systemctl record their arguments."""

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
    """Make nft work on an empty namespace, and systemd-run and systemctl record their arguments. Returns the folder."""
    if os.geteuid():
        pytest.skip("network namespaces need root")
    name = f"nt-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    scripts = {
        "nft": f'exec ip netns exec {name} /usr/sbin/nft "$@"',
        "unshare": 'shift; exec /usr/bin/unshare --net env PATH=/usr/sbin:/usr/bin "$@"',
        "systemd-run": f'echo "$@" >>{tmp_path}/calls; [ ! -e {tmp_path}/broken ]',
        "systemctl": f'echo "$@" >>{tmp_path}/calls',
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
    """Runs the module with its rollback file in the test's folder."""
    monkeypatch.setattr(nft_table, "ROLLBACK_FILE", f"{node}/{{name}}.rollback")

    def run(check: bool = False, **options: object) -> dict:
        return run_module("nft_table", {"name": "lab", **options}, check=check, diff=True)

    return run


def loaded_rules(node: Path) -> str:
    shown = subprocess.run([node / "bin/nft", "-s", "list", "ruleset"], capture_output=True, text=True, check=True)
    return shown.stdout


def test_table_is_loaded_once_and_pending_until_it_is_confirmed(node: Path, table: Run) -> None:
    dry = table(check=True, rules=RULES)
    assert dry["changed"] and loaded_rules(node) == "" and not (node / "calls").exists()
    done = table(rules=RULES, timeout=45)
    assert done["changed"] and done["pending"] and done["diff"]["after"] == loaded_rules(node) == dry["diff"]["after"]
    calls = (node / "calls").read_text()
    assert "--on-active=45" in calls and f"nft --file {node}/lab.rollback" in calls
    waiting = table(rules=RULES)
    assert not waiting["changed"] and waiting["pending"]
    assert table(state="confirmed")["changed"]
    assert "stop bramble-nft-lab-rollback.timer" in (node / "calls").read_text()
    again = table(rules=RULES)
    assert not again["changed"] and not again["pending"]
    late = table(state="confirmed")
    assert late["failed"] and "was rolled back" in late["msg"]


def test_rollback_restores_the_previous_table_or_none(node: Path, table: Run) -> None:
    table(rules=RULES)
    subprocess.run([node / "bin/nft", "--file", node / "lab.rollback"], check=True)
    assert loaded_rules(node) == ""
    (node / "lab.rollback").unlink()
    table(rules=RULES)
    table(state="confirmed")
    before = loaded_rules(node)
    # The values of counters do not count as a difference.
    table(rules=OTHER)
    assert loaded_rules(node) == before.replace("22", "23")
    subprocess.run([node / "bin/nft", "--file", node / "lab.rollback"], check=True)
    assert loaded_rules(node) == before


def test_other_table_stays_and_manual_rule_is_removed(node: Path, table: Run) -> None:
    subprocess.run([node / "bin/nft", "add", "table", "inet", "other"], check=True)
    table(rules=RULES)
    subprocess.run([node / "bin/nft", "add rule inet lab input accept"], check=True)
    found = table(check=True, rules=RULES)
    assert found["changed"] and found["diff"]["before"].count("accept") == 2
    table(rules=RULES)
    assert loaded_rules(node).count("accept") == 1
    gone = table(state="absent")
    assert gone["changed"] and loaded_rules(node) == "table inet other {\n}\n"
    assert not (node / "lab.rollback").exists()
    assert not table(state="absent")["changed"]


def test_refused_table_and_table_without_rollback_are_not_loaded(node: Path, table: Run) -> None:
    wrong = table(rules="chain input { hook }")
    assert wrong["failed"] and "nft refuses the table lab. Nothing was changed" in wrong["msg"] and "syntax error" in wrong["msg"]
    (node / "broken").touch()
    wrong = table(rules=RULES)
    assert wrong["failed"] and "the rollback timer did not start" in wrong["msg"]
    assert loaded_rules(node) == "" and not (node / "lab.rollback").exists()
