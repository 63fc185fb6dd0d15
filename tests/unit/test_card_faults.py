"""Cards that go wrong, each between good ones: a clear message, the others are finished and right, nothing else is touched."""

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
from ansible_collections.bramble.cluster.plugins.module_utils.card.image import Image
from ansible_collections.bramble.cluster.plugins.module_utils.card.ledger import Ledger
from ansible_collections.bramble.cluster.plugins.module_utils.card.progress import Progress
from ansible_collections.bramble.cluster.plugins.module_utils.card.overlay import RootFile, OverlayBuilder
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import CHUNK
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.modules import card_write

from tests.support.cards import Card, Rig
from tests.support.flaw import Flaw
from tests.support.tiny_image import MIB, SIZE

from .test_card_writer import assert_same, batch, identity, matter, results

CARD = 32 * MIB
HALF = CARD // 2
Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def image(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny image with data also in its last MiB, beyond the half of a card."""
    path = tmp_path_factory.mktemp("full") / "full.img"
    shutil.copyfile(image, path)
    with path.open("r+b") as file:
        file.seek(SIZE - MIB)
        file.write(random.Random(1).randbytes(MIB))
    return path


@pytest.fixture(scope="module")
def sha256(image: Path) -> str:
    """The sha256 of that image."""
    return hashlib.sha256(image.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def wanted(image: Path) -> Callable[[str], bytes]:
    """What the card of a node must hold, up to the end of the image."""
    known: dict[str, bytes] = {}

    def bytes_of(node: str) -> bytes:
        if node not in known:
            files = identity(node)
            root = [RootFile(file["path"], file["content"], int(file["mode"], 8)) for file in files["root_files"]]
            with Image(str(image)) as opened, OverlayBuilder(opened, str(image.parent)) as builder:
                content = Content(opened, builder.build(files["boot_files"], root))
                known[node] = b"".join(content.read(at, min(CHUNK, SIZE - at)) for at in range(0, SIZE, CHUNK))
        return known[node]

    return bytes_of


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Virtual cards."""
    if os.geteuid() or not os.path.exists("/dev/loop-control"):
        pytest.skip("loop devices need root")
    with Rig(tmp_path) as rig:
        yield rig


DIRT = random.Random(2).randbytes(CARD)


@dataclass
class Neighbours:
    """Two good cards that were used before: pi-01 is a block device, pi-03 a file."""

    one: Card
    three: Card
    wanted: Callable[[str], bytes]
    image: Path

    def slots(self, bad: Path) -> dict[str, Path]:
        """A batch with the bad card, pi-02, between them."""
        return {"pi_01": self.one.device(), "pi_02": bad, "pi_03": self.three.file}

    def assert_right(self) -> None:
        """Both hold exactly what they must, and beyond the image what they held before."""
        for node, card in (("pi-01", self.one), ("pi-03", self.three)):
            held = card.backing.read_bytes()
            assert matter(held, self.image) == matter(self.wanted(node), self.image), node
            assert held[SIZE:] == DIRT[SIZE:], node

    def assert_untouched(self) -> None:
        """Nothing was written to either."""
        assert all(card.backing.read_bytes() == DIRT for card in (self.one, self.three))


@pytest.fixture
def neighbours(rig: Rig, wanted: Callable[[str], bytes], image: Path) -> Neighbours:
    """The good cards of a batch."""
    return Neighbours(rig.card("one", CARD, fill=DIRT), rig.card("three", CARD, fill=DIRT), wanted, image)


def assert_only_second_failed(outcome: dict[str, Any], error: str) -> None:
    """The report says which card failed, why, and what to do; and that the others did not."""
    assert outcome["failed"] and outcome["changed"]
    assert results(outcome) == {"pi-01": "written", "pi-02": "failed", "pi-03": "written"}
    first, second, third = outcome["results"]
    assert re.search(error, second["error"]) and second["bytes_verified"] == 0
    assert first["bytes_verified"] == third["bytes_verified"] > 0 and not first["error"] + third["error"]
    assert outcome["msg"].startswith("1 of 3 cards failed; 2 are right.\npi-02, ")
    assert second["error"] in outcome["msg"] and "playbooks/cards.yml --limit pi-02" in outcome["msg"]


# Bad from the start


@pytest.mark.parametrize("kind", ["file", "device"])
def test_one_too_small(image: Path, sha256: str, rig: Rig, neighbours: Neighbours, run_module: Run, kind: str) -> None:
    """By one byte; by one sector where that is the smallest a device can lack."""
    lacking = 1 if kind == "file" else 512
    small = rig.card("small", SIZE - lacking, fill=DIRT[: SIZE - lacking])
    arguments = batch(image, sha256, **neighbours.slots(small.file if kind == "file" else small.device()))
    outcome = run_module("card_write", arguments)
    assert outcome["msg"].startswith("Nothing was written: 1 of 3 cards are not fit.") and not outcome.get("changed")
    assert re.search(f"pi-02 .* TOO SMALL by {lacking} byte", outcome["msg"]) and "--limit 'all:!pi-02'" in outcome["msg"]
    neighbours.assert_untouched()
    outcome = run_module("card_write", {**arguments, "only_good": True})
    assert outcome["failed"] and results(outcome) == {"pi-01": "written", "pi-02": "skipped", "pi-03": "written"}
    neighbours.assert_right()
    assert small.backing.read_bytes() == DIRT[: SIZE - lacking]


FLAWS = {
    "wraps at half its size": (Flaw(wraps_at=HALF), f"counterfeit: it holds at most {HALF:,} bytes"),
    "drops writes beyond half": (Flaw(drops_from=HALF), f"counterfeit: it holds at most {HALF + MIB:,} bytes"),
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
    assert_only_second_failed(run_module("card_write", batch(image, sha256, **slots)), FLAWS[flaw][1])
    neighbours.assert_right()
    assert not bad.has_boot_sector()


def test_flipped_bit_is_mended(
    image: Path, sha256: str, rig: Rig, neighbours: Neighbours, run_module: Run, wanted: Callable[[str], bytes]
) -> None:
    weak = rig.card("weak", CARD, Flaw(flips_bit_at=SIZE - 100))
    outcome = run_module("card_write", batch(image, sha256, **neighbours.slots(weak.device())))
    assert not outcome.get("failed") and set(results(outcome).values()) == {"written"}
    neighbours.assert_right()
    assert weak.backing.read_bytes()[:SIZE] == wanted("pi-02")


# Slow, or not answering at all


def test_slow_card_delays_nobody(
    image: Path, sha256: str, rig: Rig, neighbours: Neighbours, run_module: Run, tmp_path: Path, wanted: Callable[[str], bytes]
) -> None:
    """At less than a tenth of the speed of the others: they are done while it still has bytes to go."""
    slow, events = rig.card("slow", CARD, Flaw(rate=6e6)), tmp_path / "events.jsonl"
    arguments = {**batch(image, sha256, **neighbours.slots(slow.device())), "progress_file": str(events)}
    outcome = run_module("card_write", arguments)
    assert not outcome.get("failed") and set(results(outcome).values()) == {"written"}
    neighbours.assert_right()
    assert slow.backing.read_bytes()[:SIZE] == wanted("pi-02")
    seen = [json.loads(line) for line in events.read_text().splitlines()]
    last = max(at for at, event in enumerate(seen) if event["phase"] == "written" and event["node"] != "pi-02")
    assert [event["phase"] for event in seen[last:] if event["node"] == "pi-02"][-2:] == ["verify", "written"]


def facts_of(image: Path, *slots: Path) -> list[Any]:
    """What the guard says of the cards pi-01, pi-02 and so on, all of them good."""
    cards = [{"node": f"pi-{number:02}", "slot": str(slot)} for number, slot in enumerate(slots, 1)]
    batch = Guard(str(image)).facts(cards, SIZE)
    assert [facts.verdict for facts in batch] == ["OK"] * len(slots)
    return batch


class Watch(Progress):
    """Does something once, when a node's card is in the midst of its writing; notes who is done."""

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


def write_plain(image: Path, watch: Progress, batch: list[Any], only_good: bool = False) -> list[Any]:
    """Write the image alone, without identities."""
    with Image(str(image)) as opened:
        return write_batch(batch, {facts.node: Content(opened, {}) for facts in batch}, watch, only_good=only_good)


def test_card_that_hangs_holds_nobody_up(image: Path, rig: Rig) -> None:
    good, hung = [rig.card(name, CARD) for name in ("one", "three")], rig.card("hung", CARD, Flaw(holds_after=3 * MIB))
    watch = Watch("", lambda: None)
    batch = facts_of(image, good[0].device(), hung.device(), good[1].file)
    answer: list[Any] = []
    writing = threading.Thread(target=lambda: answer.extend(write_plain(image, watch, batch)), daemon=True)
    writing.start()
    assert watch.others_done.wait(60) and watch.done == {"pi-01", "pi-03"}
    assert all(card.backing.read_bytes()[:SIZE] == image.read_bytes() for card in good)
    hung.release()
    writing.join(60)
    assert [result.result for result in answer] == ["written"] * 3


# Gone, or another


@pytest.mark.parametrize("kind", ["device", "file"])
def test_pulled_while_written(image: Path, rig: Rig, kind: str) -> None:
    """The file of the card is truncated; a device then has no bytes any more."""
    one, gone, three = (rig.card(name, CARD) for name in ("one", "gone", "three"))
    batch = facts_of(image, one.device(), gone.file if kind == "file" else gone.device(), three.file)
    done = write_plain(image, Watch("pi-02", gone.pull), batch)
    assert [result.result for result in done] == ["written", "failed", "written"]
    assert (
        re.match(r"(reading|writing) failed at byte [\d,]+: |.* is not the card it was", done[1].error)
        and done[1].bytes_verified == 0
    )
    assert all(card.backing.read_bytes()[:SIZE] == image.read_bytes() for card in (one, three))


@pytest.mark.parametrize("change", ["detached", "exchanged"])
def test_changed_after_the_preflight(image: Path, rig: Rig, change: str) -> None:
    one, two, three = (rig.card(name, CARD, fill=DIRT) for name in ("one", "two", "three"))
    stranger = rig.card("stranger", CARD, fill=DIRT)
    device = two.device()
    batch = facts_of(image, one.device(), device, three.file)
    if change == "detached":
        two.detach()
    else:
        two.exchange(stranger)
    with pytest.raises(BrambleError, match=rf"{device}.*Nothing was written\.$"):
        write_plain(image, Progress(), batch)
    assert all(card.backing.read_bytes() == DIRT for card in (one, two, three, stranger))
    done = write_plain(image, Progress(), batch, only_good=True)
    assert [result.result for result in done] == ["written", "failed", "written"]
    assert str(device) in done[1].error
    for card in (one, three):
        assert_same(card.backing, image, image)
    assert all(card.backing.read_bytes() == DIRT for card in (two, stranger))


# The image


def test_truncated_image(image: Path, sha256: str, neighbours: Neighbours, rig: Rig, run_module: Run, tmp_path: Path) -> None:
    """Refused before anything is written: by its sha256, and where that was made of the torso, by its partition table."""
    torso = tmp_path / "torso.img"
    shutil.copyfile(image, torso)
    os.truncate(torso, HALF)
    slots = neighbours.slots(rig.card("two", CARD).file)
    outcome = run_module("card_write", batch(torso, sha256, **slots))
    assert "not the one that was pinned. Nothing was written" in outcome["msg"] and str(torso) in outcome["msg"]
    outcome = run_module("card_write", batch(torso, hashlib.sha256(torso.read_bytes()).hexdigest(), **slots))
    assert re.search(f"{torso}: partition 2 ends at byte .*, beyond the end", outcome["msg"])
    neighbours.assert_untouched()


def test_image_truncated_while_written(
    image: Path, sha256: str, rig: Rig, neighbours: Neighbours, run_module: Run, tmp_path: Path
) -> None:
    """The cards that were done by then are right; the one that was not does not look done."""
    torso, events = tmp_path / "torso.img", tmp_path / "events.jsonl"
    shutil.copyfile(image, torso)
    late = rig.card("late", CARD, Flaw(holds_after=3 * MIB))

    def truncate() -> None:
        while not events.exists() or events.read_text().count('"written"') < 2:
            time.sleep(0.01)
        os.truncate(torso, 4 * MIB)
        late.release()

    arguments = {**batch(torso, sha256, **neighbours.slots(late.device())), "progress_file": str(events)}
    threading.Thread(target=truncate, daemon=True).start()
    outcome = run_module("card_write", arguments)
    assert outcome["failed"] and f"the image {torso} was changed while cards were written" in outcome["msg"]
    neighbours.assert_right()
    assert not late.has_boot_sector()


# Power cut


def test_killed_at_random_moments(image: Path, sha256: str, rig: Rig, tmp_path: Path) -> None:
    """Killed 20 times while two images take turns: a card with a partition table always holds all of one of the two.

    And one that the ledger calls verified has a partition table.
    """
    other = tmp_path / "other.img"
    shutil.copyfile(image, other)
    with other.open("r+b") as file:
        for place in (MIB // 2, SIZE - MIB):  # outside of the partitions
            file.seek(place)
            file.write(random.Random(3).randbytes(MIB // 4))
    images = {image: sha256, other: hashlib.sha256(other.read_bytes()).hexdigest()}
    known, ledger = {matter(path.read_bytes(), path) for path in images}, Ledger(str(tmp_path / "cards.json"))
    cards = [rig.card(name, CARD, fill=DIRT) for name in ("one", "two")]
    slots = {"pi_01": cards[0].device(), "pi_02": cards[1].file}

    def start(path: Path) -> Any:
        arguments = batch(path, images[path], **slots)
        for one in arguments["cards"]:
            del one["boot_files"], one["root_files"]
        arguments["ledger"] = ledger.path
        process = multiprocessing.get_context("fork").Process(target=run_alone, args=(arguments, tmp_path / "outcome"))
        process.start()
        return process

    begun = time.monotonic()
    start(image).join()
    took, chance = time.monotonic() - begun, random.Random(4)
    killed = torn = 0
    for turn in range(20):
        process = start([other, image][turn % 2])
        if turn % 4 < 2:
            time.sleep(chance.uniform(0.1, 1) * took)
        else:  # in the middle of writing, however short that is here
            while process.is_alive() and all(card.has_boot_sector() for card in cards):
                time.sleep(0.001)
        process.kill()
        process.join()
        killed += process.exitcode != 0
        for node, card in zip(("pi-01", "pi-02"), cards, strict=True):
            begins = card.has_boot_sector()
            assert not begins or matter(card.backing.read_bytes(), image) in known
            assert begins or ledger.read()[node]["verdict"] == "writing"
            torn += not begins
        assert sorted(path.name for path in image.parent.iterdir()) == [image.name]
    assert killed and torn
    for expected in ("written", "unchanged"):
        start(image).join()
        outcome = json.loads((tmp_path / "outcome").read_text())
        assert expected in results(outcome).values() and not outcome.get("failed")
        for card in cards:
            assert_same(card.backing, image, image)
        assert {entry["verdict"] for entry in ledger.read().values()} == {"verified"}
    assert set(results(outcome).values()) == {"unchanged"}


def run_alone(arguments: dict[str, Any], outcome: Path) -> None:
    """Run card_write in this process, which may be killed, and put what it returns into a file."""
    with contextlib.redirect_stdout(io.StringIO()) as said, patch_module_args(arguments), contextlib.suppress(SystemExit):
        card_write.main()
    outcome.write_text(said.getvalue())


# Found by the probe: no byte of the image lands in the part that is not there


@pytest.mark.parametrize("flaw", [Flaw(wraps_at=SIZE + MIB), Flaw(drops_from=SIZE + MIB)], ids=["wraps", "drops"])
def test_fake_that_holds_the_image(
    image: Path, sha256: str, rig: Rig, neighbours: Neighbours, run_module: Run, flaw: Flaw
) -> None:
    """It would fail in a year, when the node's disk fills up."""
    fake = rig.card("fake", 4 * CARD, flaw)
    outcome = run_module("card_write", batch(image, sha256, **neighbours.slots(fake.device())))
    assert results(outcome) == {"pi-01": "written", "pi-02": "failed", "pi-03": "written"}
    assert "counterfeit" in outcome["results"][1]["error"]
    neighbours.assert_right()
