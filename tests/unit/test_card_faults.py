"""Faulty cards between good ones: the message is clear, the other cards are complete, and nothing else is changed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.bramble.cluster.plugins.module_utils.card.batch import write_batch
from ansible_collections.bramble.cluster.plugins.module_utils.card.content import Content
from ansible_collections.bramble.cluster.plugins.module_utils.card.guard import Guard
from ansible_collections.bramble.cluster.plugins.module_utils.card.image import TAIL, Image
from ansible_collections.bramble.cluster.plugins.module_utils.card.ledger import Ledger, describe_verdict
from ansible_collections.bramble.cluster.plugins.module_utils.card.overlay import build_overlay
from ansible_collections.bramble.cluster.plugins.module_utils.card.progress import Progress
from ansible_collections.bramble.cluster.plugins.module_utils.card.root_files import RootFile
from ansible_collections.bramble.cluster.plugins.module_utils.card.workbench import Workbench
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import CHUNK
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.modules import card_write

from tests.support.cards import Card, Rig
from tests.support.flaw import Flaw
from tests.support.tiny_image import MIB, SIZE

from .test_card_writer import assert_same, identity_files, relevant_bytes, results_by_node, write_arguments

CARD = 32 * MIB
HALF = CARD // 2
Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def image(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny image with data in its last MiB as well, beyond half the size of a card."""
    path = tmp_path_factory.mktemp("full") / "full.img"
    shutil.copyfile(image, path)
    with path.open("r+b") as file:
        file.seek(SIZE - MIB)
        file.write(random.Random(1).randbytes(MIB))
    return path


