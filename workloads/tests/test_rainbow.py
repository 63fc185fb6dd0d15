"""MD5 and rainbow tables: RFC 1321, hashlib, chains in plain Python, agreement with theory, damaged files, interruptions."""

import hashlib
import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bramble import ResultError, UsageError
from bramble.engine import places
from bramble.engine.local import Local
from bramble.programs.rainbow import kernel, md5, run
from bramble.programs.rainbow import table as files
from bramble.study import report, runs
from bramble.study.record import write_record

LOCAL_REQUEST = runs.Request(on="local")
SCREEN = report.Screen("-")


def hashes(texts: list[str]) -> list[int]:
    """Return the first 64 bits of the hashes of texts of one length, by the compiled code."""
    charset = "".join(sorted(set("".join(texts)) | {"a", "b"}))
    keys = kernel.Keys(charset.encode(), len(texts[0]))
    found = []
    for text in texts:
        number = 0
        for character in text:
            number = number * len(charset) + charset.index(character)
        fractions = np.full(md5.LANES, keys.start(number), np.uint64)
        assert keys.text(int(fractions[0])) == text
        md5._link(fractions, md5.LANES, keys.alphabet(), keys.length, np.uint64(0), np.zeros((6, md5.LANES), np.uint32))
        assert len(set(fractions.tolist())) == 1
        found.append(int(fractions[0]))
    return found


@pytest.mark.parametrize(
    ("text", "digest"),
    [("a", "0cc175b9c0f1b6a831c399e269772661"), ("abc", "900150983cd24fb0d6963f7d28e17f72"),
     ("message digest", "f96b697d7cb7938d525a2f31aaf161d0")],
)  # fmt: skip
def test_rfc_1321(text: str, digest: str) -> None:
    """The part of its test suite whose lengths are supported."""
    assert hashes([text]) == [kernel.first_64_bits(digest)]
    assert kernel.digest(text) == digest


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=9))
def test_any_text_is_hashed_as_hashlib_does(text: str) -> None:
    assert hashes([text]) == [int.from_bytes(hashlib.md5(text.encode()).digest()[:8], "little")]


@given(
    charset=st.integers(2, 95),
    length=st.integers(1, 15),
    data=st.data(),
)
def test_a_string_has_one_number(charset: int, length: int, data: st.DataObject) -> None:
    keys = kernel.Keys(bytes(range(32, 32 + charset)), length)
    if keys.size > kernel.MAX_KEYS:
        return
    number = data.draw(st.integers(0, keys.size - 1))
    text = keys.text(keys.start(number))
    back = 0
    for character in text.encode():
        back = back * charset + character - 32
    assert back == number
    assert keys.start(number) * keys.size >> 64 == number


KEYS = kernel.Keys(b"abcdefghijklmnopqrstuvwxyz", 4)


def at_column(keys: kernel.Keys, table: int, number: int, column: int) -> str:
    """Return the string in a column of the chain that starts with a number, in plain Python."""
    fraction = keys.start(number)
    for passed in range(column):
        hashed = int.from_bytes(hashlib.md5(keys.text(fraction).encode()).digest()[:8], "little")
        fraction = (hashed + table * 0xD1342543DE82EF95 + passed * 0x9E3779B97F4A7C15) % 2**64
    return keys.text(fraction)


def test_a_chain_is_that_of_plain_python() -> None:
    ends = np.frombuffer(kernel.chain_ends(kernel.Chains(KEYS, 3, 57, 1000, 1600)), "<u8")
    for index in (0, 1, 255, 256, 599):
        text = at_column(KEYS, 3, 1000 + index, 57)
        assert KEYS.text(KEYS.start(int(ends[index]))) == text


def test_alarms_reach_their_columns() -> None:
    """More chains than lanes, with several lengths, zero included."""
    draw = random.Random(3)
    pairs = sorted(((draw.choice([0, 0, 1, 7, 8, 100]), draw.randrange(KEYS.size)) for _ in range(300)), reverse=True)
    columns, starts = np.array(pairs, "<i8").T
    for column, start in (pairs[0], pairs[255], pairs[256], pairs[-1]):
        text = at_column(KEYS, 2, start, column)
        job = kernel.Alarms(KEYS, kernel.digest(text), 2, starts.tobytes(), columns.tobytes())
        assert kernel.check_alarms(job) == text
        assert kernel.check_alarms(job._replace(table=3)) != text or column == 0


