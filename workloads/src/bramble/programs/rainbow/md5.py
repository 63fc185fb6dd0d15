"""MD5 of many short strings at once (RFC 1321), and the chains of a rainbow table (P. Oechslin, 2003).

A string of a charset and a fixed length is one of N = len(charset)^length. It is represented by a *fraction*, a uint64 f:
the string's number is floor(f N / 2^64), and its characters are the digits of f / 2^64 in base len(charset), the first being
the highest, so no division is needed. A hash is reduced to a string by taking its first 64 bits, plus a number that depends
on table and column, as a fraction.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from bramble.arithmetic.jit import compiled, generated, mulhi

LANES = 256
"""Strings that are processed side by side: enough for the vector units of any processor, and few enough for the L1 cache."""
MAX_LENGTH = 15
"""The largest number of characters: with the bit that ends them they fill four words of the block."""
STRIDE = np.uint64(0x9E3779B97F4A7C15)
"""The difference between the reductions of two neighbouring columns: 2^64 divided by the golden ratio, odd."""

_SHIFTS = ((7, 12, 17, 22), (5, 9, 14, 20), (4, 11, 16, 23), (6, 10, 15, 21))
_WORDS = (lambda i: i, lambda i: (5 * i + 1) % 16, lambda i: (3 * i + 5) % 16, lambda i: 7 * i % 16)


@generated
def digests(typing_context: Any, words: Any, bits: Any) -> Any:
    """Return the first two words of the hash of each of two blocks, in compiled code (the steps of RFC 1321, section 3.4).

    `words` are the first four words of one block and the first four of the other, uint32; both strings have `bits` bits. Each
    step needs the result of the one before, so the processor works on one block while the other waits.
    """
    word = ir.IntType(32)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        given, length = arguments
        firsts = [builder.extract_value(given, place) for place in range(8)]
        blocks = [[*firsts[at : at + 4], *[word(0)] * 10, length, word(0)] for at in (0, 4)]
        begin = [word(value) for value in (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)]
        states = [begin, begin]
        for step in range(64):
            turn = step // 16
            constant = word(int(abs(math.sin(step + 1)) * 2**32))
            left = _SHIFTS[turn][step % 4]
            for which, block in enumerate(blocks):
                a, b, c, d = states[which]
                if turn == 0:
                    mixed = builder.xor(d, builder.and_(b, builder.xor(c, d)))
                elif turn == 1:
                    mixed = builder.xor(c, builder.and_(d, builder.xor(b, c)))
                elif turn == 2:
                    mixed = builder.xor(builder.xor(b, c), d)
                else:
                    mixed = builder.xor(c, builder.or_(b, builder.not_(d)))
                total = builder.add(builder.add(a, mixed), builder.add(block[_WORDS[turn](step)], constant))
                turned = builder.or_(builder.shl(total, word(left)), builder.lshr(total, word(32 - left)))
                states[which] = [d, builder.add(b, turned), b, c]
        hashes = [builder.add(state[at], begin[at]) for state in states for at in (0, 1)]
        return context.make_tuple(builder, signature.return_type, hashes)

    return types.UniTuple(types.uint32, 4)(types.UniTuple(types.uint32, 8), types.uint32), generate


@compiled("void(uint64[::1], int64, uint32[::1], int64, uint32[:,::1])")
def _spell(fractions, active, charset, length, block):  # type: ignore[no-untyped-def]
    """Write the strings of the first `active` fractions, and the bit that ends them, into the words of the blocks."""
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    base = np.uint64(len(charset))
    left = fractions.copy()
    digits = np.empty(LANES, np.uint32)
    block[:4] = 0
    for place in range(length):
        word, shift = block[place >> 2], np.uint32(8 * (place & 3))
        for lane in range(active):
            upper = (left[lane] >> half) * base + ((left[lane] & low) * base >> half)
            left[lane] = left[lane] * base
            digits[lane] = upper >> half
        for lane in range(active):
            word[lane] |= charset[digits[lane]] << shift
    block[length >> 2] |= np.uint32(0x80) << np.uint32(8 * (length & 3))


@compiled("void(uint64[::1], int64, uint32[::1], int64, uint64, uint32[:,::1])")
def _link(fractions, active, charset, length, offset, block):  # type: ignore[no-untyped-def]
    """Advance the first `active` chains by one link: spell, hash, reduce.

    The hashing loop uses only 32-bit words, so that a vector unit processes more of them at once.
    """
    _spell(fractions, active, charset, length, block)
    bits = np.uint32(8 * length)
    half = (active + 1) // 2
    for lane in range(half):
        other = lane + half  # for an odd number of chains the last one is superfluous
        one = block[0, lane], block[1, lane], block[2, lane], block[3, lane]
        two = block[0, other], block[1, other], block[2, other], block[3, other]
        block[4, lane], block[5, lane], block[4, other], block[5, other] = digests(one + two, bits)
    for lane in range(active):
        fractions[lane] = (np.uint64(block[4, lane]) | np.uint64(block[5, lane]) << np.uint64(32)) + offset


@compiled("void(uint64[::1], uint32[::1], int64, uint64, uint64, int64, uint64[::1])")
def follow_chains(starts, charset, length, size, offset, columns, ends):  # type: ignore[no-untyped-def]
    """Follow chains from their first fractions through all columns, and write the numbers of the strings at their ends."""
    block = np.empty((6, LANES), np.uint32)
    fractions = np.empty(LANES, np.uint64)
    for begin in range(0, len(starts), LANES):
        active = min(LANES, len(starts) - begin)
        fractions[:active] = starts[begin : begin + active]
        for column in range(columns):
            _link(fractions, active, charset, length, offset + np.uint64(column) * STRIDE, block)
        for lane in range(active):
            ends[begin + lane] = mulhi(fractions[lane], size)


@compiled("void(uint64, uint32[::1], int64, uint64, uint64, int64, int64, uint64[::1])")
def finish_chains(start, charset, length, size, offset, first, columns, ends):  # type: ignore[no-untyped-def]
    """Write the ends of the chains that have a hash (its first 64 bits) in column `first`, `first` + 1...: one per `ends`."""
    block = np.empty((6, LANES), np.uint32)
    fractions = np.empty(LANES, np.uint64)
    for begin in range(0, len(ends), LANES):
        active = min(LANES, len(ends) - begin)
        column = first + begin
        for lane in range(active):
            fractions[lane] = start + offset + np.uint64(column + lane) * STRIDE
        for at in range(column + 1, columns):  # lane 0 starts first, then one more lane in each column
            _link(fractions, min(at - column, active), charset, length, offset + np.uint64(at) * STRIDE, block)
        for lane in range(active):
            ends[begin + lane] = mulhi(fractions[lane], size)


@compiled("void(uint64[::1], int64[::1], uint32[::1], int64, uint64, uint64[::1])")
def reach_columns(starts, columns, charset, length, offset, found):  # type: ignore[no-untyped-def]
    """Write the fractions in given columns of the chains with given first fractions; the columns must be in descending order."""
    block = np.empty((6, LANES), np.uint32)
    fractions = np.empty(LANES, np.uint64)
    for begin in range(0, len(starts), LANES):
        number = active = min(LANES, len(starts) - begin)
        fractions[:number] = starts[begin : begin + number]
        for at in range(columns[begin]):
            while columns[begin + active - 1] <= at:  # the last lanes have reached their columns
                active -= 1
            _link(fractions, active, charset, length, offset + np.uint64(at) * STRIDE, block)
        found[begin : begin + number] = fractions[:number]


@compiled("int64(uint64, uint64, uint64, uint64, uint64, int64, uint32[::1], int64, uint64)")
def search(fraction, remainder, step, rest, size, count, charset, length, wanted):  # type: ignore[no-untyped-def]
    """Return the index of the string whose hash begins with the wanted 64 bits, among `count` consecutive strings; -1 if none.

    (fraction, remainder) is divmod(2^64 times the number of the first string, N), and (step, rest) is divmod(2^64, N).
    """
    block = np.empty((6, LANES), np.uint32)
    fractions = np.empty(LANES, np.uint64)
    for begin in range(0, count, LANES):
        active = min(LANES, count - begin)
        for lane in range(active):
            fractions[lane] = fraction + np.uint64(remainder != 0)
            fraction += step
            remainder += rest
            if remainder >= size:
                remainder -= size
                fraction += np.uint64(1)
        _link(fractions, active, charset, length, np.uint64(0), block)
        for lane in range(active):
            if fractions[lane] == wanted:
                return begin + lane
    return -1
