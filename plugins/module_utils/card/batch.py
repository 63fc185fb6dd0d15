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
from ansible_collections.bramble.cluster.plugins.module_utils.card.progress import Meter, Progress
from ansible_collections.bramble.cluster.plugins.module_utils.card.result import FAILED, UNCHANGED, WRITTEN, Result
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.process import run_program

STOP_SECONDS = 20.0  # how long an interrupted batch waits for its cards; a slow card may have to flush a cache of its own
_INTERRUPTED = "it was interrupted (Ctrl-C) before anything was written to it"
_INTERRUPTED_WRITE = "it was interrupted (Ctrl-C) while it was written, so it has no partition table"


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
    """Record the result of a card. A card that was found unchanged keeps its entry if that has the same values.

    So does a card that was interrupted before it was written; one that was interrupted later is `writing`, without a writer.
    """
    if result.error == _INTERRUPTED:
        return
    if result.result == UNCHANGED:
        known = ledger.read().get(result.node, {})
        same = {"verdict": card_ledger.VERIFIED, "fingerprint": content.fingerprint, "slot": card.facts.slot}
        if same.items() <= known.items():
            return
    verdict = card_ledger.FAILED if result.result == FAILED else card_ledger.VERIFIED
    if result.error == _INTERRUPTED_WRITE:
        verdict = card_ledger.WRITING
    ledger.record(result.node, ledger_entry(card.facts, result, content, verdict), fresh=True)


def _write_card(
    card: Card,
    content: Content,
    result: Result,
    progress: Progress,
    check_mode: bool,
    full_test: bool,
    ledger: card_ledger.Ledger,
    is_interrupted: threading.Event,
) -> None:
    """Write one card unless it has its content already, and set the fields of `result`.

    Raises BrambleError, also soon after `is_interrupted` is set.
    """

    def meter(phase: str, total: int) -> Meter:
        report = progress.meter(result.node, phase, total)

        def add(length: int) -> None:
            if is_interrupted.is_set():
                raise BrambleError(_INTERRUPTED)
            report(length)

        return add

    total = card.bytes_to_transfer(content)
    start = time.monotonic()
    if next(card.differences(content, meter("compare", total)), None) is None:
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
        card.write_marks(probe, meter("probe", probe.transferred_bytes))
        start = time.monotonic()
        try:
            add_written = meter("write", total)
            card.write_content(content, add_written)
            card.check_marks(probe)
            card.clear_tail(content, add_written)
            result.seconds_write = time.monotonic() - start
            card.verify(content, meter("verify", total))
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

    All cards are opened before the first one is written. Ctrl-C (KeyboardInterrupt) stops all cards that are not complete, whose
    results then say so.

    :param contents: the content of each card, by node
    :param check_mode: write nothing; the results say what would be written
    :param only_good: write the other cards even if one cannot be opened
    :param full_test: test each card that is written with f3probe
    :raises BrambleError: when a card cannot be opened, unless `only_good`
    """
    ledger = ledger or card_ledger.Ledger(None)
    opened: list[tuple[Card, Result]] = []
    results = [Result(facts.node, facts.slot, fingerprint=contents[facts.node].fingerprint) for facts in batch]
    is_interrupted = threading.Event()

    def write(card: Card, result: Result) -> None:
        content = contents[result.node]
        try:
            _write_card(card, content, result, progress, check_mode, full_test, ledger, is_interrupted)
        except BrambleError as error:
            result.result, result.error = FAILED, str(error)
        except Exception as error:  # an error in a thread would be lost otherwise
            result.result, result.error = FAILED, f"{type(error).__name__}: {error}"
        finally:
            card.close()
        if result.result == FAILED and is_interrupted.is_set():
            result.error = _INTERRUPTED_WRITE if card.written else _INTERRUPTED
        if not check_mode:
            try:
                _record_outcome(card, result, content, ledger)
            except (BrambleError, OSError) as error:
                result.result, result.error = FAILED, f"its result cannot be recorded in the ledger: {error}"
        progress.report(result.node, result.result)

    def write_and_tell(card: Card, result: Result, is_done: threading.Event) -> None:
        try:
            write(card, result)
        finally:
            is_done.set()

    for facts, result in zip(batch, results, strict=True):
        try:
            opened.append((Card(facts, writable=not check_mode), result))
        except BrambleError as error:
            if not only_good:
                for card, _ in opened:
                    card.close()
                raise BrambleError(f"{error}. Nothing was written.") from error
            result.result, result.error = FAILED, str(error)
    # Not Thread.join: when that is interrupted, Python 3.11 takes the thread for one that has ended (its issue 90882).
    writers = [(card, result, threading.Event()) for card, result in opened]
    try:
        for writer in writers:
            threading.Thread(target=write_and_tell, args=writer, daemon=True).start()
        for _, _, is_done in writers:
            is_done.wait()
    except KeyboardInterrupt:
        is_interrupted.set()
        end = time.monotonic() + STOP_SECONDS
        for _, result, is_done in writers:
            if not is_done.wait(max(0.0, end - time.monotonic())):
                result.result = FAILED
                result.error = (
                    f"it was interrupted (Ctrl-C), but did not respond within {STOP_SECONDS:g} seconds. Take it out of its "
                    "reader, and write it again"
                )
    return results