def test_tables_and_columns_reduce_differently() -> None:
    one, two = (kernel.chain_ends(kernel.Chains(KEYS, table, 20, 0, 256)) for table in (0, 1))
    assert one != two
    ends = [np.frombuffer(kernel.chain_ends(kernel.Chains(KEYS, 0, columns, 0, 1)), "<u8")[0] for columns in range(1, 40)]
    assert len(set(ends)) == len(ends)


@pytest.mark.parametrize("column", [0, 1, 299, 300, 599])
def test_a_hash_in_any_column_leads_to_the_end_of_its_chain(column: int) -> None:
    """Column ranges of any length and position, longer and shorter than the number of lanes."""
    columns, start = 600, 77
    (end,) = np.frombuffer(kernel.chain_ends(kernel.Chains(KEYS, 1, columns, start, start + 1)), "<u8")
    hashed = kernel.first_64_bits(kernel.digest(at_column(KEYS, 1, start, column)))
    whole = np.frombuffer(kernel.lookup_ends(kernel.Lookup(KEYS, hashed, 1, columns, 0, columns)), "<u8")
    assert whole[column] == end
    parts = [kernel.lookup_ends(kernel.Lookup(KEYS, hashed, 1, columns, *cut)) for cut in ((0, 7), (7, 300), (300, 600))]
    assert b"".join(parts) == whole.tobytes()


@pytest.mark.parametrize("size", [1, 5000, 20_000])
def test_column_ranges_cover_every_column_once(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "LINKS_PER_JOB", 10**6)
    cuts = run.column_ranges(files.Plan("ab", 9, 0, size, 1))
    assert [first for first, _ in cuts] == [0, *(last for _, last in cuts[:-1])] and cuts[-1][1] == size
    if size == 20_000:
        costs = [sum(size - column for column in range(*cut)) for cut in cuts]
        assert max(costs) < 1.05 * min(costs) and len(cuts) == 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tables of all strings of four lowercase letters."""
    folder = tmp_path_factory.mktemp("tables")
    runs.perform(run.build(run.plans(KEYS, 2, 200, None), folder), LOCAL_REQUEST, SCREEN)
    return folder


def test_rows_and_hits_agree_with_theory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within three sigma: the chains that are left after merging, and the strings that each table and both together find."""
    tables = files.load_tables(folder)
    for table in tables:
        expected = table.plan.strings()[-1]
        assert abs(len(table.ends) - expected) < 3 * math.sqrt(expected)
    draw = random.Random(9)
    asked = {kernel.digest(text): text for text in (KEYS.text(KEYS.start(draw.randrange(KEYS.size))) for _ in range(600))}
    found = np.zeros((2, len(asked)), bool)
    for at, table in enumerate(tables):
        monkeypatch.setattr(files, "load_tables", lambda folder, table=table: [table])
        answer, _ = runs.perform(run.crack(list(asked), folder), LOCAL_REQUEST, SCREEN)
        assert all(answer[digest] in (None, text) for digest, text in asked.items())
        found[at] = [answer[digest] is not None for digest in asked]
    one = tables[0].plan.coverage(len(tables[0].ends))
    for hits, theory in ((found[0].sum(), one), (found[1].sum(), one), (found.any(0).sum(), 1 - (1 - one) ** 2)):
        assert abs(hits - len(asked) * theory) < 3 * math.sqrt(len(asked) * theory * (1 - theory)), (hits, theory)


def test_a_perfect_table(folder: Path) -> None:
    for table in files.load_tables(folder):
        assert (np.diff(table.ends.astype(np.int64)) > 0).all()
        assert table.path.stat().st_size == files.HEADER + files.ROW * len(table.ends)
        row = len(table.ends) // 2
        text = at_column(KEYS, table.plan.table, int(table.starts[row]), table.plan.columns)
        assert text == KEYS.text(KEYS.start(int(table.ends[row])))


def test_crack_and_brute(folder: Path, tmp_path: Path) -> None:
    texts = ["abcd", "pear", "plum", "figs", "zzzz", "aaaa"]
    digests = [kernel.digest(text) for text in texts]
    request = runs.Request(on="local", report=tmp_path)
    program = run.crack([digests[0].upper(), *digests[1:], "0" * 32], folder)
    answer, record = runs.perform(program, request, SCREEN)
    write_record(program, request, answer, record)
    assert all(answer[digest] in (None, text) for digest, text in zip(digests, texts, strict=True))
    assert sum(text is not None for text in answer.values()) >= 3 and answer["0" * 32] is None
    with pytest.raises(ResultError, match=r"not found: .*0000"):
        run.check(record)
    assert (tmp_path / "rainbow.png").stat().st_size > 5000
    for text in ("zzzz", "aaaa", "plum"):
        assert runs.perform(run.brute(kernel.digest(text), KEYS), LOCAL_REQUEST, SCREEN)[0] == {kernel.digest(text): text}
    assert runs.perform(run.brute(kernel.digest("PLUM"), KEYS), LOCAL_REQUEST, SCREEN)[0] == {kernel.digest("PLUM"): None}


