"""Writing: cards are read back as they were written, and a failing card does not affect others."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import shutil
import struct
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bramble.cluster.plugins.module_utils.card import device as card_device
from ansible_collections.bramble.cluster.plugins.module_utils.card import image as card_image
from ansible_collections.bramble.cluster.plugins.module_utils.card import space as card_space
from ansible_collections.bramble.cluster.plugins.module_utils.card.batch import write_batch
from ansible_collections.bramble.cluster.plugins.module_utils.card.content import Content
from ansible_collections.bramble.cluster.plugins.module_utils.card.device import Card
from ansible_collections.bramble.cluster.plugins.module_utils.card.guard import Guard
from ansible_collections.bramble.cluster.plugins.module_utils.card.image import Image
from ansible_collections.bramble.cluster.plugins.module_utils.card.preflight import check_space
from ansible_collections.bramble.cluster.plugins.module_utils.card.progress import Progress
from ansible_collections.bramble.cluster.plugins.module_utils.card.result import Result
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import BLOCK, CHUNK, PAGE
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.plugin_utils.card_progress import ProgressReader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.tiny_image import BOOT_START, MIB, ROOT_START, SIZE

SECRET = "-----BEGIN OPENSSH PRIVATE KEY-----\nnever to be seen\n"
KEY_PATH = "/etc/ssh/ssh_host_ed25519_key"
RunModule = Callable[..., dict[str, Any]]


def identity_files(node: str) -> dict[str, Any]:
    """Return the identity of a node, as options of a card of card_write."""
    key = {"path": KEY_PATH, "content": SECRET + node, "mode": "0600"}
    return {"boot_files": {"user-data": f"#cloud-config\nhostname: {node}\n"}, "root_files": [key]}


def write_arguments(image: Path, sha256: str, **slots: Path) -> dict[str, Any]:
    """Return arguments of card_write for slots by node; in the names of nodes, _ stands for -."""
    nodes = {name.replace("_", "-"): slot for name, slot in slots.items()}
    cards = [{"node": node, "slot": str(slot), **identity_files(node)} for node, slot in nodes.items()]
    return {"image": str(image), "image_sha256": sha256, "cards": cards, "confirm": True}


def results_by_node(outcome: dict[str, Any]) -> dict[str, str]:
    """Return the results of card_write by node."""
    return {result["node"]: result["result"] for result in outcome["results"]}


def read_identity(card: Path) -> tuple[str, str]:
    """Return user-data and host key of a card, which mtools and debugfs read."""
    boot = ["mtype", "-i", f"{card}@@{BOOT_START}", "::user-data"]
    root = ["debugfs", "-R", f"cat {KEY_PATH}", f"{card}?offset={ROOT_START}"]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for command in (boot, root))
    return first, second


def needed_blocks(image: Path) -> set[int]:
    """Return the numbers of the blocks of an image that a card must hold."""
    with Image(str(image)) as opened:
        return opened.needed_blocks


def relevant_bytes(content: bytes, image: Path) -> bytes:
    """Return the bytes of a card or an image in those blocks that a card must hold."""
    return b"".join(content[at * BLOCK : (at + 1) * BLOCK] for at in sorted(needed_blocks(image)))


def assert_same(one: Path, other: Path, image: Path) -> None:
    """Check that two cards, or a card and its image, are equal in all blocks that a card must hold."""
    assert relevant_bytes(one.read_bytes(), image) == relevant_bytes(other.read_bytes(), image)


def inspect_cards(image: Path, *slots: Path) -> list[Any]:
    """Return the facts of some slots, which must all be usable."""
    facts = Guard(str(image)).facts([{"node": slot.stem, "slot": str(slot)} for slot in slots], image.stat().st_size)
    assert [one.verdict for one in facts] == ["OK"] * len(slots)
    return facts


# The module


def test_written_then_unchanged(image: Path, sha256: str, card: Callable[..., Path], run_module: RunModule) -> None:
    dirt = os.urandom(24 * MIB)  # this card was used before, for a larger image
    clean, dirty = card("clean"), card("dirty", fill=dirt)
    arguments = write_arguments(image, sha256, pi_01=clean, pi_02=dirty)
    outcome = run_module("card_write", arguments)
    assert outcome["changed"] and results_by_node(outcome) == {"pi-01": "written", "pi-02": "written"}
    for result in outcome["results"]:
        assert 3 * MIB < result["bytes_verified"] < SIZE and result["bytes_written"] < 8 * MIB and not result["error"]
    for node, path in (("pi-01", clean), ("pi-02", dirty)):
        assert read_identity(path) == (f"#cloud-config\nhostname: {node}\n", SECRET + node)
        subprocess.run(["e2fsck", "-fn", f"{path}?offset={ROOT_START}"], check=True, capture_output=True)
    assert dirty.read_bytes()[SIZE : SIZE + MIB] == dirt[SIZE : SIZE + MIB]  # between the marks, old content stays
    assert clean.stat().st_blocks * 512 < 8 * MIB  # a virtual card stays sparse
    again = run_module("card_write", arguments)
    assert not again["changed"] and results_by_node(again) == {"pi-01": "unchanged", "pi-02": "unchanged"}
    assert [one["fingerprint"] for one in again["results"]] == [one["fingerprint"] for one in outcome["results"]]
    other = card("other", fill=os.urandom(SIZE))
    run_module("card_write", write_arguments(image, sha256, pi_01=other))
    assert_same(other, clean, image)
    assert "never to be seen" not in json.dumps([outcome, again])


def test_loop_device(image: Path, sha256: str, card: Callable[..., Path], machine: Any, run_module: RunModule) -> None:
    path = card("card", fill=os.urandom(32 * MIB))
    arguments = write_arguments(image, sha256, pi_01=machine.loop(path))
    assert results_by_node(run_module("card_write", arguments)) == {"pi-01": "written"}
    assert results_by_node(run_module("card_write", arguments)) == {"pi-01": "unchanged"}
    assert read_identity(path)[1] == SECRET + "pi-01"
    plain = card("plain")
    run_module("card_write", write_arguments(image, sha256, pi_01=plain))
    assert_same(path, plain, image)


def test_cards_that_exist_are_written_only_when_confirmed(
    image: Path, sha256: str, card: Callable[..., Path], run_module: RunModule
) -> None:
    old, new = card("old", fill=b"photographs"), card("old").parent / "new.img"
    arguments = {**write_arguments(image, sha256, pi_01=old), "confirm": False}
    outcome = run_module("card_write", arguments)
    assert "the content of 1 card would be lost" in outcome["msg"] and "-e card_confirm=true" in outcome["msg"]
    assert str(old) in outcome["msg"]
    arguments["cards"].append({"node": "pi-02", "slot": str(new), "virtual_bytes": 2 * SIZE})
    assert "Nothing was written" in run_module("card_write", arguments)["msg"] and not new.exists()
    assert "failed" not in run_module("card_write", arguments, check=True)
    del arguments["cards"][0]
    assert results_by_node(run_module("card_write", arguments)) == {"pi-02": "written"}


def test_full_test_is_for_disks(image: Path, sha256: str, card: Callable[..., Path], machine: Any, run_module: RunModule) -> None:
    arguments = {**write_arguments(image, sha256, pi_01=card("file")), "full_test": True}
    assert "works only on disks, but the cards of pi-01 are files" in run_module("card_write", arguments)["msg"]
    loop = machine.loop(card("disk"))
    arguments = {**write_arguments(image, sha256, pi_01=loop), "full_test": True}
    assert results_by_node(run_module("card_write", arguments)) == {"pi-01": "written"}


def test_check_mode_writes_nothing(image: Path, sha256: str, card: Callable[..., Path], run_module: RunModule) -> None:
    done, new = card("done"), card("new", fill=b"old")
    run_module("card_write", write_arguments(image, sha256, pi_01=done))
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in (done, new)]
    outcome = run_module("card_write", write_arguments(image, sha256, pi_01=done, pi_02=new), check=True, diff=True)
    assert outcome["changed"] and results_by_node(outcome) == {"pi-01": "unchanged", "pi-02": "written"}
    assert [(path.stat().st_mtime_ns, path.read_bytes()) for path in (done, new)] == before
    (difference,) = outcome["diff"]
    assert difference["after"] == f"image {sha256}\nboot file user-data\nroot file {KEY_PATH}\n"
    assert "pi-02" in difference["after_header"] and "table" in outcome


def test_virtual_cards_are_created_after_all_checks(
    image: Path, sha256: str, card: Callable[..., Path], run_module: RunModule
) -> None:
    new, small = card("small", size=SIZE - 1).parent / "folder/new", card("small", size=SIZE - 1)
    arguments = write_arguments(image, sha256, pi_01=new, pi_02=small)
    for one in arguments["cards"]:
        one["virtual_bytes"] = 2 * SIZE
    assert "TOO SMALL by 1 byte" in run_module("card_write", arguments)["msg"]  # an existing card keeps its size
    assert not new.parent.exists()
    del arguments["cards"][1]
    assert results_by_node(run_module("card_write", arguments, check=True)) == {"pi-01": "written"}
    assert not new.parent.exists()
    assert results_by_node(run_module("card_write", arguments)) == {"pi-01": "written"}
    assert new.stat().st_size == 2 * SIZE and new.stat().st_mode & 0o777 == 0o600
    assert read_identity(new)[1] == SECRET + "pi-01"
    assert results_by_node(run_module("card_write", arguments)) == {"pi-01": "unchanged"}
    for slot, words in ((new.parent / "tiny", "TOO SMALL"), (Path("/etc/bramble-card"), "NOT A CARD")):
        arguments["cards"][0] |= {"slot": str(slot), "virtual_bytes": SIZE - 1}
        assert words in run_module("card_write", arguments)["msg"]
        assert not slot.exists()


def test_one_bad_card_stops_the_batch(image: Path, sha256: str, card: Callable[..., Path], run_module: RunModule) -> None:
    good, small = card("good"), card("small", size=SIZE - 1)
    arguments = write_arguments(image, sha256, pi_01=good, pi_02=small, pi_03=good.parent / "gone")
    outcome = run_module("card_write", arguments)
    assert outcome["failed"] and outcome["msg"].startswith("Nothing was written: 2 of 3 cards cannot be used.")
    assert (
        "TOO SMALL by 1 byte" in outcome["msg"] and "ABSENT" in outcome["msg"] and "--limit 'all:!pi-02:!pi-03'" in outcome["msg"]
    )
    assert good.stat().st_blocks == 0
    outcome = run_module("card_write", {**arguments, "only_good": True})
    assert outcome["failed"] and outcome["changed"]
    assert results_by_node(outcome) == {"pi-01": "written", "pi-02": "skipped", "pi-03": "skipped"}
    assert "TOO SMALL by 1 byte" in outcome["msg"] and "playbooks/cards.yml --limit pi-02,pi-03" in outcome["msg"]
    none = run_module("card_write", {**write_arguments(image, sha256, pi_02=small), "only_good": True})
    assert none["failed"] and none["msg"].startswith("Nothing was written")


def test_wrong_image(image: Path, sha256: str, card: Callable[..., Path], run_module: RunModule, tmp_path: Path) -> None:
    path = card("card")
    wrong = sha256[::-1]
    outcome = run_module("card_write", write_arguments(image, wrong, pi_01=path))
    assert outcome["failed"] and sha256 in outcome["msg"] and wrong in outcome["msg"]
    assert "Nothing was written" in outcome["msg"] and "playbooks/image.yml" in outcome["msg"]
    assert "playbooks/image.yml" in run_module("card_write", write_arguments(tmp_path / "none", sha256, pi_01=path))["msg"]
    gpt = tmp_path / "gpt.img"
    gpt.write_bytes(bytes(446 + 4) + b"\xee" + bytes(59) + b"\x55\xaa")
    digest = subprocess.run(["sha256sum", gpt], capture_output=True, text=True, check=True).stdout.split()[0]
    assert "GPT" in run_module("card_write", write_arguments(gpt, digest, pi_01=path))["msg"]
    assert path.stat().st_blocks == 0


@pytest.mark.parametrize("mode", ["rw-------", "8", [6]])
def test_wrong_mode(image: Path, sha256: str, card: Callable[..., Path], run_module: RunModule, mode: Any) -> None:
    arguments = write_arguments(image, sha256, pi_01=card("card"))
    arguments["cards"][0]["root_files"][0]["mode"] = mode
    assert "is not an octal number" in run_module("card_write", arguments)["msg"]


def test_same_node_twice(image: Path, sha256: str, card: Callable[..., Path], run_module: RunModule) -> None:
    arguments = write_arguments(image, sha256, pi_01=card("one"))
    arguments["cards"] *= 2
    assert "named twice" in run_module("card_write", arguments)["msg"]


def test_no_space(image: Path, sha256: str, machine: Any, run_module: RunModule) -> None:
    folder = machine.mount("-t", "tmpfs", "-o", "size=6M", "cards")
    for name in ("a", "b"):
        with (folder / name).open("wb") as file:
            file.truncate(SIZE)
    outcome = run_module("card_write", write_arguments(image, sha256, pi_01=folder / "a", pi_02=folder / "b"))
    assert outcome["failed"] and f"No space: {folder} needs" in outcome["msg"] and "Nothing was written" in outcome["msg"]
    assert all((folder / name).stat().st_blocks == 0 for name in ("a", "b"))


def test_space_of_an_existing_card_counts(image: Path, card: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    used, fresh = card("used", fill=b"x" * SIZE), card("fresh")
    room = os.statvfs(used)
    with Image(str(image)) as opened:
        need = len(opened.data_blocks) * BLOCK
        free = os.statvfs_result((1, 1, *room[2:4], need, *room[5:]))
        monkeypatch.setattr(os, "statvfs", lambda path: free)
        check_space(opened, inspect_cards(image, used), 0, "/proc")
        check_space(opened, inspect_cards(image, fresh), 0, "/proc")
        with pytest.raises(BrambleError, match=f"needs {2 * need:,} bytes"):
            check_space(opened, inspect_cards(image, used, fresh), 0, str(used.parent))


def test_marks_of_other_uses_are_removed(
    image: Path, sha256: str, card: Callable[..., Path], machine: Any, run_module: RunModule
) -> None:
    """A flashed card is no longer taken for a part of a RAID, of ZFS, or for a GPT disk, whose marks are at its end."""
    path = card("card", size=64 * MIB)
    subprocess.run(["sfdisk", "-q", path], input=b"label: gpt\n", check=True)
    with path.open("r+b") as file:
        # An md superblock of format 1.0 (linux/raid/md_p.h): 8 to 12 KiB from the end.
        file.seek((64 * MIB // 512 - 16) // 8 * 8 * 512)
        file.write(struct.pack("<II", 0xA92B4EFC, 1) + bytes(248))
    signatures: list[str | Path] = ["wipefs", "--no-act", "--output", "TYPE", "--noheadings", path]
    assert "gpt" in subprocess.run(signatures, capture_output=True, text=True, check=True).stdout
    disk = machine.loop(path)
    assert results_by_node(run_module("card_write", write_arguments(image, sha256, pi_01=disk))) == {"pi-01": "written"}
    assert subprocess.run(signatures, capture_output=True, text=True, check=True).stdout.split() == ["dos"]
    assert not any(path.read_bytes()[-MIB:])
    assert results_by_node(run_module("card_write", write_arguments(image, sha256, pi_01=disk))) == {"pi-01": "unchanged"}
    with path.open("r+b") as file:
        file.seek(-512, os.SEEK_END)
        file.write(b"EFI PART")
    assert results_by_node(run_module("card_write", write_arguments(image, sha256, pi_01=disk))) == {"pi-01": "written"}


@pytest.mark.parametrize("spare_bytes", [0, 512, BLOCK + 512])
def test_card_with_little_space_behind_its_image(
    image: Path, tmp_path: Path, card: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, spare_bytes: int
) -> None:
    """The last MiB of the card is cleared, but not where the image is: nothing is repaired then."""
    monkeypatch.setattr(card_device, "MAX_BAD_CHUNKS", 0)
    full = tmp_path / "full.img"
    full.write_bytes(image.read_bytes()[:-MIB] + os.urandom(MIB))
    path = card("card", size=SIZE + spare_bytes, fill=b"x" * (SIZE + spare_bytes))
    with Image(str(full)) as opened:
        content = Content(opened, {}, SIZE + spare_bytes)
        (result,) = write_batch(inspect_cards(full, path), {"card": content}, Progress())
    assert result.result == "written"
    assert_same(path, full, full)
    assert not any(path.read_bytes()[SIZE:])


@pytest.mark.parametrize("moment", ["write", "verify"])
def test_image_that_changes_while_it_is_written(
    image: Path,
    sha256: str,
    card: Callable[..., Path],
    run_module: RunModule,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    """As by `rsync --inplace --times`, which puts the modification time back."""
    changing, path = tmp_path / "changing.img", card("card")
    with Image(str(image)) as opened:
        changed_at = opened.data_blocks[-1] * BLOCK  # of a file, and so not of the identity
    shutil.copyfile(image, changing)
    before, method = changing.stat(), f"{moment}_content" if moment == "write" else moment
    real = getattr(Card, method)

    def change_first(self: Card, *arguments: Any) -> None:
        with changing.open("r+b") as file:
            file.seek(changed_at)
            file.write(os.urandom(512))
        os.utime(changing, ns=(before.st_atime_ns, before.st_mtime_ns))
        real(self, *arguments)

    monkeypatch.setattr(Card, method, change_first)
    outcome = run_module("card_write", write_arguments(changing, sha256, pi_01=path))
    assert results_by_node(outcome) == {"pi-01": "failed"}
    assert f"the image {changing} was changed since it was verified" in outcome["msg"]
    assert not any(path.read_bytes()[:512])


def test_image_that_is_removed_while_it_is_written(
    image: Path, sha256: str, card: Callable[..., Path], run_module: RunModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer still has the file, so the card is complete."""
    removed, path, write = tmp_path / "removed.img", card("card"), Card.write_content
    shutil.copyfile(image, removed)

    def remove_first(self: Card, *arguments: Any) -> None:
        removed.unlink()
        write(self, *arguments)

    monkeypatch.setattr(Card, "write_content", remove_first)
    assert results_by_node(run_module("card_write", write_arguments(removed, sha256, pi_01=path))) == {"pi-01": "written"}
    assert read_identity(path)[1] == SECRET + "pi-01"


