"""Write a batch of cards, each in its own thread, and read every byte back from the card itself."""

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
from ansible_collections.bramble.cluster.plugins.module_utils.card.probe import places
from ansible_collections.bramble.cluster.plugins.module_utils.card.progress import Progress
from ansible_collections.bramble.cluster.plugins.module_utils.card.result import FAILED, UNCHANGED, WRITTEN, Result
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import PAGE
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.process import run


def full_test(device: str) -> None:
    """Let f3probe (https://fight-flash-fraud.readthedocs.io) look for the card's real size. Raises BrambleError.

    Of what was on the card nothing is left.
    """
    result = run(["f3probe", "--destructive", device], merge=True, accept=None)
    if result.returncode:
        lines = result.stdout.decode(errors="replace").splitlines()
        words = " ".join(line.strip() for line in lines[1:] if "WARNING" not in line)
        raise BrambleError(f"f3probe found it bad: {words[-600:]}")


def entry(facts: Facts, result: Result, content: Content, verdict: str) -> dict[str, Any]:
    """What the ledger says of a card."""
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


def _close_entry(card: Card, result: Result, content: Content, ledger: card_ledger.Ledger) -> None:
    """Note how it ended. A card found unchanged keeps its entry if that says so already."""
    if result.result == UNCHANGED:
        known = ledger.read().get(result.node, {})
        same = {"verdict": card_ledger.VERIFIED, "fingerprint": content.fingerprint, "slot": card.facts.slot}
        if same.items() <= known.items():
            return
    verdict = card_ledger.FAILED if result.result == FAILED else card_ledger.VERIFIED
    ledger.note(result.node, entry(card.facts, result, content, verdict), fresh=True)


def _do(
    card: Card, content: Content, result: Result, progress: Progress, check: bool, full: bool, ledger: card_ledger.Ledger
) -> None:
    """Bring one card to its content, and note in `result` how far it came. Raises BrambleError."""
    total = card.work(content)
    start = time.monotonic()
    if next(card.differences(content, progress.meter(result.node, "compare", total)), None) is None:
        result.result, result.bytes_verified = UNCHANGED, content.needed_bytes
        result.seconds_verify = time.monotonic() - start
        return
    if not check:
        ledger.note(result.node, entry(card.facts, result, content, card_ledger.WRITING), fresh=True)
        card.empty_head(content)
        if full:
            progress.report(result.node, "test")
            full_test(card.facts.device)
        card.probe(progress.meter(result.node, "probe", 4 * PAGE * len(places(card.facts.bytes))))
        start = time.monotonic()
        try:
            card.put(content, progress.meter(result.node, "write", total))
            result.seconds_write = time.monotonic() - start
            card.verify(content, progress.meter(result.node, "verify", total))
            card.check_same()
            result.seconds_verify = time.monotonic() - start - result.seconds_write
        finally:
            result.bytes_written = card.written
        result.bytes_verified = content.needed_bytes
    result.result = WRITTEN


def write_batch(
    batch: Sequence[Facts],
    contents: Mapping[str, Content],
    progress: Progress,
    check: bool = False,
    only_good: bool = False,
    full: bool = False,
    ledger: card_ledger.Ledger | None = None,
) -> list[Result]:
    """Bring every card of a batch to its content (by node), all at once; one card's trouble is only its own.

    All cards are opened before the first is written: raises BrambleError when one cannot be, unless `only_good`. With `check`
    nothing is written, and the results say what would be. With `full`, f3probe tests each card that is written.
    """
    ledger = ledger or card_ledger.Ledger(None)
    work: list[tuple[Card, Result]] = []
    results = [Result(facts.node, facts.slot, fingerprint=contents[facts.node].fingerprint) for facts in batch]

    def write(card: Card, result: Result) -> None:
        content = contents[result.node]
        try:
            _do(card, content, result, progress, check, full, ledger)
        except BrambleError as error:
            result.result, result.error = FAILED, str(error)
        except Exception as error:  # a thread's error must not get lost
            result.result, result.error = FAILED, f"{type(error).__name__}: {error}"
        finally:
            card.close()
        if not check:
            try:
                _close_entry(card, result, content, ledger)
            except (BrambleError, OSError) as error:
                result.result, result.error = FAILED, f"it could not be noted in the ledger: {error}"
        progress.report(result.node, result.result)

    for facts, result in zip(batch, results, strict=True):
        try:
            work.append((Card(facts, writable=not check), result))
        except BrambleError as error:
            if not only_good:
                for card, _ in work:
                    card.close()
                raise BrambleError(f"{error}. Nothing was written.") from error
            result.result, result.error = FAILED, str(error)
    threads = [threading.Thread(target=write, args=pair, daemon=True) for pair in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
