"""The strings of a charset and a length, and what a job does with some of them."""

import hashlib
import string
from typing import NamedTuple

import numpy as np

from bramble import UsageError
from bramble.programs.rainbow import md5

CHARSETS = {
    "digits": string.digits,
    "hex": string.digits + "abcdef",
    "lower": string.ascii_lowercase,
    "upper": string.ascii_uppercase,
    "lower-digits": string.ascii_lowercase + string.digits,
    "letters": string.ascii_letters,
    "alnum": string.ascii_letters + string.digits,
    "printable": "".join(map(chr, range(32, 127))),
}
MAX_KEYS = 2**63 - 1
ANOTHER_TABLE = 0xD1342543DE82EF95
"""Between the reductions of two tables, modulo 2^64: an odd number."""
MASK = 2**64 - 1


class Keys(NamedTuple):
    """All strings of a length over a charset (its characters as bytes)."""

    charset: bytes
    length: int

    @property
    def size(self) -> int:
        """How many there are: N."""
        return int(len(self.charset) ** self.length)

    def start(self, number: int) -> int:
        """The smallest fraction of the string with a number."""
        return -(-(number << 64) // self.size)

    def text(self, fraction: int) -> str:
        """The string that a fraction stands for."""
        found = []
        for _ in range(self.length):
            fraction *= len(self.charset)
            found.append(self.charset[fraction >> 64])
            fraction &= MASK
        return bytes(found).decode("ascii")

    def alphabet(self) -> np.ndarray:
        return np.frombuffer(self.charset, np.uint8).astype(np.uint32)


def parse_keys(charset: str, length: int) -> Keys:
    """The strings that a user asks for. Raises UsageError when there is no such charset, or there are too many."""
    chosen = charset.removeprefix("chars:") if charset.startswith("chars:") else CHARSETS.get(charset)
    if chosen is None:
        raise UsageError(f"--charset {charset} is not known; there are {', '.join(CHARSETS)}, and chars:... for your own")
    if len(chosen) < 2 or len(set(chosen)) < len(chosen) or not (chosen.isascii() and chosen.isprintable()):
        raise UsageError(f"--charset {charset}: two or more ASCII characters, each once")
    found = Keys(chosen.encode(), length)
    if not 1 <= length <= md5.MAX_LENGTH or found.size > MAX_KEYS:
        raise UsageError(f"--length {length}: {len(chosen)}^{length} strings; lengths go to {md5.MAX_LENGTH}, and to 2^63 strings")
    return found


class Chains(NamedTuple):
    """The chains of a table that start with the strings `begin` up to `end`."""

    keys: Keys
    table: int
    columns: int
    begin: int
    end: int


class Lookup(NamedTuple):
    """A hash (its first 64 bits), a table, and the columns `first` up to `last` in which the hash could be."""

    keys: Keys
    hashed: int
    table: int
    columns: int
    first: int
    last: int


class Alarms(NamedTuple):
    """Chains that may have a hash: the numbers at their starts, and in which column (int64 as bytes; these descend)."""

    keys: Keys
    digest: str
    table: int
    starts: bytes
    columns: bytes


class Candidates(NamedTuple):
    """The strings `begin` up to `end`, one of which may have this hash."""

    keys: Keys
    hashed: int
    begin: int
    end: int


def digest(text: str) -> str:
    """The MD5 hash of a text, hexadecimal."""
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def first_64_bits(digest: str) -> int:
    """The first 64 bits of a hash in hexadecimal, as the kernels have them."""
    return int.from_bytes(bytes.fromhex(digest)[:8], "little")


def table_offset(table: int) -> np.uint64:
    return np.uint64(table * ANOTHER_TABLE & MASK)


def chain_ends(job: Chains) -> bytes:
    """The numbers of the strings at the ends of chains, uint64."""
    found = job.keys
    starts = np.array([found.start(number) for number in range(job.begin, job.end)], np.uint64)
    ends = np.empty_like(starts)
    md5.follow_chains(starts, found.alphabet(), found.length, np.uint64(found.size), table_offset(job.table), job.columns, ends)
    return ends.astype("<u8").tobytes()


def lookup_ends(job: Lookup) -> bytes:
    """Where the chains end that have the hash in each of the columns, uint64."""
    ends = np.empty(job.last - job.first, np.uint64)
    found, size = job.keys, np.uint64(job.keys.size)
    arguments = found.alphabet(), found.length, size, table_offset(job.table), job.first, job.columns
    md5.finish_chains(np.uint64(job.hashed), *arguments, ends)
    return ends.astype("<u8").tobytes()


def check_alarms(job: Alarms) -> str | None:
    """The string with the hash, if one of the chains has it; most only end like one that has."""
    found, columns = job.keys, np.frombuffer(job.columns, "<i8").astype(np.int64)
    starts = np.array([found.start(number) for number in np.frombuffer(job.starts, "<i8").tolist()], np.uint64)
    reached = np.empty_like(starts)
    md5.reach_columns(starts, columns, found.alphabet(), found.length, table_offset(job.table), reached)
    texts = (found.text(fraction) for fraction in reached.tolist())
    return next((text for text in texts if digest(text) == job.digest), None)


def search(job: Candidates) -> str | None:
    """The string with the hash, if it is one of these."""
    found, begin = job.keys, job.begin
    step, rest = divmod(1 << 64, found.size)
    fraction, remainder = divmod(begin << 64, found.size)
    numbers = (np.uint64(number) for number in (fraction, remainder, step, rest, found.size))
    at = md5.search(*numbers, job.end - begin, found.alphabet(), found.length, np.uint64(job.hashed))
    return None if at < 0 else found.text(found.start(begin + at))