def test_image_and_card_that_change_in_the_same_way(
    image: Path, sha256: str, card: Callable[..., Path], run_module: RunModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changing, path, verify = tmp_path / "changing.img", card("card"), Card.verify
    shutil.copyfile(image, changing)
    with Image(str(image)) as opened:
        changed_at = opened.data_blocks[-1] * BLOCK

    def change_both(self: Card, *arguments: Any) -> None:
        for changed in (changing, path):
            with changed.open("r+b") as file:
                file.seek(changed_at)
                file.write(b"another!")
        verify(self, *arguments)

    monkeypatch.setattr(Card, "verify", change_both)
    outcome = run_module("card_write", write_arguments(changing, sha256, pi_01=path))
    assert results_by_node(outcome) == {"pi-01": "failed"} and "was changed since it was verified" in outcome["msg"]


def test_image_that_changes_while_its_map_is_made_and_is_put_back(
    image: Path, sha256: str, card: Callable[..., Path], run_module: RunModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changing, used_ranges = tmp_path / "changing.img", card_space.used_ranges
    shutil.copyfile(image, changing)
    original, before = changing.read_bytes(), changing.stat()

    def change_meanwhile(fd: int, partition: Any, **options: Any) -> Any:
        with changing.open("r+b") as file:
            file.seek(partition.start)
            file.write(bytes(partition.size))
            file.flush()
            found = used_ranges(fd, partition, **options)
            file.seek(0)
            file.write(original)
        os.utime(changing, ns=(before.st_atime_ns, before.st_mtime_ns))
        return found

    monkeypatch.setattr(card_image, "used_ranges", change_meanwhile)
    outcome = run_module("card_write", write_arguments(changing, sha256, pi_01=card("card")))
    assert outcome["failed"] and "was changed while it was read" in outcome["msg"] and "results" not in outcome


@pytest.mark.parametrize("has_content", [False, True], ids=["written", "unchanged"])
@pytest.mark.parametrize("event", ["exchanged", "removed", "attached"])
def test_card_that_another_program_takes_while_it_is_read_back(
    image: Path,
    sha256: str,
    card: Callable[..., Path],
    machine: Any,
    run_module: RunModule,
    monkeypatch: pytest.MonkeyPatch,
    event: str,
    has_content: bool,
) -> None:
    path, other, differences = card("card"), card("other"), Card.differences
    arguments = write_arguments(image, sha256, pi_01=path)
    if has_content:
        run_module("card_write", arguments)
    done = list[Path]()

    def take_at_the_end(self: Card, *options: Any, **more: Any) -> Any:
        yield from differences(self, *options, **more)
        if options and not done and (has_content or len(options) > 2):
            if event == "exchanged":
                other.rename(path)
            elif event == "removed":
                path.unlink()
            else:
                machine.loop(path)
            done.append(path)

    monkeypatch.setattr(Card, "differences", take_at_the_end)
    monkeypatch.setattr("ansible_collections.bramble.cluster.plugins.module_utils.card.exclusive.PATIENCE", 0.1)
    outcome = run_module("card_write", arguments)
    assert done and results_by_node(outcome) == {"pi-01": "failed"}
    if event == "attached":
        assert "/dev/loop" in outcome["msg"] or "uses" in outcome["msg"] or "in use" in outcome["msg"]
        assert has_content or not any(path.read_bytes()[:512])


@pytest.mark.parametrize(
    "card_options",
    [{"boot_files": {"../bad": ""}}, {"root_files": [{"path": "/x", "content": "text", "mode": "99"}]}],
)
def test_no_card_is_created_for_files_that_cannot_be_laid(
    image: Path, sha256: str, tmp_path: Path, run_module: RunModule, card_options: dict[str, Any]
) -> None:
    new = tmp_path / "new.img"
    cards = [{"node": "pi-01", "slot": str(new), "virtual_bytes": 2 * SIZE, **card_options}]
    outcome = run_module("card_write", {"image": str(image), "image_sha256": sha256, "cards": cards})
    assert outcome["failed"] and not new.exists() and "Traceback" not in outcome["msg"]


def test_clock_that_is_set_back_does_not_stop_the_progress(
    image: Path, sha256: str, card: Callable[..., Path], run_module: RunModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, clock = tmp_path / "events", itertools.count(2**31, -3600)
    monkeypatch.setattr("time.time", lambda: float(next(clock)))
    arguments = write_arguments(image, sha256, pi_01=card("card")) | {"progress_file": str(events)}
    assert results_by_node(run_module("card_write", arguments)) == {"pi-01": "written"}
    seen = [json.loads(line) for line in events.read_text().splitlines()]
    assert seen == sorted(seen, key=lambda event: event["monotonic"]) and seen != sorted(seen, key=lambda event: event["time"])
    reader = ProgressReader(str(events))
    reader.read_events()
    assert all(reader._rate(entry) >= 0 for entry in reader._cards.values())


# Faults


def test_full_card_fails_alone(image: Path, sha256: str, card: Callable[..., Path], machine: Any, run_module: RunModule) -> None:
    """A card that has less space than it reports: a loop device on a file system with too little space."""
    small = machine.mount("-t", "tmpfs", "-o", "size=3M", "full") / "card"
    with small.open("wb") as file:
        file.truncate(SIZE)
    good = card("good")
    outcome = run_module("card_write", write_arguments(image, sha256, pi_01=good, pi_02=machine.loop(small)))
    assert outcome["failed"] and outcome["changed"] and results_by_node(outcome) == {"pi-01": "written", "pi-02": "failed"}
    assert "1 of 2 cards failed; 1 was successful." in outcome["msg"] and "playbooks/cards.yml --limit pi-02" in outcome["msg"]
    error = outcome["results"][1]["error"]
    assert error.startswith("writing failed at byte ") and error.endswith(("(EIO)", "(ENOSPC)"))
    assert read_identity(good)[1] == SECRET + "pi-01"
    assert not any(small.read_bytes()[:512])  # the card does not look complete


def test_slow_card_delays_no_other(image: Path, card: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    slow, quick = card("slow"), card("quick")
    others_done = threading.Event()
    write = Card.write

    def delayed_write(self: Card, offset: int, data: bytes) -> None:
        if self.facts.node == "slow":
            assert others_done.wait(30)
        write(self, offset, data)

    class Watch(Progress):
        def report(self, node: str, phase: str, done: int = 0, total: int = 0) -> None:
            if (node, phase) == ("quick", "written"):
                others_done.set()

    monkeypatch.setattr(Card, "write", delayed_write)
    with Image(str(image)) as opened:
        done = write_batch(inspect_cards(image, slow, quick), dict.fromkeys(("slow", "quick"), Content(opened, {})), Watch())
    assert [result.result for result in done] == ["written", "written"]


def write_one_card(image: Path, path: Path) -> Result:
    """Write an image without an identity to one card."""
    with Image(str(image)) as opened:
        (result,) = write_batch(inspect_cards(image, path), {path.stem: Content(opened, {})}, Progress())
    return result


def test_flipped_bit_is_found_and_repaired(image: Path, card: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path, verify = card("card"), Card.verify
    offsets = [BOOT_START + 7, SIZE - 100]  # in data, and in a range of zeros

    def flip_first(self: Card, *arguments: Any) -> None:
        with path.open("r+b") as file:
            for offset in offsets:
                file.seek(offset)
                byte = file.read(1)[0]
                file.seek(offset)
                file.write(bytes([byte ^ 4]))
        verify(self, *arguments)

    monkeypatch.setattr(Card, "verify", flip_first)
    result = write_one_card(image, path)
    assert result.result == "written" and result.bytes_verified == len(needed_blocks(image)) * BLOCK
    assert_same(path, image, image)


def test_zeros_that_are_lost_fail_the_card(
    image: Path, card: Callable[..., Path], machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Image(str(image)) as opened:
        zero = next(run for run in Content(opened, {}).runs(CHUNK) if not run.has_data)
    device, write = machine.loop(card("card", fill=b"x" * SIZE)), Card.write

    def lossy_write(self: Card, offset: int, data: bytes) -> None:
        if not zero.offset <= offset < zero.end:
            write(self, offset, data)

    monkeypatch.setattr(Card, "write", lossy_write)
    monkeypatch.setattr(Card, "write_marks", lambda *_: None)
    monkeypatch.setattr(Card, "check_marks", lambda *_: None)
    result = write_one_card(image, device)
    assert result.result == "failed" and f"wrong at byte {zero.offset:,}" in result.error


def test_stuck_bit_fails_the_card(image: Path, card: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path, read, stuck = card("card"), Card.read, ROOT_START + PAGE + 6

    def flipped_read(self: Card, offset: int, length: int) -> bytes:
        data = bytearray(read(self, offset, length))
        if offset <= stuck < offset + length:
            data[stuck - offset] ^= 1
        return bytes(data)

    monkeypatch.setattr(Card, "read", flipped_read)
    result = write_one_card(image, path)
    assert (
        result.result == "failed"
        and f"after writing that again, it is read back wrong at byte {stuck:,}, and always the same" in result.error
    )
    assert result.bytes_verified == 0
    assert not any(path.read_bytes()[:512])  # the card does not look complete


@pytest.mark.parametrize("real", [2 * CHUNK, 8 * CHUNK])
def test_counterfeit_card_fails(tmp_path: Path, card: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, real: int) -> None:
    """A card with half of its reported size: every write beyond overwrites earlier data."""
    image = tmp_path / "image"
    image.write_bytes(b"".join(bytes([number + 1]) * CHUNK for number in range(10)))
    path, read, write = card("card"), Card.read, Card.write
    monkeypatch.setattr(Card, "read", lambda self, offset, length: read(self, offset % real, length))
    monkeypatch.setattr(Card, "write", lambda self, offset, data: write(self, offset % real, data))
    result = write_one_card(image, path)
    assert result.result == "failed" and "counterfeit" in result.error


def test_card_with_many_wrong_chunks_fails_early(
    tmp_path: Path, card: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"x" * 20 * CHUNK)
    read, write = Card.read, Card.write
    card_fails = []

    def worn_write(self: Card, offset: int, data: bytes) -> None:
        write(self, offset, data)
        card_fails.append(len(data) == CHUNK and any(data))

    monkeypatch.setattr(Card, "write", worn_write)
    monkeypatch.setattr(Card, "read", lambda self, *at: bytes(at[1]) if any(card_fails) else read(self, *at))
    monkeypatch.setattr(Card, "check_marks", lambda *_: None)
    assert write_one_card(image, card("card")).error.startswith("more than 16 MiB are wrong, the first at byte ")


def test_read_error_names_its_byte(image: Path, card: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv

    def failing_read(fd: int, buffers: Any, offset: int) -> int:
        if offset >= 4 * MIB:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing_read)
    result = write_one_card(image, card("card"))
    assert result.result == "failed" and result.error.startswith("reading failed at byte ") and "(EIO)" in result.error


def test_unexpected_error_in_a_thread_is_reported(
    image: Path, card: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Card, "write_content", lambda *_: 1 / 0)
    assert write_one_card(image, card("card")).error == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize("change", ["shrunk", "exchanged", "gone"])
def test_card_that_changed_after_the_check(image: Path, card: Callable[..., Path], change: str) -> None:
    path, other = card("card"), card("other")
    facts = inspect_cards(image, path, other)
    if change == "shrunk":
        os.truncate(path, SIZE)
    elif change == "exchanged":
        card("new").rename(path)
    else:
        path.unlink()
    with Image(str(image)) as opened:
        contents = dict.fromkeys(("card", "other"), Content(opened, {}))
        with pytest.raises(BrambleError, match="Nothing was written"):
            write_batch(facts, contents, Progress())
        assert other.stat().st_blocks == 0
        done = write_batch(facts, contents, Progress(), only_good=True)
    assert [result.result for result in done] == ["failed", "written"]


def test_card_being_written_by_another(image: Path, card: Callable[..., Path]) -> None:
    (facts,) = inspect_cards(image, card("card"))
    first = Card(facts)
    with pytest.raises(BrambleError, match="another process"):
        Card(facts)
    first.close()
    Card(facts).close()


def test_interrupted_card_does_not_look_complete(image: Path, card: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = card("card"), Card.write
    assert write_one_card(image, path).result == "written"
    with path.open("r+b") as file:
        file.seek(SIZE - 1)
        file.write(b"x")

    def failing_write(self: Card, offset: int, data: bytes) -> None:
        if offset > BOOT_START:
            raise BrambleError("gone")
        write(self, offset, data)

    monkeypatch.setattr(Card, "write", failing_write)
    assert write_one_card(image, path).result == "failed"
    assert not any(path.read_bytes()[:CHUNK])


def test_card_does_not_look_complete_while_its_marks_are_written(
    image: Path, card: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write_marks, seen = card("card", fill=b"x" * SIZE), Card.write_marks, list[bool]()

    def look_first(self: Card, *arguments: Any) -> None:
        seen.append(any(path.read_bytes()[:CHUNK]))
        write_marks(self, *arguments)

    monkeypatch.setattr(Card, "write_marks", look_first)
    assert write_one_card(image, path).result == "written" and seen == [False]


def test_partition_table_that_is_also_written_to_the_end(
    image: Path, card: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a card that is a page smaller than it reports. The table, which is written last, replaces the zeros there."""
    path, write = card("card", size=SIZE), Card.write

    def write_twice(self: Card, offset: int, data: bytes) -> None:
        write(self, offset, data)
        if offset == 0:
            write(self, SIZE - PAGE, data[:PAGE])

    monkeypatch.setattr(Card, "write", write_twice)
    result = write_one_card(image, path)
    assert result.result == "failed" and int(result.error.split()[7].replace(",", "")) >= SIZE - PAGE, result.error
    assert not any(path.read_bytes()[:CHUNK])


@pytest.mark.parametrize("kind", ["file", "device"])
def test_flush_leaves_nothing_in_a_cache(
    image: Path, card: Callable[..., Path], machine: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Otherwise, the card would be compared with the memory of this machine."""
    path = card("card")
    (facts,) = inspect_cards(image, path if kind == "file" else machine.loop(path))
    opened, calls = Card(facts), list[Any]()
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("fsync"))
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, *advice: calls.append(advice))
    monkeypatch.setattr(fcntl, "ioctl", lambda fd, request, _: calls.append(request))
    opened.flush()
    monkeypatch.undo()
    opened.close()
    blkflsbuf = 0x1261  # linux/fs.h
    assert calls == ["fsync", (0, 0, os.POSIX_FADV_DONTNEED), *([blkflsbuf] if kind == "device" else [])]


def test_full_disk_under_the_progress_file_fails_no_card(image: Path, card: Callable[..., Path]) -> None:
    path = card("card")
    with Image(str(image)) as opened:
        (result,) = write_batch(inspect_cards(image, path), {"card": Content(opened, {})}, Progress("/dev/full"))
    assert result.result == "written"


def test_loop_device_with_another_file(image: Path, card: Callable[..., Path], machine: Any) -> None:
    path, other = card("card"), card("other")
    device = machine.loop(path)
    (facts,) = inspect_cards(image, device)
    facts.identity = ("file", *facts.identity[1:2], other.stat().st_ino)
    with pytest.raises(BrambleError, match="is not the card that was checked"):
        Card(facts)


@pytest.mark.parametrize("method", ["punching", "direct"])
def test_file_system_without_holes_or_direct_io(
    image: Path, card: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Without holes, zeros are written; if O_DIRECT is refused, at once or later, it is not used."""
    path = card("card", fill=os.urandom(SIZE))
    if method == "punching":
        monkeypatch.setattr(card_device, "_libc", type("Libc", (), {"fallocate64": staticmethod(lambda *_: -1)}))
    else:
        monkeypatch.setattr(card_device, "_BLKFLSBUF", 0)
        real = os.pwrite

        def refuse_direct_io(fd: int, data: Any, offset: int) -> int:
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument")
            return real(fd, data, offset)

        monkeypatch.setattr(os, "pwrite", refuse_direct_io)
    assert write_one_card(image, path).result == "written"
    assert_same(path, image, image)


PATTERN = st.lists(st.booleans(), min_size=1, max_size=40)


# Four pages exceed the usual size of examples of Hypothesis, which is no reason to fail.
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.data_too_large])
@given(PATTERN, PATTERN, st.dictionaries(st.integers(0, 40 * 16 - 1), st.binary(min_size=PAGE, max_size=PAGE), max_size=4))
def test_any_card_becomes_any_content(data: list[bool], dirt: list[bool], pages: dict[int, bytes]) -> None:
    def fill(path: Path, pattern: list[bool], size: int) -> None:
        with path.open("wb") as file:
            file.truncate(size)
            for number, full in enumerate(pattern[: size // BLOCK]):
                if full:
                    file.seek(number * BLOCK)
                    file.write(os.urandom(BLOCK))

    with tempfile.TemporaryDirectory() as folder:
        image, card = Path(folder, "image"), Path(folder, "card")
        fill(image, data, len(data) * BLOCK)
        fill(card, dirt, 41 * BLOCK)
        overlay = {page * PAGE: text for page, text in pages.items() if page < len(data) * 16}
        wanted = bytearray(image.read_bytes())
        for offset, text in overlay.items():
            wanted[offset : offset + PAGE] = text
        with Image(str(image)) as opened:
            content = {"card": Content(opened, overlay)}
            (first,) = write_batch(inspect_cards(image, card), content, Progress())
            assert card.read_bytes()[: len(wanted)] == bytes(wanted) and first.result in ("written", "unchanged")
            (second,) = write_batch(inspect_cards(image, card), content, Progress())
            assert second.result == "unchanged"


# Progress


@pytest.mark.parametrize("kind", ["folder", "fifo", "missing folder"])
def test_file_for_progress_that_cannot_be_written(
    image: Path, sha256: str, card: Callable[..., Path], run_module: RunModule, tmp_path: Path, kind: str
) -> None:
    place = tmp_path / "events"
    if kind == "folder":
        place.mkdir()
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place = tmp_path / "none/events"
    arguments = write_arguments(image, sha256, pi_01=card("card")) | {"progress_file": str(place)}
    outcome = run_module("card_write", arguments)
    assert outcome["failed"] and f"The file for progress, {place}, cannot be opened" in outcome["msg"]


def test_progress_events(image: Path, sha256: str, card: Callable[..., Path], run_module: RunModule, tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    run_module("card_write", {**write_arguments(image, sha256, pi_01=card("card")), "progress_file": str(events)})
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    phases = list(dict.fromkeys(line["phase"] for line in lines))
    assert phases == ["prepare", "compare", "probe", "write", "verify", "written"]
    assert all(0 <= line["done"] <= line["total"] for line in lines)
    for phase in ("write", "verify"):
        last = [line for line in lines if line["phase"] == phase][-1]
        assert last["done"] == last["total"] > 3 * MIB
    assert "never to be seen" not in events.read_text()