@pytest.fixture(scope="module")
def sha256(image: Path) -> str:
    """The SHA-256 of this image."""
    return hashlib.sha256(image.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def wanted(image: Path) -> Callable[[str], bytes]:
    """A function that returns the content of the card of a node, up to the end of the image."""
    known: dict[str, bytes] = {}

    def bytes_of(node: str) -> bytes:
        if node not in known:
            files = identity_files(node)
            root = [RootFile(file["path"], file["content"], int(file["mode"], 8)) for file in files["root_files"]]
            with Image(str(image)) as opened, Workbench(opened, str(image.parent)) as bench:
                content = Content(opened, build_overlay(bench, files["boot_files"], root))
                known[node] = b"".join(content.read(at, min(CHUNK, SIZE - at)) for at in range(0, SIZE, CHUNK))
        return known[node]

    return bytes_of


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A rig of virtual cards."""
    if os.geteuid() or not os.path.exists("/dev/loop-control"):
        pytest.skip("loop devices need root")
    with Rig(tmp_path) as rig:
        yield rig


OLD_CONTENT = random.Random(2).randbytes(CARD)


@dataclass
class Neighbours:
    """Two good cards that were used before: the block device of pi-01, and the file of pi-03."""

    one: Card
    three: Card
    wanted: Callable[[str], bytes]
    image: Path

    def slots(self, bad: Path) -> dict[str, Path]:
        """Return the slots of a batch with the bad card of pi-02 between them."""
        return {"pi_01": self.one.device(), "pi_02": bad, "pi_03": self.three.file}

    def assert_complete(self) -> None:
        """Check that both cards have their content, and keep the old content beyond the image."""
        for node, card in (("pi-01", self.one), ("pi-03", self.three)):
            held = card.backing.read_bytes()
            assert relevant_bytes(held, self.image) == relevant_bytes(self.wanted(node), self.image), node
            assert not any(held[-TAIL:]), node

    def assert_untouched(self) -> None:
        """Check that nothing was written to either card."""
        assert all(card.backing.read_bytes() == OLD_CONTENT for card in (self.one, self.three))


@pytest.fixture
def neighbours(rig: Rig, wanted: Callable[[str], bytes], image: Path) -> Neighbours:
    """The good cards of a batch."""
    return Neighbours(rig.card("one", CARD, fill=OLD_CONTENT), rig.card("three", CARD, fill=OLD_CONTENT), wanted, image)


def assert_only_second_failed(outcome: dict[str, Any], error: str) -> None:
    """Check that the result names the failed card, its error and the next command, and that the other cards were written."""
    assert outcome["failed"] and outcome["changed"]
    assert results_by_node(outcome) == {"pi-01": "written", "pi-02": "failed", "pi-03": "written"}
    first, second, third = outcome["results"]
    assert re.search(error, second["error"]) and second["bytes_verified"] == 0
    assert first["bytes_verified"] == third["bytes_verified"] > 0 and not first["error"] + third["error"]
    assert outcome["msg"].startswith("1 of 3 cards failed; 2 were successful.\npi-02, ")
    assert second["error"] in outcome["msg"] and "playbooks/cards.yml --limit pi-02" in outcome["msg"]


# Cards that are faulty from the start


@pytest.mark.parametrize("kind", ["file", "device"])
def test_card_that_is_too_small(image: Path, sha256: str, rig: Rig, neighbours: Neighbours, run_module: Run, kind: str) -> None:
    """The card lacks one byte, or as a device one sector."""
    missing_bytes = 1 if kind == "file" else 512
    small = rig.card("small", SIZE - missing_bytes, fill=OLD_CONTENT[: SIZE - missing_bytes])
    arguments = write_arguments(image, sha256, **neighbours.slots(small.file if kind == "file" else small.device()))
    outcome = run_module("card_write", arguments)
    assert outcome["msg"].startswith("Nothing was written: 1 of 3 cards cannot be used.") and not outcome.get("changed")
    assert re.search(f"pi-02 .* TOO SMALL by {missing_bytes} byte", outcome["msg"]) and "--limit 'all:!pi-02'" in outcome["msg"]
    neighbours.assert_untouched()
    outcome = run_module("card_write", {**arguments, "only_good": True})
    assert outcome["failed"] and results_by_node(outcome) == {"pi-01": "written", "pi-02": "skipped", "pi-03": "written"}
    neighbours.assert_complete()
    assert small.backing.read_bytes() == OLD_CONTENT[: SIZE - missing_bytes]


FLAWS = {
    "wraps at half its size": (Flaw(wraps_at=HALF), "counterfeit: it holds at most "),
    "drops writes beyond half": (Flaw(drops_from=HALF), "counterfeit: it holds at most "),
    "a bit is stuck": (Flaw(stuck_bit_at=SIZE - 100), f"at byte {SIZE - 100:,}, .*worn or counterfeit"),
    "full": (Flaw(full_after=3 * MIB), r"^writing failed at byte [\d,]+: .* \((ENOSPC|EIO)\)"),
    "write error": (Flaw(fails_after=3 * MIB), r"^writing failed at byte [\d,]+: .* \(EIO\)"),
    "pulled": (Flaw(pulled_after=3 * MIB), r"^writing failed at byte [\d,]+: .* \(EIO\)"),
}


@pytest.mark.parametrize("kind", ["file", "device"])
@pytest.mark.parametrize("flaw", FLAWS)
def test_bad_card_fails_alone(
    image: Path, sha256: str, rig: Rig, neighbours: Neighbours, run_module: Run, flaw: str, kind: str
) -> None:
    bad = rig.card("bad", CARD, FLAWS[flaw][0])
    slots = neighbours.slots(bad.file if kind == "file" else bad.device())
    assert_only_second_failed(run_module("card_write", write_arguments(image, sha256, **slots)), FLAWS[flaw][1])
    neighbours.assert_complete()
    assert not bad.has_boot_sector()


def test_flipped_bit_is_repaired(
    image: Path, sha256: str, rig: Rig, neighbours: Neighbours, run_module: Run, wanted: Callable[[str], bytes]
) -> None:
    weak = rig.card("weak", CARD, Flaw(flips_bit_at=SIZE - 100))
    outcome = run_module("card_write", write_arguments(image, sha256, **neighbours.slots(weak.device())))
    assert not outcome.get("failed") and set(results_by_node(outcome).values()) == {"written"}
    neighbours.assert_complete()
    assert weak.backing.read_bytes()[:SIZE] == wanted("pi-02")


# Cards that are slow, or do not respond at all


def test_slow_card_delays_no_other(
    image: Path, sha256: str, rig: Rig, neighbours: Neighbours, run_module: Run, tmp_path: Path, wanted: Callable[[str], bytes]
) -> None:
    """A card has less than a tenth of the speed of the others, which are complete while it is still being written."""
    slow, events = rig.card("slow", CARD, Flaw(rate=6e6)), tmp_path / "events.jsonl"
    arguments = {**write_arguments(image, sha256, **neighbours.slots(slow.device())), "progress_file": str(events)}
    outcome = run_module("card_write", arguments)
    assert not outcome.get("failed") and set(results_by_node(outcome).values()) == {"written"}
    neighbours.assert_complete()
    assert slow.backing.read_bytes()[:SIZE] == wanted("pi-02")
    seen = [json.loads(line) for line in events.read_text().splitlines()]
    last = max(at for at, event in enumerate(seen) if event["phase"] == "written" and event["node"] != "pi-02")
    assert [event["phase"] for event in seen[last:] if event["node"] == "pi-02"][-2:] == ["verify", "written"]


def inspect_cards(image: Path, *slots: Path) -> list[Any]:
    """Return the facts of cards of pi-01, pi-02 and so on, which must all be usable."""
    cards = [{"node": f"pi-{number:02}", "slot": str(slot)} for number, slot in enumerate(slots, 1)]
    batch = Guard(str(image)).facts(cards, SIZE)
    assert [facts.verdict for facts in batch] == ["OK"] * len(slots)
    return batch


class WatchedProgress(Progress):
    """Calls a function once while the card of a node is being written, and records which nodes are done."""

    def __init__(self, node: str, act: Callable[[], None]) -> None:
        super().__init__()
        self._node, self._act, self.done, self.others_done = node, act, set[str](), threading.Event()

    def report(self, node: str, phase: str, done: int = 0, total: int = 0) -> None:
        if (node, phase) == (self._node, "write") and done > 2 * MIB:
            act, self._act = self._act, lambda: None
            act()
        if phase in ("written", "failed"):
            self.done.add(node)
            if self.done == {"pi-01", "pi-03"}:
                self.others_done.set()


def write_image(image: Path, progress: Progress, batch: list[Any], only_good: bool = False) -> list[Any]:
    """Write an image without identities to a batch of cards."""
    with Image(str(image)) as opened:
        return write_batch(batch, {facts.node: Content(opened, {}) for facts in batch}, progress, only_good=only_good)


def test_hanging_card_delays_no_other(image: Path, rig: Rig) -> None:
    good, hung = [rig.card(name, CARD) for name in ("one", "three")], rig.card("hung", CARD, Flaw(holds_after=3 * MIB))
    progress = WatchedProgress("", lambda: None)
    batch = inspect_cards(image, good[0].device(), hung.device(), good[1].file)
    answer: list[Any] = []
    writing = threading.Thread(target=lambda: answer.extend(write_image(image, progress, batch)), daemon=True)
    writing.start()
    assert progress.others_done.wait(60) and progress.done == {"pi-01", "pi-03"}
    assert all(card.backing.read_bytes()[:SIZE] == image.read_bytes() for card in good)
    hung.release()
    writing.join(60)
    assert [result.result for result in answer] == ["written"] * 3


# Cards that are removed or exchanged


@pytest.mark.parametrize("kind", ["device", "file"])
def test_card_pulled_while_written(image: Path, rig: Rig, kind: str) -> None:
    """The file of the card is truncated, so that a device on it has no bytes left."""
    one, gone, three = (rig.card(name, CARD) for name in ("one", "gone", "three"))
    batch = inspect_cards(image, one.device(), gone.file if kind == "file" else gone.device(), three.file)
    done = write_image(image, WatchedProgress("pi-02", gone.pull), batch)
    assert [result.result for result in done] == ["written", "failed", "written"]
    assert (
        re.match(r"(reading|writing) failed at byte [\d,]+: |.* is not the card that was checked", done[1].error)
        and done[1].bytes_verified == 0
    )
    assert all(card.backing.read_bytes()[:SIZE] == image.read_bytes() for card in (one, three))


@pytest.mark.parametrize("change", ["detached", "exchanged"])
def test_card_changed_after_the_check(image: Path, rig: Rig, change: str) -> None:
    one, two, three = (rig.card(name, CARD, fill=OLD_CONTENT) for name in ("one", "two", "three"))
    other_card = rig.card("other_card", CARD, fill=OLD_CONTENT)
    device = two.device()
    batch = inspect_cards(image, one.device(), device, three.file)
    if change == "detached":
        two.detach()
    else:
        two.exchange(other_card)
    with pytest.raises(BrambleError, match=rf"{device}.*Nothing was written\.$"):
        write_image(image, Progress(), batch)
    assert all(card.backing.read_bytes() == OLD_CONTENT for card in (one, two, three, other_card))
    done = write_image(image, Progress(), batch, only_good=True)
    assert [result.result for result in done] == ["written", "failed", "written"]
    assert str(device) in done[1].error
    for card in (one, three):
        assert_same(card.backing, image, image)
    assert all(card.backing.read_bytes() == OLD_CONTENT for card in (two, other_card))


# The image


def test_truncated_image(image: Path, sha256: str, neighbours: Neighbours, rig: Rig, run_module: Run, tmp_path: Path) -> None:
    """The image is refused before anything is written: by its SHA-256, or if that belongs to it, by its partition table."""
    truncated = tmp_path / "truncated.img"
    shutil.copyfile(image, truncated)
    os.truncate(truncated, HALF)
    slots = neighbours.slots(rig.card("two", CARD).file)
    outcome = run_module("card_write", write_arguments(truncated, sha256, **slots))
    assert "does not have the expected SHA-256. Nothing was written" in outcome["msg"] and str(truncated) in outcome["msg"]
    outcome = run_module("card_write", write_arguments(truncated, hashlib.sha256(truncated.read_bytes()).hexdigest(), **slots))
    assert re.search(f"{truncated}: partition 2 ends at byte .*, beyond the end", outcome["msg"])
    neighbours.assert_untouched()


def test_image_truncated_while_written(
    image: Path, sha256: str, rig: Rig, neighbours: Neighbours, run_module: Run, tmp_path: Path
) -> None:
    """Cards that were written before are complete, and stay `written`; the other card does not look complete."""
    truncated, events = tmp_path / "truncated.img", tmp_path / "events.jsonl"
    shutil.copyfile(image, truncated)
    late = rig.card("late", CARD, Flaw(holds_after=3 * MIB))

    def truncate() -> None:
        while not events.exists() or events.read_text().count('"written"') < 2:
            time.sleep(0.01)
        os.truncate(truncated, 4 * MIB)
        late.release()

    arguments = {**write_arguments(truncated, sha256, **neighbours.slots(late.device())), "progress_file": str(events)}
    threading.Thread(target=truncate, daemon=True).start()
    outcome = run_module("card_write", arguments)
    assert results_by_node(outcome) == {"pi-01": "written", "pi-02": "failed", "pi-03": "written"}
    assert f"the image {truncated} was changed since it was verified" in outcome["msg"]
    neighbours.assert_complete()
    assert not late.has_boot_sector()


@pytest.mark.parametrize("missing_bytes", [512, 4096, 65536, 131072])
@pytest.mark.parametrize("spare_bytes", [0, 512])
def test_card_that_is_a_little_smaller_than_it_reports(
    image: Path, sha256: str, rig: Rig, run_module: Run, missing_bytes: int, spare_bytes: int
) -> None:
    """The last bytes of the image are where its first bytes are."""
    size = SIZE + spare_bytes
    fake = rig.card("fake", size, Flaw(wraps_at=size - missing_bytes - spare_bytes))
    outcome = run_module("card_write", write_arguments(image, sha256, pi_01=fake.file))
    assert results_by_node(outcome) == {"pi-01": "failed"} and not fake.has_boot_sector()


# Power cuts


def test_killed_at_random_moments(image: Path, sha256: str, rig: Rig, tmp_path: Path) -> None:
    """card_write is killed 20 times while it writes two images in turn.

    A card with a partition table always has the complete content of one image, and every card that is verified in the ledger has
    a partition table.
    """
    other = tmp_path / "other.img"
    shutil.copyfile(image, other)
    with other.open("r+b") as file:
        for offset in (MIB // 2, SIZE - MIB):  # outside of the partitions
            file.seek(offset)
            file.write(random.Random(3).randbytes(MIB // 4))
    images = {image: sha256, other: hashlib.sha256(other.read_bytes()).hexdigest()}
    known, ledger = {relevant_bytes(path.read_bytes(), path) for path in images}, Ledger(str(tmp_path / "cards.json"))
    cards = [rig.card(name, CARD, fill=OLD_CONTENT) for name in ("one", "two")]
    slots = {"pi_01": cards[0].device(), "pi_02": cards[1].file}

    def start(path: Path) -> Any:
        arguments = write_arguments(path, images[path], **slots)
        for one in arguments["cards"]:
            del one["boot_files"], one["root_files"]
        arguments["ledger"] = ledger.path
        process = multiprocessing.get_context("fork").Process(target=run_card_write, args=(arguments, tmp_path / "outcome"))
        process.start()
        return process

    started = time.monotonic()
    start(image).join()
    duration, generator = time.monotonic() - started, random.Random(4)
    killed = incomplete = 0
    for turn in range(20):
        process = start([other, image][turn % 2])
        if turn % 4 < 2:
            time.sleep(generator.uniform(0.1, 1) * duration)
        else:  # kill it while a card is being written, however short this time is
            while process.is_alive() and all(card.has_boot_sector() for card in cards):
                time.sleep(0.001)
        process.kill()
        process.join()
        killed += process.exitcode != 0
        for node, card in zip(("pi-01", "pi-02"), cards, strict=True):
            looks_complete = card.has_boot_sector()
            assert not looks_complete or relevant_bytes(card.backing.read_bytes(), image) in known
            assert looks_complete or ledger.read()[node]["verdict"] == "writing"
            incomplete += not looks_complete
        assert sorted(path.name for path in image.parent.iterdir()) == [image.name]
    assert killed and incomplete
    for expected in ("written", "unchanged"):
        start(image).join()
        outcome = json.loads((tmp_path / "outcome").read_text())
        assert expected in results_by_node(outcome).values() and not outcome.get("failed")
        for card in cards:
            assert_same(card.backing, image, image)
        assert {entry["verdict"] for entry in ledger.read().values()} == {"verified"}
    assert set(results_by_node(outcome).values()) == {"unchanged"}


@pytest.mark.parametrize("phase", ["compare", "probe", "write", "verify"])
def test_killed_in_any_phase(image: Path, sha256: str, rig: Rig, tmp_path: Path, phase: str) -> None:
    """A card that was not read back to its end has no partition table, and its entry in the ledger says `interrupted`."""
    card, events, ledger = (
        rig.card("one", CARD, Flaw(rate=12 * MIB), fill=OLD_CONTENT),
        tmp_path / "events",
        tmp_path / "cards.json",
    )
    arguments = write_arguments(image, sha256, pi_01=card.device()) | {"ledger": str(ledger), "progress_file": str(events)}
    process = multiprocessing.get_context("fork").Process(target=run_card_write, args=(arguments, tmp_path / "outcome"))
    process.start()
    while process.is_alive() and not (events.exists() and f'"phase": "{phase}"' in events.read_text()):
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -9
    if phase == "compare":
        assert card.backing.read_bytes() == OLD_CONTENT and not ledger.exists()
    else:
        assert not card.has_boot_sector()
        assert describe_verdict(Ledger(str(ledger)).read()["pi-01"]) == "interrupted: write it again"


@pytest.mark.parametrize("phase", ["compare", "probe", "write", "verify"])
def test_interrupted_in_any_phase(
    image: Path, sha256: str, rig: Rig, tmp_path: Path, wanted: Callable[[str], bytes], phase: str
) -> None:
    """Ctrl-C: nothing is written, or the card has no partition table, and the message and the ledger say so."""
    old = wanted("pi-01") if phase == "compare" else OLD_CONTENT  # the comparison ends at the first difference
    card, other = rig.card("one", CARD, Flaw(rate=12 * MIB), fill=old), rig.card("two", CARD, fill=OLD_CONTENT)
    events, ledger = tmp_path / "events", tmp_path / "cards.json"
    arguments = write_arguments(image, sha256, pi_01=card.device(), pi_02=other.file)
    arguments |= {"ledger": str(ledger), "progress_file": str(events)}
    Ledger(str(ledger)).record("pi-01", {"verdict": "verified", "slot": "old"})
    process = multiprocessing.get_context("fork").Process(target=run_card_write, args=(arguments, tmp_path / "outcome"))
    process.start()
    assert process.pid
    event = f'"node": "pi-01", "phase": "{phase}"'
    while process.is_alive() and not (events.exists() and event in events.read_text()):
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    outcome = json.loads((tmp_path / "outcome").read_text())
    assert process.exitcode == 0 and "EBADF" not in str(outcome) and "descriptor" not in str(outcome)
    result, entry = outcome["results"][0], Ledger(str(ledger)).read()["pi-01"]
    assert result["result"] == "failed" and result["bytes_verified"] == 0 and "--limit pi-01" in outcome["msg"]
    if phase == "compare":
        assert result["error"] == "it was interrupted (Ctrl-C) before anything was written to it"
        assert card.backing.read_bytes()[:SIZE] == old and entry == {"verdict": "verified", "slot": "old"}
        return
    assert result["error"] == "it was interrupted (Ctrl-C) while it was written, so it has no partition table"
    assert not card.has_boot_sector()
    assert describe_verdict(entry) == "interrupted: write it again"


def test_interrupted_card_that_does_not_respond(
    image: Path, sha256: str, rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ansible_collections.bramble.cluster.plugins.module_utils.card.batch.STOP_SECONDS", 0.2)
    hung, other = rig.card("hung", CARD, Flaw(holds_after=3 * MIB)), rig.card("other", CARD)
    events, outcome = tmp_path / "events", tmp_path / "outcome"
    arguments = write_arguments(image, sha256, pi_01=hung.device(), pi_02=other.file) | {"progress_file": str(events)}
    process = multiprocessing.get_context("fork").Process(target=run_card_write, args=(arguments, outcome))
    process.start()
    assert process.pid
    while not (events.exists() and '"phase": "written"' in events.read_text()):
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGINT)
    while process.is_alive() and not (outcome.exists() and outcome.read_text()):
        time.sleep(0.001)
    hung.release()
    process.join()
    results = json.loads(outcome.read_text())["results"]
    assert [result["result"] for result in results] == ["failed", "written"]
    assert "did not respond within 0.2 seconds. Take it out of its reader" in results[0]["error"]
    assert not hung.has_boot_sector()


def run_card_write(arguments: dict[str, Any], outcome: Path) -> None:
    """Run card_write in this process, which may be killed, and write its result to a file."""
    with contextlib.redirect_stdout(io.StringIO()) as stdout, patch_module_args(arguments), contextlib.suppress(SystemExit):
        card_write.main()
    outcome.write_text(stdout.getvalue())


# Faults that only the probe finds, as no byte of the image is written to the missing part


@pytest.mark.parametrize("flaw", [Flaw(wraps_at=SIZE + MIB), Flaw(drops_from=SIZE + MIB)], ids=["wraps", "drops"])
def test_counterfeit_card_larger_than_the_image(
    image: Path, sha256: str, rig: Rig, neighbours: Neighbours, run_module: Run, flaw: Flaw
) -> None:
    """This card would fail only later, when the file system of the node fills up."""
    fake = rig.card("fake", 4 * CARD, flaw)
    outcome = run_module("card_write", write_arguments(image, sha256, **neighbours.slots(fake.device())))
    assert results_by_node(outcome) == {"pi-01": "written", "pi-02": "failed", "pi-03": "written"}
    assert "counterfeit" in outcome["results"][1]["error"]
    neighbours.assert_complete()
