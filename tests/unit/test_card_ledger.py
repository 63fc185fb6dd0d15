"""The ledger records the result of every card, also after interruptions."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bramble.cluster.plugins.module_utils.card.ledger import (
    Ledger,
    _start_ticks,
    describe_verdict,
    running_writer,
    table,
    this_writer,
)
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

from .test_card_writer import results_by_node, write_arguments

RunModule = Callable[..., dict[str, Any]]


def test_entries_from_many_threads(tmp_path: Path) -> None:
    path = tmp_path / "folder/cards.json"
    threads = [
        threading.Thread(target=lambda node: Ledger(str(path)).record(node, {"bytes": 1}), args=(f"pi-{number:02}",))
        for number in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(Ledger(str(path)).read()) == [f"pi-{number:02}" for number in range(16)]
    assert path.stat().st_mode & 0o777 == 0o600 and [file.name for file in path.parent.iterdir()] == ["cards.json"]


def test_values_are_added_until_the_entry_is_replaced(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "cards.json"))
    assert ledger.record("pi-01", {"verdict": "verified"}) and ledger.record("pi-01", {"cid": "1"})
    assert not ledger.record("pi-01", {"cid": "1"})
    assert ledger.read() == {"pi-01": {"verdict": "verified", "cid": "1"}}
    ledger.record("pi-01", {"verdict": "writing"}, fresh=True)
    assert ledger.read() == {"pi-01": {"verdict": "writing"}}


@pytest.mark.parametrize("text", ["{", "[]", '{"pi-01": 1}'])
def test_invalid_ledger_is_not_changed(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cards.json"
    path.write_text(text)
    with pytest.raises(BrambleError, match=r"cards\.json"):
        Ledger(str(path))
    assert path.read_text() == text


def test_without_a_path_nothing_is_recorded() -> None:
    ledger = Ledger(None)
    assert not ledger.record("pi-01", {"a": 1}) and ledger.read() == {}


def test_batch_is_recorded(image: Path, sha256: str, card: Callable[..., Path], run_module: RunModule, tmp_path: Path) -> None:
    path = tmp_path / "cards.json"
    arguments = {**write_arguments(image, sha256, pi_01=card("one"), pi_02=card("two")), "ledger": str(path)}
    assert not (run_module("card_write", arguments, check=True)["entries"] or path.exists())
    outcome = run_module("card_write", arguments)
    entries = json.loads(path.read_text())
    assert [entry["verdict"] for entry in entries.values()] == ["verified"] * 2 and outcome["entries"] == entries
    for result in outcome["results"]:
        entry = entries[result["node"]]
        assert entry["slot"] == result["slot"] and entry["fingerprint"] == result["fingerprint"]
        assert entry["image_sha256"] == sha256 and entry["bytes"] == 32 * 2**20 and entry["bytes_written"] > 3 * 2**20
    assert [line.split()[0] for line in outcome["ledger"].splitlines()] == ["node", "pi-01", "pi-02"]
    run_module("card_ledger", {"path": str(path), "nodes": {"pi-01": {"cid": "0353", "mac": "", "pi_serial": None}}})
    run_module("card_write", arguments)  # the card is unchanged, so its entry is kept
    entries["pi-01"]["cid"] = "0353"
    assert json.loads(path.read_text()) == entries


@pytest.mark.parametrize(
    "change", [None, {"verdict": "failed"}, {"verdict": "writing"}, {"fingerprint": "0"}, {"slot": "/other"}]
)
def test_unchanged_card_without_a_right_entry_is_recorded(
    image: Path,
    sha256: str,
    card: Callable[..., Path],
    run_module: RunModule,
    tmp_path: Path,
    change: dict[str, str] | None,
) -> None:
    path = tmp_path / "cards.json"
    arguments = {**write_arguments(image, sha256, pi_01=card("one")), "ledger": str(path)}
    run_module("card_write", arguments)
    before = Ledger(str(path)).read()["pi-01"]
    if change:
        Ledger(str(path)).record("pi-01", change)
    else:
        path.unlink()
    assert results_by_node(run_module("card_write", arguments)) == {"pi-01": "unchanged"}
    after = Ledger(str(path)).read()["pi-01"]
    assert {name: after[name] for name in ("verdict", "fingerprint", "slot")} == {
        "verdict": "verified",
        "fingerprint": before["fingerprint"],
        "slot": str(tmp_path / "one.img"),
    }


def test_failed_and_interrupted_cards_are_recorded(
    image: Path, sha256: str, card: Callable[..., Path], run_module: RunModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ansible_collections.bramble.cluster.plugins.module_utils.card.device import Card

    path = tmp_path / "cards.json"
    arguments = {**write_arguments(image, sha256, pi_01=card("one")), "ledger": str(path)}
    seen = []

    def failing_write(self: Card, *_: Any) -> None:
        seen.append(Ledger(str(path)).read()["pi-01"]["verdict"])
        raise BrambleError("reading failed at byte 7")

    monkeypatch.setattr(Card, "write_content", failing_write)
    assert results_by_node(run_module("card_write", arguments)) == {"pi-01": "failed"}
    assert seen == ["writing"]
    entry = Ledger(str(path)).read()["pi-01"]
    assert (entry["verdict"], entry["reason"]) == ("failed", "reading failed at byte 7")


def test_card_that_another_run_is_writing(
    image: Path, sha256: str, card: Callable[..., Path], run_module: RunModule, tmp_path: Path
) -> None:
    """A writer goes on when its terminal is closed. Ledger and second run say so, whatever slot is used now."""
    path = tmp_path / "cards.json"
    ledger, arguments = Ledger(str(path)), {**write_arguments(image, sha256, pi_01=card("one"), pi_02=card("two"))}
    with subprocess.Popen(["sleep", "60"]) as process:
        writer = this_writer() | {"pid": process.pid, "start_ticks": _start_ticks(process.pid)}
        ledger.record("pi-01", {"verdict": "writing", "time": "2026-12-01T08:00:00Z", "writer": writer}, fresh=True)
        outcome = run_module("card_write", arguments | {"ledger": str(path)})
        assert f"IN USE: process {process.pid} has been writing it since 2026-12-01T08:00:00Z" in outcome["msg"]
        assert f"kill {process.pid}" in outcome["msg"] and "1 of 2 cards cannot be used" in outcome["msg"]
        assert f"writing: process {process.pid} is still writing it" in table(ledger.read())
        process.kill()
        process.wait()
        assert "interrupted: write it again" in table(ledger.read())
    assert results_by_node(run_module("card_write", arguments | {"ledger": str(path)})) == {
        "pi-01": "written",
        "pi-02": "written",
    }
    assert "writer" not in ledger.read()["pi-01"]


def test_writer_of_another_machine_or_an_earlier_boot() -> None:
    entry = {"verdict": "writing", "writer": this_writer()}
    assert running_writer(entry) == os.getpid() and not running_writer({**entry, "verdict": "verified"})
    assert not running_writer({}) and not running_writer({"verdict": "writing"})
    entry["writer"] = this_writer() | {"start_ticks": 1}  # another process has the number now
    assert not running_writer(entry) and describe_verdict(entry) == "interrupted: write it again"
    entry["writer"] = this_writer() | {"boot_id": "another"}
    assert not running_writer(entry) and describe_verdict(entry) == "interrupted: write it again"
    entry["writer"] = this_writer() | {"boot_id": "another", "host": "pi-client", "pid": 7}
    assert describe_verdict(entry) == "writing: process 7 on pi-client has begun"


def test_writer_that_has_ended_without_being_waited_for() -> None:
    """Its entry in /proc stays, with the state Z."""
    with subprocess.Popen(["sleep", "60"]) as process:
        writer = this_writer() | {"pid": process.pid, "start_ticks": _start_ticks(process.pid)}
        assert running_writer({"verdict": "writing", "writer": writer}) == process.pid
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not running_writer({"verdict": "writing", "writer": writer})


@pytest.mark.parametrize("writer", [[], "text", {"pid": "7"}, {"pid": None}, 5])
def test_invalid_writer_is_no_writer(writer: Any) -> None:
    entry = {"verdict": "writing", "writer": writer}
    assert not running_writer(entry) and describe_verdict(entry)


def test_deeply_nested_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cards.json"
    path.write_text("[" * 100_000)
    with pytest.raises(BrambleError, match="cannot be read"):
        Ledger(str(path))


def test_module(tmp_path: Path, run_module: RunModule) -> None:
    path = tmp_path / "cards.json"
    arguments = {"path": str(path), "nodes": {"pi-01": {"mac": "dc:a6:32:00:00:01"}}}
    assert run_module("card_ledger", arguments, check=True)["changed"] and not path.exists()
    outcome = run_module("card_ledger", arguments, diff=True)
    assert outcome["changed"] and "dc:a6:32" in outcome["diff"]["after"] and "null" in outcome["diff"]["before"]
    assert not run_module("card_ledger", arguments)["changed"]
    assert "not an object" in run_module("card_ledger", {"path": str(path), "nodes": {"pi-01": 1}})["msg"]


def test_table_of_incomplete_entries() -> None:
    lines = table({"pi-01": {}, "pi-02": {"bytes": 31_914_983_424, "write_mb_s": 18.25, "verdict": "failed", "reason": "gone"}})
    assert "31.91" in lines and "18.2" in lines and "failed: gone" in lines
