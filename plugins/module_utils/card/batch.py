"""Write a batch of cards, each in a thread of its own, and read every byte back from the card."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.bramble.cluster.plugins.module_utils.card import ledger as card_ledger
from ansible_collections.bramble.cluster.plugins.module_utils.card.content import Content
from ansible_collections.bramble.cluster.plugins.module_utils.card.device import Card
from ansible_collections.bramble.cluster.plugins.module_utils.card.facts import Facts
from ansible_collections.bramble.cluster.plugins.module_utils.card.progress import Progress
from ansible_collections.bramble.cluster.plugins.module_utils.card.result import FAILED, UNCHANGED, WRITTEN, Result
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.process import run_program


def test_with_f3probe(device: str) -> None:
    """Measure the real size of a card with f3probe, which destroys its content. Raises BrambleError for a bad card.

    Source: https://fight-flash-fraud.readthedocs.io.
    """
    result = run_program(["f3probe", "--destructive", device], merge_stderr=True, exit_codes=None)
    if result.returncode:
        lines = result.stdout.decode(errors="replace").splitlines()
        report = " ".join(line.strip() for line in lines[1:] if "WARNING" not in line)
        raise BrambleError(f"f3probe found that the card is bad: {report[-600:]}")


def ledger_entry(facts: Facts, result: Result, content: Content, verdict: str) -> dict[str, Any]:
    """Return the entry of a card in the ledger."""
    return {
        "slot": facts.slot,
        "device": facts.device,
        "bus": facts.bus,
        "reader_serial": facts.serial,
        "bytes": facts.bytes,
        "image": os.path.basename(content.image.path),
        "image_sha256": content.image.sha256,
        "fingerprint": content.fingerprint,
        "bytes_written": result.bytes_written,
        "write_mb_s": result.write_mb_s,
        "verify_mb_s": result.verify_mb_s,
        "verdict": verdict,
        "reason": result.error,
        "time": card_ledger.now(),
    }


def _record_outcome(card: Card, result: Result, content: Content, ledger: card_ledger.Ledger) -> None:
    """Record the result of a card. A card that was found unchanged keeps its entry if that has the same values."""
    if result.result == UNCHANGED:
        known = ledger.read().get(result.node, {})
        same = {"verdict": card_ledger.VERIFIED, "fingerprint": content.fingerprint, "slot": card.facts.slot}
        if same.items() <= known.items():
            return
    verdict = card_ledger.FAILED if result.result == FAILED else card_ledger.VERIFIED
    ledger.record(result.node, ledger_entry(card.facts, result, content, verdict), fresh=True)


def _write_card(
    card: Card,
    content: Content,
    result: Result,
    progress: Progress,
    check_mode: bool,
    full_test: bool,
    ledger: card_ledger.Ledger,
) -> None:
    """Write one card unless it has its content already, and set the fields of `result`. Raises BrambleError."""
    total = card.bytes_to_transfer(content)
    start = time.monotonic()
    if next(card.differences(content, progress.meter(result.node, "compare", total)), None) is None:
        card.check_still_ours()
        result.result, result.bytes_verified = UNCHANGED, content.needed_bytes
        result.seconds_verify = time.monotonic() - start
        return
    if not check_mode:
        entry = ledger_entry(card.facts, result, content, card_ledger.WRITING)
        ledger.record(result.node, entry | {"writer": card_ledger.this_writer()}, fresh=True)
        card.clear_head(content)
        if full_test:
            progress.report(result.node, "test")
            test_with_f3probe(card.facts.device)
        probe = card.capacity_probe(content)
        card.write_marks(probe, progress.meter(result.node, "probe", probe.transferred_bytes))
        start = time.monotonic()
        try:
            meter = progress.meter(result.node, "write", total)
            card.write_content(content, meter)
            card.check_marks(probe)
            card.clear_tail(content, meter)
            result.seconds_write = time.monotonic() - start
            card.verify(content, progress.meter(result.node, "verify", total))
            result.seconds_verify = time.monotonic() - start - result.seconds_write
        finally:
            result.bytes_written = card.written
        result.bytes_verified = content.needed_bytes
    result.result = WRITTEN


def write_batch(
    batch: Sequence[Facts],
    contents: Mapping[str, Content],
    progress: Progress,
    check_mode: bool = False,
    only_good: bool = False,
    full_test: bool = False,
    ledger: card_ledger.Ledger | None = None,
) -> list[Result]:
    """Write all cards of a batch at the same time, and return a result per card. A card that fails does not affect another.

    All cards are opened before the first one is written.

    :param contents: the content of each card, by node
    :param check_mode: write nothing; the results say what would be written
    :param only_good: write the other cards even if one cannot be opened
    :param full_test: test each card that is written with f3probe
    :raises BrambleError: when a card cannot be opened, unless `only_good`
    """
    ledger = ledger or card_ledger.Ledger(None)
    opened: list[tuple[Card, Result]] = []
    results = [Result(facts.node, facts.slot, fingerprint=contents[facts.node].fingerprint) for facts in batch]

    def write(card: Card, result: Result) -> None:
        content = contents[result.node]
        try:
            _write_card(card, content, result, progress, check_mode, full_test, ledger)
        except BrambleError as error:
            result.result, result.error = FAILED, str(error)
        except Exception as error:  # an error in a thread would be lost otherwise
            result.result, result.error = FAILED, f"{type(error).__name__}: {error}"
        finally:
            card.close()
        if not check_mode:
            try:
                _record_outcome(card, result, content, ledger)
            except (BrambleError, OSError) as error:
                result.result, result.error = FAILED, f"its result cannot be recorded in the ledger: {error}"
        progress.report(result.node, result.result)

    for facts, result in zip(batch, results, strict=True):
        try:
            opened.append((Card(facts, writable=not check_mode), result))
        except BrambleError as error:
            if not only_good:
                for card, _ in opened:
                    card.close()
                raise BrambleError(f"{error}. Nothing was written.") from error
            result.result, result.error = FAILED, str(error)
    threads = [threading.Thread(target=write, args=pair, daemon=True) for pair in opened]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