class Interrupted(Local):
    """An engine that is interrupted with Ctrl-C after some jobs."""

    def map(self, kernel, arguments, nodes=None):  # type: ignore[no-untyped-def]
        for outcome in super().map(kernel, arguments, nodes):
            if outcome.index == 5:
                raise KeyboardInterrupt
            yield outcome


def test_an_interrupted_build_continues(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(run, "MIN_LINKS_PER_JOB", 100_000)
    program = run.build(run.plans(KEYS, 1, 200, None), tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(places, "Local", Interrupted)
        runs.perform(program, LOCAL_REQUEST, SCREEN)
    assert not list(tmp_path.glob("*.rainbow"))
    _, record = runs.perform(program, LOCAL_REQUEST, report.Screen("-"))
    assert "continuing the earlier build, 5 of" in capsys.readouterr().err
    assert record["runs"][0]["jobs"] + 5 >= 18
    (name,) = [path.name for path in tmp_path.iterdir()]  # the files of the unfinished build are removed
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        run.build(run.plans(KEYS, 1, 200, None), tmp_path)


@pytest.mark.parametrize("place", [10, 5000, -4, None])
def test_a_damaged_table_is_named_and_not_used(folder: Path, tmp_path: Path, place: int | None) -> None:
    """A bit of the header, of the ends or of the starts is flipped, or the file is truncated."""
    source = sorted(folder.glob("*.rainbow"))[1]
    content = bytearray(source.read_bytes())
    if place is None:
        del content[-12:]
    else:
        content[place] ^= 1
    (tmp_path / source.name).write_bytes(content)
    with pytest.raises(ResultError, match=r"table1\.rainbow is damaged and is not used: .*; remove it"):
        run.crack(["0" * 32], tmp_path)


def test_predictions_agree_with_theory() -> None:
    """By Oechslin's paper, one table cannot exceed 2 N / t chains, nor find more than 86 %."""
    prediction = run.predict(run.plans(kernel.parse_keys("lower", 6), 4, 1000, None))
    assert prediction["keys"] == 26**6 and prediction["rows"] < 2 * 26**6 / 1000
    assert 0.72 < prediction["coverage_of_one"] < 0.8647 and prediction["coverage"] > 0.99
    most = run.predict(run.plans(kernel.parse_keys("lower", 6), 1, 1000, 10**8))
    assert 0.86 < most["coverage"] < 0.8647
    text = run.describe_plan(prediction)
    assert "hashes of your own" in text and "salt" in text


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda: kernel.parse_keys("klingon", 3), "klingon is unknown; choose from digits"),
        (lambda: kernel.parse_keys("chars:aa", 3), "each once"),
        (lambda: kernel.parse_keys("chars:aé", 3), "ASCII"),
        (lambda: kernel.parse_keys("lower", 0), "--length 0"),
        (lambda: kernel.parse_keys("lower", -4), "--length -4"),
        (lambda: kernel.parse_keys("lower", 16), "--length 16"),
        (lambda: kernel.parse_keys("printable", 12), "2\\^63"),
        (lambda: run.plans(KEYS, 1, 10**7, None), "--chain must be"),
        (lambda: run.plans(KEYS, 1, 10, 10**6), "--starts can be at most 456976"),
        (lambda: run.plans(kernel.parse_keys("printable", 9), 1, 10, None), "longer --chain"),
        (lambda: run.build(run.plans(kernel.parse_keys("alnum", 8), 1, 10**5, 2**32), Path("/nowhere")), "GB of memory"),
        (lambda: run.crack(["1234"], Path("/nowhere")), "not an MD5 hash"),
        (lambda: run.crack(["0" * 32], Path("/nowhere")), "no table in /nowhere"),
        (lambda: run.brute("0" * 32, kernel.parse_keys("printable", 9)), "too many to try"),
    ],
)
def test_wrong_requests(ask, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=words):
        ask()
