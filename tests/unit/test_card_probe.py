"""Counterfeit cards are found, whatever their real size, also if a cache hides what was written last."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ansible_collections.bramble.cluster.plugins.module_utils.card.content import Content
from ansible_collections.bramble.cluster.plugins.module_utils.card.device import Card
from ansible_collections.bramble.cluster.plugins.module_utils.card.facts import Facts
from ansible_collections.bramble.cluster.plugins.module_utils.card.image import TAIL, Image
from ansible_collections.bramble.cluster.plugins.module_utils.card.probe import (
    FILLER,
    MAX_MARKS,
    STRIDE,
    CapacityProbe,
    mark_offsets,
    mark_page,
)
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import BLOCK, CHUNK, PAGE, ZEROS
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from hypothesis import given, settings
from hypothesis import strategies as st

MIB = 2**20
CARD = 31_914_983_424
IMAGE = 648 * MIB
RUNS = [(0, 12 * MIB), (264 * MIB, 304 * MIB)]
"""The ranges that the file systems of the image use, alike those of a small Debian: everything is data but a MiB of each."""


class ModelImage:
    """An image whose bytes are computed: each block of data has its own number all over."""

    size, sha256 = IMAGE, "0" * 64
    needed_blocks = frozenset(block for low, high in RUNS for block in range(low // BLOCK, high // BLOCK))
    data_blocks = tuple(sorted(block for block in needed_blocks if block * BLOCK % (8 * MIB) >= MIB or not block))

    def is_touched(self) -> bool:
        return False

    def read(self, offset: int, length: int, check: bool = True) -> bytes:
        first, last = offset // BLOCK, -(-(offset + length) // BLOCK)
        blocks = (
            (block + 1).to_bytes(8, "little") * (BLOCK // 8) if block in DATA_BLOCKS else ZEROS[:BLOCK]
            for block in range(first, last)
        )
        return b"".join(blocks)[offset - first * BLOCK :][:length]


DATA_BLOCKS = frozenset(ModelImage.data_blocks)


@dataclass
class Memory:
    """A card that reports `size` bytes and has `real`. Writes beyond it wrap around, or are lost.

    Its cache holds the pages that were written last, and answers reads of their addresses. With `writes_back`, pages reach the
    memory only when they leave the cache. The card ignores requests to flush it.
    """

    size: int
    real: int
    wraps: bool
    cache_bytes: int = 0
    writes_back: bool = False
    pages: dict[int, bytes] = field(default_factory=dict)
    cache: OrderedDict[int, bytes] = field(default_factory=OrderedDict)

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size
        return b"".join(self._read_page(at) for at in range(offset, offset + length, PAGE))

    def _read_page(self, at: int) -> bytes:
        if at in self.cache:
            return self.cache[at]
        if at >= self.real and not self.wraps:
            return ZEROS[:PAGE]
        return self.pages.get(at % self.real, ZEROS[:PAGE])

    def write(self, offset: int, data: bytes) -> None:
        assert 0 <= offset <= offset + len(data) <= self.size and offset % PAGE == len(data) % PAGE == 0
        for at in range(0, len(data), PAGE):
            self._write_page(offset + at, data[at : at + PAGE])

    def _write_page(self, at: int, page: bytes) -> None:
        if not (self.cache_bytes and self.writes_back):
            self._store(at, page)
        if self.cache_bytes:
            self.cache[at] = page
            self.cache.move_to_end(at)
            if len(self.cache) * PAGE > self.cache_bytes:
                oldest, evicted = self.cache.popitem(last=False)
                if self.writes_back:
                    self._store(oldest, evicted)

    def _store(self, at: int, page: bytes) -> None:
        if at < self.real or self.wraps:
            self.pages[at % self.real] = page


class ModelCard(Card):
    """A card with this memory, written by the code that writes real cards."""

    def __init__(self, memory: Memory) -> None:
        self.facts, self.is_file, self.written, self.memory = Facts("fake", "slot", bytes=memory.size), False, 0, memory

    def read(self, offset: int, length: int) -> bytes:
        return self.memory.read(offset, length)

    def write(self, offset: int, data: bytes) -> None:
        self.memory.write(offset, data)

    def flush(self) -> None:
        """Do nothing, as a counterfeit card does."""

    def check_still_ours(self) -> None:
        """Do nothing: there is no other program."""


def write_card(memory: Memory) -> str:
    """Write the model image to a card in the order in which a batch does, and return the error message, "" for none."""
    card, content = ModelCard(memory), Content(cast(Image, ModelImage()), {}, memory.size)
    probe = card.capacity_probe(content)
    try:
        card.clear_head(content)
        card.write_marks(probe)
        card.write_content(content)
        card.check_marks(probe)
        card.clear_tail(content)
        card.verify(content)
    except BrambleError as error:
        return str(error)
    return ""


def test_good_card_is_written_whatever_its_cache() -> None:
    for cache_bytes, writes_back in itertools.product((0, 16 * MIB), (False, True)):
        memory = Memory(CARD, CARD, wraps=True, cache_bytes=cache_bytes, writes_back=writes_back)
        assert write_card(memory) == ""
        image = ModelImage()
        for block in sorted(image.needed_blocks)[::37]:
            assert memory.read(block * BLOCK, BLOCK) == image.read(block * BLOCK, BLOCK)
        assert not any(memory.read(CARD // CHUNK * CHUNK - CHUNK, CHUNK)[-(TAIL - CHUNK // 2) :])


REAL_SIZES = [
    3_965_190_144,  # real counterfeits whose marks once wrapped to free places
    15_931_539_456,
    *(CARD // share // 512 * 512 for share in (2, 3, 4, 8)),
    *(1 << bit for bit in range(30, 35)),
    *(number * STRIDE for number in (5, 77, 237)),
    IMAGE,
    IMAGE + PAGE,
    IMAGE + FILLER - PAGE,
    CARD - 600 * MIB,
    CARD - 13 * MIB,
    CARD - 2 * MIB,
    CARD - PAGE,
]
CACHES = [(0, False), *itertools.product((256 * 1024, 2 * MIB, 64 * MIB), (False, True))]


@pytest.mark.parametrize("cache", CACHES, ids=str)
def test_detection_rate_is_100_percent(cache: tuple[int, bool]) -> None:
    models = [Memory(CARD, real, wraps, *cache) for real in REAL_SIZES for wraps in (True, False)]
    missed = [(memory.real, memory.wraps) for memory in models if not write_card(memory)]
    assert not missed, f"{len(missed)} of {len(models)} counterfeit cards were not found"


class StrictMemory(Memory):
    """A card whose cache holds only what is beyond its real memory, and otherwise would be lost."""

    def _write_page(self, at: int, page: bytes) -> None:
        if at < self.real:
            self._store(at, page)
        else:
            super()._write_page(at, page)


@pytest.mark.parametrize("cache_bytes", [64 * 1024, MIB, 16 * MIB, 64 * MIB])
def test_cache_of_what_is_beyond_the_real_memory(cache_bytes: int) -> None:
    models = [StrictMemory(CARD, real, False, cache_bytes) for real in REAL_SIZES if real < CARD - 80 * MIB]
    assert [memory.real for memory in models if not write_card(memory)] == []


@settings(max_examples=25, deadline=None)
@given(
    st.one_of(st.integers(64 * MIB, CARD - 512), st.integers(64 * MIB // PAGE, CARD // PAGE - 1).map(lambda page: page * PAGE)),
    st.booleans(),
    st.sampled_from(CACHES),
)
def test_any_counterfeit_card_is_found(real: int, wraps: bool, cache: tuple[int, bool]) -> None:
    assert write_card(Memory(CARD, real // PAGE * PAGE, wraps, *cache))


@pytest.mark.parametrize(
    "real", [size for size in REAL_SIZES if size <= CARD // 2 and (size % STRIDE == 0 or CARD % size < PAGE)]
)
@pytest.mark.parametrize("wraps", [True, False])
def test_frequent_counterfeits_are_found_before_the_image_is_written(real: int, wraps: bool) -> None:
    card = ModelCard(Memory(CARD, real // PAGE * PAGE, wraps))
    probe = card.capacity_probe(Content(cast(Image, ModelImage()), {}, CARD))
    with pytest.raises(BrambleError) as error:
        card.write_marks(probe)
    message = str(error.value)
    assert "counterfeit" in message and f"reports {CARD:,} bytes" in message
    found_size = int(message.split("at most ")[1].split(" bytes", maxsplit=1)[0].replace(",", ""))
    assert found_size >= real // PAGE * PAGE


def test_size_of_a_card_that_loses_writes() -> None:
    """The message states the real size up to the distance of two marks."""
    for real in (5 * 10**9, 8 * 10**9, 30 * 10**9):
        message = write_card(Memory(CARD, real // PAGE * PAGE, wraps=False))
        found_size = int(message.split("at most ")[1].split(" bytes")[0].replace(",", ""))
        assert real - PAGE <= found_size <= real + STRIDE


@given(
    st.integers(2, 2**40 // PAGE).map(lambda pages: pages * PAGE),
    st.lists(st.integers(1, 2**14), max_size=8),
    st.data(),
)
def test_every_wrap_has_a_mark_that_is_overwritten(size: int, bounds: list[int], data: Any) -> None:
    edges = sorted({0, *bounds, *([1] if len({0, *bounds}) % 2 else [])})
    runs = [(low * BLOCK, high * BLOCK) for low, high in zip(edges[::2], edges[1::2], strict=False)] or [(0, BLOCK)]
    if runs[0][0]:
        runs[0] = 0, runs[0][1]
    start = runs[-1][1]
    if size < start + 2 * PAGE or size / min(high - low for low, high in runs) > 20_000:
        return
    offsets = mark_offsets(size, start, runs)
    assert offsets == sorted(set(offsets)) and start <= offsets[0] and offsets[-1] == size - PAGE
    assert all(offset % PAGE == 0 for offset in offsets)
    assert all(high - low <= STRIDE for low, high in itertools.pairwise(offsets))
    real = data.draw(st.integers(start, size - PAGE))
    assert any(offset >= real for offset in offsets)
    assert any(low <= offset - real < high for offset in offsets for low, high in runs), (real, offsets[:9])


def test_marks_take_seconds() -> None:
    """At 100 marks per second, the speed of the slowest cards, writing them takes seconds."""
    assert len(CapacityProbe(CARD, IMAGE, RUNS).offsets) < 500
    fragmented = [(start, start + 2 * MIB) for start in range(0, 3 * 2**30, 4 * MIB)]
    assert len(CapacityProbe(CARD, 3 * 2**30, fragmented).offsets) < 2 * MAX_MARKS


def test_filler_is_written_when_the_image_is_smaller_than_a_cache() -> None:
    assert CapacityProbe(CARD, IMAGE, [(0, 2 * FILLER)]).filler == (IMAGE, IMAGE)
    low, high = CapacityProbe(CARD, IMAGE, [(0, FILLER // 4)]).filler
    assert low == IMAGE and high - low == FILLER * 3 // 4
    low, high = CapacityProbe(IMAGE + 8 * MIB, IMAGE, [(0, CHUNK)]).filler
    assert high - low == 4 * MIB  # half the space that there is
    assert CapacityProbe(IMAGE, IMAGE, RUNS).offsets == []


def test_marks_differ() -> None:
    assert len({mark_page(key, offset) for key in (b"1", b"2") for offset in (0, PAGE, CHUNK)}) == 6


def test_one_worn_page() -> None:
    memory = Memory(CARD, CARD, wraps=True)
    card = ModelCard(memory)
    probe = card.capacity_probe(Content(cast(Image, ModelImage()), {}, CARD))
    worn, write = probe.offsets[7], memory.write
    memory.write = lambda offset, data: None if offset == worn else write(offset, data)  # type: ignore[method-assign]
    with pytest.raises(BrambleError, match=rf"byte {worn:,} cannot be read back, .* the card is worn or counterfeit"):
        card.write_marks(probe)


def test_reader_that_delivers_other_bytes_each_time() -> None:
    memory = Memory(CARD, CARD, wraps=True)
    card, numbers, read = ModelCard(memory), itertools.count(), memory.read
    probe = card.capacity_probe(Content(cast(Image, ModelImage()), {}, CARD))
    bad = probe.offsets[3]
    memory.read = (  # type: ignore[method-assign]
        lambda offset, length: next(numbers).to_bytes(8, "little") * (length // 8) if offset == bad else read(offset, length)
    )
    with pytest.raises(BrambleError, match="two reads of the same bytes differ"):
        card.write_marks(probe)


@pytest.mark.parametrize(
    ("flips", "words"),
    [([1], "always the same: the card is worn"), (range(1, 256), "two reads of the same bytes differ")],
    ids=["stable", "unstable"],
)
def test_unstable_reader_is_told_from_a_bad_card(flips: Sequence[int], words: str) -> None:
    """A wrong chunk that reads differently each time is the reader's fault; one that is always the same is the card's."""
    memory, bad = Memory(CARD, CARD, wraps=True), 270 * MIB
    card, content, read, flip = (
        ModelCard(memory),
        Content(cast(Image, ModelImage()), {}, CARD),
        memory.read,
        itertools.cycle(flips),
    )

    def wrong_read(offset: int, length: int) -> bytes:
        found = bytearray(read(offset, length))
        if offset <= bad < offset + length:
            found[bad - offset] ^= next(flip)
        return bytes(found)

    card.write_content(content)
    card.clear_tail(content)
    memory.read = wrong_read  # type: ignore[method-assign]
    with pytest.raises(BrambleError, match=words):
        card.verify(content)
    assert not any(memory.pages[0])  # the card has no partition table


def test_single_wrong_read_is_forgiven_after_everything_was_read_again() -> None:
    memory = Memory(CARD, CARD, wraps=True)
    card, content = ModelCard(memory), Content(cast(Image, ModelImage()), {}, CARD)
    card.write_content(content)
    card.clear_tail(content)
    read, state = memory.read, SimpleNamespace(reads=0)

    def once_wrong(offset: int, length: int) -> bytes:
        found = read(offset, length)
        if offset == 270 * MIB:
            state.reads += 1
            if state.reads == 1:
                return bytes(length)
        return found

    memory.read = once_wrong  # type: ignore[method-assign]
    card.verify(content)
    assert state.reads == 2 and any(memory.pages[0])
