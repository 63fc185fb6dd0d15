"""The strings of a charset and a length, and the kernels that process some of them."""

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
"""The difference between the reductions of two tables, modulo 2^64: an odd number."""
MASK = 2**64 - 1


class Keys(NamedTuple):
    """All strings of a length over a charset (its characters as bytes)."""

    charset: bytes
    length: int

    @property
    def size(self) -> int:
        """Return N, the number of strings."""
        return int(len(self.charset) ** self.length)

    def start(self, number: int) -> int:
        """Return the smallest fraction of the string with this number (see md5)."""
        return -(-(number << 64) // self.size)

    def text(self, fraction: int) -> str:
        """Return the string that a fraction represents."""
        characters = []
        for _ in range(self.length):
            fraction *= len(self.charset)
            characters.append(self.charset[fraction >> 64])
            fraction &= MASK
        return bytes(characters).decode("ascii")

    def alphabet(self) -> np.ndarray:
        """Return the charset as uint32."""
        return np.frombuffer(self.charset, np.uint8).astype(np.uint32)


def parse_keys(charset: str, length: int) -> Keys:
    """Return the strings of a charset and a length. Raises UsageError when the charset is invalid or there are too many."""
    chosen = charset.removeprefix("chars:") if charset.startswith("chars:") else CHARSETS.get(charset)
    if chosen is None:
        raise UsageError(
            f"--charset {charset} is unknown; choose from {', '.join(CHARSETS)}, or chars:... for your own characters"
        )
    if len(chosen) < 2 or len(set(chosen)) < len(chosen) or not (chosen.isascii() and chosen.isprintable()):
        raise UsageError(f"--charset {charset} must be two or more printable ASCII characters, each once")
    keys = Keys(chosen.encode(), length)
    if not 1 <= length <= md5.MAX_LENGTH or keys.size > MAX_KEYS:
        raise UsageError(
            f"--length {length} with {len(chosen)} characters is {len(chosen)}^{length} strings; the length must be from 1 to "
            f"{md5.MAX_LENGTH}, and there can be at most 2^63 - 1 strings"
        )
    return keys


class Chains(NamedTuple):
    """The chains of a table that start with the strings of the numbers `begin` up to `end`."""

    keys: Keys
    table: int
    columns: int
    begin: int
    end: int


class Lookup(NamedTuple):
    """A hash (its first 64 bits), a table, and the columns `first` up to `last` in which to look the hash up."""

    keys: Keys
    hashed: int
    table: int
    columns: int
    first: int
    last: int


class Alarms(NamedTuple):
    """Chains that may contain a hash: the numbers at their starts, and the columns, descending (both int64 as bytes)."""

    keys: Keys
    digest: str
    table: int
    starts: bytes
    columns: bytes


class Candidates(NamedTuple):
    """The strings of the numbers `begin` up to `end`, one of which may have this hash (its first 64 bits)."""

    keys: Keys
    hashed: int
    begin: int
    end: int


def digest(text: str) -> str:
    """Return the MD5 hash of a text, in hexadecimal."""
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def first_64_bits(digest: str) -> int:
    """Return the first 64 bits of a hexadecimal hash as the number that the kernels use."""
    return int.from_bytes(bytes.fromhex(digest)[:8], "little")


def table_offset(table: int) -> np.uint64:
    """Return what the reductions of a table add to a hash."""
    return np.uint64(table * ANOTHER_TABLE & MASK)


def chain_ends(job: Chains) -> bytes:
    """Return the numbers of the strings at the ends of chains, uint64 as bytes."""
    keys = job.keys
    starts = np.array([keys.start(number) for number in range(job.begin, job.end)], np.uint64)
    ends = np.empty_like(starts)
    md5.follow_chains(starts, keys.alphabet(), keys.length, np.uint64(keys.size), table_offset(job.table), job.columns, ends)
    return ends.astype("<u8").tobytes()


def lookup_ends(job: Lookup) -> bytes:
    """Return, for each of the columns, the end of a chain that has the hash there, uint64 as bytes."""
    ends = np.empty(job.last - job.first, np.uint64)
    keys, size = job.keys, np.uint64(job.keys.size)
    arguments = keys.alphabet(), keys.length, size, table_offset(job.table), job.first, job.columns
    md5.finish_chains(np.uint64(job.hashed), *arguments, ends)
    return ends.astype("<u8").tobytes()


def check_alarms(job: Alarms) -> str | None:
    """Return the string with the hash, or None. Most chains are false alarms: they only end like a chain that contains it."""
    keys, columns = job.keys, np.frombuffer(job.columns, "<i8").astype(np.int64)
    starts = np.array([keys.start(number) for number in np.frombuffer(job.starts, "<i8").tolist()], np.uint64)
    reached = np.empty_like(starts)
    md5.reach_columns(starts, columns, keys.alphabet(), keys.length, table_offset(job.table), reached)
    texts = (keys.text(fraction) for fraction in reached.tolist())
    return next((text for text in texts if digest(text) == job.digest), None)


def search(job: Candidates) -> str | None:
    """Return the string with the hash if it is one of the candidates, else None."""
    keys, begin = job.keys, job.begin
    step, rest = divmod(1 << 64, keys.size)
    fraction, remainder = divmod(begin << 64, keys.size)
    numbers = (np.uint64(number) for number in (fraction, remainder, step, rest, keys.size))
    index = md5.search(*numbers, job.end - begin, keys.alphabet(), keys.length, np.uint64(job.hashed))
    return None if index < 0 else keys.text(keys.start(begin + index))
