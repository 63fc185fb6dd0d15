"""The probe: it finds a card that holds less than it reports, and keeps the content of a good card."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field

import pytest
from ansible_collections.bramble.cluster.plugins.module_utils.card.probe import STRIDE, mark_offsets, mark_page, probe
from ansible_collections.bramble.cluster.plugins.module_utils.core.block_io import CHUNK, PAGE
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from hypothesis import given, settings
from hypothesis import strategies as st

CARD = 31_914_983_424


@dataclass
class Memory:
    """A card of `size` bytes with a real memory of `real` bytes. Writes beyond it wrap around, or are lost."""

    size: int
    real: int
    wraps: bool = True
    pages: dict[int, bytes] = field(default_factory=dict)
    flushed: int = 0

    def read(self, offset: int, length: int) -> bytes:
        assert length == PAGE and 0 <= offset <= self.size - length
        if offset >= self.real and not self.wraps:
            return bytes(length)
        return self.pages.get(offset % self.real, bytes(length))

    def write(self, offset: int, data: bytes) -> None:
        assert len(data) == PAGE and 0 <= offset <= self.size - PAGE
        if offset < self.real or self.wraps:
            self.pages[offset % self.real] = data

    def flush(self) -> None:
        self.flushed += 1

    def probe(self) -> None:
        probe(self.size, self.read, self.write, self.flush)


@given(st.integers(2 * CHUNK // 512, 2**40 // 512).map(lambda sectors: sectors * 512))
def test_mark_offsets(size: int) -> None:
    offsets = mark_offsets(size)
    assert offsets == sorted(set(offsets))
    assert all(offset % PAGE == 0 for offset in offsets)
    assert offsets[0] >= CHUNK and size - 2 * PAGE < offsets[-1] <= size - PAGE
    assert all(high - low <= STRIDE for low, high in itertools.pairwise(offsets))


def test_probe_takes_seconds() -> None:
    """At 100 writes per second, the speed of the slowest cards, writing the marks and restoring takes under ten seconds."""
    assert len(mark_offsets(CARD)) < 350


def test_marks_differ() -> None:
    assert len({mark_page(key, offset) for key in (b"1", b"2") for offset in (0, PAGE, CHUNK)}) == 6


def test_a_good_card_keeps_what_was_on_it() -> None:
    card = Memory(CARD, CARD)
    before = {offset: os.urandom(PAGE) for offset in mark_offsets(CARD)[::3]}
    card.pages |= before
    card.probe()
    assert {offset: page for offset, page in card.pages.items() if any(page)} == before
    assert card.flushed == 2


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(
        st.integers(1, CARD // STRIDE).map(lambda number: number * STRIDE),
        st.integers(21, 34).map(lambda power: 1 << power),
        st.sampled_from([CARD // share // PAGE * PAGE for share in (2, 3, 4, 5, 8)]),
    ),
    st.booleans(),
)
def test_counterfeit_card_is_found_with_its_size(real: int, wraps: bool) -> None:
    card = Memory(CARD, real, wraps)
    with pytest.raises(BrambleError) as error:
        card.probe()
    assert "counterfeit" in str(error.value) and f"reports {CARD:,} bytes" in str(error.value)
    found_size = int(str(error.value).split("at most ")[1].split(" bytes")[0].replace(",", ""))
    # A lost write is detected at the next mark.
    assert found_size % real == 0 if wraps else real <= found_size < real + STRIDE


@given(st.integers(CHUNK, CARD - 2 * PAGE))
def test_lost_writes_are_found_for_any_size(real: int) -> None:
    with pytest.raises(BrambleError, match="Replace it"):
        Memory(CARD, real, wraps=False).probe()


def test_one_bad_page() -> None:
    card = Memory(CARD, CARD)
    bad = mark_offsets(CARD)[7]
    write = card.write
    card.write = lambda offset, data: None if offset == bad else write(offset, data)  # type: ignore[method-assign]
    with pytest.raises(BrambleError, match=f"byte {bad:,} cannot be read back: the card is worn or counterfeit"):
        card.probe()
